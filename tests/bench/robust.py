"""What liars do, and what stands them: digits among 10 devices (Dirichlet 1.0), of which 2 lie, for 15 rounds.

ATTACK.RULE   test accuracy in percent, the mean of the last five rounds' models
none.mean     nobody lies, and the mean is taken
ATTACK.lost   percentage points by which the best rule falls short of that

sign      sends -5 times what it learned
gauss     sends noise of deviation 0.5
labels    learns every digit d as 9 - d
A run whose model grows beyond its bound ends, and counts as guessing (10 %).

alie      the mean of the liars' honest updates less 1.5 of their deviations, in every coordinate ("A little is
          enough", Baruch et al. 2019, arXiv:1902.06156)
"""

import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import koinon
from koinon.demo import digits
from report import arguments, figure, report

CLIENTS, LIARS, ALPHA, LAST = 10, 2, 1.0, 5
ATTACKS = ("sign", "gauss", "labels", "alie")
RULES: dict[str, tuple[koinon.Strategy, ...]] = {
    "mean": (),
    "median": (koinon.CoordinateMedian(),),
    "trimmed": (koinon.TrimmedMean(f=LIARS),),
    "krum": (koinon.Krum(f=LIARS),),
    "multikrum": (koinon.MultiKrum(f=LIARS),),
    "geometric": (koinon.GeometricMedian(),),
    "centred": (koinon.CenteredClipping(tau=1.0),),
    "nnm_trimmed": (koinon.TrimmedMean(f=LIARS), koinon.NNM(f=LIARS)),
}
Weights = dict[str, torch.Tensor]


class Lie:
    """What the liars send instead, made of what they learned."""

    def __init__(self, attack: str, seed: int, shares: list[Any], train: digits.Shard):
        self.attack, self.seed = attack, seed
        self.shares, self.train = shares, train
        self._known: tuple[int, list[Weights]] = (0, [])

    def data(self, index: int) -> digits.Shard:
        mine = self.train.take(self.shares[index])
        if self.attack == "labels" and index < LIARS:
            return digits.Shard(mine.images, 9 - mine.labels)
        return mine

    def told(self, model: torch.nn.Module, before: Weights, task: koinon.Task, index: int) -> None:
        """Put what is sent into the model."""
        now = dict(model.state_dict())
        noise = torch.Generator().manual_seed(hash((self.seed, task.round, index)) % (1 << 31))
        for name, weight in now.items():
            if self.attack == "sign":
                # Where the mean is taken, models grow without end: within the run's bound.
                weight.copy_(before[name] - (5 * (weight - before[name])).clamp(-100, 100))
            elif self.attack == "gauss":
                weight.copy_(before[name] + 0.5 * torch.randn(weight.shape, generator=noise))
            elif self.attack == "alie":
                honest = torch.stack([update[name] for update in self._honest(before, task)])
                weight.copy_(before[name] + honest.mean(0) - 1.5 * honest.std(0))

    def _honest(self, before: Weights, task: koinon.Task) -> list[Weights]:
        """What all the liars would have learned in this round, which each of them works out."""
        if self._known[0] != task.round:
            updates = []
            for index in range(LIARS):
                model = digits.make_model(self.seed)
                model.load_state_dict(before)
                digits.train(model, self.data(index), task.epochs, task.seed + index)
                updates.append({n: w - before[n] for n, w in model.state_dict().items()})
            self._known = (task.round, updates)
        return self._known[1]


def client(attack: str, seed: int) -> Callable[[koinon.Session], None]:
    """A device; the first ones lie, and the last one tests every round's model."""
    train, test = digits.load()
    lie = Lie(attack, seed, digits.split(train.labels.numpy(), CLIENTS, ALPHA, seed), train)

    def work(session: koinon.Session) -> None:
        index = int(session.client.removeprefix("client-"))
        mine, model = lie.data(index), digits.make_model(seed)
        tested = {} if index < CLIENTS - 1 else {"evaluate": lambda m: digits.evaluate(m, test)}
        for task in session.tasks(model, **tested):
            before = {n: w.clone() for n, w in model.state_dict().items()}
            digits.train(model, mine, task.epochs, task.seed)
            if index < LIARS and attack != "none":
                lie.told(model, before, task, index)
            task.submit(examples=len(mine))

    return work


def learn(attack: str, rule: tuple[koinon.Strategy, ...], seed: int, rounds: int) -> float:
    """Test accuracy in percent."""
    run = koinon.Run(
        "bench", model=digits.make_model(seed), strategy=koinon.chain(koinon.FedAvg(), *rule), rounds=rounds, seed=seed,
        aggregation="open", codec="raw", min_clients=CLIENTS, clients=CLIENTS, max_examples=4096, bound=1024.0,
        config={"epochs": digits.LOCAL_EPOCHS},
    )  # fmt: skip
    try:
        metrics = koinon.simulate(run, client(attack, seed), clients=CLIENTS, seed=seed).metrics
    except koinon.KoinonError as error:  # the model grew beyond every bound
        print(f"{attack} {rule}: {error}", file=sys.stderr)
        return 10.0
    return 100 * statistics.mean(metrics[r]["eval.accuracy"] for r in range(rounds - LAST + 1, rounds + 1))


def main() -> None:
    given = arguments(__doc__ or "", seeds=1, rounds=15)
    torch.set_num_threads(1)
    seeds = range(given.seeds)
    honest = [learn("none", (), seed, given.rounds) for seed in seeds]
    figures: dict[str, dict[str, Any]] = {"none.mean": figure(honest, "%")}
    for attack in ATTACKS:
        best = 0.0
        for name, rule in RULES.items():
            found = [learn(attack, rule, seed, given.rounds) for seed in seeds]
            figures[f"{attack}.{name}"] = figure(found, "%")
            best = max(best, statistics.median(found)) if rule else best
            print(f"{attack}.{name}: {statistics.median(found):.2f} %", file=sys.stderr)
        figures[f"{attack}.lost"] = figure([statistics.median(honest) - best], "points", 3.0)
    report("robust", figures, given.json)


if __name__ == "__main__":
    main()
