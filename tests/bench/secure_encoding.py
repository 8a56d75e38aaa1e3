"""What the encoding of secure rounds costs: bytes, error and accuracy. No masks: with and without them sums are equal.

LEVEL.bytes        a parameter, of the masked update of one device of a hundred, a million parameters, once rounds are
                   sized to the last sum (and in the first, which is wide: LEVEL.first_bytes)
LEVEL.nmse         ||decoded - mean||^2 / ||mean||^2 of such a round; layers differ a hundredfold in size
LEVEL.encode_s     seconds of one device: delta, clip, rotation, dither
LEVEL.decode_s     of the coordinator: a hundred dithers, rotation back, the step
LEVEL.loss_points  percentage points of test accuracy by which it falls short of exact means, on digits among 20
                   unequal clients for 40 rounds, the mean of the last ten rounds' models, paired by seed (and
                   `loss_at_most`, the upper end of the 95 % interval of the mean over seeds); a round whose sum was
                   larger than it was sized for is lost, and LEVEL.overflows is the share of those
"""

import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from accuracy import ALPHA, CLIENTS, LAST, at_most
from koinon.demo import digits
from koinon_core.errors import BadBlob
from koinon_core.secagg.packing import PackedLayout
from koinon_core.secure.agreement import Agreement
from koinon_core.secure.levels import LEVELS
from koinon_core.strategy import FedAvg
from koinon_core.strategy.runner import Prepared
from koinon_core.tensors import Tensors
from koinon_core.update import Head
from report import arguments, figure, report
from summing import Federation, error, plus, spec_of

DEVICES, SIDE = 100, 700
BYTES = {"balanced": 1.02, "fine": 1.53, "compact": 0.14, "exact": 8.02}
ERRORS = {"balanced": 0.015, "fine": 3e-4, "exact": 1e-9}
LEARNED = {"balanced": 0.5, "compact": 1.0}
Model = Mapping[str, Any]


def encoding(codec: str) -> dict[str, dict[str, Any]]:
    """The second round of a run, which is sized to the first."""
    model = {"a": np.zeros((SIDE, SIDE), np.float32), "b": np.zeros((SIDE + 30, SIDE), np.float32)}
    fed = Federation(spec_of(FedAvg(), model, codec=codec), Tensors(model))
    draw = np.random.default_rng(0)
    scales = {"a": 1e-2, "b": 1e-4}
    shared = {n: draw.standard_normal(a.shape) * scales[n] for n, a in model.items()}
    params = sum(a.size for a in model.values())
    sizes, encoded, decoded, errors = [], [], [], []
    for _ in range(2):
        terms = fed.terms(DEVICES)
        sizes.append(PackedLayout(Agreement.of(terms).config(terms, 0)).total / params)
        made: dict[str, Prepared] = {}
        wanted = dict.fromkeys(model, 0.0)
        for i in range(DEVICES):
            change = {n: shared[n] + draw.standard_normal(a.shape) * scales[n] for n, a in model.items()}
            end = plus(fed.model, change)
            began = time.perf_counter()
            made[f"d{i}"] = fed.prepare(f"d{i}", terms, end, Head(examples=1))
            encoded.append(time.perf_counter() - began)
            wanted = {n: wanted[n] + (end[n].astype(float) - fed.model[n]) / DEVICES for n in model}
        began = time.perf_counter()
        total, _ = fed.close(terms, made)
        decoded.append(time.perf_counter() - began)
        means = [total.values(f"delta/{n}", 0).astype(float) for n in model]
        errors.append(error(np.concatenate(means), np.concatenate([np.ravel(wanted[n]) for n in model])))
    return {
        f"{codec}.bytes": figure([sizes[1]], "", BYTES[codec]),
        f"{codec}.first_bytes": figure([sizes[0]], ""),
        f"{codec}.nmse": figure([errors[1]], "", ERRORS.get(codec)),
        f"{codec}.first_nmse": figure([errors[0]], ""),
        f"{codec}.encode_s": figure([statistics.median(encoded)], "s"),
        f"{codec}.decode_s": figure([decoded[1]], "s"),
    }


class Learning:
    """Digits among unequal clients, who start from a model and are trained by the same seeds whatever encodes them."""

    def __init__(self, seed: int):
        self.seed, (self.train, self.test) = seed, digits.load()
        shares = digits.split(self.train.labels.numpy(), CLIENTS, ALPHA, seed)
        self.shards = [self.train.take(share) for share in shares]
        self.module = digits.make_model(seed)
        self.first = self.read()

    def read(self) -> Model:
        return {n: t.numpy().copy() for n, t in self.module.state_dict().items()}

    def load(self, model: Model) -> None:
        self.module.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in model.items()})

    def trained(self, model: Model, client: int, number: int) -> Model:
        self.load(model)
        digits.train(self.module, self.shards[client], digits.LOCAL_EPOCHS, 1000 * number + client)
        return self.read()

    def accuracy(self, model: Model) -> float:
        self.load(model)
        return 100 * float(digits.evaluate(self.module, self.test)["accuracy"])

    def exactly(self, rounds: int) -> float:
        """The accuracy with means in float64."""
        model, found = self.first, []
        weights = [len(shard) / len(self.train) for shard in self.shards]
        for number in range(rounds):
            ends = [self.trained(model, c, number) for c in range(CLIENTS)]
            model = {
                n: sum(w * e[n].astype(float) for w, e in zip(weights, ends, strict=True)).astype(a.dtype)
                for n, a in model.items()
            }
            found.append(self.accuracy(model))
        return statistics.mean(found[-LAST:])

    def secure(self, codec: str, rounds: int) -> tuple[float, int]:
        """The accuracy, and the rounds that overflowed."""
        fed = Federation(spec_of(FedAvg(), self.first, codec=codec, max_examples=4096), Tensors(self.first))
        found, lost = [], 0
        for number in range(rounds):
            terms = fed.terms(CLIENTS)
            made = {
                f"d{c}": fed.prepare(
                    f"d{c}", terms, self.trained(fed.model, c, number), Head(examples=len(shard))
                )
                for c, shard in enumerate(self.shards)
            }
            try:
                fed.close(terms, made)
            except BadBlob:  # larger than it was sized for: the round is lost, and the next one wide
                fed.tuning, lost = "", lost + 1
            found.append(self.accuracy(fed.model))
        return statistics.mean(found[-LAST:]), lost


def learning(seeds: int, rounds: int) -> dict[str, dict[str, Any]]:
    exact: list[float] = []
    lost: dict[str, list[float]] = {codec: [] for codec in LEARNED}
    overflowed = dict.fromkeys(LEARNED, 0)
    for seed in range(seeds):
        one = Learning(seed)
        exact.append(one.exactly(rounds))
        for codec, losses in lost.items():
            accuracy, rounds_lost = one.secure(codec, rounds)
            losses.append(exact[-1] - accuracy)
            overflowed[codec] += rounds_lost
        said = ", ".join(f"{codec} loses {losses[-1]:.2f}" for codec, losses in lost.items())
        print(f"seed {seed}: {exact[-1]:.2f} %, {said}", file=sys.stderr)
    figures = {"exact_means.accuracy": figure(exact, "%")}
    for codec, losses in lost.items():
        figures[f"{codec}.loss_points"] = {**figure(losses, "points"), "value": statistics.mean(losses)}
        figures[f"{codec}.overflows"] = figure([overflowed[codec] / seeds / rounds], "")
        figures[f"{codec}.loss_at_most"] = figure([at_most(losses)], "points", LEARNED[codec])
    return figures


def main() -> None:
    given = arguments(__doc__ or "", seeds=10, rounds=40)
    assert given.seeds > 1, "an interval needs two seeds at least"
    torch.set_num_threads(1)
    figures = {name: f for codec in LEVELS for name, f in encoding(codec).items()}
    report("secure_encoding", {**figures, **learning(given.seeds, given.rounds)}, given.json)


if __name__ == "__main__":
    main()
