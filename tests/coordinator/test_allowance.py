"""What one device may move, with a clock of the test's own."""

import pytest

from koinon_coordinator.allowance import Allowance
from koinon_coordinator.config import Config, Limits
from koinon_core.errors import RemoteProtocolError, UsageError


def test_a_device_moves_no_more_than_its_rate_after_a_seconds_worth_at_once():
    allowance = Allowance(rate=1000)
    assert allowance.moved("a", "r", 1, 1000, now=50.0) == 0.0
    assert allowance.moved("a", "r", 1, 500, now=50.0) == 0.5
    assert allowance.moved("b", "r", 1, 1000, now=50.0) == 0.0, "another's pace is another's"
    assert allowance.moved("a", "r", 1, 500, now=50.5) == 0.5
    assert allowance.moved("a", "r", 1, 1000, now=1000.0) == 0.0, (
        "an hour's rest is worth a second, not an hour"
    )
    assert allowance.moved("a", "r", 1, 1000, now=1000.0) == 1.0


def test_what_is_remembered_of_devices_that_are_quiet_again_goes():
    allowance = Allowance(rate=1000)
    for n in range(2000):
        allowance.moved(f"d{n}", "r", 1, 1, now=float(10 * n))
    assert len(allowance._free_at) <= 1001


def test_a_device_that_would_move_more_than_its_quota_in_a_round_is_told_before():
    allowance = Allowance(quota=1000)
    allowance.check("a", "r", 1, 1000)
    allowance.moved("a", "r", 1, 600, now=0.0)
    with pytest.raises(RemoteProtocolError, match="'a' has moved 600 of the 1000 bytes that --device-quota"):
        allowance.check("a", "r", 1, 401)
    allowance.check("a", "r", 1, 400)
    allowance.check("b", "r", 1, 1000)
    allowance.check("a", "other run", 1, 1000)
    allowance.check("a", "r", 2, 1000)


def test_without_limits_nothing_is_remembered():
    allowance = Allowance()
    assert allowance.moved("a", "r", 1, 1 << 40, now=0.0) == 0.0
    allowance.check("a", "r", 1, 1 << 50)
    assert not allowance._moved
    assert not allowance._free_at


def test_limits_are_read_from_what_the_coordinator_is_started_with():
    config = Config(
        db="sqlite:///x", listen="127.0.0.1:0", uploads=3, device_rate="2MB", device_quota="1.5 GB"
    )
    assert config.limits == Limits(uploads=3, rate=2_000_000, quota=1_500_000_000)
    assert Config(db="sqlite:///x", listen="127.0.0.1:0").limits == Limits()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"uploads": 0}, "--uploads 0 lets nobody upload"),
        ({"device_rate": "fast"}, "--device-rate 'fast' is no size"),
        ({"device_quota": "0"}, "--device-quota '0' lets no device move anything"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_at_the_start(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        Config(db="sqlite:///x", listen="127.0.0.1:0", **given)
