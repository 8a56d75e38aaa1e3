"""A program of a device's owner, for a task of koinon-edge: a model of numpy that learns the mean of its data.

koinon-edge starts it. In an environment with Koinon it may `import koinon` instead.
"""

import koinon_child as koinon
import numpy as np

data = np.random.default_rng().normal(loc=3.0, size=(1000, 4))
model = {"mean": np.zeros(4)}

with koinon.join() as session:
    for task in session.tasks(model):
        for batch in np.array_split(data, len(data) // task.micro_batch(100)):
            task.descend({"mean": model["mean"] - batch.mean(axis=0)}, lr=0.05)
        task.submit(examples=len(data), metrics={"loss": float(np.square(data - model["mean"]).mean())})
