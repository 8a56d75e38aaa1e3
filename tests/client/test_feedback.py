"""Lossy updates on the device, end to end in the simulation: what a biased codec leaves out is sent later, neither lost
nor sent twice; and how a run's [[sections]] change what travels how."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import koinon
import toy
from koinon.outbox import DiskOutbox
from koinon.session import Session
from koinon.simulated.coordinator import House
from koinon.simulated.device import Device
from koinon.simulated.world import Faults, World
from koinon_core.codec import Reader
from koinon_core.round.terms import Terms
from koinon_core.strategy import Clip, FedBN, Scaffold, chain

SHAPE = (16, 16)
NAMES = ["client-0", "client-1"]


def change(task: koinon.Task) -> Any:
    """A change of which `thin` sends a little: a few large entries among small ones. Few bits each, so that no sum of
    them, of residuals and of steps is ever rounded."""
    dice = np.random.default_rng(task.seed)
    small = dice.integers(-8, 9, SHAPE) / 64
    return (small + np.where(dice.random(SHAPE) < 0.05, 4.0, 0.0)).astype(np.float32)


def run_of(**settings: Any) -> koinon.Run:
    values = {
        "model": {"w": np.zeros(SHAPE, np.float32)}, "codec": "thin", "min_clients": 2, "max_examples": 8, "rounds": 8,
        "evaluate": False, "aggregation": "open",
    }  # fmt: skip
    return koinon.Run("r", **{**values, **settings})


def residual(session: Session) -> Any:
    """What is committed on the device."""
    kept = session._talk.state.get("residual", {})
    return np.array(kept["delta/w"]) if kept else np.zeros(SHAPE, np.float32)


def arrives(session: Session) -> Any:
    """What the coordinator decodes of the update that was just handed in."""
    talk = session._talk
    assert talk.half is not None
    assert talk._sent is not None
    layout = talk.half.layout.under(Terms.decode(talk._sent.terms))
    return Reader(talk._sent.blob.window, talk._sent.blob.size, layout.update).tensors()["delta/w"]


# -- error feedback -------------------------------------------------------------------------------------------


def test_what_was_sent_and_what_is_left_is_all_that_was_learned():
    learned, left = {}, {}

    def client(session):
        model, total = {"w": np.zeros(SHAPE, np.float32)}, np.zeros(SHAPE, np.float32)
        for task in session.tasks(model):
            model["w"] += (delta := change(task))
            total += delta
            task.submit(examples=1)
        learned[session.client], left[session.client] = total, residual(session)

    model = koinon.simulate(run_of(), client, clients=NAMES).model["w"]
    assert np.count_nonzero(model) > 20, "something was sent"
    assert all(np.count_nonzero(r) > 20 for r in left.values()), "and something was not"
    np.testing.assert_array_equal(2 * model + sum(left.values()), sum(learned.values()))


def test_what_is_left_is_kept_when_the_update_counts_and_stays_as_it_was_when_it_does_not():
    fates: list[str] = []

    def client(session):
        model, balance = {"w": np.zeros(SHAPE, np.float32)}, np.zeros(SHAPE, np.float32)
        last: tuple[koinon.Task, Any, Any] | None = None
        for task in session.tasks(model):
            before = residual(session)
            if last is not None:
                earlier, old, owed = last
                assert earlier.outcome
                fates.append("counted" if earlier.outcome == "counted" else "not")
                balance += owed if earlier.outcome == "counted" else 0
                if earlier.outcome != "counted":
                    np.testing.assert_array_equal(before, old)
                np.testing.assert_array_equal(before, balance)
            model["w"] += (delta := change(task))
            task.submit(examples=1)
            last = task, before, delta - arrives(session)

    run = run_of(clients=2, over_selection=2.0, rounds=12)
    koinon.simulate(run, client, clients=4, faults=Faults(delay=1.0), seed=3)
    assert fates.count("counted") > 8
    assert fates.count("not") > 8


def test_an_unbiased_codec_leaves_nothing_behind():
    seen = []

    def client(session):
        model = {"w": np.zeros(SHAPE, np.float32)}
        for task in session.tasks(model):
            seen.append(dict(session._talk.state))
            model["w"] += change(task)
            task.submit(examples=1)

    koinon.simulate(run_of(codec="compact", rounds=3), client, clients=NAMES)
    assert seen == [{}] * 6


# -- a device that dies ---------------------------------------------------------------------------------------


class Life:
    """A run in the simulation, in which devices have memories on disk, and may die and come back."""

    def __init__(self, run: koinon.Run, folder: Path, client: Callable[["Life", Session], None]):
        self.world, self.folder, self._client = World(), folder, client
        self.house = House(run, self.world, Faults())
        self.devices: list[Device] = []
        self._memory: dict[str, Path] = {}
        for name in NAMES:
            self.start(name, folder / name)
        self.house.begin()
        while not self.house.machine.over and self.world.step():
            pass
        while self.world.step():
            pass
        for device in self.devices:
            device.link.stop()

    def start(self, name: str, memory: Path) -> None:
        device = Device(self.house, lambda session: self._client(self, session), name)
        self._memory[name], outbox = memory, DiskOutbox(memory, name)
        outbox.models = None  # the simulation's link has models in memory
        device.session = Session(device.link, "r", name, outbox=outbox)
        self.devices.append(device)
        device.start()
        device.link.idle.acquire()

    def die(self, name: str) -> None:
        """As by a loss of power: another process finds what is on the disk at this moment, and nothing more."""
        memory = self._memory[name]
        del self.house.links[name]  # the dead hear nothing
        again = memory.with_name(memory.name + "+")
        shutil.copytree(memory, again)
        self.world.after(1.0, lambda: self.start(name, again))


def mortal(*deaths: int) -> Callable[[Life, Session], None]:
    """The second device dies in these rounds, when its update is out and nobody has said what became of it."""

    def client(life: Life, session: Session) -> None:
        model = {"w": np.zeros(SHAPE, np.float32)}
        for task in session.tasks(model):
            model["w"] += change(task)
            task.submit(examples=1)
            if session.client == NAMES[1] and task.round in deaths:
                life.die(session.client)
                return

    return client


def test_what_is_left_outlives_the_device(tmp_path):
    whole = Life(run_of(), tmp_path / "whole", mortal())
    torn = Life(run_of(), tmp_path / "torn", mortal(2, 3, 6))
    assert [d.error for d in torn.devices] == [None] * 5, "it died three times"
    assert [r.clients for r in torn.house.rounds] == [tuple(NAMES)] * 8
    assert torn.house.models == whole.house.models


# -- beside what strategies keep ------------------------------------------------------------------------------


def test_what_is_left_lies_beside_control_variates_and_tensors_that_stay_at_home(tmp_path):
    ends: dict[str, Any] = {}

    def client(life, session):
        i = NAMES.index(session.client)
        target = np.random.default_rng(i).standard_t(2, SHAPE)
        model = {"w": np.zeros(SHAPE, np.float32), "norm": np.zeros(3, np.float32)}
        for task in session.tasks(model):
            assert np.array_equal(model["norm"], np.full(3, (task.round - 1) * (i + 1)))
            for _ in range(5):
                task.descend({"w": ((i + 1) * (model["w"] - target)).astype(np.float32)}, lr=0.05)
            model["norm"] += i + 1
            task.submit(examples=1)
        ends[session.client] = session._talk.state

    model = {"w": np.zeros(SHAPE, np.float32), "norm": np.zeros(3, np.float32)}
    strategy = chain(Scaffold(), FedBN(keys=("norm",)))
    life = Life(run_of(model=model, strategy=strategy, population=2, bound=4096.0), tmp_path, client)
    assert [d.error for d in life.devices] == [None] * 2
    assert life.house.machine.status == "finished"
    for i, state in enumerate(ends.values()):
        assert state.keys() == {"0.c", "own", "residual"}
        assert state["own"].keys() == {"norm"}
        assert np.array_equal(state["own"]["norm"], np.full(3, 8 * (i + 1)))
        assert state["residual"].keys() == {"delta/w", "extra/control/w"}
        assert all(np.any(left) for left in state["residual"].values())
    # The server's c is the mean of the devices' c_i: these follow what was sent, and not what was meant.
    mean = sum(state["0.c"]["w"] for state in ends.values()) / 2
    assert np.any(mean)
    np.testing.assert_allclose(life.house.state["0.c/w"], mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(life.house.model["norm"], np.zeros(3))


@pytest.mark.parametrize("take", [4, 2])
@pytest.mark.parametrize("strategy", [Scaffold(), chain(Scaffold(), Clip(1.0))], ids=["scaffold", "clipped"])
def test_scaffold_under_the_default_codec_finds_the_uniform_optimum(strategy, take):
    x, closing, devices = toy.federate(strategy, rounds=400, take=take, codec="balanced")
    assert x == pytest.approx(toy.UNIFORM, abs=1e-9)
    own = "c" if isinstance(strategy, Scaffold) else "0.c"
    mean = sum(float(d[own]["x"][0]) for d in devices) / 4
    assert mean == pytest.approx(float(closing.state[own]["x"][0]), abs=1e-12)


# -- sections -------------------------------------------------------------------------------------------------

BODY = np.random.default_rng(0).integers(-64, 65, SHAPE).astype(np.float32) / 64


def weights() -> dict[str, Any]:
    return {
        "body": np.zeros(SHAPE, np.float32), "head": np.zeros(4, np.float32),
        "bn.running_mean": np.ones(3, np.float32), "n": np.array([5]),
    }  # fmt: skip


def step(model: dict[str, Any], i: int) -> None:
    """What device `i` makes of the model."""
    model["body"] += BODY
    model["head"] += i + 1
    model["bn.running_mean"] += i + 1


def joined(
    *sections: dict[str, Any], make: Any = step, clients: int = 2, **settings: Any
) -> tuple[Any, list[str]]:
    """(the model after the rounds, what became of the devices' updates)."""
    outcomes: dict[str, str] = {}

    def client(session: koinon.Session) -> None:
        i, model = int(session.client[-1]), weights()
        for task in session.tasks(model):
            make(model, i)
            task.submit(examples=1)
        outcomes[session.client] = task.outcome

    values = {"codec": "compact", "rounds": 1, "model": weights(), "sections": sections}
    result = koinon.simulate(run_of(**{**values, **settings}), client, clients=clients)
    return result.model, [outcomes[n] for n in sorted(outcomes)]


def test_without_sections_parameters_are_quantised_statistics_averaged_and_counters_take_the_largest():
    def make(model, i):
        step(model, i)
        model["n"] += i

    model, _ = joined(make=make)
    assert not np.array_equal(model["body"], BODY)
    assert not np.array_equal(model["head"], np.full(4, 1.5))
    assert np.array_equal(model["bn.running_mean"], np.full(3, 2.5))
    assert model["n"] == 6


def test_a_section_may_be_lossless_in_a_run_that_is_not():
    model, _ = joined({"match": "param/head", "codec": "lossless"})
    assert np.array_equal(model["head"], np.full(4, 1.5))
    assert not np.array_equal(model["body"], BODY)


def test_a_section_may_be_finer_than_the_run():
    coarse = np.abs(joined()[0]["body"] - BODY).mean()
    fine = np.abs(joined({"match": "param/b*", "codec": "fine"})[0]["body"] - BODY).mean()
    assert 8 < coarse / fine < 32, "steps of 2 and of 1/8"


def test_a_biased_section_keeps_what_it_leaves_out_and_the_others_nothing():
    kept = []

    def client(session):
        model = weights()
        for task in session.tasks(model):
            kept.append({what: set(t) for what, t in session._talk.state.items()})
            step(model, 0)
            task.submit(examples=1)

    run = run_of(
        model=weights(), codec="balanced", rounds=2, sections=[{"match": "param/body", "codec": "thin"}]
    )
    koinon.simulate(run, client, clients=NAMES)
    assert kept == [{}, {}, {"residual": {"delta/body"}}, {"residual": {"delta/body"}}]


def test_a_statistic_may_be_joined_by_its_largest_value():
    model, _ = joined({"match": "stat/*", "rule": "max"})
    assert np.array_equal(model["bn.running_mean"], np.full(3, 3.0))


def test_the_first_section_that_matches_holds():
    first, second = {"match": "stat/*", "rule": "max"}, {"match": "*/bn.*", "rule": "local"}
    assert np.array_equal(joined(first, second)[0]["bn.running_mean"], np.full(3, 3.0))
    assert np.array_equal(joined(second, first)[0]["bn.running_mean"], np.ones(3))


def test_who_differs_in_what_must_be_equal_is_refused_and_the_others_go_on():
    def make(model, i):
        step(model, i)
        model["n"] += i == 2

    model, outcomes = joined({"match": "count/n", "rule": "equal"}, make=make, clients=3, rounds=2)
    assert model["n"] == 5
    assert outcomes[:2] == ["counted"] * 2
    assert "'count/n' is not what the model has, and in this run it must be equal" in outcomes[2]
    model, outcomes = joined(make=make, clients=3)
    assert outcomes == ["counted"] * 3, "the same without the section"
    assert model["n"] == 6


def test_a_parameter_may_stay_at_home():
    seen: dict[int, list[float]] = {0: [], 1: []}

    def make(model, i):
        seen[i].append(float(model["head"][0]))
        step(model, i)

    model, outcomes = joined({"match": "param/head", "rule": "local"}, make=make, rounds=3)
    assert outcomes == ["counted"] * 2
    assert seen == {0: [0.0, 1.0, 2.0], 1: [0.0, 2.0, 4.0]}
    assert np.array_equal(model["head"], np.zeros(4)), "the run's model has what it began with"


def test_a_section_has_a_bound_of_its_own():
    wide = {"match": "param/head", "bound": 100, "codec": "lossless"}

    def make(model, i):
        model["head"] += 60.0
        model["body"][0, 0] += 0.5

    model, outcomes = joined(wide, make=make, bound=1.0)
    assert outcomes == ["counted"] * 2
    assert np.array_equal(model["head"], np.full(4, 60.0))
    with pytest.raises(koinon.BadUpdate, match=r"this update is not sent: 'delta/head' .* 1"):
        joined({**wide, "bound": 1.0}, make=make, bound=1.0)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"match": "param/head", "rule": "max"}, "is trained and can be joined by mean or stay local, not by max"),
        ({"match": "param/*", "rule": "equal"}, "is trained and can be joined by mean or stay local, not by equal"),
        ({"match": "param/*", "rule": "local"}, "there is nothing to federate"),
        ({"match": "extra/control/*", "rule": "local"}, "belongs to the strategy, which joins it by mean"),
        ({"match": "count/*", "rule": "mean"}, "half a counter means nothing: use max, equal or local"),
        ({"match": "count/*", "codec": "balanced"}, "is joined by max as int64, and must be lossless"),
        ({"match": "stat/*", "codec": "fine", "rule": "max"}, "is joined by max as float32, and must be lossless"),
        ({"match": "head", "codec": "fine"}, "must begin with a kind"),
        ({"match": "params/head", "codec": "fine"}, "must begin with a kind"),
        ({"match": "param/head", "codec": "tiny"}, "there is no codec 'tiny'; this version has"),
        ({"match": "param/head", "rule": "median"}, "must be one of mean, max, equal, local"),
        ({"match": "param/head", "bound": 0}, "must be a number above 0"),
        ({"match": "param/head", "bound": 2**70}, "must be a number above 0"),
        ({"match": "param/head", "bound": 2**50}, "does not fit in 63 bits: lower max_examples, bound or"),
        ({"match": "param/head", "bits": 4}, "have no key 'bits'; there are match, codec, rule, bound"),
        ({"codec": "fine"}, "has no match; say which tensors it is about"),
    ],
)  # fmt: skip
def test_what_a_section_cannot_be_is_refused_in_one_sentence_when_the_run_is_made(section, sentence):
    with pytest.raises(koinon.UsageError, match=sentence) as refused:
        run_of(model=weights(), sections=[section], strategy=Scaffold(), population=2)
    assert "\n" not in str(refused.value)
