"""What a person sees of the demo: a table that grows, and the comparison at the end."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from koinon.cli.output import figure, size
from koinon.demo.processes import FEDERATION
from koinon_core.errors import RunEnded

__all__ = ["Scene"]


def _bin() -> str:
    """What to write before our commands where they are not on the path, as under `make demo`."""
    if shutil.which("koinon-coordinator"):
        return ""
    return os.path.relpath(Path(sys.executable).parent) + os.sep


@dataclass(slots=True)
class Scene:
    """Collects the team's reports, shows them, and sums them up."""

    folder: Path
    started: float
    rounds: list[dict[str, Any]] = field(default_factory=list)
    alone: dict[int, float] = field(default_factory=dict)
    central: float = 0.0
    seconds: float = 0.0
    _line: str = "starting the coordinator and the devices ..."

    def follow(self, reports: Iterable[tuple[Any, ...]], console: Console) -> None:
        """Show the reports as they come. RunEnded if the run did not finish."""
        with Live(self._view(), console=console, refresh_per_second=8, transient=False) as live:
            for report in reports:
                self._take(report)
                live.update(self._view())
            self.seconds = time.monotonic() - self.started
            self._line = ""
            live.update(self._view())

    def _take(self, report: tuple[Any, ...]) -> None:
        match report:
            case ("round", number, accuracy, loss, clients, up, bits, down, seconds):
                self.rounds.append(
                    {
                        "round": number, "accuracy": accuracy, "loss": loss, "clients": clients, "bytes_up": up,
                        "bits": bits, "bytes_down": down, "seconds": seconds,
                    }
                )  # fmt: skip
            case ("run", "failed" | "cancelled" as status, reason, _):
                raise RunEnded(
                    f"the demo's run {status}: {reason}; {self.folder / 'coordinator.log'} says more"
                )
            case ("run", "finished", _, _):
                self._line = "training one model on all data, and one on each device's alone, to compare ..."
            case ("run", _, _, waiting_for):
                self._line = waiting_for
            case ("alone", index, accuracy, _):
                self.alone[index] = accuracy
            case ("central", accuracy):
                self.central = accuracy

    def _view(self) -> Group:
        table = Table(title=f"Federated digits: {self.folder}", title_justify="left")
        # `bits/param` on two lines: the table stays within 80 columns.
        for name in ("round", "clients", "accuracy", "loss", "up", "bits/\nparam", "down", "seconds"):
            table.add_column(name, justify="right")
        for r in self.rounds:
            table.add_row(
                str(r["round"]), str(r["clients"]), f"{r['accuracy']:.4f}", f"{r['loss']:.4f}",
                size(r["bytes_up"]), figure(r["bits"]), size(r["bytes_down"]), f"{r['seconds']:.2f}",
            )  # fmt: skip
        return Group(table, Text(self._line, style="dim"))

    @property
    def accuracy(self) -> float:
        return float(self.rounds[-1]["accuracy"]) if self.rounds else 0.0

    def conclude(self, console: Console) -> None:
        """The comparison, and where to look further."""
        table = Table(title="Accuracy on test images", title_justify="left")
        table.add_column("trained")
        table.add_column("accuracy", justify="right")
        table.add_row("federated", f"[bold]{self.accuracy:.4f}[/bold]")
        table.add_row("centrally, on all data", f"{self.central:.4f}")
        table.add_row("alone, by the best device", f"{max(self.alone.values(), default=0.0):.4f}")
        console.print(table)
        db, federation, here = self.folder / "koinon.db", self.folder / FEDERATION, _bin()
        console.print(f"{self.seconds:.1f} s in all. The run is kept; to look at it:", highlight=False)
        console.print(
            f"  {here}koinon-coordinator serve --dir {federation} --db sqlite:///{db} &",
            highlight=False,
            soft_wrap=True,
        )
        console.print(
            f"  {here}koinon run show demo --credentials {federation / 'admin'}",
            highlight=False,
            soft_wrap=True,
        )

    def write(self, file: Path) -> None:
        """The figures, as one JSON object."""
        figures = {
            "accuracy": self.accuracy,
            "central_accuracy": self.central,
            "best_alone_accuracy": max(self.alone.values(), default=0.0),
            "seconds": self.seconds,
            "rounds": self.rounds,
            "directory": str(self.folder),
        }
        file.write_text(json.dumps(figures, indent=2) + "\n")
