"""What a round costs in joules: which source measures it, and what is said of what it did not see."""

import json
import threading
import time

import pytest

from koinon_edge.metering import PHASES, Cost, Costs, PowerSource, Sampler, choose
from koinon_edge.probe import Files, Reading
from sysfs import Tree


@pytest.fixture
def tree(tmp_path):
    one = Tree(tmp_path)
    yield one
    one.close()


class Bench:
    """A source and a clock that the test turns. Nothing is sampled but at boundaries, or when it says so."""

    def __init__(self, unit: str):
        self.now, self.value = 100.0, 0.0
        self.dead = False
        self.asked = 0
        source = PowerSource("bench", "module", unit, self.read)
        self.sampler = Sampler(source, lambda: self.now, every=3600.0)

    def read(self) -> Reading:
        self.asked += 1
        if self.dead:
            return Reading.unknown(self.sampler.source.unit, "bench", "late")
        return Reading(self.value, self.sampler.source.unit, "bench")

    def look(self, seconds: float, value: float) -> None:
        """So much later, the source says that."""
        self.now, self.value = self.now + seconds, value
        taken = self.sampler._taken
        assert taken is not None
        self.sampler._look(taken, boundary=False)

    def begin(self, seconds: float, value: float, phase: str) -> None:
        self.now, self.value = self.now + seconds, value
        self.sampler.begin(phase)

    def end(self, seconds: float, value: float) -> Costs:
        self.now, self.value = self.now + seconds, value
        return self.sampler.end()


# -- which source ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "name", "scope"),
    [
        ("orin_nano", "INA3221", "module"),
        ("thor", "INA238", "module"),
        ("agx_orin", "INA3221", "rails VDDQ_VDD2_1V8AO+VDD_CPU_CV+VDD_GPU_SOC+VIN_SYS_5V0"),
        ("server", "RAPL", "cpu package"),
        ("laptop", "none", "nothing"),
    ],
)
def test_every_machine_has_its_source_and_says_of_what_it_is(tree, machine, name, scope):
    getattr(tree, machine)()
    source = choose(Files(tree.root))
    assert (source.name, source.scope) == (name, scope)
    assert (source.read().value is None) == (name == "none"), "unknown, and not 0"
    assert source.read().unit == source.unit


def test_a_board_whose_rails_are_off_is_measured_by_something_else_or_not_at_all(tree):
    tree.orin_nano()
    tree.offline("sys/class/hwmon/hwmon4/curr1_input")
    assert choose(Files(tree.root)).name == "none"
    tree.server()
    assert choose(Files(tree.root)).name == "RAPL"


# -- joules by phase ------------------------------------------------------------------------------------------


def test_watts_are_added_up_by_what_was_being_done():
    bench = Bench("W")
    bench.sampler.idle = 2.0
    bench.begin(0.0, 5.0, "download")
    bench.look(1.0, 5.0)
    bench.begin(1.0, 7.0, "train")
    bench.look(1.0, 10.0)
    found = bench.end(1.0, 10.0)
    assert found.phases["download"] == Cost(11.0, 7.0, 2.0, 0.0, 2)
    assert found.phases["train"] == Cost(18.5, 14.5, 2.0, 0.0, 2)
    assert (found.joules, found.above, found.seconds) == (29.5, 21.5, 4.0)
    assert (found.scope, found.source, found.idle) == ("module", "bench", 2.0)


def test_a_counters_joules_are_its_differences_to_the_last_one():
    bench = Bench("J")
    bench.begin(0.0, 1000.0, "download")
    bench.look(0.2, 1001.0)
    bench.begin(0.1, 1004.0, "train")
    bench.look(30.0, 1504.0)  # the sampler was held up, and the counter went on
    found = bench.end(0.2, 1510.0)
    assert found.phases["download"].joules == pytest.approx(4.0)
    assert found.phases["train"].joules == pytest.approx(506.0)
    assert [cost.missing for cost in found.phases.values()] == [0.0, 0.0]


def test_a_counter_that_did_not_answer_in_between_has_lost_nothing():
    bench = Bench("J")
    bench.begin(0.0, 1000.0, "train")
    bench.look(1.0, 1010.0)
    bench.dead = True
    bench.look(1.0, 0.0)
    bench.dead = False
    bench.look(1.0, 1030.0)
    found = bench.end(1.0, 1040.0).phases["train"]
    assert (found.joules, found.missing, found.samples) == (pytest.approx(40.0), 0.0, 3)


def test_a_counter_that_is_silent_between_two_phases_leaves_that_time_without_a_figure():
    bench = Bench("J")
    bench.begin(0.0, 1000.0, "download")
    bench.look(1.0, 1010.0)
    bench.dead = True
    bench.begin(1.0, 0.0, "train")
    bench.dead = False
    bench.look(1.0, 1030.0)
    found = bench.end(1.0, 1040.0)
    assert (found.phases["download"].joules, found.phases["download"].missing) == (pytest.approx(10.0), 0.5)
    assert (found.phases["train"].joules, found.phases["train"].missing) == (pytest.approx(10.0), 0.5)


def test_a_counter_that_begins_anew_is_not_less_than_nothing():
    bench = Bench("J")
    bench.begin(0.0, 1000.0, "train")
    bench.look(1.0, 1010.0)
    bench.look(1.0, 3.0)  # the driver was loaded anew
    found = bench.end(2.0, 23.0).phases["train"]
    assert (found.joules, found.missing) == (pytest.approx(30.0), 0.25)


@pytest.mark.parametrize("unit", ["W", "J"])
def test_what_nobody_measured_is_unknown_and_so_is_a_sum_with_it(unit):
    bench = Bench(unit)
    bench.sampler.idle = 2.0
    bench.dead = True
    bench.begin(0.0, 0.0, "download")
    bench.look(1.0, 0.0)
    bench.dead = False
    bench.begin(1.0, 10.0, "train")
    found = bench.end(1.0, 10.0)
    assert found.phases["download"] == Cost(None, None, 2.0, 1.0, 1)
    assert found.phases["train"].joules is not None
    assert (found.joules, found.above) == (None, None)


def test_each_piece_of_work_is_its_own():
    bench = Bench("W")
    bench.begin(0.0, 10.0, "train")
    first = bench.end(1.0, 10.0)
    bench.begin(50.0, 10.0, "train")
    assert bench.end(1.0, 10.0) == first
    asked = bench.asked
    assert bench.sampler.end() == Costs({}, "module", "bench"), "nothing was measured"
    assert (bench.asked, bench.sampler.end().joules) == (asked, None)


# -- the thread -----------------------------------------------------------------------------------------------


def test_the_source_is_asked_five_times_a_second_and_only_while_something_is_measured():
    asked: list[float] = []

    def read() -> Reading:
        asked.append(time.monotonic())
        return Reading(10.0, "W", "bench")

    threads = threading.active_count()
    sampler = Sampler(PowerSource("bench", "module", "W", read))
    time.sleep(0.25)
    assert (asked, threading.active_count()) == ([], threads)
    sampler.begin("train")
    sampler.begin("encode")
    assert threading.active_count() == threads + 1
    time.sleep(0.7)
    found = sampler.end()
    assert threading.active_count() == threads
    assert 3 <= len(asked) <= 6, "two boundaries, some samples, and the end"
    assert found.phases["encode"].joules == pytest.approx(10.0 * found.phases["encode"].seconds)
    assert found.phases["encode"].samples >= 2
    after = len(asked)
    time.sleep(0.25)
    assert len(asked) == after


# -- at rest --------------------------------------------------------------------------------------------------


def test_what_idling_draws_is_measured_while_nothing_is_done():
    bench = Bench("W")
    bench.value = 4.0

    def later(seconds: float) -> None:
        bench.now += 0.5
        bench.value = 6.0

    bench.sampler._every = 0.5
    assert bench.sampler.rest(2.0, later) == pytest.approx((0.5 * 5.0 + 1.5 * 6.0) / 2)
    assert bench.sampler.idle == pytest.approx(5.75)


@pytest.mark.parametrize("unit", ["W", "J"])
def test_a_rest_that_nobody_measured_or_that_was_none_says_nothing(unit):
    bench = Bench(unit)
    bench.sampler._every = 0.5

    def later(seconds: float) -> None:
        bench.now += seconds

    bench.dead = True
    assert bench.sampler.rest(2.0, later) is None
    bench.dead = False

    def dying(seconds: float) -> None:
        later(seconds)
        bench.dead = bench.now > 103.0

    assert bench.sampler.rest(4.0, dying) is None, "a quarter of it is too little"
    bench.dead = False

    def busy(seconds: float) -> None:
        later(seconds)
        bench.sampler.begin("train")

    assert bench.sampler.rest(2.0, busy) is None
    assert bench.sampler.rest(2.0, later) is None, "it is at work still"
    assert bench.sampler.idle is None
    bench.sampler.end()


# -- as values ------------------------------------------------------------------------------------------------


def test_costs_come_back_from_disk_as_they_were():
    costs = Costs(
        {"download": Cost(None, None, 2.0, 1.0, 0), "train": Cost(18.5, -1.5, 2.0, 0.25, 9)}, "module", "INA3221", 4.0
    )  # fmt: skip
    assert Costs.from_json(json.loads(json.dumps(costs.to_json(), allow_nan=False))) == costs
    assert Costs.from_json(Costs().to_json()) == Costs()
    assert set(costs.phases) <= set(PHASES)


@pytest.mark.parametrize(
    "spoiled",
    [
        None, [], {}, {"phases": {}}, {"joules": float("nan")}, {"joules": -1.0}, {"joules": "7"}, {"joules": True},
        {"missing": 1.5}, {"seconds": -1}, {"samples": 1.5}, {"above": float("inf")},
    ],
)  # fmt: skip
def test_what_is_no_account_of_costs_is_refused(spoiled):
    said = Costs({"train": Cost(1.0, None, 2.0, 0.0, 3)}, "gpu", "NVML power").to_json()
    if spoiled and "phases" not in spoiled:
        said["phases"]["train"].update(spoiled)
    else:
        said = spoiled
    with pytest.raises(ValueError, match="no account"):
        Costs.from_json(said)
