"""A day of a device in virtual time: its files change as a machine's would, and the gate opens and closes."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from koinon_edge.gate import Budget, Gate, Networks
from koinon_edge.probe import Files
from koinon_edge.settings import GateSettings, Window
from sysfs import Tree

BERLIN = ZoneInfo("Europe/Berlin")
STEP = timedelta(minutes=5)
_AC, _BATTERY = "sys/class/power_supply/AC", "sys/class/power_supply/BAT0"


class Device:
    """It warms up while it works and cools down while it does not, sends some megabytes in every step of work, and
    takes from its battery when it is not charged."""

    def __init__(self, folder: Path, asked: GateSettings, start: datetime):
        self.tree = Tree(folder / "root").orin_nano()
        self.tree.write({f"{_AC}/type": "Mains", f"{_BATTERY}/type": "Battery"})
        self.now, self.working, self.heat, self.level, self.mains = start, False, 45, 60.0, False
        self.metered, self.warms = "no (guessed)", 2
        self.budget = Budget(folder / "budget.json", asked.bytes_day, asked.bytes_month, asked.zone)
        networks = Networks(Files(self.tree.root), ask=self._ask, clock=lambda: self.now.timestamp())
        self.gate = Gate(asked, Files(self.tree.root), folder, networks, self.budget)

    def _ask(self, command, _seconds):
        return f"GENERAL.METERED:{self.metered}" if command[0] == "nmcli" else ""

    def step(self) -> tuple[bool, str]:
        self.tree.zone(5, "tj-thermal", self.heat * 1000)
        self.tree.write({f"{_AC}/online": int(self.mains), f"{_BATTERY}/capacity": int(self.level)})
        said = self.gate.look(self.now, working=self.working)
        self.working = self.working or said.open
        if self.working and said.open:
            self.heat += self.warms
            self.budget.spent(self.now, 5_000_000)
        else:
            self.heat = max(45, self.heat - 3)
        self.level = min(100.0, self.level + (1.0 if self.mains else -1.5 if self.working else -0.1))
        self.now += STEP
        return said.open, said.reason


Event = Callable[[Device], None]


def day(device: Device, events: Mapping[str, Event], steps: int) -> list[tuple[str, str, str]]:
    """When it opened or closed, or closed for another reason; events happen at their time on the wall."""
    told: list[tuple[str, str, str]] = []
    device.tree.routes("wlan0")
    for _ in range(steps):
        wall = device.now.astimezone(BERLIN).strftime("%a %H:%M")
        if wall in events:
            events[wall](device)
        is_open, reason = device.step()
        now = ("open" if is_open else "closed", reason)
        if not told or told[-1][1:] != now:
            told.append((wall, *now))
    device.tree.close()
    return told


@pytest.fixture
def asked():
    return GateSettings(
        zone="Europe/Berlin", windows=(Window.parse("fri 22:00-06:00"),), disk_min=1, bytes_day=200_000_000
    )


def sets(**values: object) -> Event:
    def apply(device: Device) -> None:
        for name, value in values.items():
            setattr(device, name, value)

    return apply


def test_a_day_and_a_night_of_a_device_that_is_charged_at_night(tmp_path, asked):
    device = Device(tmp_path, asked, datetime(2027, 1, 1, 16, 0, tzinfo=BERLIN).astimezone(UTC))
    events: dict[str, Event] = {
        "Fri 22:40": sets(mains=True),
        "Sat 01:00": sets(metered="yes (guessed)"),  # a phone's hotspot
        "Sat 02:10": sets(metered="no (guessed)", warms=-1),  # and a window is opened
        "Sat 03:00": sets(mains=False),
        "Sat 04:00": lambda d: d.tree.routes(),  # work does not need it
        "Sat 04:20": lambda d: d.tree.routes("wlan0"),
        "Sat 05:40": sets(mains=True),
    }
    assert day(device, events, 16 * 12) == [
        ("Fri 16:00", "closed", "it is not the time for it (fri 22:00-06:00)"),
        ("Fri 22:00", "open", ""),
        ("Fri 22:10", "closed", "the battery is too low, 55 % is asked for"),
        ("Fri 22:40", "open", ""),
        ("Sat 00:30", "closed", "it was too hot to go on, and may go on below 78 °C"),
        ("Sat 00:50", "open", ""),
        ("Sat 01:00", "closed", "wlan0 is metered (NetworkManager says yes (guessed))"),
        ("Sat 02:10", "open", ""),
        ("Sat 04:50", "closed", "the bytes of the day are spent"),
        ("Sat 05:25", "closed", "the battery is too low, 55 % is asked for"),
        ("Sat 05:40", "closed", "the bytes of the day are spent"),
    ]
    spent = device.budget.look(device.now)
    assert (spent.day, spent.month) == (200_000_000, 290_000_000)
