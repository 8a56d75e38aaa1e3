"""The demo's work: scikit-learn's handwritten digits, split unevenly, and a small CNN that learns them.

`client` is what a device runs; it is the same in the demo, in a simulation and in the tests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from koinon.session import Session

__all__ = ["LOCAL_EPOCHS", "Shard", "client", "evaluate", "load", "make_model", "split", "train"]

LOCAL_EPOCHS = 2
_BATCH = 16
_LR = 0.05
_MOMENTUM = 0.9
_TEST_SHARE = 5  # every fifth image, after shuffling


@dataclass(frozen=True, slots=True)
class Shard:
    """Images [n, 1, 8, 8] in 0..1, and their digits [n]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> "Shard":
        chosen = torch.from_numpy(index)
        return Shard(self.images[chosen], self.labels[chosen])


@cache
def load() -> tuple[Shard, Shard]:
    """(train, test): 1,797 real images, of which every fifth is kept for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(20_26).permutation(len(data.target))
    whole = Shard(
        torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1),
        torch.tensor(data.target, dtype=torch.int64),
    )
    is_test = np.arange(len(order)) % _TEST_SHARE == 0
    return whole.take(order[~is_test]), whole.take(order[is_test])


def split(labels: NDArray[np.int64], clients: int, alpha: float, seed: int) -> list[NDArray[np.int64]]:
    """Indices for each client: every digit is dealt out by its own Dirichlet(alpha) draw, so that clients differ
    in size and in what they have seen. Nobody is left with fewer than 8 images."""
    rng = np.random.default_rng(seed)
    while True:
        shares: list[list[int]] = [[] for _ in range(clients)]
        for digit in range(10):
            mine = rng.permutation(np.flatnonzero(labels == digit))
            cuts = (np.cumsum(rng.dirichlet([alpha] * clients))[:-1] * len(mine)).astype(int)
            for share, part in zip(shares, np.split(mine, cuts), strict=True):
                share.extend(part.tolist())
        if min(len(s) for s in shares) >= min(8, len(labels) // (2 * clients)):
            return [np.array(sorted(s), dtype=np.int64) for s in shares]


def make_model(seed: int = 0) -> nn.Module:
    """A CNN of 29,066 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip


def train(
    model: nn.Module, data: Shard, epochs: int, seed: int, cancelled: Callable[[], bool] = lambda: False
) -> float:
    """Plain SGD with momentum; returns the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR, momentum=_MOMENTUM)
    dice = torch.Generator().manual_seed(seed)
    model.train()
    loss_sum = 0.0
    for _ in range(epochs):
        loss_sum = 0.0
        for batch in torch.randperm(len(data), generator=dice).split(_BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.images[batch]), data.labels[batch])
            loss.backward()
            optimizer.step()
            loss_sum += float(loss.detach()) * len(batch)
        if cancelled():
            break
    return loss_sum / len(data)


@torch.no_grad()
def evaluate(model: nn.Module, data: Shard) -> Mapping[str, float]:
    """Loss and accuracy over `data`."""
    model.eval()
    out = model(data.images)
    loss = nn.functional.cross_entropy(out, data.labels)
    right = (out.argmax(1) == data.labels).sum()
    return {"loss": float(loss), "accuracy": float(right) / len(data), "examples": len(data)}


def client(session: Session, data: Shard) -> None:
    """What a device does: the four lines, around the loop above."""
    model = make_model()
    for task in session.tasks(model, evaluate=lambda m: evaluate(m, data)):
        loss = train(model, data, task.epochs, task.seed, lambda: task.cancelled)  # noqa: B023 - called at once
        task.submit(examples=len(data), metrics={"loss": loss})
