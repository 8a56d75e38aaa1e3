"""An update's lanes are a function of update, terms and device; a sum's digest is one of the sum."""

from dataclasses import replace

import numpy as np
import pytest

from koinon_core.draft import MemoryDraft
from koinon_core.errors import BadBlob, BadUpdate
from koinon_core.ring import Ring, Sum
from koinon_core.ring.rotation import COLUMNS, ROWS
from koinon_core.round.terms import Terms
from koinon_core.schema import TILE
from koinon_core.secure.agreement import Agreement
from koinon_core.secure.device import Lanes, lanes_at
from koinon_core.secure.parts import Flat
from koinon_core.secure.scratch import MemoryScratch
from koinon_core.secure.total import Total
from koinon_core.strategy import FedAvg
from koinon_core.tensors import Tensors
from koinon_core.tiles import Held
from koinon_core.update import Head
from summing import Federation, added, error, plus, spec_of

MODEL = {"a": np.zeros((50, 60), np.float32), "b": np.zeros(7), "bn.running_mean": np.zeros(5, np.float32)}


def change(seed, model=MODEL):
    draw = np.random.default_rng(seed)
    return {n: (draw.standard_normal(a.shape) * 0.01).astype(a.dtype) for n, a in model.items()}


def federation(strategy=None, model=MODEL, **settings):
    return Federation(spec_of(strategy or FedAvg(), model, **settings), Tensors(model))


def tuned(fed, weights=(3, 3, 3, 3)):
    """After a round, so that the next one is sized to it."""
    changes = {f"d{i}": change(i, fed.model) for i in range(len(weights))}
    fed.learn(changes, dict(zip(changes, weights, strict=True)))
    return fed


def lanes_of(fed, client="d0", terms=None, seed=0, examples=3):
    terms = terms or fed.terms(4)
    return fed.prepare(client, terms, plus(fed.model, change(seed, fed.model)), Head(examples=examples)).blob


def test_the_same_update_has_the_same_bytes_and_another_device_or_round_has_others():
    fed = tuned(federation())
    made = lanes_of(fed)
    assert made.size == Agreement.of(fed.terms(4)).ring.nbytes
    assert lanes_of(fed).digest == made.digest
    assert lanes_of(fed, "d1").digest != made.digest
    assert lanes_of(fed, terms=fed.terms(4, round=9)).digest != made.digest


def test_another_run_of_the_same_seed_and_model_encodes_alike_and_one_of_another_seed_or_model_does_not():
    fed = tuned(federation())
    terms = fed.terms(4)
    made = lanes_of(fed).digest
    again = replace(terms, run="another", incarnation="ff", head="ee", recovery=1, model="dd", goal=9)
    assert again.digest != terms.digest
    assert lanes_of(fed, terms=again).digest == made
    assert lanes_of(fed, terms=replace(terms, seed=1)).digest != made
    assert lanes_of(fed, terms=replace(terms, weights="00")).digest != made


@pytest.mark.parametrize(
    ("partial", "digest"),
    [
        # As before there was a lane for work that was stopped early: rounds that were opened then end as they were.
        (False, "59ab260dedec2aca08ef6112f785598f77d524457e399815407475246f8ff564"),
        (True, "4d635e1be1bdeac077b0d9c88311b8c08755fb25d812ce20dccf06b727b12e69"),
    ],
)
def test_the_lanes_of_an_update_are_these_on_every_machine(partial, digest):
    fed = federation(partial=partial)
    values = {
        n: ((np.arange(a.size) * 37 % 101 - 50) / 7777).astype(a.dtype).reshape(a.shape)
        for n, a in MODEL.items()
    }
    terms = fed.terms(4, weights="00")
    head = Head(examples=3, training={"loss": 0.5}, evaluation={"accuracy": 0.25}, evaluation_examples=8)
    made = fed.prepare("d", terms, plus(MODEL, values), head)
    assert made.blob.digest == digest


def test_with_and_without_a_device_half_the_bytes_are_the_same():
    fed = tuned(federation(codec="fine"))
    terms, source = fed.terms(4), Held({f"delta/{n}": a for n, a in change(1).items()})
    lanes = Lanes(terms, fed.strategy, fed.layout, "d0")
    plain, nothing = lanes.write(source, Head(examples=5), MemoryDraft())
    kept, sent = lanes.write(source, Head(examples=5), MemoryDraft(), keep=True)
    assert plain.bytes() == kept.bytes()
    assert nothing is None
    for name, wanted in change(1).items():
        # 12 bits for a sum of four: a step is small beside the values.
        assert error(sent[f"delta/{name}"], np.asarray(wanted, float)) < 1e-3


def test_what_a_device_is_told_it_sent_is_its_part_of_the_sum():
    fed = tuned(federation(), (1, 2, 7, 30))
    terms, names = fed.terms(4), ("delta/a", "delta/b", "delta/bn.running_mean")
    alone, blobs, weights = dict.fromkeys(names, 0.0), [], [1, 2, 7, 30]
    for i, weight in enumerate(weights):
        source = Held({f"delta/{n}": a for n, a in change(i).items()})
        lanes = Lanes(terms, fed.strategy, fed.layout, f"d{i}")
        blob, sent = lanes.write(source, Head(examples=weight), MemoryDraft(), keep=True)
        blobs.append(blob)
        alone = {n: alone[n] + np.asarray(sent[n], float).ravel() * weight / sum(weights) for n in names}
    total = Total(
        fed.strategy, fed.layout, terms, added(terms, blobs), [f"d{i}" for i in range(4)], Held(fed.model)
    )
    for n in names:
        assert np.abs(total.values(n, 0) - alone[n]).max() < 1e-7 * np.abs(alone[n]).max()


def test_a_device_whose_own_values_reach_beyond_the_sums_range_knows_what_it_sent():
    model = {"w": np.zeros(3000, np.float32)}
    fed = federation(model=model)
    for _ in range(2):
        fed.learn({f"d{i}": {"w": np.full(3000, 1e-4 * (i + 1), np.float32)} for i in range(3)})
    terms = fed.terms(3)
    large = (np.random.default_rng(0).standard_normal(3000) * 0.02).astype(np.float32)
    lanes = Lanes(terms, fed.strategy, fed.layout, "d0")
    _, sent = lanes.write(Held({"delta/w": large}), Head(examples=64), MemoryDraft(), keep=True)
    assert error(sent["delta/w"], large.astype(float)) < 1e-3


def test_a_group_of_more_than_one_tile_is_read_once_and_encoded_as_if_it_were_at_hand():
    size = ROWS * (COLUMNS + 5) - 3
    model = {"first": np.zeros(size - 1000, np.float32), "last": np.zeros(1000, np.float32)}
    fed = federation(model=model, clip=100)
    values = change(2, model)
    asked, rooms = [], []

    class Counted:
        def values(self, name, offset):
            asked.append((name, offset))
            return values[name.partition("/")[2]].reshape(-1)[offset : offset + TILE]

    def scratch(nbytes):
        rooms.append(nbytes)
        return MemoryScratch(nbytes)

    lanes = Lanes(fed.terms(3), fed.strategy, fed.layout, "d0")
    blob, _ = lanes.write(Counted(), Head(examples=1), MemoryDraft(), scratch=scratch)
    assert rooms == [4 * size]
    assert len(asked) == len(set(asked)) == 6
    total = Total(
        fed.strategy, fed.layout, fed.terms(3), added(fed.terms(3), [blob]), ["d0"], Held(model), scratch
    )
    assert rooms[1:] == [4 * (size + 1)]
    for name, wanted in values.items():
        found = np.concatenate([total.values(f"delta/{name}", o) for o in range(0, wanted.size, TILE)])
        assert error(found, wanted.astype(float)) < 1e-3


def test_a_flat_vector_is_its_fields_end_to_end():
    fields = federation(
        model={"a": np.zeros(TILE + 5), "b": np.zeros(3), "c": np.zeros((2, 2))}
    ).layout.update.fields
    values = {
        f"delta/{n}": np.arange(s, dtype=float) + 1e7 * k
        for k, (n, s) in enumerate((("a", TILE + 5), ("b", 3), ("c", 4)))
    }
    whole = np.concatenate(list(values.values()))
    flat = Flat(fields, Held(values), "<f8")
    for start, stop in ((0, 4), (TILE - 2, TILE + 10), (TILE, TILE + 12), (TILE + 7, TILE + 9), (3, 3)):
        assert flat(start, stop).tolist() == whole[start:stop].tolist()


def test_a_masker_reads_any_lanes_of_any_section():
    fed = tuned(federation(codec="fine"))
    ring, blob = Agreement.of(fed.terms(4)).ring, lanes_of(fed)
    data = blob.bytes()
    for number, section in enumerate(ring.sections):
        whole = np.frombuffer(data[section.offset : section.offset + section.nbytes], section.dtype)
        middle = section.lanes // 3
        assert (
            lanes_at(ring, blob.window, number, middle, section.lanes).tobytes() == whole[middle:].tobytes()
        )


# -- the sum --------------------------------------------------------------------------------------------------


def total_of(fed, blobs, names, terms):
    return Total(fed.strategy, fed.layout, terms, added(terms, blobs), names, Held(fed.model))


def test_equal_sums_have_equal_digests_whatever_is_above_their_bits():
    fed = tuned(federation(codec="fine"))
    terms, names = fed.terms(4), ["d0", "d1", "d2"]
    blobs = [lanes_of(fed, n, terms, i) for i, n in enumerate(names)]
    wanted = total_of(fed, blobs, names, terms)
    ring = Agreement.of(terms).ring
    masked = added(terms, reversed(blobs))
    first = masked.lanes(ring.sections[0])
    first += np.uint16(1 << 12)  # noise above the twelve bits, as masks of whole lanes leave it
    again = Total(fed.strategy, fed.layout, terms, masked, names[::-1], Held(fed.model))
    assert again.digest() == wanted.digest()
    assert again.tuning == wanted.tuning
    first += np.uint16(1)
    assert (
        Total(fed.strategy, fed.layout, terms, _with(ring, blobs, 1), names, Held(fed.model)).digest()
        != wanted.digest()
    )


def _with(ring: Ring, blobs, more):
    """The sum of `blobs`, and `more` examples in the numbers."""
    total = Sum(ring)
    for blob in blobs:
        total.add(blob.bytes())
    numbers = next(s for s in ring.sections if s.group and s.group.name == "numbers")
    total.lanes(numbers)[1] += np.uint64(more)
    return total


def test_a_sum_says_nothing_that_its_devices_did_not():
    fed = tuned(federation())
    terms, names = fed.terms(4), ["d0", "d1", "d2"]
    blobs = [lanes_of(fed, n, terms, i) for i, n in enumerate(names)]
    total = added(terms, blobs)
    total.lanes(total.ring.sections[0])[5] += np.uint8(1)
    with pytest.raises(BadBlob, match="check lanes of group 'param' are of other values"):
        Total(fed.strategy, fed.layout, terms, total, names, Held(fed.model))
    accounts = added(terms, blobs)
    accounts.lanes(accounts.ring.sections[-1])[0] += np.uint64(200)
    with pytest.raises(BadBlob, match="the weights of 3 devices add up to 209"):
        Total(fed.strategy, fed.layout, terms, accounts, names, Held(fed.model))


# -- terms ----------------------------------------------------------------------------------------------------


def test_an_agreement_is_what_the_terms_say_after_a_journey():
    fed = tuned(federation(codec="fine", gamma=0.1, keys="early", hardened=True, metrics=["f1"], phase=7))
    terms = fed.terms(9, groups=1)
    agreed = Agreement.of(Terms.decode(terms.encoded))
    assert agreed == Agreement.of(terms)
    assert agreed.to_json() == terms.secure
    assert (agreed.keys, agreed.gamma, agreed.delta, agreed.hardened) == ("early", 0.1, 0.1, True)
    assert (agreed.sigma, agreed.eta, agreed.attempts, agreed.phase, agreed.metrics) == (
        40,
        30,
        3,
        7.0,
        ("f1",),
    )
    config = agreed.config(terms, 2)
    assert (config.terms, config.attempt, config.groups, config.least) == (terms.digest, 2, 1, 3)
    assert [(lane.bits, lane.count) for lane in config.lanes] == [
        (s.group.bits if s.group else 64, s.lanes) for s in agreed.ring.sections
    ]
    assert [lane.dtype for lane in config.lanes] == [s.dtype for s in agreed.ring.sections]


def spoiled(secure, path, value):
    keys = path.split(".")
    inner = dict(secure)
    if len(keys) > 1:
        return {**inner, keys[0]: spoiled(secure[keys[0]], ".".join(keys[1:]), value)}
    if value is None:
        inner.pop(keys[0])
    else:
        inner[keys[0]] = value
    return inner


SPOILED = [
    ("keys", None), ("keys", "late"), ("more", 1), ("attempts", 0), ("attempts", True), ("attempts", 1.0),
    ("gamma", 1.0), ("gamma", -0.1), ("gamma", "0"), ("gamma", 0), ("delta", 1.5), ("sigma", 0),
    ("sigma", 1000), ("eta", 0.5), ("hardened", 1), ("phase", 0.0), ("phase", 30), ("phase", "30"),
    ("metrics", ["loss", "loss"]), ("metrics", "loss"), ("metrics", [5]), ("metrics", [""]),
    ("metrics", ["x" * 65]), ("metrics", [str(i) for i in range(65)]), ("metrics", [["a"]]), ("ring", {}),
    ("ring", "x"), ("ring.devices", 0), ("ring.subset", 3), ("ring.more", 1), ("ring.groups", []),
    ("ring.max_weight", 1 << 50), ("ring.groups", [5]), ("ring.version", 2),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), SPOILED, ids=str)
def test_terms_that_hold_something_else_hold_no_agreement(path, value):
    terms = federation().terms(4)
    assert Agreement.of(terms)
    with pytest.raises(BadBlob):
        Agreement.of(replace(terms, secure=spoiled(terms.secure, path, value)))


@pytest.mark.parametrize("secure", [{}, {"keys": float("nan")}, {"ring": {"groups": float("inf")}}])
def test_terms_that_hold_nothing_hold_no_agreement(secure):
    with pytest.raises(BadBlob):
        Agreement.of(replace(federation().terms(4), secure=secure))


def test_a_device_encodes_for_no_ring_that_is_not_of_its_run():
    fed = federation()
    terms = fed.terms(4)
    for change_ in (
        lambda groups: groups[:-1],
        lambda groups: [*groups[::-1]],
        lambda groups: [{**groups[0], "size": groups[0]["size"] - 1}, *groups[1:]],
        lambda groups: [{**groups[0], "rule": "sum"}, *groups[1:]],
        lambda groups: [*groups[:-1], {**groups[-1], "size": 100}],
        lambda groups: [{**groups[0], "name": "all"}, *groups[1:]],
    ):
        secure = {
            **terms.secure,
            "ring": {**terms.secure["ring"], "groups": change_(terms.secure["ring"]["groups"])},
        }
        other = replace(terms, secure=secure)
        with pytest.raises(BadUpdate, match="not the one of this run's model, strategy and metrics"):
            lanes_of(fed, terms=other)
        with pytest.raises(BadUpdate, match="not the one of this run's model, strategy and metrics"):
            fed.half.evaluated(other, Head(), {}, "d0")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e38])
def test_an_update_that_is_no_number_is_not_sent(wrong):
    fed = federation()
    end = {**MODEL, "a": np.full((50, 60), wrong, np.float32)}
    with pytest.raises(BadUpdate, match=r"group 'param' holds NaN or Inf, or has a norm of 2\^100"):
        fed.prepare("d0", fed.terms(4), end, Head(examples=1))


def test_an_update_of_no_examples_is_not_sent():
    fed = federation()
    with pytest.raises(BadUpdate, match="over 0 examples"):
        fed.prepare("d0", fed.terms(4), MODEL, Head())
