"""One piece of work, as the owner's loop sees it."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from koinon.models import Model, Steering
from koinon_core.canonical import digest_of
from koinon_core.errors import UsageError
from koinon_core.round.terms import Terms
from koinon_core.tensors import Array

__all__ = ["Kind", "Task"]

Kind = Literal["train", "measure", "personal"]


class Task:
    """Work for one round (or one extra pass of it): the model holds the weights to start from.

    Call `submit` once when the local training is done. Leaving the loop's body without it declines the round.
    """

    def __init__(
        self, terms: Terms, client: str, kind: Kind, model: Model, steering: Steering,
        hand_in: Callable[["Task", int, Mapping[str, float]], None], epochs: int | None = None, *,
        whole: str = "", left: Callable[[], float] | None = None,
    ):  # fmt: skip
        self.round = terms.round
        self.kind: Kind = kind
        self.config: Mapping[str, Any] = terms.config
        self.seed = int(digest_of([terms.seed, terms.round, client])[:8], 16)
        """For your own random choices: the same for this run's seed, round and device, simulated or deployed."""
        self.submitted = False
        self.outcome = ""
        """What became of it, once that is known: "counted", or why not."""
        self.partial = False
        """Whether what was handed in is of work that was stopped early."""
        self.declined: tuple[str, str] | None = None
        """The code and the reason with which there will be no update, if its owner said so."""
        self.terms, self.steering, self.whole = terms, steering, whole
        self._late, self._epochs, self._left = "", epochs, left
        self._model, self._hand_in = model, hand_in

    def __repr__(self) -> str:
        return f"Task(round={self.round}, kind={self.kind!r}, submitted={self.submitted})"

    @property
    def epochs(self) -> int:
        """Local epochs: what the strategy wants of this pass, or `epochs` of the run's [config], or 1."""
        return int(self.config.get("epochs", 1)) if self._epochs is None else self._epochs

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this work any more; a loop may look at it and stop early."""
        return bool(self._late)

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self.steering.recorded.steps

    @property
    def remaining(self) -> float | None:
        """Seconds until the round no longer waits for this work, as far as this device knows: never more than there
        are, 0 once they are over. None where it does not know. Sending takes its part of them."""
        return None if self._left is None else max(0.0, self._left())

    @property
    def takes_partial(self) -> bool:
        """Whether work that is stopped early may be handed in, by the run's config and its strategy."""
        return not self.whole

    def cancel(self, reason: str) -> None:
        """Called by the session."""
        self._late = reason
        self.outcome = reason

    def micro_batch(self, wanted: int) -> int:
        """How many examples to take at a time, where the owner would take `wanted`: fewer, where a program that keeps
        this one alive (koinon-edge) saw it run out of memory."""
        return wanted

    def decline(self, reason: str, *, code: str = "DECLINED") -> None:
        """Say why there will be no update of this round, and leave the loop's body; the operator sees the reason."""
        self.declined = code, reason

    def descend(self, gradients: Mapping[str, Array], lr: float) -> None:
        """One plain SGD step on a model of numpy arrays, with the strategy's gradient term."""
        self._model.descend(gradients, lr, self.steering)

    def submit(
        self, *, examples: int, metrics: Mapping[str, float] | None = None, partial: bool = False
    ) -> None:  # fmt: skip
        """Hand in what the model has become. `examples` is how many it was trained on, at least 1; `metrics`
        are numbers about the training, joined over all devices by their examples. `partial` says that the training was
        stopped early (`remaining`, heat, a battery): `examples` are then those that it has really seen, and the
        passes that would come after it are left out.

        UsageError where the run or its strategy takes whole work only (`takes_partial`): the loop may go on, or leave
        the round. BadUpdate, in one sentence, if it may not be sent (NaN, too many examples, out of bounds). A round
        that is over already is no error: the work is dropped, and `outcome` says why.
        """
        if self.submitted:
            raise UsageError(f"round {self.round} has its update already; submit once")
        if isinstance(examples, bool) or int(examples) != examples:
            raise UsageError(f"examples must be a whole number, not {examples!r}")
        if partial and self.whole:
            raise UsageError(
                f"this work cannot be handed in early: {self.whole}; finish it, or leave the round"
            )
        self.submitted, self.partial = True, partial
        self._hand_in(self, int(examples), {k: float(v) for k, v in (metrics or {}).items()})
