"""A device that trains nothing and notes when its transfers began and ended:
`python transfer_device.py ADDRESS RUN NAME PARAMETERS FILE`."""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

import koinon
from koinon import progress

address, run, name, size, file = sys.argv[1:]
times: dict[str, list[tuple[float, float]]] = defaultdict(list)
begun: dict[str, float] = {}


def note(direction: str, done: int, total: int) -> None:
    begun.setdefault(direction, time.time())
    if done >= total:
        times[direction].append((begun.pop(direction), time.time()))


progress.use(lambda client: note)
model = {"w": np.zeros(int(size), np.float32)}
with koinon.join(address, run=run, name=name, timeout=60) as session:
    for task in session.tasks(model):
        model["w"] += np.float32(1e-3)
        task.submit(examples=1)
Path(file).write_text(json.dumps(times))
