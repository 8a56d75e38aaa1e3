"""What the forkserver does once, so that the demo's processes need not: it imports torch, the model and the
images, and takes one optimizer step (torch imports its compiler at the first one, a second and a half of CPU).

Never gRPC: a process that is forked while gRPC runs threads does not survive it. And no backward pass: autograd
may start threads of its own.
"""

import torch

from koinon.demo import digits

torch.set_num_threads(1)
digits.load()
_weight = torch.nn.Parameter(torch.zeros(1))
_weight.grad = torch.zeros(1)
torch.optim.SGD([_weight], lr=1.0, momentum=0.9).step()
