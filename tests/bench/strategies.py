"""Rounds to 90 % of test accuracy: MNIST images among 50 devices, 10 a round, one epoch of batches of 10 at rate 0.1.

rounds_to_90.SPLIT.RULE   the median over seeds; no figure where it was not reached in `rounds`
SPLIT   iid: every device has a share of everything; shards: two of a hundred shards, sorted by label (McMahan et al.)

8,000 images to train, 2,000 to test, of the 10,000 in the shared data (--data); an MLP of 199,210 parameters. With
--plot FILE.png the curves of the first seed are drawn.
"""

import gzip
import os
import statistics
import sys
from collections.abc import Callable
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


def client(x: torch.Tensor, y: torch.Tensor, shares: Split, seed: int) -> Callable[[koinon.Session], None]:
    """A device. Every one of them can test, and one of each round's does."""
    tested: set[int] = set()

    def work(session: koinon.Session) -> None:
        mine = torch.from_numpy(shares[int(session.client.removeprefix("client-"))])
        model = make_model(seed)

        @torch.no_grad()
        def evaluate(_: Any) -> dict[str, float]:
            known = hash(model[0].weight.detach().numpy().tobytes())
            if known in tested:
                return {}
            tested.add(known)
            return {"accuracy": float((model(x[8000:]).argmax(1) == y[8000:]).float().mean())}

        for task in session.tasks(model, evaluate=evaluate):
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            dice = torch.Generator().manual_seed(task.seed)
            for batch in torch.randperm(len(mine), generator=dice).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[mine[batch]]), y[mine[batch]]).backward()
                optimizer.step()
            task.submit(examples=len(mine))

    return work


def learn(rule: koinon.Strategy, kind: str, seed: int, rounds: int, folder: Path) -> list[float]:
    """Test accuracy after each round, until the goal is reached."""
    x, y = images(folder)
    run = koinon.Run(
        "bench", model=make_model(seed), strategy=rule, rounds=rounds, seed=seed, aggregation="open", codec="raw",
        min_clients=A_ROUND, clients=A_ROUND, population=CLIENTS, max_examples=4096, evaluate=False,
        downlink="snapshot", models="none", retention="none",
    )  # fmt: skip
    try:
        shares = split(kind, y[:8000], seed)
        metrics = koinon.simulate(run, client(x, y, shares, seed), clients=CLIENTS, seed=seed).metrics
    except koinon.KoinonError as error:
        print(f"{kind} {rule}: {error}", file=sys.stderr)
        return []
    return [metrics[r].get("eval.accuracy", 0.0) for r in sorted(metrics) if r > 0]


def reached(curve: list[float], rounds: int) -> float:
    """The first round whose model is good enough; infinity if there is none."""
    return next((i + 1.0 for i, accuracy in enumerate(curve[:rounds]) if accuracy >= GOAL), float("inf"))


def main() -> None:
    given = arguments(__doc__ or "", seeds=3, rounds=120, data=str(DATA), rules=",".join(RULES), plot="")
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Any]] = {}
    curves: dict[str, list[float]] = {}
    for kind in ("iid", "shards"):
        for name in given.rules.split(","):
            found = []
            for seed in range(given.seeds):
                curve = learn(RULES[name], kind, seed, given.rounds, Path(given.data))
                curves.setdefault(f"{kind} {name}", curve)
                found.append(reached(curve, given.rounds))
            middle = statistics.median(found)
            if middle < float("inf"):
                figures[f"rounds_to_90.{kind}.{name}"] = figure(found, "")
            print(
                f"{kind}.{name}: {found}, best {max(curves[f'{kind} {name}'], default=0):.4f}",
                file=sys.stderr,
            )
    report("strategies", figures, given.json)
    if given.plot:
        draw(curves, Path(given.plot))


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
