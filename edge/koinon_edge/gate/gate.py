"""A device's gate: it looks at the device, decides, and remembers."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from koinon_edge.gate.budget import Budget
from koinon_edge.gate.decide import decide
from koinon_edge.gate.found import find
from koinon_edge.gate.networks import Network
from koinon_edge.gate.predicates import Memory
from koinon_edge.gate.verdict import Verdict
from koinon_edge.probe import Files
from koinon_edge.settings import GateSettings

__all__ = ["Gate"]


class Gate:
    """`disk` is where the daemon keeps its files, `network` what Networks answers. For one thread; a look takes as long
    as sensors that are offline are waited for, some seconds at the worst."""

    def __init__(
        self, settings: GateSettings, files: Files, disk: Path, network: Callable[[], Network], budget: Budget
    ):
        self._settings, self._files, self._disk = settings, files, disk
        self._network, self._budget = network, budget
        self._memory = Memory()

    def look(self, now: datetime, *, working: bool) -> Verdict:
        """Whether the device may work at `now`, which knows its zone. `working`: there is work under way, paused or
        not."""
        if now.tzinfo is None:
            raise ValueError("a time without a zone is no time to look at")
        found = find(self._files, self._disk, self._network, self._budget, now, self._settings.zone)
        verdict, self._memory = decide(self._settings, found, self._memory, working=working)
        return verdict
