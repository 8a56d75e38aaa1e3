"""`LoraProjection` in whole runs: what the coordinator makes of A and B is the mean of their products."""

import numpy as np
import pytest

import koinon
from koinon_core.errors import UsageError

DRAW = np.random.default_rng(8)
FIRST = {"l.lora_a": DRAW.normal(size=(2, 5)), "l.lora_b": DRAW.normal(size=(4, 2)), "head": np.zeros(3)}


def moved(index: int) -> dict[str, np.ndarray]:
    """What a device makes of the first weights: directions are alike, so that the mean has the adapters' rank."""
    scale = 1.0 + index
    return {
        "l.lora_a": FIRST["l.lora_a"] * scale,
        "l.lora_b": FIRST["l.lora_b"] * (3.0 - index),
        "head": np.full(3, scale),
    }


def client(session: koinon.Session) -> None:
    index = int(session.client[-1])
    model = {name: array.copy() for name, array in FIRST.items()}
    for task in session.tasks(model):
        for name, value in moved(index).items():
            model[name][...] = value
        task.submit(examples=1)


def learned(*parts: koinon.Strategy) -> koinon.Tensors:
    run = koinon.Run(
        "lora", model=FIRST, strategy=koinon.chain(koinon.FedAvg(), *parts), rounds=1, min_clients=3, clients=3,
        aggregation="open", codec="raw", evaluate=False,
    )  # fmt: skip
    return koinon.simulate(run, client, clients=3).model


def test_the_product_of_what_is_made_is_the_mean_of_the_products():
    products = [moved(i)["l.lora_b"] @ moved(i)["l.lora_a"] for i in range(3)]
    made, plain = learned(koinon.LoraProjection()), learned()
    assert made["l.lora_b"] @ made["l.lora_a"] == pytest.approx(np.mean(products, axis=0), abs=1e-6)
    assert np.abs(plain["l.lora_b"] @ plain["l.lora_a"] - np.mean(products, axis=0)).max() > 0.1
    assert made["head"].tolist() == plain["head"].tolist() == pytest.approx([2.0] * 3), (
        "the rest is averaged as ever"
    )


def test_it_is_refused_where_it_can_do_nothing_or_not_be_done():
    with pytest.raises(UsageError, match="found no layer with both"):
        koinon.Run(
            "r", model={"x": np.zeros(2)}, strategy=koinon.chain(koinon.FedAvg(), koinon.LoraProjection())
        )
    with pytest.raises(UsageError, match="both make one update of many"):
        koinon.chain(koinon.FedAvg(), koinon.LoraProjection(), koinon.Krum())
    with pytest.raises(UsageError, match="single updates"):
        koinon.Run("r", model=FIRST, strategy=koinon.chain(koinon.FedAvg(), koinon.LoraProjection()))
