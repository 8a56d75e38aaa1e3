"""The coordinator's end of a secure round: masked updates on disk to the sum, and the sum to the next model."""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from koinon_coordinator.closing import Plan, close_secure, first_version, open_model
from koinon_coordinator.scratch import Room
from koinon_coordinator.store import Store, UpdateRow
from koinon_coordinator.unmasking import summed
from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, StoreError
from koinon_core.secagg.packing import PackedLayout
from koinon_core.secagg.pads import Pads
from koinon_core.secagg.recovery import Recovery
from koinon_core.secure.agreement import Agreement
from koinon_core.secure.apart import aggregate
from koinon_core.secure.device import lanes_at
from koinon_core.strategy import CoordinateMedian, FedAvgM, chain
from koinon_core.tensors import Tensors
from koinon_core.tiles import Held, gather
from koinon_core.update import Head
from summing import Federation, added, plus, spec_of

MODEL = {"w": np.zeros((300, 400), np.float32), "bn.running_var": np.ones(6, np.float32), "n": np.array(3)}


@pytest.fixture
def store(tmp_path):
    one = Store(f"sqlite:///{tmp_path / 'koinon.db'}")
    yield one
    one.close()


def federation(model=MODEL, **settings):
    return Federation(spec_of(FedAvgM(), model, **settings), Tensors(model))


def prepared(fed, devices, seed=0, groups=1):
    """(terms, what each device made): with a shared direction, and a metric."""
    terms = fed.terms(devices, groups=groups)
    made = {}
    for i in range(devices):
        draw = np.random.default_rng([seed, i])
        change = {n: draw.standard_normal(a.shape) * 0.01 for n, a in fed.model.items() if n != "n"}
        change["w"] = change["w"] + np.random.default_rng(seed).standard_normal(fed.model["w"].shape) * 0.01
        head = Head(examples=1 + i, training={"loss": 0.5 * i})
        made[f"d{i}"] = fed.prepare(f"d{i}", terms, plus(fed.model, change), head)
    return terms, made


def secret(*about):
    return bytes.fromhex(sha256(" ".join(map(str, about)).encode()))


def masked(terms, made, attempt=0):
    """(rows, what takes the masks off) of a session in which each device has a mask of its own, and one with each."""
    agreed = Agreement.of(terms)
    config = agreed.config(terms, attempt)
    names = sorted(made)
    rows = []
    for name in names:
        others = (other for other in names if other != name)
        pairs = [(secret(attempt, *sorted((name, other))), 1 if other > name else -1) for other in others]
        pads = Pads(config, [(secret(attempt, name), 1), *pairs])
        window = made[name].blob.window
        data = b"".join(pads.masked(partial(lanes_at, agreed.ring, window)))
        rows.append(UpdateRow(name, terms.round, sha256(data), len(data), "", Head(), 1.0, data))
    return rows, Recovery(config, [(secret(attempt, name), -1) for name in names], ())


def opened(store, terms, sessions, rows, attempt=0):
    return summed(store, terms, attempt, sessions, rows)


@pytest.mark.parametrize("codec", ["balanced", "fine", "compact", "exact"])
def test_masks_leave_the_sum_as_it_was(store, codec):
    fed = federation(codec=codec)
    for _ in range(2):  # a wide round, and a tuned one
        terms, made = prepared(fed, 5)
        rows, session = masked(terms, made)
        total = opened(store, terms, [session], rows)
        plain = added(terms, (p.blob for p in made.values()))
        for section in total.ring.sections:
            bits = section.group.bits if section.group else 64
            mask = np.uint64(2**bits - 1)
            assert (
                (total.lanes(section).astype("<u8") ^ plain.lanes(section).astype("<u8")) & mask
            ).max() == 0
        fed.close(terms, made)


def test_without_what_takes_them_off_there_is_nothing_to_read(store):
    fed = federation()
    terms, made = prepared(fed, 4)
    rows, _ = masked(terms, made)
    total = opened(store, terms, [], rows)
    assert len(np.unique(total.lanes(total.ring.sections[0])[:4096])) > 4000
    with pytest.raises(BadBlob):
        close_secure(store, Plan.of(fed.spec), terms, _first(store, fed), [(total, sorted(made))])


def test_groups_are_opened_each_by_its_own_and_added(store):
    fed = federation(groups=2, clients=8, min_clients=3)
    terms, made = prepared(fed, 8, groups=2)
    halves = [{c: made[c] for c in sorted(made)[i::2]} for i in range(2)]
    (left, first), (right, second) = (masked(terms, half) for half in halves)
    total = opened(store, terms, [first, second], [*left, *right])
    plain = added(terms, (p.blob for p in made.values()))
    for section in total.ring.sections[1:]:
        assert total.lanes(section).tobytes() == plain.lanes(section).tobytes()


def test_every_attempt_opens_to_the_same_digest(store):
    fed = federation()
    plan, version = Plan.of(fed.spec), _first(store, fed)
    terms, made = prepared(fed, 4)
    closed = []
    for attempt in (0, 1):
        rows, session = masked(terms, made, attempt)
        total = opened(store, terms, [session], rows, attempt)
        closed.append(close_secure(store, plan, terms, version, [(total, sorted(made))]))
    assert closed[0].sum == closed[1].sum
    assert closed[0].version == closed[1].version


def test_an_update_of_another_size_or_with_other_bytes_is_refused(store):
    fed = federation()
    terms, made = prepared(fed, 3)
    rows, session = masked(terms, made)
    short = replace(rows[1], size=rows[1].size - 1)
    total = PackedLayout(Agreement.of(terms).config(terms, 0)).total
    with pytest.raises(
        BadBlob, match=f"update of d1 has {total - 1} bytes, and the round's lanes take {total}"
    ):
        opened(store, terms, [session], [rows[0], short, rows[2]])
    spoiled = replace(rows[1], data=rows[1].data[:-1] + b"\0")
    with pytest.raises(BadBlob, match="d1"):
        opened(store, terms, [session], [rows[0], spoiled, rows[2]])


# -- closing --------------------------------------------------------------------------------------------------


def _first(store, fed):
    version, contents = first_version(store, Plan.of(fed.spec), Held(fed.model))
    _keep(store, contents)
    return version


def _keep(store, contents):
    """As a committed turn would have them at hand."""
    for digest, _, data in contents:
        if data is not None:
            store._remember(digest, data)
        else:
            store.window = _window(store, digest, store.window)


def _window(store, wanted, before):
    path = store.blobs.path(wanted)

    def window(digest):
        if digest != wanted:
            return before(digest)
        return store.blobs.window(digest), path.stat().st_size

    return window


def test_a_secure_round_closes_as_its_devices_expect(store):
    fed = federation()
    plan, version = Plan.of(fed.spec), _first(store, fed)
    for number in (1, 2):
        terms, made = prepared(fed, 6, number)
        rows, session = masked(terms, made)
        closed = close_secure(
            store, plan, terms, version, [(opened(store, terms, [session], rows), sorted(made))]
        )
        _, wanted = fed.close(terms, made)
        assert (closed.sum, closed.tuning, closed.version.weights) == (
            wanted.sum,
            wanted.tuning,
            wanted.weights,
        )
        assert closed.metrics == dict(wanted.metrics)
        _keep(store, closed.contents)
        version = closed.version
        assert gather(open_model(store, plan, version), fed.spec.model) == fed.model
        assert version.round == number
    assert '"steps":{"param"' in version.tuning


def test_a_round_that_evaluates_keeps_the_model_and_has_metrics(store):
    fed = federation()
    version, terms = _first(store, fed), fed.terms(3, "evaluate")
    head = Head(evaluation={"accuracy": 0.5}, evaluation_examples=7)
    made = {f"d{i}": fed.half.evaluated(terms, head, {}, f"d{i}") for i in range(3)}
    rows, session = masked(terms, made)
    closed = close_secure(
        store, Plan.of(fed.spec), terms, version, [(opened(store, terms, [session], rows), sorted(made))]
    )
    assert (closed.version, closed.contents, closed.evaluated) == (version, [], 3)
    assert closed.metrics == {"eval.accuracy": 0.5}


def test_an_overflow_makes_no_model_and_leaves_nothing_behind(store):
    model = {"w": np.zeros(30_000, np.float32)}
    fed = federation(model)
    plan, version = Plan.of(fed.spec), _first(store, fed)
    draw = np.random.default_rng(0)
    for factor in (1e-3, 5e-2):
        terms = fed.terms(4)
        made = {
            f"d{i}": fed.prepare(
                f"d{i}", terms, plus(fed.model, {"w": draw.normal(size=30_000) * factor}), Head(examples=1)
            )
            for i in range(4)
        }
        rows, session = masked(terms, made)
        total = opened(store, terms, [session], rows)
        if factor == 1e-3:
            fed.close(terms, made)
    used = store.folder.used
    with pytest.raises(BadBlob, match=r"^overflowed: the sum of 'param'"):
        close_secure(store, plan, terms, version, [(total, sorted(made))])
    assert store.folder.used == used
    assert not [p for p in (store.folder.root / "partial").glob("*") if p.is_file()]


def test_a_large_sum_goes_over_the_disk_and_is_gone_after_it(store, monkeypatch):
    size = 2_300_000
    fed = federation({"w": np.zeros((size // 100, 100), np.float32)}, codec="fine", clip=1e3)
    plan, version = Plan.of(fed.spec), _first(store, fed)
    used = store.folder.used
    terms, made = prepared(fed, 3)
    seen = []

    class Watched(Room):
        def __call__(self, nbytes):
            made = super().__call__(nbytes)
            seen.append((nbytes, type(made).__name__, self._folder.used - used))
            return made

    monkeypatch.setattr("koinon_coordinator.closing.Room", Watched)
    total = added(terms, (p.blob for p in made.values()))
    closed = close_secure(store, plan, terms, version, [(total, sorted(made))])
    assert seen == [(4 * size, "_FileScratch", 4 * size)]
    _, wanted = fed.close(terms, made)
    assert (closed.sum, closed.version.weights) == (wanted.sum, wanted.weights)
    assert store.folder.used - used == sum(n for _, n, data in closed.contents if data is None)


def test_a_scratch_has_what_was_written_wherever_that_was(store):
    size = (8 << 20) + 5
    with Room(store.folder) as room:
        small, large = room(100), room(size)
        for one, length in ((small, 100), (large, size)):
            one.write(length - 10, memoryview(bytes(range(10))))
            one.write(7, memoryview(b"seven"))
            assert bytes(one.read(5, 9)) == b"\0\0seven\0\0"
            assert bytes(one.read(length - 3, 3)) == bytes(range(7, 10))
        names = [p.name for p in (store.folder.root / "partial").iterdir()]
        assert names == [], "nobody else can open it"
        os.ftruncate(large._file.fileno(), size - 1)
        with pytest.raises(StoreError, match="has lost its end"):
            large.read(size - 3, 3)


def test_a_sum_for_which_there_is_no_room_waits(store):
    store.folder.quota = store.folder.used + 1000
    with pytest.raises(StoreError, match="quota"), Room(store.folder) as room:
        room(9 << 20)


def test_groups_between_which_a_rule_is_taken_are_opened_each_into_a_sum_of_its_own(store):
    model = {n: a for n, a in MODEL.items() if n != "n"}
    strategy = chain(FedAvgM(), CoordinateMedian())
    fed = Federation(spec_of(strategy, model, groups=5, clients=15, codec="fine"), Tensors(model))
    plan, version = Plan.of(fed.spec), _first(store, fed)
    for seed in (0, 1):  # a wide round, and a tuned one
        terms, made = prepared(fed, 15, seed, groups=5)
        parts = [{c: made[c] for c in sorted(made)[i::5]} for i in range(5)]
        sums, plain = [], []
        for part in parts:
            rows, session = masked(terms, part)
            sums.append((opened(store, terms, [session], rows), tuple(part)))
            plain.append((added(terms, (p.blob for p in part.values())), tuple(part)))
        closed = close_secure(store, plan, terms, version, iter(sums))
        wanted = fed.step(terms, aggregate(fed.strategy, fed.layout, terms, plain, Held(fed.model)), made)
        assert (closed.sum, closed.tuning, closed.version.weights) == (
            wanted.sum,
            wanted.tuning,
            wanted.weights,
        )
        _keep(store, closed.contents)
        version = closed.version
