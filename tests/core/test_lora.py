"""The mean of LoRA's products: exact where the rank suffices, the nearest where not, and as a source of a sum."""

from dataclasses import dataclass

import numpy as np
import pytest

from koinon_core.errors import UsageError
from koinon_core.fold import Staged
from koinon_core.schema import schema_of
from koinon_core.sections import How
from koinon_core.strategy import FedAvg, FedPer, chain
from koinon_core.strategy.lora import LoraProjection, LoraSum, pairs, project, projects
from koinon_core.strategy.protocol import Need
from koinon_core.tensors import Tensors
from koinon_core.tiles import TILE, Held

OUT, IN = 24, 18


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def factors_of(devices, rank, seed=0):
    return [
        (draw(OUT, rank, seed=seed + 2 * i), draw(rank, IN, seed=seed + 2 * i + 1)) for i in range(devices)
    ]


def exact_mean(factors, weights):
    return sum(w * b @ a for w, (b, a) in zip(weights, factors, strict=True)) / sum(weights)


def plain_mean(factors, weights):
    b = sum(w * b for w, (b, _) in zip(weights, factors, strict=True)) / sum(weights)
    a = sum(w * a for w, (_, a) in zip(weights, factors, strict=True)) / sum(weights)
    return b @ a


def nmse(found, exact):
    return float(((found - exact) ** 2).sum() / (exact**2).sum())


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 30)])
def test_it_is_exact_where_the_mean_has_no_more_than_the_rank(weights):
    """Three devices of true rank 2 in factors of rank 6, so that their mean has rank 6."""
    factors = [(draw(OUT, 2, seed=i) @ draw(2, 6, seed=i), draw(6, IN, seed=9 + i)) for i in range(3)]
    exact = exact_mean(factors, weights)
    b, a = project(factors, weights, 6)
    assert (b.shape, a.shape) == ((OUT, 6), (6, IN))
    assert np.linalg.matrix_rank(exact) == 6
    assert nmse(b @ a, exact) < 1e-26
    assert nmse(plain_mean(factors, weights), exact) > 0.05


@pytest.mark.parametrize("devices", [2, 5, 9])
@pytest.mark.parametrize("rank", [1, 4])
def test_otherwise_it_is_the_best_of_that_rank_and_better_than_the_mean_of_each(devices, rank):
    """By Eckart and Young: what is lost are the singular values beyond the rank. (Of nine devices, the stacked factors
    are more than the layer has.)"""
    factors, weights = factors_of(devices, 4), range(1, devices + 1)
    exact = exact_mean(factors, weights)
    b, a = project(factors, weights, rank)
    sizes = np.linalg.svd(exact, compute_uv=False)
    assert nmse(b @ a, exact) == pytest.approx((sizes[rank:] ** 2).sum() / (sizes**2).sum(), rel=1e-9)
    if rank == 4:  # as many as the devices' own factors have
        assert nmse(b @ a, exact) < nmse(plain_mean(factors, weights), exact)


def test_one_device_keeps_its_product_and_a_common_a_keeps_the_mean_of_b():
    b, a = factors_of(1, 4)[0]
    new_b, new_a = project([(b, a)], [7], 4)
    assert nmse(new_b @ new_a, b @ a) < 1e-28
    common = [(draw(OUT, 4, seed=i), a) for i in range(3)]
    new_b, new_a = project(common, [1, 2, 3], 4)
    assert nmse(new_b @ new_a, plain_mean(common, [1, 2, 3])) < 1e-28


def test_no_direction_dies_where_nothing_was_learned():
    """With B = 0 everywhere the product is 0; an A of 0 beside it would have no gradient ever after."""
    a = draw(4, IN)
    b, new_a = project([(np.zeros((OUT, 4)), a), (np.zeros((OUT, 4)), a)], [1, 1], 4)
    assert not b.any()
    assert np.linalg.norm(new_a, axis=1) == pytest.approx([np.linalg.norm(a) / 2] * 4)
    cosines = (new_a * a).sum(1) / np.linalg.norm(new_a, axis=1) / np.linalg.norm(a, axis=1)
    assert cosines.min() > 0.8, "it is turned towards the A that there was"


def test_a_second_projection_of_the_same_changes_nothing():
    """Signs and turns, which an SVD leaves open, do not jump from round to round."""
    b, a = project(factors_of(3, 4), [1, 1, 1], 4)
    again_b, again_a = project([(b, a)], [1], 4)
    assert np.allclose(again_b, b, atol=1e-10)
    assert np.allclose(again_a, a, atol=1e-10)


@pytest.mark.parametrize(
    ("factors", "weights", "rank", "says"),
    [
        ([], [], 1, "no factors"),
        ([*factors_of(1, 4), *factors_of(1, 3)], [1, 1], 2, "differ in their shapes"),
        ([(draw(OUT, 4), draw(3, IN))], [1], 2, "no product"),
        (factors_of(2, 4), [1], 2, "one for each pair"),
        (factors_of(2, 4), [1, 0], 2, "above 0"),
        (factors_of(2, 4), [1, float("nan")], 2, "above 0"),
        (factors_of(2, 4), [1, 1], 0, "between 1 and 4"),
        (factors_of(2, 4), [1, 1], 5, "between 1 and 4"),
    ],
)
def test_what_cannot_be_projected_is_refused(factors, weights, rank, says):
    with pytest.raises(UsageError, match=says):
        project(factors, weights, rank)


# -- as part of a round ---------------------------------------------------------------------------------------

W = Tensors(
    {
        "layer.lora_a": draw(4, IN).astype(np.float32), "layer.lora_b": draw(OUT, 4).astype(np.float32),
        "alone.lora_a": np.ones((4, IN), np.float32), "lora_a": np.ones((2, 3), np.float32),
        "lora_b": np.ones((5, 2), np.float32), "head.weight": np.ones(7, np.float32),
    }
)  # fmt: skip


def test_pairs_are_found_by_their_names_and_ranks():
    assert pairs(schema_of(W)) == {"layer.lora_a": "layer.lora_b", "lora_a": "lora_b"}
    other = {
        "x.lora_a": np.ones((4, 3)),
        "x.lora_b": np.ones((5, 2)),
        "y.lora_a": np.ones(3),
        "y.lora_b": np.ones(3),
    }
    assert pairs(schema_of(other)) == {}


def test_the_part_is_for_open_runs_with_pairs():
    part = LoraProjection()
    assert Need.SINGLE in part.needs
    assert part.local(schema_of(W)) == frozenset()
    with pytest.raises(UsageError, match="frozen A"):
        part.local(schema_of({"x.lora_b": np.ones((3, 2))}))
    assert projects(part)
    assert projects(chain(FedAvg(), part))
    assert not projects(chain(FedAvg(), FedPer(keys=("h.*",))))


@dataclass
class Tile:
    """What a reader gives of one tile."""

    numbers: np.ndarray

    @property
    def count(self):
        return self.numbers.size

    def add_to(self, units, weight, grid, bound, name):
        units += weight * np.rint(self.numbers * 2.0**grid).astype(np.int64)


@dataclass
class Reader:
    change: Tensors

    def tile(self, name, offset):
        return Tile(Held(self.change).values(name.removeprefix("delta/"), offset))


class Plain:
    """The plain sum, which says what was asked of it."""

    def __init__(self, staged):
        self.staged, self.asked = staged, []

    def values(self, name, offset):
        self.asked.append(name)
        total = sum(s.weight for s in self.staged)
        changes = [s.weight * s.reader.change[name.removeprefix("delta/")] for s in self.staged]
        return np.asarray(sum(changes) / total, np.float64).reshape(-1)[offset : offset + TILE]

    def digest(self, numbers):
        return numbers.decode()


def summed(changes, weights, w=W):
    staged = [Staged(n, Reader(c)) for n, c in zip(weights, changes, strict=True)]
    plain = Plain(staged)
    how = {f"delta/{n}": How("raw", "mean", 64.0, "", 40) for n in w}
    return plain, LoraSum(plain, staged, schema_of(w), how, Held(w))


CHANGES = [
    Tensors({n: (0.3 * draw(*a.shape, seed=50 + i)).astype(np.float32) for n, a in W.items()})
    for i in range(3)
]


def test_the_next_model_has_the_mean_of_the_products_and_the_plain_mean_of_the_rest():
    weights = [1, 2, 5]
    plain, total = summed(CHANGES, weights)
    after = {n: W[n] + total.values(f"delta/{n}", 0).reshape(a.shape) for n, a in W.items()}
    trained = [
        (W["layer.lora_b"] + c["layer.lora_b"], W["layer.lora_a"] + c["layer.lora_a"]) for c in CHANGES
    ]
    trained = [(b.astype(float), a.astype(float)) for b, a in trained]
    exact = exact_mean(trained, weights)
    best = np.linalg.svd(exact, compute_uv=False)
    lost = (best[4:] ** 2).sum() / (best**2).sum()
    assert nmse(after["layer.lora_b"] @ after["layer.lora_a"], exact) == pytest.approx(lost, rel=1e-5)
    assert lost < nmse(plain_mean(trained, weights), exact)
    for name in ("head.weight", "alone.lora_a"):
        mean = sum(n * c[name] for n, c in zip(weights, CHANGES, strict=True)) / 8
        assert np.allclose(after[name] - 1, mean, atol=1e-6)
    assert set(plain.asked) == {f"delta/{n}" for n in W}, "the digest of the plain sum is over all of it"


def test_tiles_of_a_large_factor_are_one_factor():
    rows = 70_000
    w = Tensors({"x.lora_a": draw(16, 20), "x.lora_b": np.zeros((rows, 16))})
    change = Tensors({"x.lora_a": np.zeros((16, 20)), "x.lora_b": draw(rows, 16)})
    _, total = summed([change], [1], w)
    tiles = [total.values("delta/x.lora_b", o) for o in range(0, rows * 16, TILE)]
    assert len(tiles) == 2
    b = np.concatenate(tiles).reshape(rows, 16)
    a = w["x.lora_a"] + total.values("delta/x.lora_a", 0).reshape(16, 20)
    assert nmse(b @ a, change["x.lora_b"] @ w["x.lora_a"]) < 1e-20


def test_the_digest_is_over_the_plain_sum_and_what_was_made_of_it():
    digests = [summed(CHANGES, weights)[1].digest(numbers) for weights, numbers in (
        ([1, 2, 5], b"n"), ([1, 2, 5], b"n"), ([1, 2, 6], b"n"), ([1, 2, 5], b"m"),
    )]  # fmt: skip
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
