"""A device: your model, your loop, four lines of Koinon.

    koinon-coordinator serve --insecure &
    export KOINON_INSECURE=1                         # plain text, on this machine; docs/identity.md has the real thing
    python quickstart.py create                      # submits the run "quickstart" with this file's model
    koinon client quickstart.py --name client-0      # a device; start three or more of them, before or after

`python quickstart.py model` writes the first model to init.safetensors, for `koinon run create`.

Every device draws its own toy data here; put your loader in `data_of`.
"""

import os
import sys

import torch
from torch import nn

import koinon

RUN = "quickstart"


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
    return koinon.Run(RUN, model=make_model(), rounds=5, min_clients=3, **settings)


if __name__ == "__main__":
    if sys.argv[1:] == ["create"]:
        make_run().create()
    elif sys.argv[1:] == ["model"]:
        from safetensors.torch import save_file

        save_file(make_model().state_dict(), "init.safetensors")
    else:
        with koinon.join(run=os.environ.get("KOINON_RUN", RUN), wait=60) as session:
            client(session)
        print(f"the run {session.status}: {session.reason}")
