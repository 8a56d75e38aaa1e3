"""Devices that hold no model and train nothing, as many as asked, in one process:
`python senders.py ADDRESS RUN COUNT PARAMETERS [FIRST]`. What they send is noise, made a tile at a time."""

import sys
import threading
from collections.abc import Mapping

import numpy as np

import koinon
from koinon.models import ArraySteering
from koinon_core.schema import Field, Schema
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import TILE


class Sender:
    """A model that forgets what it is given, and has noise for weights."""

    rounds = False

    def __init__(self, parameters: int):
        self.schema = Schema((Field("w", (parameters,), "float32"),))
        self._noise = np.random.default_rng(1).standard_normal(TILE, np.float32) * np.float32(1e-3)

    def put(self, name: str, offset: int, values: Array) -> None:
        """Nothing is kept."""

    def values(self, name: str, offset: int) -> Array:
        return self._noise[: min(TILE, self.schema.size - offset)]

    def read(self) -> Tensors:
        raise NotImplementedError("nobody holds this model whole")

    def steer(self, pull, start, *, measure: bool, train) -> ArraySteering:
        return ArraySteering(pull, start, measure)

    def descend(self, gradients: Mapping[str, Array], lr: float, steering) -> None:
        """Nothing is trained."""


def send(address: str, run: str, name: str, parameters: int) -> None:
    with koinon.join(address, run=run, name=name, timeout=60, wait=60) as session:
        for task in session.tasks(Sender(parameters)):
            task.submit(examples=1)


if __name__ == "__main__":
    address, run, count, parameters, *first = sys.argv[1:]
    begin = int(first[0]) if first else 0
    threads = [
        threading.Thread(target=send, args=(address, run, f"c{i}", int(parameters)))
        for i in range(begin, begin + int(count))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
