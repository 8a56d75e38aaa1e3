"""The workbench: one round's work on a device, from the Ask to the update.

It fetches what the round is about, puts the weights into the owner's model, evaluates them, hands the tasks to the
owner's loop, and makes the update of what became of them. What it is not: the conversation about it (`session`).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from koinon.models import Evaluate, Model, Steering
from koinon.shelf import Shelf
from koinon.task import Kind, Task
from koinon_core.blob import Blob
from koinon_core.codec import Reader
from koinon_core.draft import Draft
from koinon_core.errors import BadBlob, BadUpdate, LocalProtocolError, NotFound
from koinon_core.round.terms import Terms
from koinon_core.spec import RunSpec
from koinon_core.strategy.protocol import Need, Pass, Plan, Pull, State, Work
from koinon_core.strategy.runner import LocalHalf, Prepared
from koinon_core.strategy.shape import shape_of
from koinon_core.tensors import Tensors
from koinon_core.tiles import Except, Held, Source, copy, gather
from koinon_core.update import LONGEST_NAME, Head, unpack_state
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Workbench"]


class _Declined(Exception):
    """The owner does no more for this round: a code, and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What the rounds of one loop have in common. `shelf` has the models, `fetch` gets another content's
    bytes, `draft` is what the next update is written into, `show` is told of the task that the loop gets, `hand_over`
    takes the update, `give_up` a code and the reason why there is none; `left` says how many seconds a round with these
    terms still waits (None: nobody knows)."""

    client: str
    spec: RunSpec
    half: LocalHalf
    model: Model
    owned: Any
    evaluate: Evaluate | None
    shelf: Shelf
    fetch: Callable[[pb.Content], Blob]
    draft: Callable[[], Draft]
    show: Callable[[Task], None]
    hand_over: Callable[[Prepared], None]
    give_up: Callable[[str, str], None]
    left: Callable[[Terms], float] | None = None

    def work(self, ask: pb.Ask, terms: Terms, state: State) -> Iterator[Task]:
        """The tasks of one round: an extra pass or two where the strategy wants them, and the training."""
        model, half = self.model, self.half
        own = half.own(state)
        try:
            w = self.shelf.load(ask, terms, self.spec.model, Except(model, own))
            copy(Held(own), self.spec.model.only(own), model)
            down = self._down(ask, terms)
        except NotFound:
            self.give_up("LATE", "the round was over before its model had arrived")
            return
        except BadBlob as error:
            self.give_up("REFUSED", str(error))
            raise
        try:
            yield from self._evaluated(terms, state, down, w)
        except _Declined as declined:
            self.give_up(*declined.args)

    def _evaluated(self, terms: Terms, state: State, down: State, w: Source) -> Iterator[Task]:
        """The rest of a round's work, once its weights are in the model."""
        model, half = self.model, self.half
        head = self._evaluate(terms)
        if head is None:
            return
        if terms.kind == "evaluate":
            self._prepare(lambda: half.evaluated(terms, head, state, self.client, self.draft()))
            return
        if half.light and not model.rounds:
            yield from self._train(terms, state, down, head, half.weights(w, state), Tensors(), Plan())
        else:
            start = model.read()
            plan = half.begin(state, down, gather(w, half.layout.params))
            yield from self._train(terms, state, down, head, Held(start), start, plan)

    def _train(
        self, terms: Terms, state: State, down: State, head: Head, begun: Source, start: Tensors, plan: Plan
    ) -> Iterator[Task]:
        """The tasks of a round that trains, from the weights `begun`; `start` is the same in memory, where the
        strategy has a use for that."""
        model = self.model
        results: dict[str, Tensors] = {}
        personal: dict[str, float] = {}
        for one in plan.passes:
            if one.when == "before":
                yield from self._extra(one, terms, start, results, personal)
        steering = model.steer(plan.pull, start, measure=False, train=plan.train)
        later = [one for one in plan.passes if one.when == "after"]
        trained: dict[str, Any] = {}

        def hand_in(task: Task, examples: int, metrics: Mapping[str, float]) -> None:
            # Passes that come after it move the weights on; and some models can only be read as a whole.
            end = Held(model.read()) if later or model.rounds else model
            trained.update(end=end, examples=examples, metrics=metrics, partial=task.partial)
            if not later:
                finish()

        def finish() -> None:
            done = steering.recorded
            work = Work(
                examples=trained["examples"], steps=done.steps, lr=done.lr, norm=done.norm, mu=plan.pull.mu,
                loss_before=head.evaluation.get("loss"), results=results,
                why=done.why or ("" if done.steps else "no step of an optimizer was seen"),
            )  # fmt: skip
            training = {**trained["metrics"], **personal}
            full = replace(
                head, examples=trained["examples"], training=training, steps=done.steps, partial=trained["partial"]
            )  # fmt: skip

            def make() -> Prepared:
                self._check_steered(plan.pull, done.steps, start, trained["end"])
                return self.half.prepare(
                    state=state,
                    down=down,
                    work=work,
                    start=begun,
                    end=trained["end"],
                    terms=terms,
                    head=full,
                    client=self.client,
                    draft=self.draft(),
                )

            self._prepare(make)

        task = self._task(terms, "train", steering, hand_in)
        self.show(task)
        with steering:
            yield task
        if not task.submitted:
            self.give_up(*(task.declined or ("DECLINED", "the loop went on without submitting an update")))
            return
        for one in later:
            if task.partial and not one.measure:  # as if it had taken no step: there is no time for it
                results[one.name] = Tensors({**start, **one.start}) if one.start is not None else model.read()
                continue
            yield from self._extra(one, terms, start, results, personal)
        if later:
            finish()

    def _task(
        self, terms: Terms, kind: Kind, steering: Steering,
        hand_in: Callable[[Task, int, Mapping[str, float]], None], epochs: int | None = None,
    ) -> Task:  # fmt: skip
        # What a pass makes is not sent, so it may end at any time; but a gradient is one of all the device's data.
        refused = {"train": self.spec.whole, "measure": "a gradient is taken over all of the device's data"}
        return Task(
            terms, self.client, kind, self.model, steering, hand_in, epochs, whole=refused.get(kind, ""),
            left=None if self.left is None else partial(self.left, terms),
        )  # fmt: skip

    def _down(self, ask: pb.Ask, terms: Terms) -> State:
        """What of the strategy's state devices get."""
        if ask.down.digest != terms.down:
            raise BadBlob("the strategy's state is not the one that the round's terms name")
        if not terms.down:
            return {}
        shape = shape_of(self.half.strategy, self.half.layout, self.spec.population or 0)
        blob = self.fetch(ask.down)
        reader = Reader(blob.window, blob.size, shape.down, "the strategy's state")
        return unpack_state(reader.tensors())

    def _evaluate(self, terms: Terms) -> Head | None:
        """What the owner's `evaluate` says of the round's weights. None if the round wants that and nothing else,
        and there is none."""
        due = self.spec.evaluates_in(terms.round) or Need.LOSS_BEFORE in self.half.strategy.needs
        if terms.kind == "train" and not due:
            return Head()
        if self.evaluate is None:
            if terms.kind == "evaluate":
                self.give_up("DECLINED", "this device does not evaluate")
                return None
            return Head()
        metrics = {k: float(v) for k, v in self.evaluate(self.owned).items()}
        examples = int(metrics.pop("examples", 1))
        return Head(evaluation=metrics, evaluation_examples=examples)

    def _extra(
        self, one: Pass, terms: Terms, start: Tensors, results: dict[str, Tensors], personal: dict[str, float]
    ) -> Iterator[Task]:
        """One more run of the owner's loop, whose weights are never sent; what it measured is, as `personal.NAME`."""
        model = self.model

        def hand_in(task: Task, examples: int, metrics: Mapping[str, float]) -> None:
            named = {f"personal.{name}": value for name, value in metrics.items()}
            for name in named:
                if len(name) > LONGEST_NAME:
                    raise BadUpdate(
                        f"the metric {name.partition('.')[2]!r} of a personal task is sent as {name[:16]!r}..., which "
                        f"is longer than {LONGEST_NAME} characters; give it a shorter name"
                    )
            personal.update(named)

        if one.start is not None:
            model.load(Tensors({**start, **one.start}))
        began = model.read() if one.when == "before" else start
        steering = model.steer(one.pull, start, measure=one.measure, train=one.train)
        kind: Kind = "measure" if one.measure else "personal"
        task = self._task(terms, kind, steering, hand_in, one.epochs)
        with steering:
            yield task
        if task.declined:
            raise _Declined(*task.declined)
        self._check_steered(one.pull, steering.recorded.steps, Tensors({**start, **(one.start or {})}), model)
        results[one.name] = steering.gradient() if one.measure else model.read()
        if one.when == "before":
            # Whatever else the pass touched (statistics, or weights that the owner set), only what it trains is kept.
            kept = [n for n in began if one.train is None or n in one.train] if one.keep else []
            model.load(Tensors({**began, **results[one.name].select(kept)}) if kept else began)

    def _check_steered(self, pull: Pull, steps: int, start: Tensors, end: Source) -> None:
        """LocalProtocolError if weights moved by steps into which the gradient term did not go."""
        if steps or not (pull.mu or pull.shift is not None):
            return
        trained = self.half.layout.params
        if gather(end, trained) != start.select(trained.by_name):
            raise LocalProtocolError(
                "the weights have changed, and no step was seen into which the strategy's gradient term could go; step "
                "with an optimizer of torch's, or with task.descend, or take a strategy without a gradient term"
            )

    def _prepare(self, make: Callable[[], Prepared]) -> None:
        """Make the update and hand it over; one that may not be sent is reported and raised."""
        began = time.perf_counter()
        try:
            prepared = make()
        except (BadUpdate, LocalProtocolError) as error:
            self.give_up("REFUSED", str(error))
            raise
        took = time.perf_counter() - began
        self.hand_over(replace(prepared, stats=replace(prepared.stats, encode_s=took)))
