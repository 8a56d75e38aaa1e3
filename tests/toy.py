"""Toy Q: four clients with f_i(x) = a_i/2 (x - b_i)^2, whose fixed points are known in closed form.

`federate` runs any strategy on it through the same two halves that the session and the coordinator call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import koinon
from koinon_core.codec import Reader
from koinon_core.round.terms import Terms
from koinon_core.schema import schema_of
from koinon_core.strategy import Strategy, Work
from koinon_core.strategy.closing import Closing, Contribution, Into, close
from koinon_core.strategy.runner import LocalHalf
from koinon_core.strategy.shape import shape_of
from koinon_core.tensors import Tensors
from koinon_core.tiles import Gather, Held
from koinon_core.update import Head, Layout, layout_of, pack_state, unpack_state

A = (1.0, 2.0, 4.0, 8.0)
B = (1.0, -2.0, 3.0, 0.5)
N = (10, 20, 30, 40)
TAU = (1, 5, 10, 20)
ETA = 0.02
START = 5.0
UNIFORM = 0.866666666667
WEIGHTED = 0.918367346939


def fixed(steps: Sequence[int], mu: float = 0.0, nova: bool = False) -> float:
    """Where FedAvg, FedProx or FedNova ends with so many steps of SGD on each device: sum(p r b) / sum(p r), with r how
    much of the way to b a device goes (FedNova: in each step; a/(a + mu) of it under a proximal term)."""
    rs = [a / (a + mu) * (1 - (1 - ETA * (a + mu)) ** k) for a, k in zip(A, steps, strict=True)]
    shares = [n * r / (k if nova else 1) for n, r, k in zip(N, rs, steps, strict=True)]
    return sum(s * b for s, b in zip(shares, B, strict=True)) / sum(shares)


def gradient(i: int, y: float) -> float:
    return A[i] * (y - B[i])


NOVA = fixed(TAU, nova=True)


def loss(i: int, y: float) -> float:
    return A[i] / 2 * (y - B[i]) ** 2


def terms(round_: int, *, codec: str = "raw", grid: int = 40, **values: object) -> Terms:
    base: dict[str, object] = {
        "run": "toy", "incarnation": "00", "goal": 4, "quorum": 1, "schema": "", "strategy": "", "model": "",
        "max_examples": 128, "bound": 1024.0,
    }  # fmt: skip
    return Terms(**{**base, "round": round_, "codec": codec, "grid": grid, **values})  # type: ignore[arg-type]


def half(strategy: Strategy, w: Tensors, codec: str = "raw", grid: int = 40) -> LocalHalf:
    return LocalHalf(strategy, layout_of(schema_of(w), strategy, codec=codec, grid=lambda bound: grid))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A round's closing with what went into its sinks."""

    model: Tensors
    state: Mapping[str, Tensors]
    closing: Closing


def closed(
    strategy: Strategy, layout: Layout, t: Terms, w: Tensors, state: Mapping[str, Tensors], population: int,
    contributions: Sequence[Contribution],
) -> Outcome:  # fmt: skip
    """`close` in memory."""
    shape = shape_of(strategy, layout, population)
    model, kept, down = Gather(layout.model), Gather(shape.state), Gather(shape.down)
    closing = close(
        strategy,
        layout,
        shape,
        t,
        population,
        Held(w),
        Held(pack_state(state)),
        contributions,
        Into(model, kept, down),
    )
    return Outcome(model.tensors, unpack_state(kept.tensors), closing)


def train(plan, start: float, i: int, steps: int, lr: float, momentum: float = 0.0):
    """`steps` of SGD on f_i as the optimizer hook steers it; returns (y, |a|_1)."""
    return descended(plan.pull, start, start, i, steps, lr, momentum)


def descended(pull, w: float, y: float, i: int, steps: int, lr: float, momentum: float = 0.0):
    """The same from `y`, under a gradient term about `w`."""
    mu = pull.mu
    shift = float(pull.shift["x"][0]) if pull.shift is not None else 0.0
    buffer = unit_buffer = unit = 0.0
    for _ in range(steps):
        buffer = momentum * buffer + gradient(i, y) + mu * (y - w) + shift
        y -= lr * buffer
        unit_buffer = momentum * unit_buffer + 1 - mu * lr * unit
        unit += unit_buffer
    return y, unit


def contribute(
    local: LocalHalf, state: Mapping[str, Tensors], down, w: Tensors, t: Terms, i: int, steps: int, lr: float,
    momentum: float = 0.0,
):  # fmt: skip
    """One client's round: (contribution, pending device state)."""
    plan = local.begin(state, down, w)
    x = float(w["x"][0])
    y, norm = train(plan, x, i, steps, lr, momentum)
    results = {p.name: Tensors({"x": np.array([gradient(i, x)])}) for p in plan.passes if p.measure}
    for p in plan.passes:
        if not p.measure:
            own = float((p.start or w)["x"][0])
            results[p.name] = Tensors({"x": np.array([descended(p.pull, x, own, i, steps, lr)[0]])})
    work = Work(
        examples=N[i], steps=steps, lr=lr, norm=norm, mu=plan.pull.mu, loss_before=loss(i, x), results=results
    )
    made = local.prepare(
        state=state, down=down, work=work, start=Held(w), end=Held({"x": np.array([y])}), terms=t,
        head=Head(examples=N[i]), client=f"c{i}",
    )  # fmt: skip
    reader = Reader(made.blob.window, made.blob.size, local.layout.update)
    return Contribution(f"c{i}", made.head, reader), made.pending


def federate(
    strategy: Strategy, *, rounds: int, steps: Sequence[int] = (10, 10, 10, 10), lr: float = ETA,
    take: int = 4, momentum: float = 0.0, codec: str = "raw", grid: int = 40, seed: int = 0,
) -> tuple[float, Outcome, list[Mapping[str, Tensors]]]:  # fmt: skip
    """(x after `rounds`, the last outcome, the devices' states). `take` of the four are in each round."""
    w = Tensors({"x": np.array([START])})
    local = half(strategy, w, codec, grid)
    state = strategy.init(w, len(A))
    devices: list[Mapping[str, Tensors]] = [{} for _ in A]
    draw = np.random.default_rng(seed)
    for number in range(1, rounds + 1):
        t = terms(number, codec=codec, grid=grid)
        chosen = sorted(draw.choice(len(A), size=take, replace=False))
        contributions = []
        for i in chosen:
            one, pending = contribute(
                local, devices[i], strategy.down(state), w, t, i, steps[i], lr, momentum
            )
            contributions.append(one)
            devices[i] = pending
        outcome = closed(strategy, local.layout, t, w, state, len(A), contributions)
        w, state = outcome.model, outcome.state
    return float(w["x"][0]), outcome, devices


# -- toy Q as a run and a device ------------------------------------------------------------------------------

NAMES = [f"client-{i}" for i in range(4)]


def toy_run(strategy: Strategy, rounds: int, name: str = "toy", **settings: object) -> koinon.Run:
    """Toy Q as a run for four devices, without any loss; open unless it is said to be secure."""
    secure = settings.get("aggregation") == "secure"
    given = {
        "min_clients": 4, "clients": 4, "max_examples": 128, "population": 4, "aggregation": "open",
        "codec": "exact" if secure else "raw",
    }  # fmt: skip
    return koinon.Run(
        name, model={"x": np.array([START])}, strategy=strategy, rounds=rounds, **{**given, **settings}
    )


def toy_client(steps: Sequence[int]):
    """A device of toy Q; which one, its name says."""

    def client(session: koinon.Session) -> None:
        i = int(session.client[-1])
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            for _ in range(1 if task.kind == "measure" else steps[i]):
                task.descend({"x": np.array([gradient(i, float(model["x"][0]))])}, lr=ETA)
            task.submit(examples=N[i])

    return client
