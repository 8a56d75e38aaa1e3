"""A run in TensorBoard: its metrics by round, and how many devices, bytes and seconds each round took."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from koinon.tracking.told import RoundEnd, RunStart
from koinon_core.canonical import canonical
from koinon_core.errors import UsageError

__all__ = ["TensorBoard"]

_FIGURES = ("participants", "counted", "bytes_up", "bytes_down", "seconds")


class TensorBoard:
    """Writes to `folder`/NAME-ID, flushed after every round. A metric `train.loss` is `train/loss`, its step is the
    round. Tracked again from the start, a run takes the place of what was written of it before.

    UsageError if neither tensorboardX nor torch with tensorboard is installed.
    """

    def __init__(self, folder: Path):
        self._folder, self._make = folder, _writer_class()
        self._writer: Any = None
        self._last = 0

    def on_run_start(self, start: RunStart) -> None:
        # Two runs of one name (at two coordinators, or simulated twice) must not lie over each other. purge_step:
        # TensorBoard then leaves out what earlier files in the folder say from that step on.
        folder = self._folder / f"{start.name}-{start.id[-8:]}"
        self._writer = self._make(str(folder), purge_step=0)
        settings = canonical(dict(start.settings)).decode()
        text = f"{start.strategy}, {start.aggregation}, {start.rounds} rounds\n\n`{settings}`"
        self._writer.add_text("run/settings", text, 0, start.created_at)
        self._writer.flush()

    def on_round(self, round_: RoundEnd) -> None:
        self._last, at = round_.number, round_.closed_at
        for name, value in sorted(round_.metrics.items()):
            self._writer.add_scalar(name.replace(".", "/", 1), value, round_.number, at)
        for name in _FIGURES:
            figure = getattr(round_, name)
            if figure is not None:
                self._writer.add_scalar(f"round/{name}", figure, round_.number, at)
        if round_.status != "closed":
            text = f"round {round_.number} {round_.status}: it {round_.reason}"
            self._writer.add_text("round/status", text, round_.number, at)
        self._writer.flush()

    def on_measured(self, number: int, metrics: Mapping[str, float]) -> None:
        """What the run's owner measured of a round's model since it was written."""
        for name, value in sorted(metrics.items()):
            self._writer.add_scalar(name.replace(".", "/", 1), value, number)
        self._writer.flush()

    def on_end(self, status: str, reason: str) -> None:
        self._writer.add_text("run/end", f"{status}: {reason}", self._last)
        self._writer.close()


def _writer_class() -> Any:
    # tensorboardX first: it is light, and torch takes seconds to import.
    for module in ("tensorboardX", "torch.utils.tensorboard"):
        try:
            return importlib.import_module(module).SummaryWriter
        except ImportError:
            continue
    raise UsageError(
        "tracking to TensorBoard needs a package that is not here; pip install koinon[tensorboard]"
    )
