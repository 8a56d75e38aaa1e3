"""Which devices are in a round: what a run's [selection] says (`rule`), what a device is known by (`traits`), and the
draw itself (`draw`), which is the same on every machine. `koinon_core.run.gather` applies it."""

from koinon_core.selection.rule import Selection
from koinon_core.selection.traits import Seen

__all__ = ["Seen", "Selection"]
