"""A device without torch: linear regression on numpy arrays.

`task.descend` takes a plain SGD step with the strategy's gradient term, so SCAFFOLD and FedProx work here too.
"""

import numpy as np

import koinon


def client(session: koinon.Session) -> None:
    dice = np.random.default_rng(sum(session.client.encode()))
    x = dice.normal(size=(100, 3))
    y = x @ np.array([1.0, -2.0, 0.5])
    model = {"w": np.zeros(3)}
    for task in session.tasks(model, evaluate=lambda m: {"loss": float(np.mean((x @ m["w"] - y) ** 2))}):
        for _ in range(task.config.get("steps", 10)):
            task.descend({"w": 2 * x.T @ (x @ model["w"] - y) / len(x)}, lr=0.05)
        task.submit(examples=len(x))


def make_run(**settings) -> koinon.Run:
    return koinon.Run(
        "numpy",
        model={"w": np.zeros(3)},
        rounds=20,
        min_clients=3,
        population=3,
        strategy=koinon.Scaffold(),
        **settings,
    )


if __name__ == "__main__":
    result = koinon.simulate(make_run(), client, clients=3)
    print(result.model["w"], result.metrics)
