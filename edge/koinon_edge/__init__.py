"""The edge: a client kept alive on a small device, without being watched.

`keep` runs the owner's training script as a child process and starts it again when it dies; `cli` is the command.
It imports neither torch nor the database.
"""

from koinon_core import __version__

__all__ = ["__version__"]
