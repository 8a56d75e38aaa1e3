"""Tracking of runs: what happens in a run, told to JSONL, TensorBoard, MLflow, or a tracker of one's own.

    follow(handle, [JsonLines(Path("digits.jsonl"))])                # a run at a coordinator, until it is over
    replay_into(koinon.simulate(run, client), run, [TensorBoard(Path("runs"))])

A tracker hears of every round once, in order, when everything that belongs to it is in: metrics of the model that a
round made (`eval.`) come with the next round, so a round is told when the next one has closed, or the run is over.
Who starts late is told the rounds that are over first. Nothing individual of a device is told: how many took part, not
who; the names of devices in reasons are replaced.
"""

from koinon.tracking.following import Source, follow
from koinon.tracking.replaying import replay_into
from koinon.tracking.told import RoundEnd, RunStart, Tracker, Trackers

__all__ = ["RoundEnd", "RunStart", "Source", "Tracker", "Trackers", "follow", "replay_into"]
