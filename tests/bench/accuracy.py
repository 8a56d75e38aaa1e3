"""What lossy updates cost in accuracy: digits among 20 unequal clients, for 40 rounds, seed by seed.

loss_points   percentage points of test accuracy, the mean of the last ten rounds' models, by which a codec falls
              short of `raw` with the same split, first model and local shuffles; the mean over the seeds
loss_at_most  the upper end of its 95 % interval (Student's t, paired by seed): what it costs is less than that
bits          a parameter, the mean over all updates
"""

import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from scipy.stats import t as students_t

import koinon
from koinon.demo import digits
from report import arguments, figure, report

CLIENTS, ALPHA = 20, 0.3
LAST = 10
TARGETS = {"balanced": 0.5, "compact": 1.0, "thin": None}


@dataclass(frozen=True, slots=True)
class Learned:
    """Test accuracy in percent, and bits a parameter of an update."""

    accuracy: float
    bits: float


def client(seed: int, bits: list[float]) -> Callable[[koinon.Session], None]:
    """The demo's device, whose first one tests every round's model; it notes what its updates weigh."""
    train, test = digits.load()
    shares = digits.split(train.labels.numpy(), CLIENTS, ALPHA, seed)

    def work(session: koinon.Session) -> None:
        index = int(session.client.removeprefix("client-"))
        mine, model = train.take(shares[index]), digits.make_model(seed)
        tested = {} if index else {"evaluate": lambda m: digits.evaluate(m, test)}
        for task in session.tasks(model, **tested):
            digits.train(model, mine, task.epochs, task.seed)
            task.submit(examples=len(mine))
            sent = session._talk._sent
            assert sent is not None
            bits.append(sent.stats.bits(sent.blob.size))

    return work


def learn(codec: str, seed: int, rounds: int) -> Learned:
    """One run. All that differs between two codecs is what the updates lose."""
    bits: list[float] = []
    run = koinon.Run(
        "bench", model=digits.make_model(seed), strategy=koinon.FedAvg(), rounds=rounds, codec=codec, seed=seed,
        aggregation="open",
        min_clients=CLIENTS, clients=CLIENTS, max_examples=4096, config={"epochs": digits.LOCAL_EPOCHS},
    )  # fmt: skip
    metrics = koinon.simulate(run, client(seed, bits), clients=CLIENTS, seed=seed).metrics
    last = range(max(1, rounds - LAST + 1), rounds + 1)
    return Learned(100 * statistics.mean(metrics[r]["eval.accuracy"] for r in last), statistics.mean(bits))


def at_most(losses: list[float]) -> float:
    """The upper end of the 95 % interval of the mean."""
    n = len(losses)
    return statistics.mean(losses) + float(students_t.ppf(0.975, n - 1)) * statistics.stdev(losses) / n**0.5


def main() -> None:
    given = arguments(__doc__ or "", seeds=10, rounds=40)
    assert given.seeds > 1, "an interval needs two seeds at least"
    torch.set_num_threads(1)
    runs: dict[str, list[Learned]] = {codec: [] for codec in ("raw", *TARGETS)}
    for seed in range(given.seeds):
        for codec, learned in runs.items():
            learned.append(learn(codec, seed, given.rounds))
        said = ", ".join(f"{c} {r[-1].accuracy:.2f} % at {r[-1].bits:.2f} bits" for c, r in runs.items())
        print(f"seed {seed}: {said}", file=sys.stderr)
    figures: dict[str, dict[str, Any]] = {"raw.accuracy": figure([r.accuracy for r in runs["raw"]], "%")}
    for codec, target in TARGETS.items():
        losses = [a.accuracy - b.accuracy for a, b in zip(runs["raw"], runs[codec], strict=True)]
        figures[f"{codec}.loss_points"] = {**figure(losses, "points"), "value": statistics.mean(losses)}
        figures[f"{codec}.loss_at_most"] = figure([at_most(losses)], "points", target)
        figures[f"{codec}.bits"] = figure([r.bits for r in runs[codec]], "")
    report("accuracy", figures, given.json)


if __name__ == "__main__":
    main()
