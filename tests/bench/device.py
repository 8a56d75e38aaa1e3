"""A device that trains nothing: `python device.py ADDRESS RUN NAME PARAMETERS`."""

import sys

import numpy as np

import koinon

address, run, name, size = sys.argv[1:]
model = {"w": np.zeros(int(size), np.float32)}
with koinon.join(address, run=run, name=name, timeout=60) as session:
    for task in session.tasks(model):
        model["w"] += 1e-3
        task.submit(examples=1)
