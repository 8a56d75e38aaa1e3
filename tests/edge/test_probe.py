"""What a device can say of itself, read from trees of files as five machines have them."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from koinon_edge.probe import (
    Files,
    Meter,
    Rapl,
    Unreadable,
    battery,
    draw,
    gpu_load,
    hottest,
    memory_available,
    model,
    pressure,
    rails,
    storage_worn,
    throttled,
    zones,
)  # fmt: skip
from koinon_edge.probe import files as reading
from sysfs import Tree


@pytest.fixture
def tree(tmp_path):
    one = Tree(tmp_path)
    yield one
    one.close()


@pytest.fixture
def files(tree):
    return Files(tree.root, deadline=0.2)


# -- reading --------------------------------------------------------------------------------------------------


def why(files: Files, name: str) -> str:
    with pytest.raises(Unreadable) as caught:
        files.text(files.root / name)
    return caught.value.why


def test_what_cannot_be_read_says_why(tree, files):
    tree.write({"odd": "x"})
    (tree.root / "bytes").write_bytes(b"\xff\xfe")
    tree.offline("offline")
    (tree.root / "folder").mkdir()
    assert [why(files, n) for n in ("none", "offline", "folder", "bytes")] == [
        "absent",
        "offline",
        "offline",
        "odd",
    ]
    with pytest.raises(Unreadable, match="odd"):
        files.number(tree.root / "odd")


def test_nothing_is_held_up_by_a_file_that_never_answers(tree, files, monkeypatch):
    """Some drivers block whatever the descriptor says. The sensor is not asked again before that read is over."""
    tree.write({"stuck": "1", "other": "2"})
    go_on, asked = threading.Event(), []
    really = reading._bytes_of

    def slow(path):
        if path.name == "stuck":
            asked.append(path)
            go_on.wait(20)
        return really(path)

    monkeypatch.setattr(reading, "_bytes_of", slow)
    began, threads = time.monotonic(), threading.active_count()
    for _ in range(5):
        assert why(files, "stuck") == "late"
        assert files.text(tree.root / "other") == "2"
    assert len(asked) == 1
    assert time.monotonic() - began < 2.0
    assert threading.active_count() == threads + 1, "one thread waits, however often it is asked"
    go_on.set()
    while why_or(files, "stuck") == "late":
        time.sleep(0.01)
    assert files.text(tree.root / "stuck") == "1"
    assert len(asked) == 3, "once in vain, and then whenever it is wanted"
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads, "and it ends"


def why_or(files: Files, name: str) -> str:
    try:
        return files.text(files.root / name)
    except Unreadable as error:
        return error.why


# -- heat -----------------------------------------------------------------------------------------------------


def test_a_jetsons_zones_that_are_off_are_unknown_and_the_hottest_of_its_chip_is_found(tree, files):
    tree.orin_nano()
    found = zones(files)
    assert found["tj-thermal"].value == 51.25
    assert (found["cv0-thermal"].value, found["cv0-thermal"].why) == (None, "offline")
    assert str(found["cv1-thermal"]) == "unknown (offline)"
    assert hottest(found).value == 51.25, "the board is no chip"
    assert throttled(files).value == 0.0, "a fan at work throttles nothing"


@pytest.mark.parametrize("milli", ["-256000", "2147483647", "0x7fffffff"])
def test_a_number_that_no_sensor_means_is_none(tree, files, milli):
    tree.zone(0, "cv0-thermal", milli)
    assert zones(files)["cv0-thermal"].why == "offline"
    assert hottest(zones(files)).why == "no sensor answers"


def test_zones_of_one_type_are_told_apart_and_a_machine_without_any_says_so(tree, files):
    assert hottest(zones(files)).why == "no sensor"
    tree.server()
    assert {n: r.value for n, r in zones(files).items()} == {"x86_pkg_temp": 61.0, "x86_pkg_temp#2": 64.0}
    assert hottest(zones(files)).value == 64.0


def test_the_hottest_is_of_the_chip_where_a_laptop_has_a_hot_radio(tree, files):
    tree.laptop()
    assert hottest(zones(files)).value == 45.0


def test_a_machine_that_slows_itself_down_is_seen(tree, files):
    tree.orin_nano()
    tree.write({"sys/class/thermal/cooling_device1/cur_state": 2})
    assert throttled(files).value == 1.0
    assert throttled(Files(tree.root / "nowhere")).why == "no cooling device answers"


# -- power ----------------------------------------------------------------------------------------------------


def test_a_rail_that_feeds_all_of_the_module_is_what_it_draws(tree, files):
    tree.orin_nano()
    found = draw(rails(files))
    assert (found.watts.value, found.scope, found.rails) == (pytest.approx(7.4), "module", ("VDD_IN",))


def test_without_one_the_rails_are_added_and_named_and_what_is_connected_to_nothing_is_none(tree, files):
    tree.agx_orin()
    found = draw(rails(files))
    assert found.watts.value == pytest.approx(6.0 + 2.0 + 4.0 + 0.9)
    assert (found.scope, found.rails) == (
        "rails", ("VDDQ_VDD2_1V8AO", "VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0"),
    )  # fmt: skip


def test_thors_input_is_measured_by_another_chip(tree, files):
    tree.thor()
    found = draw(rails(files))
    assert (found.watts.value, found.scope) == (45.5, "module")
    assert rails(files)["VDD_GPU"].value == 12.0


def test_a_sum_without_one_of_its_rails_is_unknown(tree, files):
    tree.agx_orin()
    tree.offline("sys/class/hwmon/hwmon2/curr2_input")
    found = draw(rails(files))
    assert (found.watts.value, found.watts.why, found.scope) == (None, "offline", "rails")


def test_a_machine_without_sensors_draws_nobody_knows_what(files):
    found = draw(rails(files))
    assert (found.watts.value, found.scope) == (None, "none")


def test_a_processors_energy_is_counted_over_the_end_of_its_counter(tree, files):
    tree.server()
    counter = Rapl(files)
    assert counter.joules().value == 0.0
    path = "sys/class/powercap/intel-rapl:0/energy_uj"
    tree.write({path: 3_500_000})
    assert counter.joules().value == pytest.approx(2.5)
    tree.write({path: 262_143_328_850 - 1_000_000})
    counter.joules()
    before = counter.joules().value
    tree.write({path: 500_000})
    assert counter.joules().value == pytest.approx(before + 1.5)
    assert Rapl(Files(tree.root / "nowhere")).joules().why == "no sensor"


def test_a_counter_that_only_root_may_read_says_so(tree, files, monkeypatch):
    tree.server()

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(reading, "_bytes_of", refuse)  # whoever runs the tests may be root
    assert Rapl(files).joules().why == "denied"


# -- the rest -------------------------------------------------------------------------------------------------


def test_a_jetson_says_what_it_is_and_how_busy(tree, files):
    tree.orin_nano()
    assert model(files) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert gpu_load(files).value == 43.5
    assert memory_available(files).value == pytest.approx(4194.3, abs=0.1)
    assert pressure(files, "cpu").value == 0.0, "without PSI, by its queue"
    assert pressure(files, "io").why == "absent"


def test_servers_and_thors(tree, files):
    tree.server()
    tree.thor()
    assert gpu_load(files).value == 100.0
    assert (pressure(files, "cpu").value, pressure(files, "io").value) == (12.5, 0.0)
    assert pressure(files, "memory").why == "absent"


def test_a_busy_machine_without_pressure_figures_is_told_by_its_queue(tree, files):
    tree.write({"proc/loadavg": f"{3 * (os.cpu_count() or 1)} 0 0 1/2 3"})
    assert pressure(files, "cpu").value == pytest.approx(200 / 3)


def test_batteries(tree, files):
    assert (battery(files).present, battery(files).mains) == (False, True), "it is fed by something"
    tree.laptop()
    found = battery(files)
    assert (found.level.value, found.mains, found.present) == (43.0, False, True), "and not by the mouse's"
    tree.write({"sys/class/power_supply/AC/online": 1})
    assert battery(files).mains is True


def test_a_battery_that_does_not_say_how_it_is_fed_leaves_it_unknown(tree, files):
    power = "sys/class/power_supply/BAT1"
    tree.write({f"{power}/type": "Battery", f"{power}/capacity": 80, f"{power}/status": "Unknown"})
    assert battery(files).mains is None
    tree.write({f"{power}/status": "Charging"})
    assert battery(files).mains is True


def test_how_worn_a_disk_is(tree, files):
    assert storage_worn(files).why == "no sensor"
    tree.agx_orin()
    assert storage_worn(files).value == 30.0
    tree.write({"sys/class/mmc_host/mmc0/mmc0:0001/life_time": "0x00 0x00"})
    assert storage_worn(files).value is None, "it does not say"


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("proc/meminfo", "MemAvailable:", memory_available),
        ("proc/meminfo", "MemTotal: 3 kB", memory_available),
        ("proc/pressure/cpu", "some avg10=much", lambda f: pressure(f, "cpu")),
        ("sys/class/devfreq/17000000.gpu/device/load", "12345", gpu_load),
        ("sys/class/devfreq/17000000.gpu/device/load", "", gpu_load),
        ("sys/class/mmc_host/mmc0/mmc0:0001/life_time", "worn", storage_worn),
    ],
)
def test_a_file_that_says_something_else_is_no_figure(tree, files, name, text, read):
    tree.write({name: text})
    found = read(files)
    assert found.value is None
    assert found.why in ("odd", "offline")


# -- joules ---------------------------------------------------------------------------------------------------


def test_energy_is_the_area_below_the_watts_by_what_was_being_done():
    meter = Meter()
    meter.begin("download", 0.0, 5.0)
    meter.sample(1.0, 5.0)
    meter.begin("train", 2.0, 7.0)
    for second in range(3, 12):
        meter.sample(float(second), 10.0)
    done = meter.end(12.0, 10.0)
    assert done["download"].joules == pytest.approx(5.0 + 6.0)
    assert done["train"].joules == pytest.approx(8.5 + 9 * 10.0)
    assert (done["train"].seconds, done["train"].missing) == (10.0, 0.0)
    assert done["train"].above(4.0) == pytest.approx(98.5 - 40.0)


def test_what_nobody_measured_is_said_and_is_not_nothing():
    meter = Meter(gap=2.0)
    meter.begin("train", 0.0, 10.0)
    meter.sample(1.0, 10.0)
    meter.sample(9.0, 10.0)  # the sampler was held up
    meter.sample(10.0, None)  # the sensor was
    done = meter.end(11.0, 10.0)["train"]
    assert (done.joules, done.seconds) == (10.0, 11.0)
    assert done.missing == pytest.approx(10 / 11)
    nothing = Meter()
    nothing.begin("train", 0.0, None)
    found = nothing.end(5.0, None)["train"]
    assert (found.joules, found.missing, found.above(3.0)) == (None, 1.0, None)


def test_time_does_not_run_backwards():
    meter = Meter()
    meter.begin("train", 5.0, 1.0)
    with pytest.raises(ValueError, match="comes after"):
        meter.sample(4.0, 1.0)


# -- the command ----------------------------------------------------------------------------------------------


def said(*arguments: object) -> str:
    command = [sys.executable, "-m", "koinon_edge.cli", "sensors", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_devices_owner_reads_all_of_it(tree):
    tree.orin_nano()
    text = said("--root", tree.root)
    assert text.startswith("NVIDIA Jetson Orin Nano Developer Kit\n")
    assert "  heat tj-thermal             51.25 °C\n" in text
    assert "  heat cv0-thermal            unknown (offline)\n" in text
    assert text.endswith("Power is that of VDD_IN, which feeds all of the module; the device is on mains.\n")
    told = json.loads(said("--root", tree.root, "--json"))
    assert told["readings"]["power"]["value"] == pytest.approx(7.4)
    assert told["readings"]["battery"] == {
        "value": None, "unit": "%", "source": "sys/class/power_supply", "why": "no battery",
    }  # fmt: skip


def test_this_machine_is_read_too():
    assert json.loads(said("--json"))["readings"]["memory that is free"]["value"] > 0
