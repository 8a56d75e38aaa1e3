"""A run that was simulated, told to trackers."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from koinon.tracking.told import RoundEnd, RunStart, Tracker, Trackers, unnamed
from koinon_core.canonical import digest_of

if TYPE_CHECKING:
    from koinon.run import Run
    from koinon.simulation import Simulated

__all__ = ["replay_into"]


def replay_into(simulated: "Simulated", run: "Run", trackers: Iterable[Tracker]) -> None:
    """Tell trackers a run that `koinon.simulate(run, ...)` simulated. The same result has the same id each time."""
    from koinon_core.strategy import recipe

    spec, every = run.spec, Trackers(trackers)
    digest = digest_of([
        spec.encoded.decode(), simulated.models,
        [[r.number, r.status, list(r.clients), {k: repr(v) for k, v in r.metrics.items()}] for r in simulated.rounds],
    ])  # fmt: skip
    settings = json.loads(spec.encoded)
    settings.pop("schema", None)
    every.on_run_start(RunStart(
        id=f"simulated-{digest[:16]}", name=spec.name, strategy=recipe.show(spec.strategy), rounds=spec.rounds,
        aggregation=spec.aggregation, created_at=None, settings=settings,
    ))  # fmt: skip
    names = {client for r in simulated.rounds for client in r.clients}
    # Digests of models are the first one's and one for each round that made one; whatever closes later evaluates.
    training = len(simulated.models) - 1 if simulated.models else spec.rounds
    for r in simulated.rounds:
        kind, closed = "train" if training > 0 else "evaluate", r.status == "closed"
        training -= closed
        every.on_round(RoundEnd(
            number=r.number, kind=kind, status=r.status, reason=unnamed(r.reason, names), participants=None,
            counted=len(r.clients) if closed else 0,
            metrics={**r.metrics, **simulated.metrics.get(r.number, {})},
        ))  # fmt: skip
    every.on_end(simulated.status, unnamed(simulated.reason, names))
