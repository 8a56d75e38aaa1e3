"""A device with a torch model that takes part in a run: `python torch_device.py ADDRESS RUN PARAMETERS`.

Prints the most that the process had for itself, in MB, beyond `import torch` and one copy of the weights."""

import os
import sys

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import torch

import koinon
from memory import Peak, anonymous

address, run, size = sys.argv[1:]
before = anonymous(os.getpid())
model = torch.nn.Linear(1000, int(size) // 1000, bias=False)
copy = 4 * int(size) / (1 << 20)
with Peak(os.getpid()) as watched, koinon.join(address, run=run, name="torch", timeout=60) as session:
    for task in session.tasks(model):
        with torch.no_grad():
            model.weight += 1e-3
        task.submit(examples=1)
print(watched.most - before - copy)
