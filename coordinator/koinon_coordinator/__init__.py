"""The coordinator: the pure machines of the core, given a network, a database and a clock.

Read it in this order: config, service (the network), federation (all runs), driver (one run), closing (the
sum), roster (the devices), store (the database).
"""

from koinon_core import __version__

__all__ = ["__version__"]
