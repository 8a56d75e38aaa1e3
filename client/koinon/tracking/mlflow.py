"""A run in MLflow: one MLflow run for it, with its settings as parameters and its metrics by round."""

import importlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from koinon.tracking.told import RoundEnd, RunStart
from koinon_core.errors import UsageError
from koinon_core.flow.central import is_central

__all__ = ["MLflow"]

_MARK = "round.number"
_FIGURES = ("participants", "counted", "bytes_up", "bytes_down", "seconds")
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
_MOST_METRICS, _MOST_PARAMS, _LONGEST = 1000, 100, 500  # what one call may hold, and a value's characters


class MLflow:
    """Writes to the MLflow server or store at `uri`, into `experiment`. A run is one MLflow run, found by its tag
    koinon.run; tracked again, it is gone on with, and rounds that it has are not logged again. There is nothing in it
    of single devices.

    UsageError if mlflow is not installed.
    """

    def __init__(self, uri: str, experiment: str = "koinon"):
        try:
            module = importlib.import_module("mlflow")
            self._entities = importlib.import_module("mlflow.entities")
        except ImportError:
            raise UsageError(
                "tracking to MLflow needs a package that is not here; pip install koinon[mlflow]"
            ) from None
        self._client: Any = module.MlflowClient(tracking_uri=uri)
        self._experiment = experiment
        self._run = ""
        self._rounds: set[int] = set()

    def on_run_start(self, start: RunStart) -> None:
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        runs = self._client.search_runs([experiment], filter_string=f"tags.`koinon.run` = '{start.id}'")
        if runs:
            self._run = runs[0].info.run_id
            self._rounds = {int(m.value) for m in self._client.get_metric_history(self._run, _MARK)}
        else:
            at = None if start.created_at is None else int(1000 * start.created_at)
            made = self._client.create_run(
                experiment, start_time=at, run_name=start.name, tags={"koinon.run": start.id}
            )
            self._run = made.info.run_id
        # A parameter may be logged again with the value that it has, so what a crash left out is made up for.
        stated = {"strategy": start.strategy, "rounds": start.rounds, "aggregation": start.aggregation}
        flat = {**dict(_flat("", start.settings)), **stated}
        params = [self._entities.Param(_key(k), str(v)[:_LONGEST]) for k, v in sorted(flat.items())]
        for at in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._run, params=params[at : at + _MOST_PARAMS])

    def on_round(self, round_: RoundEnd) -> None:
        if round_.number in self._rounds:
            self.on_measured(round_.number, {n: v for n, v in round_.metrics.items() if is_central(n)})
            return
        figures = {f"round.{name}": getattr(round_, name) for name in _FIGURES}
        values = {**round_.metrics, **{k: v for k, v in figures.items() if v is not None}}
        at = int(1000 * (time.time() if round_.closed_at is None else round_.closed_at))
        metrics = [
            self._entities.Metric(_key(name), float(value), at, round_.number)
            for name, value in values.items()
        ]
        if round_.status != "closed":
            words = f"{round_.status}: it {round_.reason}"[:_LONGEST]
            self._client.set_tag(self._run, f"koinon.round.{round_.number}", words)
        # The mark goes last: without it a round is logged again, and its values at that step are what they were.
        metrics.append(self._entities.Metric(_MARK, float(round_.number), at, round_.number))
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[first : first + _MOST_METRICS])
        self._rounds.add(round_.number)

    def on_measured(self, number: int, metrics: Mapping[str, float]) -> None:
        """What the run's owner measured of a round's model since it was logged; logged again, it is what it was."""
        at = int(1000 * time.time())
        values = [
            self._entities.Metric(_key(name), float(v), at, number) for name, v in sorted(metrics.items())
        ]
        if values:
            self._client.log_batch(self._run, metrics=values)

    def on_end(self, status: str, reason: str) -> None:
        self._client.set_tag(self._run, "koinon.reason", reason[:_LONGEST])
        self._client.set_terminated(self._run, status=_STATUS.get(status, "FAILED"))


def _flat(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings as one level: config.epochs."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _key(name: str) -> str:
    """A name that MLflow takes: devices name their metrics as they like."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:250]
