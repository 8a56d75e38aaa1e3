"""The gate's questions, each both ways and where nobody knows, and what it remembers so that it does not flap."""

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_edge.gate import Budget, Found, Gate, Memory, Network, Predicate, Verdict, decide, explain
from koinon_edge.gate.budget import Spent
from koinon_edge.gate.modes import Mode, power_mode
from koinon_edge.probe import Battery, Files, Reading
from koinon_edge.settings import GateSettings, Window
from sysfs import Tree

NOON = datetime(2027, 1, 1, 12, tzinfo=UTC)  # a Friday
ASKED = GateSettings()
WIRED = Network("eth0", False, False, True, "")
_NO_BATTERY = Reading.unknown("%", "power_supply", "no battery")


def known(value: float, unit: str = "%") -> Reading:
    return Reading(value, unit, "here")


def lost(why: str = "offline", unit: str = "%") -> Reading:
    return Reading.unknown(unit, "here", why)


FINE = Found(
    wall=NOON, battery=Battery(_NO_BATTERY, True, False), heat=known(40, "°C"), cpu=known(1), gpu=known(2),
    memory=known(4000, "MB"), disk=known(9000, "MB"), mode=Mode("15W"), network=WIRED,
    spent=Spent(on=date(2027, 1, 1)),
)  # fmt: skip


def on_battery(level: Reading, mains: bool | None = False) -> Found:
    return replace(FINE, battery=Battery(level, mains, True))


def net(**values) -> Found:
    return replace(FINE, network=replace(WIRED, **values))


def ask(
    found: Found, asked: GateSettings = ASKED, *, working: bool = False, memory: Memory | None = None
) -> Verdict:
    return decide(asked, found, memory or Memory(), working=working)[0]


def of(name: str, verdict: Verdict) -> Predicate:
    return next(p for p in verdict.predicates if p.name == name)


# -- each question --------------------------------------------------------------------------------------------

_NIGHT = GateSettings(windows=(Window.parse("22:00-06:00"),))
_DAY = GateSettings(windows=(Window.parse("22:00-06:00"), Window.parse("fri 10:00-13:00")))
_MAINS = GateSettings(mains=True)
_MODES = GateSettings(power_modes=("7w", "15w"))
_DEAR = GateSettings(metered=True, roaming=True)
_PAID = Spent(on=date(2027, 1, 1), day=400, month=900, day_limit=500, month_limit=1000)


@pytest.mark.parametrize(
    ("name", "found", "asked", "verdict", "why"),
    [
        ("power", FINE, _MAINS, "yes", ""),
        ("power", on_battery(known(5), mains=True), _MAINS, "yes", ""),
        ("power", on_battery(known(90)), _MAINS, "no", "the device is not on mains"),
        ("power", on_battery(known(90), mains=None), _MAINS, "unknown",
         "nothing says whether the device is on mains"),
        ("power", on_battery(known(50)), ASKED, "yes", ""),
        ("power", on_battery(known(50), mains=None), ASKED, "yes", ""),
        ("power", on_battery(known(49.9)), ASKED, "no", "the battery is too low, 55 % is asked for"),
        ("power", on_battery(lost()), ASKED, "unknown", "the battery's level is unknown (offline)"),
        ("power", replace(FINE, battery=Battery(_NO_BATTERY, False, False)), _MAINS, "yes", ""),  # an empty socket
        ("heat", replace(FINE, heat=known(74.9)), ASKED, "yes", ""),
        ("heat", replace(FINE, heat=known(75)), ASKED, "no", "it is too hot to begin, 75 °C or more"),
        ("heat", replace(FINE, heat=lost("no sensor")), ASKED, "unknown", "this machine has no sensor of heat"),
        ("heat", replace(FINE, heat=lost("no sensor answers")), ASKED, "unknown",
         "every sensor of heat is offline: nothing would pause work that gets too hot"),
        ("idle", replace(FINE, cpu=known(50), gpu=known(50)), ASKED, "yes", ""),
        ("idle", replace(FINE, cpu=known(50.1)), ASKED, "no", "the processors are busy with something else"),
        ("idle", replace(FINE, gpu=known(50.1)), ASKED, "no", "the graphics processor is busy with something else"),
        ("idle", replace(FINE, gpu=lost("no sensor")), ASKED, "yes", ""),  # it has none
        ("idle", replace(FINE, gpu=lost("late")), ASKED, "unknown", "how busy the device is cannot be read"),
        ("idle", replace(FINE, cpu=lost("denied")), ASKED, "unknown", "how busy the device is cannot be read"),
        ("idle", replace(FINE, cpu=lost("denied"), gpu=known(99)), ASKED, "no",
         "the graphics processor is busy with something else"),
        ("memory", replace(FINE, memory=known(500, "MB")), ASKED, "yes", ""),
        ("memory", replace(FINE, memory=known(499, "MB")), ASKED, "no",
         "there is too little memory, 500 MB must be free"),
        ("memory", replace(FINE, memory=lost()), ASKED, "unknown", "how much memory is free cannot be read"),
        ("disk", replace(FINE, disk=known(1000, "MB")), ASKED, "yes", ""),
        ("disk", replace(FINE, disk=known(999, "MB")), ASKED, "no", "there is too little disk, 1 GB must be free"),
        ("disk", replace(FINE, disk=lost()), ASKED, "unknown", "how much disk is free cannot be read"),
        ("power mode", replace(FINE, mode=Mode("", "odd")), ASKED, "yes", ""),
        ("power mode", FINE, _MODES, "yes", ""),
        ("power mode", replace(FINE, mode=Mode("MAXN")), _MODES, "no", "the power mode is MAXN"),
        ("power mode", replace(FINE, mode=Mode("", "odd")), _MODES, "unknown", "the power mode cannot be told (odd)"),
        ("network", FINE, ASKED, "yes", ""),
        ("network", net(metered=True, why="NetworkManager says yes"), ASKED, "no",
         "eth0 is metered (NetworkManager says yes)"),
        ("network", net(roaming=True), ASKED, "no", "eth0 is roaming"),
        ("network", net(metered=True, roaming=True), _DEAR, "yes", ""),
        ("network", net(metered=None), ASKED, "unknown", "whether it is metered is not known"),
        ("network", net(metered=None, roaming=None), ASKED, "unknown", "whether it is metered or roaming is not known"),
        ("network", net(metered=None, roaming=None), _DEAR, "yes", ""),
        ("network", net(up=False, why="eth0 is down"), _DEAR, "no", "there is no network: eth0 is down"),
        ("budget", FINE, ASKED, "yes", ""),
        ("budget", replace(FINE, spent=_PAID), ASKED, "yes", ""),
        ("budget", replace(FINE, spent=replace(_PAID, day=500)), ASKED, "no", "the bytes of the day are spent"),
        ("budget", replace(FINE, spent=replace(_PAID, month=2000)), ASKED, "no", "the bytes of the month are spent"),
        ("budget", replace(FINE, spent=replace(_PAID, barred="nobody knows")), ASKED, "no", "nobody knows"),
        ("window", FINE, ASKED, "yes", ""),
        ("window", FINE, _DAY, "yes", ""),
        ("window", FINE, _NIGHT, "no", "it is not the time for it (22:00-06:00)"),
    ],
)  # fmt: skip
def test_each_question_is_answered_yes_no_or_unknown(name, found, asked, verdict, why):
    said = ask(found, asked)
    assert (of(name, said).verdict, of(name, said).why) == (verdict, why)
    assert said.open is (verdict != "no"), "what is unknown is allowed, as the owner left it"
    assert said.reason == (why if verdict == "no" else "")
    careful = ask(found, replace(asked, unknown="refuse"))
    assert careful.open is (verdict == "yes")
    assert careful.reason == why


def test_what_the_work_itself_uses_up_does_not_stop_it():
    busy = replace(FINE, cpu=known(100), gpu=known(100), memory=known(1, "MB"))
    assert ask(busy).reason == "the processors are busy with something else"
    assert ask(replace(busy, cpu=lost(), memory=lost()), replace(ASKED, unknown="refuse"), working=True).open
    assert ask(busy, working=True).open
    full = ask(replace(FINE, disk=known(1, "MB")), working=True)
    assert full.reason == "there is too little disk, 1 GB must be free"


def test_work_goes_on_without_a_network_but_not_on_one_that_costs_money():
    assert ask(net(interface="", up=False, metered=None, why="there is no route"), working=True).open
    assert ask(net(metered=True), working=True).reason == "eth0 is metered"


def test_the_first_question_that_closes_it_gives_the_reason():
    found = replace(FINE, heat=known(99), disk=known(1, "MB"))
    assert ask(found, _NIGHT).reason == "it is too hot to begin, 75 °C or more"
    assert [p.name for p in ask(found, _NIGHT).predicates if p.verdict == "no"] == ["heat", "disk", "window"]


def test_a_reason_stays_the_same_for_as_long_as_it_holds():
    """It is written to disk, and to the log, when it changes."""
    reasons = {ask(replace(FINE, heat=known(75 + i / 10))).reason for i in range(100)}
    assert len(reasons) == 1
    assert len({ask(on_battery(known(level))).reason for level in range(50)}) == 1


def test_sensors_of_heat_that_are_all_offline_are_said_even_where_the_gate_is_open():
    said = ask(replace(FINE, heat=lost("no sensor answers")))
    assert said.open
    assert said.note == "every sensor of heat is offline: nothing would pause work that gets too hot"
    assert ask(replace(FINE, heat=lost("no sensor"))).note == "", "a server that has none is no news"
    assert ask(replace(FINE, spent=replace(_PAID, note="the clock went back"))).note == "the clock went back"


# -- what it remembers ----------------------------------------------------------------------------------------


def play(asked: GateSettings, looks: list[tuple[bool, Found]]) -> list[bool]:
    memory, said = Memory(), []
    for working, found in looks:
        verdict, memory = decide(asked, found, memory, working=working)
        said.append(verdict.open)
    return said


def heats(*values: float | None) -> list[Found]:
    return [replace(FINE, heat=lost("late") if v is None else known(v, "°C")) for v in values]


def test_work_goes_on_until_it_is_too_hot_and_again_when_it_is_much_cooler():
    looks = [(True, f) for f in heats(76, 87.9, 88, 80, None, 78, 77.9, 80, 87)]
    assert play(ASKED, looks) == [True, True, False, False, False, False, True, True, True]


def test_work_that_was_given_up_for_heat_begins_anew_only_where_it_may_begin():
    looks = [(True, heats(90)[0]), *((False, f) for f in heats(80, 77, 75, 74))]
    assert play(ASKED, looks) == [False, False, False, False, True]
    cautious = GateSettings(heat_start=80, heat_pause=88, heat_resume=70)
    assert play(cautious, looks) == [False, False, False, False, False], "nor where it may not go on"


def test_a_pause_says_what_it_waits_for():
    memory = decide(ASKED, heats(90)[0], Memory(), working=True)[1]
    said = of("heat", ask(heats(80)[0], working=True, memory=memory))
    assert said == Predicate(
        "heat", "80 °C", "below 78 °C, after a pause at 88 °C", "no",
        "it was too hot to go on, and may go on below 78 °C",
    )  # fmt: skip
    blind = of("heat", ask(heats(None)[0], working=True, memory=memory))
    assert blind.why == "it was too hot to go on, and no sensor says that it is cooler"


def test_a_battery_that_was_too_low_needs_some_more_to_begin_anew():
    looks = [(False, on_battery(known(v))) for v in (50, 49, 50, 54.9)]
    looks += [(False, on_battery(lost())), (False, on_battery(known(55))), (False, on_battery(known(51)))]
    assert play(ASKED, looks) == [True, False, False, False, False, True, True]
    said = of("power", ask(on_battery(known(52)), memory=Memory(low=True)))
    assert said.threshold == "on mains, or a battery of 55 % (50 %, and 5 % more after it was too low)"
    looks = [(False, on_battery(known(10))), (False, on_battery(known(10), mains=True))]
    assert play(ASKED, looks) == [False, True], "mains do"
    looks = [(False, on_battery(known(v))) for v in (97, 99, 100)]
    assert play(GateSettings(battery_min=98), looks) == [False, False, True], "nothing has more than 100 %"


@given(st.lists(st.floats(20, 100), max_size=60))
def test_within_the_band_work_never_flaps(values):
    """It changes to closed at or above the one bound, to open below the other, and between them not at all."""
    said = play(ASKED, [(True, f) for f in heats(*values)])
    before = True
    for heat, now in zip(values, said, strict=True):
        if heat >= ASKED.heat_pause:
            assert now is False
        elif heat < ASKED.heat_resume:
            assert now is True
        else:
            assert now is before
        before = now


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=60), st.floats(0, 100))
def test_within_its_band_a_battery_never_flaps_either(levels, least):
    asked = GateSettings(battery_min=least)
    found = [(False, on_battery(lost() if v is None else known(v))) for v in levels]
    before = True
    for level, now in zip(levels, play(asked, found), strict=True):
        if level is not None and level < least:
            assert now is False
        elif level is not None and level >= min(100, least + 5):
            assert now is True
        else:
            assert now is before
        before = now


# -- a gate of a machine --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    one = Tree(tmp_path / "root")
    yield one
    one.close()


def gate(tree: Tree, disk: Path, asked: GateSettings = ASKED) -> Gate:
    files = Files(tree.root, deadline=0.2)
    return Gate(asked, files, disk, lambda: WIRED, Budget(disk / "budget.json", 1000, None, "UTC"))


def test_a_gate_reads_its_device_and_explains_itself(tree, tmp_path):
    tree.orin_nano()
    tree.power_mode(1)
    asked = GateSettings(
        power_modes=("15W",), windows=(Window.parse("sat,sun"),), zone="Europe/Berlin", disk_min=1
    )
    said = gate(tree, tmp_path / "not" / "there", asked).look(NOON, working=False)
    assert (said.open, said.reason) == (False, "the power mode is 25W")
    lines = explain(said)
    assert lines[0].split() == ["PREDICATE", "VALUE", "THRESHOLD", "VERDICT", "WHY"]
    column = lines[0].index("VERDICT")
    assert [(line.split("  ")[0], line[column:].split()[0]) for line in lines[1:]] == [
        ("power", "yes"), ("heat", "yes"), ("idle", "yes"), ("memory", "yes"), ("disk", "yes"),
        ("power mode", "no"), ("network", "yes"), ("budget", "yes"), ("window", "no"),
    ]  # fmt: skip
    values = {p.name: (p.value, p.threshold) for p in said.predicates}
    assert values["heat"] == ("51.25 °C", "below 75 °C to begin")
    assert values["idle"] == ("processors 0 %, graphics 43.5 %", "at most 50 %, graphics 50 %")
    assert values["memory"] == ("4.2 GB", "at least 500 MB")
    assert values["power mode"] == ("25W", "15W")
    assert values["budget"] == ("0 B today, 0 B this month", "1 KB a day")
    assert values["window"] == ("Fri 13:00", "sat,sun")
    assert not any(line.endswith(" ") for line in lines)


def test_a_gate_remembers_and_a_time_without_a_zone_is_refused(tree, tmp_path):
    tree.zone(0, "tj-thermal", 90000)
    one = gate(tree, tmp_path, GateSettings(disk_min=1))
    assert not one.look(NOON, working=True).open
    tree.zone(0, "tj-thermal", 80000)
    assert not one.look(NOON, working=True).open
    with pytest.raises(ValueError, match="without a zone"):
        one.look(datetime(2027, 1, 1), working=True)


def test_a_disk_that_is_full_closes_it(tree, tmp_path):
    said = gate(tree, tmp_path, GateSettings(disk_min=10**18)).look(NOON, working=False)
    assert said.reason == "there is too little disk, 1000000000 GB must be free"


def test_power_modes_are_read_from_the_files_that_the_tool_reads(tree):
    files = Files(tree.root)
    assert power_mode(files) == Mode("", "it has no power modes")
    tree.power_mode(2)
    assert power_mode(files) == Mode("MAXN_SUPER")
    tree.write({"var/lib/nvpmodel/status": "pmode:0007"})
    assert power_mode(files) == Mode("", "mode 7 has no name")
    (tree.root / "etc/nvpmodel.conf").unlink()
    assert power_mode(files) == Mode("", "mode 7 has no name: nvpmodel.conf is absent")
    tree.write({"var/lib/nvpmodel/status": "fmode:quiet"})
    assert power_mode(files) == Mode("", "odd")
