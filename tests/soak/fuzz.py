"""`python -m tests.soak.fuzz [--executions N] [--seed S]`: spoiled payloads and containers at every decoder.

Whatever the bytes are, a decoder gives a tile of the right shape or BadBlob, in 50 ms, with twice the memory that the
schema permits. The first one that does not is printed, with what makes it again.
"""

import argparse
import random
import sys
import time
import tracemalloc

import numpy as np

from koinon_core import codecs
from koinon_core.codec import Reader, Writer, decode
from koinon_core.codecs import Place, Step
from koinon_core.codecs.ordinal import ORDINAL
from koinon_core.errors import BadBlob
from koinon_core.schema import Field, Schema
from koinon_core.tiles import Held

COUNT = 4096
KEY = bytes(range(32))
SLOWEST = 0.05
DRAW = np.random.default_rng(1)
DENSE = DRAW.standard_normal(COUNT).astype(np.float32)
SPARSE = np.where(DRAW.random(COUNT) < 0.1, DENSE, np.float32(0))
HEAVY = (DENSE**5).astype(np.float32)
BASE = DENSE + np.float32(0.5)


def payloads() -> list[tuple[object, bytes, Place]]:
    """(codec, honest payload, where it stands), of every codec and kind of data."""
    made: list[tuple[object, bytes, Place]] = []
    for name in codecs.names():
        for data in (DENSE, SPARSE, HEAVY):
            rms = float(np.sqrt(np.mean(data**2)))
            quantiser = codecs.quantiser(name)
            step = quantiser.step_for(rms, 30, float(np.abs(data).max()), 1e6) if quantiser else None
            place = Place(key=KEY, section=1, offset=0, step=step)
            made.append((codecs.by_name(name), codecs.by_name(name).encode(data, place), place))
    place = Place(base=BASE)
    made.append((ORDINAL, ORDINAL.encode(DENSE, place), place))
    return made


SCHEMA = Schema(
    (Field("a", (COUNT,), "float32"), Field("b", (3, 5), "float64"), Field("n", (), "int64", "buffer"))
)


def container() -> bytes:
    """An honest container with a quantised section, a lossless one, and a counter."""
    parts: list[bytes] = []
    ways = {"a": (codecs.by_name("balanced"), Step(200, -10)), "b": (codecs.by_name("lossless"), None)}
    writer = Writer(parts.append, SCHEMA, lambda name: ways.get(name, ways["b"]), key=KEY)
    tensors = Held({"a": DENSE, "b": np.ones((3, 5)), "n": np.array(7)})
    for field in SCHEMA:
        writer.put(field.name, 0, tensors.values(field.name, 0))
    writer.close()
    return b"".join(parts)


def spoiled(data: bytes, dice: random.Random) -> bytes:
    """One to four mutations: most where lengths and modes are, at both ends."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        span = dice.choice((16, 64, 256, len(out) + 1))
        at = dice.randrange(max(1, min(span, len(out) + 1)))
        at = at if dice.random() < 0.5 else max(0, len(out) - 1 - at)
        match dice.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << dice.randrange(8)
            case 1 if at < len(out):
                out[at] = dice.choice((0, 1, 127, 128, 255))
            case 2:
                del out[at : at + dice.randint(1, 64)]
            case 3:
                out[at:at] = out[at : at + dice.randint(1, 64)]
            case 4:
                del out[at:]
            case _:
                out[at : at + 8] = dice.randbytes(8)
    return bytes(out)


def decode_payload(codec: object, data: bytes, place: Place) -> None:
    tile = codec.decode(memoryview(data), "float32", COUNT, place)
    assert tile.values().shape == (COUNT,)
    tile.add_to(np.zeros(COUNT, np.int64), 3, 30, 64.0, "x")


def decode_container(data: bytes) -> None:
    Reader(lambda offset, length: data[offset : offset + length], len(data), SCHEMA)
    assert decode(data, SCHEMA)["a"].shape == (COUNT,)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.fuzz")
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    given = parser.parse_args()
    honest, whole, refused = payloads(), container(), 0
    began = time.monotonic()
    for number in range(given.executions):
        dice = random.Random(given.seed << 32 | number)
        which = dice.randrange(len(honest) + 4)
        codec, data, place = honest[which] if which < len(honest) else (None, whole, Place())
        data = spoiled(data, dice)
        weighed = number % 500 == 0
        if weighed:
            tracemalloc.start()
        started = time.process_time()
        try:
            if codec is None:
                decode_container(data)
            else:
                decode_payload(codec, data, place)
        except BadBlob:
            refused += 1
        except BaseException as error:
            print(f"--seed {given.seed}, execution {number}: {error!r} of {data[:60].hex()}...")
            raise
        took = time.process_time() - started
        if weighed:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2 * SCHEMA.nbytes + (1 << 20), f"execution {number}: {peak} bytes"
        elif took > SLOWEST:
            print(f"--seed {given.seed}, execution {number}: it took {took:.3f} s")
            return 1
    rate = given.executions / (time.monotonic() - began)
    print(f"{given.executions} executions, {refused} refused, the rest right, {rate:.0f} a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
