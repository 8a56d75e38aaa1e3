"""The laws that every strategy keeps, to be checked in the tests of whoever writes one.

    from koinon.testing import check_strategy

    def test_mine_keeps_the_laws():
        assert check_strategy(MyStrategy(lr=0.1)).reproducible == "on any CPU"

All strategies that Koinon brings are checked by this function.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, cast

import numpy as np

from koinon.run import Run
from koinon.session import Session
from koinon.simulation import simulate
from koinon.traced import Dice, look, traced, tracing
from koinon_core.canonical import canonical
from koinon_core.errors import UsageError
from koinon_core.schema import Schema, schema_of
from koinon_core.strategy import recipe
from koinon_core.strategy.buffered import knows_age
from koinon_core.strategy.chain import chain, follows_what_was_sent
from koinon_core.strategy.clip import Clip
from koinon_core.strategy.protocol import Agg, Need, Plan, Rng, State, Strategy, Trait, Up, Work
from koinon_core.strategy.robust_sum import robust_parts
from koinon_core.tensors import Array, Tensors
from koinon_core.update import layout_of

__all__ = ["Broken", "Kept", "check_strategy"]

_POPULATION = 8
_WORK = Work(examples=5, steps=4, lr=0.1, norm=4.0, loss_before=0.5)


class Broken(AssertionError):
    """A law that a strategy does not keep, in one sentence."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What was found of a strategy that keeps the laws. `reproducible` says on which machines its server half makes the
    same bytes: elementwise + - x / and square roots, and `koinon_core.exact`, do so on any CPU; numpy's sums, products
    of matrices, exponentials and powers only on machines of one kind. `traced` names what was used of these, "unknown"
    where numbers went a way that cannot be watched, and "kernels" where the strategy says so of what is elsewhere
    (`Trait.KERNELS`). `secure` says whether it was run under secure sums too."""

    reproducible: Literal["on any CPU", "on machines of one kind"]
    traced: tuple[str, ...]
    secure: bool


def check_strategy(strategy: Strategy, *, model: Mapping[str, Array] | None = None, lr: float = 0.05) -> Kept:
    """Check every law, with a model of your own where the strategy needs certain names in it. Broken, in one sentence,
    for the first that it does not keep; `lr` is that of the local steps. Of the model, integers and statistics are left
    as they are."""
    weights = Tensors(model or _model())
    schema = schema_of(weights)
    _check_recipe(strategy)
    params = _check_schema(strategy, schema)
    w = weights.select(params)
    used = _check_server(strategy, w)
    _check_device(strategy, w)
    _check_composes(strategy)
    secure = _check_runs(strategy, weights, lr)
    return Kept("on machines of one kind" if used else "on any CPU", used, secure)


def _model() -> dict[str, Array]:
    draw = np.random.default_rng(1)
    return {"a": draw.normal(size=(3, 4)).astype(np.float32), "b": draw.normal(size=7)}


def _draw(like: Tensors, seed: int, scale: float = 0.1) -> Tensors:
    draw = np.random.default_rng(seed)
    return like.map(lambda a: (scale * draw.normal(size=a.shape)).astype(a.dtype))


def _law(kept: bool, sentence: str) -> None:
    if not kept:
        raise Broken(sentence)


# -- the recipe -----------------------------------------------------------------------------------------------


def _check_recipe(strategy: Strategy) -> None:
    written = recipe.dump(strategy)
    try:
        canonical(written)
        again = recipe.load(written)
        read = recipe.parse(recipe.show(written))
    except (UsageError, TypeError, ValueError) as error:
        raise Broken(f"its recipe cannot be read back: {error}") from error
    _law(again == strategy, "its recipe makes another strategy than it was written of")
    _law(read == strategy, "its line of text makes another strategy than it was written of")
    for part in getattr(strategy, "parts", (strategy,)):
        revision = getattr(type(part), "revision", None)
        _law(isinstance(revision, int) and revision >= 1, "its revision must be a whole number from 1 on")


def _check_schema(strategy: Strategy, schema: Schema) -> list[str]:
    local = strategy.local(schema)
    strange = sorted(local - set(schema.by_name))
    _law(not strange, f"it keeps {strange} at home, which the model has not")
    _law(local == strategy.local(schema), "it keeps other names at home when it is asked again")
    _law(len(local) < len(schema.by_name), "it keeps the whole model at home; nothing is federated")
    for name, bound in strategy.totals().items():
        _law(
            0 < bound < float("inf"),
            f"the bound of its total {name!r} must be a number above 0, it is {bound}",
        )
    return list(layout_of(schema, strategy).params.by_name)


# -- what was not asked for -----------------------------------------------------------------------------------


class _Undeclared:
    """A number that a strategy did not declare to need, and must not use. It may be handed on."""

    def __init__(self, what: str, need: Need):
        self._sentence = f"it uses {what} and does not declare Need.{need.name}; add that to its needs"

    def _used(self, *_: object) -> NoReturn:
        raise Broken(self._sentence)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _used
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = (
        _used
    )
    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __int__ = __float__ = __index__ = __round__ = _used
    __array__ = __str__ = _used

    def __eq__(self, other: object) -> bool:
        self._used()

    __hash__ = None  # type: ignore[assignment]  # as whatever is equal to nothing that can be told


def _declared(strategy: Strategy, need: Need, what: str, value: Any) -> Any:
    return value if need in strategy.needs else _Undeclared(what, need)


def _population(strategy: Strategy) -> int:
    return cast(int, _declared(strategy, Need.POPULATION, "the population", _POPULATION))


def _work(strategy: Strategy, results: Mapping[str, Tensors]) -> Work:
    norm = _declared(strategy, Need.NORM, "work.norm", _WORK.norm)
    loss = _declared(strategy, Need.LOSS_BEFORE, "work.loss_before", _WORK.loss_before)
    return replace(_WORK, norm=norm, loss_before=loss, results=results)


# -- the server's half ----------------------------------------------------------------------------------------


def _agg(strategy: Strategy, w: Tensors, seed: int) -> Agg:
    mean = _draw(w, seed)
    squares = mean.dot(mean)
    if strategy.elementwise:  # the others have everything at hand
        squares = _declared(strategy, Need.SQ_NORM, "agg.sq_norm", squares)
    extra = {n: _draw(s.zeros(), seed + 1) for n, s in strategy.extra(schema_of(w)).items()}
    return Agg(
        mean=mean, extra=extra, totals={n: min(1.0, b) for n, b in strategy.totals().items()}, count=4, weight=20.0,
        population=_population(strategy), sq_norm=squares,
    )  # fmt: skip


def _rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(7))


def _check_server(strategy: Strategy, w: Tensors) -> tuple[str, ...]:
    before, first = _bytes(w), strategy.init(w, _population(strategy))
    state, steps = first, list[Tensors]()
    for seed in range(3):
        agg = _agg(strategy, w, seed)
        given, held = _bytes(agg.mean), {n: _bytes(t) for n, t in state.items()}
        after, following = strategy.server(state, agg, _rng())
        same, again = strategy.server(state, agg, _rng())
        _law(_bytes(same.mean) == _bytes(after.mean), "its server half makes another step of the same sum")
        _law(_bytes(agg.mean) == given, "its server half changes the sum that it was given")
        _law(
            {n: _bytes(t) for n, t in state.items()} == held,
            "its server half changes the state that it was given",
        )
        _law(_shapes(again) == _shapes(first), "its state changes names, shapes or dtypes; they must stay")
        _law(
            _shapes({"": after.mean}) == _shapes({"": w}),
            "its step has other names, shapes or dtypes than the model",
        )
        _law(all(np.all(np.isfinite(a)) for a in after.mean.values()), "its step is not finite")
        state, steps = following, [*steps, after.mean]
    _law(_bytes(w) == before, "its server half changes the model")
    if strategy.elementwise:
        _check_elementwise(strategy, w, steps)
    return _watched(strategy, w)


def _watched(strategy: Strategy, w: Tensors) -> tuple[str, ...]:
    """What its server half uses that is not the same on every CPU."""
    agg, parts = _agg(strategy, w, 0), getattr(strategy, "parts", (strategy,))
    kinds = {kind for part in parts for kind in type(part).__mro__ if kind is not object}
    draw = np.random.default_rng(2)
    rows = [(rule, draw.normal(size=(max(9, rule.fewest), 6))) for rule in robust_parts(strategy)]
    given = [(rule, one if rule.coordinates else one @ one.T) for rule, one in rows]
    with tracing({sys.modules[kind.__module__] for kind in kinds}) as used:
        state = strategy.init(traced(w), _population(strategy))
        agg = replace(agg, mean=traced(agg.mean), extra={n: traced(t) for n, t in agg.extra.items()})
        after, following = strategy.server(
            {n: traced(t) for n, t in state.items()}, agg, cast(Rng, Dice(_rng()))
        )
        look({"": after.mean, **following})
        for rule, one in given:
            copy = traced(Tensors({"": one}))[""].copy()
            look({"": Tensors({"": rule.combine(copy) if rule.coordinates else rule.mix(copy)})})
    return tuple(sorted(used | ({"kernels"} if Trait.KERNELS in strategy.traits else set())))


def _check_elementwise(strategy: Strategy, w: Tensors, steps: list[Tensors]) -> None:
    """The same in parts of tensors, as the coordinator goes through them."""
    for name, array in w.items():
        for part in (slice(0, 2), slice(2, None)):
            cut = Tensors({name: array.reshape(-1)[part]})
            state = strategy.init(cut, _population(strategy))
            for seed, step in enumerate(steps):
                agg = _agg(strategy, w, seed)
                mine = replace(agg, mean=_part(agg.mean, name, part), extra=_parts(agg.extra, name, part))
                after, state = strategy.server(state, mine, _rng())
                whole = step[name].reshape(-1)[part]
                _law(
                    after.mean[name].tobytes() == whole.tobytes(),
                    "it promises to be elementwise, and makes another step of a part of a tensor",
                )


def _part(tensors: Tensors, name: str, part: slice) -> Tensors:
    return Tensors({name: tensors[name].reshape(-1)[part]})


def _parts(sets: Mapping[str, Tensors], name: str, part: slice) -> dict[str, Tensors]:
    return {what: _part(tensors, name, part) for what, tensors in sets.items() if name in tensors}


# -- the device's half ----------------------------------------------------------------------------------------


def _check_device(strategy: Strategy, w: Tensors) -> None:
    down = strategy.down(strategy.init(w, _population(strategy)))
    state: State = {}
    for seed in range(2):
        before = _bytes(w)
        plan = strategy.begin(state, down, w)
        _check_plan(plan, w)
        work = _work(strategy, {p.name: _draw(w, 90 + i) for i, p in enumerate(plan.passes)})
        up = Up(_draw(w, seed))
        sent = strategy.finish(state, down, work, up)
        _check_sent(strategy, w, sent)
        following = strategy.commit(state, down, work, up, sent)
        _law(_bytes(w) == before, "its device half changes the round's model")
        _check_state(strategy, state, down, work, up, sent, following)
        state = following


def _check_plan(plan: Plan, w: Tensors) -> None:
    for pull in (plan.pull, *(p.pull for p in plan.passes)):
        _law(
            pull.shift is None or pull.shift.keys() <= w.keys(),
            "its gradient term names tensors that do not leave",
        )
    names = [p.name for p in plan.passes]
    _law(len(set(names)) == len(names), "two of its passes have one name")


def _check_sent(strategy: Strategy, w: Tensors, sent: Up) -> None:
    _law(
        _shapes({"": sent.delta}) == _shapes({"": w}),
        "it sends other names, shapes or dtypes than the model has",
    )
    wanted = {n: s.digest for n, s in strategy.extra(schema_of(w)).items()}
    _law(
        {n: schema_of(t).digest for n, t in sent.extra.items()} == wanted,
        "it sends another extra than it declares",
    )
    bounds = strategy.totals()
    _law(sent.totals.keys() == bounds.keys(), "it sends other totals than it declares")
    _law(
        all(abs(v) <= bounds[n] for n, v in sent.totals.items()), "a total that it sends is beyond its bound"
    )


def _check_state(
    strategy: Strategy, d: State, down: State, work: Work, up: Up, sent: Up, following: State
) -> None:
    _law(
        all(isinstance(t, Tensors) for t in following.values()),
        "a device's state must be named sets of tensors",
    )
    _law(
        not d or _shapes(following) == _shapes(d),
        "a device's state changes names, shapes or dtypes; they must stay",
    )
    kept = {n: _bytes(t) for n, t in following.items()}
    other = Up(sent.delta * 0.5, {n: t * 0.5 for n, t in sent.extra.items()}, sent.totals)
    if Trait.PRIVATE in strategy.traits:
        told = strategy.commit(d, down, work, up, other)
        _law(
            {n: _bytes(t) for n, t in told.items()} == kept,
            "it promises to be private, and looks at what was sent",
        )
    elif following and all(follows_what_was_sent(p) for p in getattr(strategy, "parts", (strategy,))):
        told = strategy.commit(d, down, work, Up(up.delta * 0.5), sent)
        _law(
            {n: _bytes(t) for n, t in told.items()} == kept,
            "a device's state follows what was computed; it must follow what was sent: a codec or Clip may change that",
        )


# -- with others, and in runs ---------------------------------------------------------------------------------


def _check_composes(strategy: Strategy) -> None:
    if Trait.RESCALES in strategy.traits:
        return
    measures = Trait.MEASURES in strategy.traits
    try:
        chain(Clip(1e9), strategy) if measures else chain(strategy, Clip(1e9))
    except UsageError as error:
        raise Broken(f"it cannot stand beside Clip: {error}") from error


def _check_runs(strategy: Strategy, weights: Tensors, lr: float) -> bool:
    """Rounds of four devices or more, simulated twice, in the clear and, where it can be, under secure sums."""
    first = _simulated(strategy, weights, lr, "open", "raw")
    _law(
        first == _simulated(strategy, weights, lr, "open", "raw"),
        "a run makes another model when it is run again",
    )
    if Need.SINGLE in strategy.needs or knows_age(strategy):
        return False
    summed = _simulated(strategy, weights, lr, "secure", "exact")
    _law(
        all(np.allclose(a, summed[n], rtol=0, atol=1e-4) for n, a in first.items()),
        "under secure sums it makes another model than in the clear",
    )
    return True


def _simulated(strategy: Strategy, weights: Tensors, lr: float, aggregation: str, codec: str) -> Tensors:
    devices = max([4, *(rule.fewest for rule in robust_parts(strategy))])
    cohort: dict[str, Any] = (
        {"buffer": devices // 2, "min_clients": 1} if knows_age(strategy) else {"clients": devices}
    )
    run = Run(
        "laws", model=weights, strategy=strategy, rounds=3, codec=codec, aggregation=aggregation,
        population=max(devices, _POPULATION), max_examples=64, bound=1e4, evaluate=False,
        **{"min_clients": devices, **cohort},
    )  # fmt: skip

    learnt = schema_of(weights).names(role="param")

    def client(session: Session) -> None:
        aim = _draw(weights.select(learnt), 50 + int(session.client.rpartition("-")[2]), 1.0)
        model = {n: np.array(a) for n, a in weights.items()}

        def evaluate(_: Any) -> dict[str, float]:
            return {"loss": sum(float(((model[n] - a) ** 2).sum()) for n, a in aim.items()) / 20}

        for task in session.tasks(model, evaluate=evaluate):
            for _ in range(3):
                task.descend({n: model[n] - a for n, a in aim.items()}, lr=lr)
            task.submit(examples=5)

    return simulate(run, client, clients=devices).model


# -- comparing ------------------------------------------------------------------------------------------------


def _bytes(tensors: Tensors) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in tensors.items()}


def _shapes(state: State) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"{what}/{name}": (str(a.dtype), a.shape) for what, t in state.items() for name, a in t.items()}
