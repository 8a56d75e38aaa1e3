"""Rounds to 90 % of test accuracy: MNIST images among 50 devices, 10 a round, one epoch of batches of 10 at rate 0.1.

rounds_to_90.SPLIT.RULE   the median over seeds; no figure where more than half did not reach it in `rounds`
SPLIT   iid: every device has a share of everything; shards: two of a hundred shards, sorted by label (McMahan et al.)

8,000 images to train, 2,000 to test, of the 10,000 in the shared data (--data); an MLP of 199,210 parameters. A run
ends when it is there. Runs go on side by side in --jobs processes (default: one a core), which changes no figure.
With --plot FILE.png the curves of the first seed are drawn.
"""

import gzip
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

import koinon
from report import arguments, figure, report

CLIENTS, A_ROUND, BATCH, RATE, GOAL = 50, 10, 10, 0.1, 0.9
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RULES: dict[str, koinon.Strategy] = {
    "fedavg": koinon.FedAvg(),
    "fedavgm": koinon.FedAvgM(lr=0.3),
    "fedadagrad": koinon.FedAdagrad(lr=0.03),
    "fedadam": koinon.FedAdam(lr=0.01),
    "fedyogi": koinon.FedYogi(lr=0.01),
    "fedexp": koinon.FedExP(),
    "fednova": koinon.FedNova(steps=16.0),
    "fedprox": koinon.FedProx(mu=0.1),
    "scaffold": koinon.Scaffold(),
    "feddyn": koinon.FedDyn(alpha=0.1),
}
Split = list[np.ndarray[Any, Any]]


def images(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All images, [10,000, 784] in 0..1, and their digits."""
    with gzip.open(folder / "mnist-t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(folder / "mnist-t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.tensor(pixels / 255.0, dtype=torch.float32), torch.tensor(labels.astype(np.int64))


def split(kind: str, labels: torch.Tensor, seed: int) -> Split:
    """Indices of each device's images."""
    draw = np.random.default_rng(seed)
    if kind == "iid":
        return np.array_split(draw.permutation(len(labels)), CLIENTS)
    shards = np.array_split(np.argsort(labels.numpy(), kind="stable"), 2 * CLIENTS)
    order = draw.permutation(2 * CLIENTS)
    return [np.concatenate([shards[order[2 * i]], shards[order[2 * i + 1]]]) for i in range(CLIENTS)]


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


class Reached(Exception):
    """The goal is: there is nothing more to learn from this run."""


def client(
    x: torch.Tensor, y: torch.Tensor, shares: Split, seed: int, curve: list[float]
) -> Callable[[koinon.Session], None]:
    """A device. Every one of them can test, and one of each round's does, into `curve`. Once the goal is reached all of
    them leave with Reached."""
    tested: set[int] = set()

    def work(session: koinon.Session) -> None:
        mine = torch.from_numpy(shares[int(session.client.removeprefix("client-"))])
        images, digits = x[mine], y[mine]
        model = make_model(seed)

        @torch.no_grad()
        def evaluate(_: Any) -> dict[str, float]:
            known = hash(model[0].weight.detach().numpy().tobytes())
            if known not in tested:
                tested.add(known)
                curve.append(float((model(x[8000:]).argmax(1) == y[8000:]).float().mean()))
            if curve[-1] >= GOAL:
                raise Reached
            return {}

        for task in session.tasks(model, evaluate=evaluate):
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            dice = torch.Generator().manual_seed(task.seed)
            for batch in torch.randperm(len(mine), generator=dice).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), digits[batch]).backward()
                optimizer.step()
            task.submit(examples=len(mine))

    return work


def learn(rule: koinon.Strategy, kind: str, seed: int, rounds: int, folder: Path) -> list[float]:
    """Test accuracy after each round but the last, until the goal is reached."""
    torch.set_num_threads(1)
    x, y = images(folder)
    run = koinon.Run(
        "bench", model=make_model(seed), strategy=rule, rounds=rounds, seed=seed, aggregation="open", codec="raw",
        min_clients=A_ROUND, clients=A_ROUND, population=CLIENTS, max_examples=4096, evaluate=False,
        downlink="snapshot", models="none", retention="none",
    )  # fmt: skip
    curve: list[float] = []
    shares = split(kind, y[:8000], seed)
    try:
        koinon.simulate(run, client(x, y, shares, seed, curve), clients=CLIENTS, seed=seed)
    except Reached:
        pass
    except koinon.KoinonError as error:
        print(f"{kind} {rule}: {error}", file=sys.stderr)
    return curve[1:]  # of the models that rounds made


def reached(curve: list[float], rounds: int) -> float:
    """The first round whose model is good enough; infinity if there is none."""
    return next((i + 1.0 for i, accuracy in enumerate(curve[:rounds]) if accuracy >= GOAL), float("inf"))


def main() -> None:
    given = arguments(
        __doc__ or "",
        seeds=3,
        rounds=120,
        data=str(DATA),
        rules=",".join(RULES),
        plot="",
        jobs=os.cpu_count() or 1,
    )
    if given.plot:
        drawing()
    figures: dict[str, dict[str, Any]] = {}
    curves: dict[str, list[float]] = {}
    cases = [(kind, name) for kind in ("iid", "shards") for name in given.rules.split(",")]
    # Not forked: torch's threads would be in all of them.
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        runs: dict[tuple[str, str], list[Future[list[float]]]] = {
            (kind, name): [
                pool.submit(learn, RULES[name], kind, seed, given.rounds, Path(given.data))
                for seed in range(given.seeds)
            ]
            for kind, name in cases
        }
        for (kind, name), seeds in runs.items():
            all_of_them = [run.result() for run in seeds]
            curves[f"{kind} {name}"] = all_of_them[0]
            found = [reached(curve, given.rounds) for curve in all_of_them]
            if statistics.median(found) < float("inf"):
                figures[f"rounds_to_90.{kind}.{name}"] = figure(found, "")
            best = max((max(curve, default=0.0) for curve in all_of_them), default=0.0)
            print(f"{kind}.{name}: {found}, best {best:.4f}", file=sys.stderr)
    report("strategies", figures, given.json)
    if given.plot:
        draw(curves, Path(given.plot))


def drawing() -> None:
    """Say before the runs, and not after them, that there is nothing to draw with."""
    if find_spec("matplotlib") is None:
        sys.exit("--plot wants matplotlib: pip install matplotlib, or leave --plot out")


def draw(curves: dict[str, list[float]], to: Path) -> None:
    from matplotlib.figure import Figure

    page = Figure(figsize=(10, 4), layout="constrained")
    for axes, kind in zip(page.subplots(1, 2), ("iid", "shards"), strict=True):
        for name, curve in curves.items():
            if name.startswith(kind):
                axes.plot(range(1, len(curve) + 1), curve, label=name.partition(" ")[2], linewidth=1)
        axes.set(title=kind, xlabel="round", ylabel="test accuracy", ylim=(0.5, 1.0))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    page.savefig(to, dpi=150)


if __name__ == "__main__":
    main()
