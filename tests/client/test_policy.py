"""The owner's floors: what is below one is declined, and the sentence names it."""

import math
import re

import numpy as np
import pytest

import koinon
from koinon.conversation import Conversation
from koinon.outbox import MemoryOutbox
from koinon.policy import Policy
from koinon_core.errors import BadBlob, UsageError
from koinon_core.history import Standing
from koinon_core.round.terms import Terms
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb
from summing import Federation

MODEL = {"w": np.zeros(100, np.float32)}


def run(**settings: object) -> koinon.Run:
    given = {"aggregation": "secure", "clients": 10, "min_clients": 4, "max_examples": 500, **settings}
    return koinon.Run("ward-7", model=MODEL, rounds=2, **given)


def terms(**settings: object) -> Terms:
    one = run(**settings)
    return Federation(one.spec, one.model).terms(10, groups=one.spec.groups, run="id")


FLOORS = {
    "min_cohort": (Policy(min_cohort=5), {"min_clients": 5}, {"min_clients": 4}),
    "min_cohort in each group": (
        Policy(min_cohort=5), {"groups": 2, "min_clients": 5}, {"groups": 2, "min_clients": 4},
    ),
    "gamma": (Policy(gamma=0.1), {"gamma": 0.1}, {"gamma": 0.05}),
    "hardened": (Policy(hardened=True), {"hardened": True}, {}),
    "attempts": (Policy(attempts=2), {"attempts": 2}, {"attempts": 3}),
    "max_examples": (Policy(max_examples=400), {"max_examples": 400}, {"max_examples": 401}),
    "clip of param": (Policy(clip=10.0), {"clip": 10.0}, {"clip": 10.5}),
    # Fixed point is not clipped: only each value is bounded, and a hundred of them are ten times as long.
    "clip of param of an exact run": (
        Policy(clip=10.0), {"codec": "exact", "bound": 1.0}, {"codec": "exact", "bound": 1.5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("floor", FLOORS)
def test_a_round_below_a_floor_is_declined_by_name(floor):
    policy, fine, below = FLOORS[floor]
    policy.check_round(terms(**fine))
    named = re.split(" in | of an ", floor)[0]
    with pytest.raises(UsageError, match=f"^the round's {named} is .*this device's policy has"):
        policy.check_round(terms(**below))
    Policy().check_round(terms(**below))


def test_sigma_is_a_floor_though_every_run_of_ours_has_the_same():
    Policy(sigma=40).check_round(terms())
    with pytest.raises(UsageError, match=r"^the round's sigma is 40, and this device's policy has 41"):
        Policy(sigma=41).check_round(terms())


def test_no_round_has_the_noise_that_an_owner_may_ask_for():
    with pytest.raises(UsageError, match=r"^the round's noise is 0.0, and this device's policy has 0.5"):
        Policy(noise=0.5).check_round(terms())


def test_an_owner_may_refuse_to_be_seen_alone():
    shy, usual = Policy(open=False), Policy()
    shy.check_run(run().spec)
    open_ = run(aggregation="open")
    for check in (shy.check_run, lambda spec: shy.check_round(open_terms(open_))):
        with pytest.raises(UsageError, match="open"):
            check(open_.spec)
    usual.check_run(open_.spec)
    usual.check_round(open_terms(open_))


def open_terms(one: koinon.Run) -> Terms:
    return Terms(
        run="r", round=1, incarnation="00", goal=3, quorum=3, schema="", strategy="", model="", max_examples=1,
        bound=one.spec.bound, grid=1,
    )  # fmt: skip


def test_an_owner_names_the_runs():
    wards = Policy(allow_runs=("ward-*", "digits"))
    wards.check_run(run().spec)
    with pytest.raises(UsageError, match=r"run 'ward-7' is not among those .* \(allow_runs"):
        Policy(allow_runs=("ward-?1", "Ward-7")).check_run(run().spec)


def test_terms_that_are_none_are_bad_bytes_and_no_round():
    with pytest.raises(BadBlob):
        Policy().check_round(Terms(**{**vars_of(terms()), "secure": {"keys": "ready"}}))


def vars_of(one: Terms) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


# -- where it is from -----------------------------------------------------------------------------------------


def test_a_policy_is_read_from_its_file_and_a_missing_one_says_nothing(tmp_path):
    file = tmp_path / "device.toml"
    assert Policy.load(file) == Policy.load(None) == Policy()
    file.write_text('allow_runs = ["ward-*"]\nopen = false\nmin_cohort = 5\ngamma = 0.1\nclip = 100\n')
    assert Policy.load(file) == Policy(allow_runs=("ward-*",), open=False, min_cohort=5, gamma=0.1, clip=100)
    assert Policy().clip == math.inf


def test_a_policy_that_is_named_must_be_there(tmp_path, monkeypatch):
    named = tmp_path / "strict.toml"
    monkeypatch.setenv("KOINON_POLICY", str(named))
    with pytest.raises(UsageError, match="cannot be read"):
        Policy.load(None)
    named.write_text("attempts = 1\n")
    (tmp_path / "device.toml").write_text("attempts = 4\n")
    assert Policy.load(tmp_path / "device.toml").attempts == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_cohrt = 5", "no setting 'min_cohrt'"),
        ("min_cohort = '5'", "min_cohort = '5'"),
        ("min_cohort = true", "min_cohort = True"),
        ("min_cohort = -1", "min_cohort = -1"),
        ("open = 0", "open = 0"),
        ("allow_runs = 'ward-*'", "allow_runs = 'ward-"),
        ("allow_runs = [1]", r"allow_runs = \[1\]"),
        ("clip = nan", "clip = nan"),
        ("open = ", "cannot be read"),
    ],
)
def test_a_floor_that_was_meant_is_never_taken_for_none(tmp_path, text, said):
    file = tmp_path / "device.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        Policy.load(file)


# -- what comes of it -----------------------------------------------------------------------------------------


class Owner:
    evaluates, held = False, None

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def __getattr__(self, kind: str):
        return lambda *about: self.told.append((kind, about))


def converse(policy: Policy, spec, asked: Terms | None = None) -> tuple[list[pb.DeviceMessage], Owner]:
    said, owner = [], Owner()
    talk = Conversation("a", "ward-7", MemoryOutbox(), owner, said.append, lambda *_: None, policy=policy)
    talk.connected()
    talk.heard(pb.CoordinatorMessage(joined=pb.Joined(run="id", spec=spec.encoded)))
    if asked is not None:
        talk.heard(convert.standing("id", Standing(round=0, head=""), {}))
        talk.heard(pb.CoordinatorMessage(ask=pb.Ask(run="id", round=1, terms=asked.encoded, epoch=1)))
    return said, owner


def test_a_device_does_not_enter_a_run_below_its_floors():
    said, owner = converse(Policy(allow_runs=("other",)), run().spec)
    assert said[-1].leave.code == "DECLINED"
    assert "allow_runs" in said[-1].leave.detail
    assert [kind for kind, _ in owner.told] == ["refused"]


def test_a_device_does_not_work_in_a_round_below_its_floors():
    asked = terms()
    said, owner = converse(Policy(min_cohort=9), run().spec, asked)
    assert (said[-1].leave.round, said[-1].leave.code) == (1, "DECLINED")
    assert "min_cohort" in said[-1].leave.detail
    assert "begin" not in [kind for kind, _ in owner.told]
    _, owner = converse(Policy(min_cohort=4), run().spec, asked)
    assert "begin" in [kind for kind, _ in owner.told]
