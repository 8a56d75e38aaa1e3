"""What the update codecs cost and what they save: bits a parameter, error, speed, and the exact sum. One core.

DATA
    gauss          10 M values of N(0, 1e-3)
    heavy          10 M of Student's t(3), times a log-normal for each 1000: rows of very different sizes
    cnn_sgd        the change of a trained CNN with BatchNorm by SGD with momentum on one client's scikit-learn digits:
                   sparse, because most units of a layer are silent on three of ten classes
    cnn_adamw      the same by AdamW, whose weight decay leaves no zeros
    transformer    the change of a small byte-level transformer, trained on Python's manual, by AdamW on its sources
bits               of the payloads, a parameter
nmse               ||x - decoded||^2 / ||x||^2
limit_fraction     1/2 log2(1/nmse), what a Gaussian source needs (Shannon), over bits; more than 1 where data is easier
encode_mb_s        of float32, 1 MB = 10^6 bytes; decode_mb_s with adding the tile to the sum
fold_*_gparam_s    adding tiles to the sum: of float32, and of int8 symbols that are decompressed already (lattice and
                   dithered); *_memcpy: over what copying float32 takes in the same run
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from koinon_core import codecs
from koinon_core.codecs import Codec, Place
from koinon_core.codecs.ordinal import ORDINAL
from koinon_core.codecs.q1 import Q1
from koinon_core.codecs.tile import Plain, Tile
from koinon_core.tiles import TILE
from report import arguments, figure, report

Flat = NDArray[np.float32]
KEY = bytes(range(32))
GRID, BOUND = 30, 256.0
MB = 1e6
AT_MOST = {
    "balanced.gauss.bits": 4.2, "balanced.cnn_sgd.bits": 1.2, "balanced.gauss.nmse": 0.006,
    "balanced.heavy.nmse": 0.006, "balanced.cnn_sgd.nmse": 0.006, "balanced.cnn_adamw.nmse": 0.006,
    "balanced.transformer.nmse": 0.006,
}  # fmt: skip
AT_LEAST = {
    "balanced.gauss.limit_fraction": 0.9, "balanced.gauss.encode_mb_s": 800.0, "balanced.gauss.decode_mb_s": 1200.0,
    "fold_fp32_gparam_s": 0.4, "fold_int8_gparam_s": 0.8,
}  # fmt: skip


# -- data -----------------------------------------------------------------------------------------------------


def gauss(count: int) -> Flat:
    return (np.random.default_rng(0).standard_normal(count) * 1e-3).astype(np.float32)


def heavy(count: int) -> Flat:
    draw = np.random.default_rng(1)
    rows = np.repeat(draw.lognormal(0.0, 1.0, -(-count // 1000)), 1000)[:count]
    return (draw.standard_t(3, count) * rows * 1e-3).astype(np.float32)


def change(model: nn.Module, train: Callable[[], None]) -> list[tuple[str, Flat]]:
    """What `train` changes in each parameter of `model`."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train()
    return [(name, (p.detach() - before[name]).numpy().ravel()) for name, p in model.named_parameters()]


def cnn(optimizer: Callable[[Any], torch.optim.Optimizer], steps: int) -> list[tuple[str, Flat]]:
    """All that a model has learned of ten classes, and what a client changes that has three."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    mine = np.isin(labels, (0, 1, 2))
    x, y = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 1024), nn.ReLU(),
        nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    fit(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), 150, lambda: picked(x, y, 32))
    tuning = optimizer(model.parameters())
    return change(model, lambda: fit(model, tuning, steps, lambda: picked(x[mine], y[mine], 32)))


def picked(x: torch.Tensor, y: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.randint(len(x), (count,))
    return x[batch], y[batch]


def fit(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int,
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor]],
) -> None:  # fmt: skip
    model.train()
    for _ in range(steps):
        x, y = batch()
        loss = nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Transformer(nn.Module):
    """Bytes to the next byte: four layers of 256, 3.3 M parameters."""

    def __init__(self, length: int = 64) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, 256), nn.Parameter(torch.zeros(length, 256))
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        made: torch.Tensor = self.head(self.layers(self.embed(x) + self.place, mask=mask, is_causal=True))
        return made


def transformer(before: int, steps: int, length: int = 64) -> list[tuple[str, Flat]]:
    from pydoc_data import topics

    torch.manual_seed(0)
    manual = "".join(topics.topics.values()).encode()
    sources = b"".join(p.read_bytes() for p in sorted(Path(os.__file__).parent.glob("*.py"))[:40])

    def batches(text: bytes) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        data = torch.tensor(np.frombuffer(text, np.uint8).astype(np.int64))

        def batch() -> tuple[torch.Tensor, torch.Tensor]:
            at = torch.randint(len(data) - length - 1, (16, 1)) + torch.arange(length + 1)
            return data[at][:, :-1], data[at][:, 1:]

        return batch

    model = Transformer(length)
    fit(model, torch.optim.AdamW(model.parameters(), 1e-3), before, batches(manual))
    tuning = torch.optim.AdamW(model.parameters(), 3e-4)
    return change(model, lambda: fit(model, tuning, steps, batches(sources)))


# -- measuring ------------------------------------------------------------------------------------------------


def timed(function: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Seconds of each call, and what the last one gave."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        made = function()
        seconds.append(time.perf_counter() - began)
    return seconds, made


def places(codec: Codec, sections: list[tuple[str, Flat]]) -> list[tuple[Flat, Place]]:
    """Every tile with its place. Matrices share one root mean square, and vectors another, as in a run."""
    groups: dict[bool, list[Flat]] = {}
    for name, x in sections:
        groups.setdefault(vector(name, x), []).append(x)
    rms = {
        kind: math.sqrt(sum(float(np.dot(x, x)) for x in xs) / sum(x.size for x in xs))
        for kind, xs in groups.items()
    }
    made = []
    for number, (name, x) in enumerate(sections):
        step = codec.step_for(rms[vector(name, x)], GRID) if isinstance(codec, Q1) else None
        for offset in range(0, x.size, TILE):
            base = np.zeros(min(TILE, x.size - offset), np.float32) if codec is ORDINAL else None
            made.append((x[offset : offset + TILE], Place(KEY, number, offset, step, base)))
    return made


def vector(name: str, x: Flat) -> bool:
    return "bias" in name or "norm" in name or x.size < 1024


def measure(codec: Codec, sections: list[tuple[str, Flat]], repeats: int) -> dict[str, list[float]]:
    work = places(codec, sections)
    count = sum(x.size for x, _ in work)
    encoding, payloads = timed(lambda: [codec.encode(x, place) for x, place in work], repeats)
    sums = [np.zeros(x.size, np.int64) for x, _ in work]

    def decode() -> list[Tile]:
        tiles = []
        for (x, place), payload, acc in zip(work, payloads, sums, strict=True):
            tile = codec.decode(memoryview(payload), "float32", x.size, place)
            tile.add_to(acc, 3, GRID, BOUND, "x")
            tiles.append(tile)
        return tiles

    decoding, tiles = timed(decode, repeats)
    squares = error = 0.0
    for (x, _), tile in zip(work, tiles, strict=True):
        wide = x.astype(np.float64)
        squares += float(np.dot(wide, wide))
        wide -= tile.values()
        error += float(np.dot(wide, wide))
    bits = 8 * sum(len(p) for p in payloads) / count
    nmse = error / squares
    made = {
        "bits": [bits], "nmse": [nmse], "encode_mb_s": [4 * count / MB / s for s in encoding],
        "decode_mb_s": [4 * count / MB / s for s in decoding],
    }  # fmt: skip
    if 0 < nmse < 1:
        made["limit_fraction"] = [0.5 * math.log2(1 / nmse) / bits]
    return made


def folds(repeats: int) -> dict[str, list[float]]:
    """Gparam/s of the exact sum, beside that of a copy in turns with it."""
    x, acc = gauss(TILE), np.zeros(TILE, np.int64)
    thinned = np.where(np.random.default_rng(2).random(TILE) < 0.5, x, np.float32(0))
    codec = codecs.by_name("balanced")
    assert isinstance(codec, Q1)
    place = Place(key=KEY, step=codec.step_for(1e-3, GRID))

    def quantised(values: Flat) -> Tile:
        return codec.decode(memoryview(codec.encode(values, place)), "float32", values.size, place)

    tiles = {"fp32": Plain(x), "int8": quantised(thinned), "int8_dithered": quantised(x)}
    source, target = gauss(16 * TILE), np.empty(16 * TILE, np.float32)
    speeds: dict[str, list[float]] = {}
    for _ in range(repeats):
        copying, _ = timed(lambda: np.copyto(target, source), 1)
        speeds.setdefault("memcpy_gparam_s", []).append(source.size / copying[0] / 1e9)
        for name, tile in tiles.items():
            adding, _ = timed(lambda: tile.add_to(acc, 3, GRID, BOUND, "x"), 1)  # noqa: B023 - called at once
            speeds.setdefault(f"fold_{name}_gparam_s", []).append(TILE / adding[0] / 1e9)
    for name in tiles:
        pairs = zip(speeds[f"fold_{name}_gparam_s"], speeds["memcpy_gparam_s"], strict=True)
        speeds[f"fold_{name}_memcpy"] = [fold / copy for fold, copy in pairs]
    return speeds


UNITS = {
    "bits": "b", "nmse": "", "limit_fraction": "", "encode_mb_s": "MB/s", "decode_mb_s": "MB/s"
}  # fmt: skip


def judged(name: str, runs: list[float], unit: str) -> dict[str, Any]:
    """A figure with its target, if it has one; `at_least` is that of what should be large."""
    made = figure(runs, unit, AT_MOST.get(name))
    if name in AT_LEAST:
        made |= {"at_least": AT_LEAST[name], "ok": statistics.median(runs) >= AT_LEAST[name]}
    return made


def main() -> None:
    given = arguments(__doc__ or "", millions=10, repeats=5, steps=60, pretraining=120)
    torch.set_num_threads(1)
    data = {
        "gauss": [("weight", gauss(given.millions * 10**6))],
        "heavy": [("weight", heavy(given.millions * 10**6))],
        "cnn_sgd": cnn(lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), given.steps),
        "cnn_adamw": cnn(lambda p: torch.optim.AdamW(p, 1e-3), given.steps),
        "transformer": transformer(given.pretraining, given.steps),
    }
    figures = {}
    for name, codec in [*((n, codecs.by_name(n)) for n in codecs.names()), ("ordinal", ORDINAL)]:
        repeats = 1 if name in ("lossless", "ordinal") else given.repeats
        for source, sections in data.items():
            for what, runs in measure(codec, sections, repeats).items():
                key = f"{name}.{source}.{what}"
                figures[key] = judged(key, runs, UNITS[what])
    for key, runs in folds(10 * given.repeats).items():
        figures[key] = judged(key, runs, "G/s" if key.endswith("_s") else "")
    report("codec", figures, given.json)


if __name__ == "__main__":
    main()
