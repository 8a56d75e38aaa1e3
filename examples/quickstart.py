"""A device: your model, your loop, four lines of Koinon.

    koinon-coordinator serve &
    python quickstart.py create          # submits the run "quickstart" with this file's model
    python quickstart.py client-0        # a device; start two or more of them

Every device draws its own toy data here; put your loader in `data_of`.
"""

import sys

import torch
from torch import nn

import koinon

ADDRESS, RUN = "127.0.0.1:8440", "quickstart"


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))


def data_of(name: str) -> torch.utils.data.DataLoader:
    dice = torch.Generator().manual_seed(sum(name.encode()))
    x = torch.randn(200, 4, generator=dice)
    y = (x[:, :1] * 2 - x[:, 1:2]).detach()
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20, shuffle=True)


def train(model: nn.Module, loader: torch.utils.data.DataLoader, epochs: int) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
    return loss.item()


def client(session: koinon.Session) -> None:
    model, loader = make_model(), data_of(session.client)
    for task in session.tasks(model):
        torch.manual_seed(task.seed)
        loss = train(model, loader, epochs=task.epochs)
        task.submit(examples=len(loader.dataset), metrics={"loss": loss})


def make_run(**settings) -> koinon.Run:
    return koinon.Run(RUN, model=make_model(), rounds=5, min_clients=2, **settings)


if __name__ == "__main__":
    if sys.argv[1:] == ["create"]:
        make_run().create(ADDRESS)
    else:
        with koinon.join(ADDRESS, run=RUN, name=sys.argv[1] if sys.argv[1:] else None) as session:
            client(session)
        print(f"the run {session.status}: {session.reason}")
