"""One piece of work, as the owner's loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .errors import UsageError
from .line import Line, Signals

__all__ = ["Task"]


class Task:
    """Work for one round (or one extra pass of it): the model holds the weights to start from.

    Call `submit` once when the local training is done. Leaving the loop's body without it declines the round.
    """

    def __init__(
        self, said: Mapping[str, Any], signals: Signals, line: Line, model: Any, steering: Any,
        hand_in: Callable[[Task, int, Mapping[str, float]], None], progress: Callable[[], None],
    ):  # fmt: skip
        self.id = int(said["id"])
        """The worker's number for it."""
        self.round = int(said["round"])
        self.kind = str(said["kind"])
        """What the work is for: "train", "measure" (of a gradient) or "personal"."""
        self.config: Mapping[str, Any] = dict(said["config"])
        self.seed = int(said["seed"])
        """For your own random choices: the same for this run's seed, round and device, simulated or deployed."""
        self.epochs = int(said["epochs"])
        """Local epochs: what the strategy wants of this pass, or `epochs` of the run's [config], or 1."""
        self.submitted = False
        self.partial = False
        """Whether what was handed in is of work that was stopped early."""
        self.declined: tuple[str, str] | None = None
        """The code and the reason with which there will be no update, if its owner said so."""
        self.steering = steering
        self._whole, self._shrink = str(said.get("whole") or ""), int(said.get("shrink") or 0)
        self._signals, self._line, self._model = signals, line, model
        self._hand_in, self._progress = hand_in, progress

    def __repr__(self) -> str:
        return f"Task(round={self.round}, kind={self.kind!r}, submitted={self.submitted})"

    @property
    def outcome(self) -> str:
        """What became of it, once that is known: "counted", or why not."""
        return self._signals.outcome or self._signals.late

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this work any more; a loop may look at it and stop early."""
        return bool(self._signals.late)

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return int(self.steering.recorded.steps)

    @property
    def remaining(self) -> float | None:
        """Seconds until the round no longer waits for this work, as far as this device knows: never more than there
        are, 0 once they are over or the daemon wants what there is (heat, power). None where nobody knows."""
        if self._signals.stop:
            return 0.0
        return None if self._signals.until is None else max(0.0, self._signals.until - self._line.clock())

    @property
    def takes_partial(self) -> bool:
        """Whether work that is stopped early may be handed in, by the run's config and its strategy."""
        return not self._whole

    def micro_batch(self, wanted: int) -> int:
        """How many examples to take at a time, where the owner would take `wanted`: half of them for every time that
        this work ran out of memory, and at least 1."""
        return max(1, wanted >> self._shrink)

    def decline(self, reason: str, *, code: str = "DECLINED") -> None:
        """Say why there will be no update of this round, and leave the loop's body; the operator sees the reason."""
        self.declined = code, reason

    def descend(self, gradients: Mapping[str, Any], lr: float) -> None:
        """One plain SGD step on a model of numpy arrays, with the strategy's gradient term."""
        self._model.descend(gradients, lr, self.steering)
        self._progress()

    def submit(
        self, *, examples: int, metrics: Mapping[str, float] | None = None, partial: bool = False
    ) -> None:  # fmt: skip
        """Hand in what the model has become. `examples` is how many it was trained on, at least 1; `metrics`
        are numbers about the training, joined over all devices by their examples. `partial` says that the training was
        stopped early (`remaining`, heat, a battery): `examples` are then those that it has really seen, and the
        passes that would come after it are left out.

        UsageError where the run or its strategy takes whole work only (`takes_partial`): the loop may go on, or leave
        the round. BadUpdate, in one sentence, if it may not be sent (NaN, too many examples, out of bounds).
        Unavailable if the worker has died: end the program. A round that is over already is no error: the work is
        dropped, and `outcome` says why.
        """
        if self.submitted:
            raise UsageError(f"round {self.round} has its update already; submit once")
        if isinstance(examples, bool) or int(examples) != examples:
            raise UsageError(f"examples must be a whole number, not {examples!r}")
        if partial and self._whole:
            raise UsageError(
                f"this work cannot be handed in early: {self._whole}; finish it, or leave the round"
            )
        self.submitted, self.partial = True, partial
        self._hand_in(self, int(examples), {k: float(v) for k, v in (metrics or {}).items()})
