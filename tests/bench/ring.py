"""What the ring of secure rounds costs: a core's worth of each step.

add        an update added to the sum, in windows of 1 MiB, as a multiple of numpy's addition of the same lanes in place
encode     a device's update: clip, rotation, dither, checks
decode     the sum of ten to a mean: ten dithers, checks, the exact rotation back
error      the NMSE of such a sum over what its size predicts
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Before numpy: figures are a core's, whatever its BLAS would take.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from koinon_core.canonical import sha256
from koinon_core.ring import Device, Group, Ring, Seeds, Sum, decode, encode, suggest
from report import arguments, figure, report

DEVICES = 10
WINDOW = 1 << 20
SIGMA = 0.01
SEEDS = Seeds(bytes.fromhex(sha256(b"bench")), "bench", 1)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ring(params: int, bits: int) -> Ring:
    size = suggest(bits, DEVICES, SIGMA * DEVICES**0.5)
    group = Group(
        name="w",
        size=params,
        bits=bits,
        grid=size.grid,
        gain=size.gain,
        bound=2 * SIGMA * params**0.5,
        wraps=size.wraps,
    )
    return Ring(groups=(group,), devices=DEVICES)


def adding(params: int, bits: int, repeats: int) -> list[float]:
    """The time of `Sum.add` over that of numpy alone, run by run, one after the other."""
    total = Sum(ring(params, bits))
    update = np.random.default_rng(0).bytes(total.ring.nbytes)
    dtype = total.ring.groups[0].dtype
    into = np.zeros(len(update), np.uint8).view(dtype)
    lanes = np.frombuffer(update, dtype)

    def ours() -> None:
        view = memoryview(update)
        for at in range(0, len(update), WINDOW):
            total.add(view[at : at + WINDOW], at)

    def plain() -> None:
        np.add(into, lanes, out=into)

    # The best of a few on each side, in turns: a busy machine slows down whatever is running.
    def ratio() -> float:
        pairs = [(seconds(ours), seconds(plain)) for _ in range(10)]
        return min(a for a, _ in pairs) / min(b for _, b in pairs)

    return [ratio() for _ in range(repeats)]


def update(wanted: Ring, name: str, x: np.ndarray) -> bytearray:
    out = bytearray(wanted.nbytes)
    for at, lanes in encode(wanted, SEEDS, Device(name=name), {"w": lambda a, b: x[a:b]}):
        out[at : at + lanes.nbytes] = lanes.data.cast("B")
    return out


def main() -> None:
    given = arguments(__doc__ or "", params=16_000_000, repeats=7)
    params, giga = given.params, given.params / 1e9
    figures = {
        f"add_u{bits}_to_numpy": figure(adding(params, bits, given.repeats), "", 1 / 0.7)
        for bits in (8, 16, 32)
    }
    wanted = ring(params, 8)
    names = [f"d{i}" for i in range(DEVICES)]
    total, mean, took = Sum(wanted), np.zeros(params), []
    for i, name in enumerate(names):
        x = np.random.default_rng(i).standard_normal(params, np.float32) * np.float32(SIGMA)
        mean += x / DEVICES
        began = time.perf_counter()
        made = update(wanted, name, x)
        took.append(giga / (time.perf_counter() - began))
        total.add(made)
    out = np.empty(params)

    def write(start: int, values: np.ndarray) -> None:
        out[start : start + len(values)] = values

    read = [giga / seconds(lambda: decode(total, SEEDS, names, {"w": write})) for _ in range(3)]
    predicted = suggest(8, DEVICES, SIGMA * DEVICES**0.5).nmse
    found = float(np.sum((out - mean) ** 2) / np.sum(mean**2))
    figures |= {
        "encode_gparams_s": figure(took, ""),
        "decode_gparams_s": figure(read, ""),
        "error_to_predicted": figure([found / predicted], "", 1.1),
        "encode_s_a_100m_model": figure([0.1 / statistics.median(took)], "s"),
    }
    report("ring", figures, given.json)


if __name__ == "__main__":
    main()
