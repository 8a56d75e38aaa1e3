"""Devices are lost at every step, and some send junk: the sum is that of the survivors, or the session ends by name."""

import random
from collections.abc import Iterator
from itertools import combinations

import pytest

from koinon_core.errors import BadBlob, RemoteProtocolError, UsageError
from koinon_core.secagg import Lane, Masker, Unrecoverable, statements
from koinon_core.secagg.hazmat import shamir
from koinon_core.secagg.messages import bitmap
from koinon_core.secagg.recovery import _Search
from koinon_core.wire.v1 import secagg_pb2 as pb
from sessions import World, config, dealt, played, world


def subsets(names: list[str]) -> Iterator[list[str]]:
    for size in range(len(names) + 1):
        yield from (list(chosen) for chosen in combinations(names, size))


# -- every pattern ------------------------------------------------------------------------------------------------


def explore(devices: int) -> dict[str, int]:
    """Play every pattern: after each collection, every subset of those who were heard is heard in the next one. Where
    too few are left, the session must end there; where it goes to the end, the sum must be exact. Returns how many
    ended where."""
    ends = dict.fromkeys(("dealers", "survivors", "consents", "reveals", "sums"), 0)
    start = world(devices, lanes=(Lane(12, 5),))
    start.advertise()
    start.seat()
    t = start.cohort.t
    start.deal()
    everyone = dict(start.shares)
    for dealers in subsets(list(everyone)):
        one = start.fork()
        one.shares = {name: everyone[name] for name in dealers}
        if len(dealers) < t:
            ends["dealers"] += 1
            for name in dealers:
                with pytest.raises(RemoteProtocolError, match=r"are needed|agreed to a sum of"):
                    one.maskers[name].receive(one.session.inbox_for(name, one.shares))
            continue
        one.mask()
        for survivors in subsets(dealers):
            two = one.fork()
            two.masked = {name: one.masked[name] for name in survivors}
            two.uploads = {name: one.uploads[name] for name in survivors}
            if len(survivors) < t:
                ends["survivors"] += 1
                who = two.session.survivors(two.shares, two.masked)
                for name in survivors:
                    with pytest.raises(RemoteProtocolError, match=r"among the survivors|hides nobody"):
                        two.maskers[name].consent(who)
                continue
            two.agree()
            _explore_the_end(two, t, ends)
    return ends


def _explore_the_end(two: World, t: int, ends: dict[str, int]) -> None:
    for agreed in subsets(list(two.consents)):
        three = two.fork()
        three.consents = {name: two.consents[name] for name in agreed}
        if len(agreed) < t:
            ends["consents"] += 1
            for name in agreed:
                with pytest.raises(UsageError, match="have consented"):
                    three.session.quorum_for(name, three.consents)
            continue
        three.open()
        for opened in subsets(agreed):
            four = three.fork()
            four.reveals = {name: three.reveals[name] for name in opened}
            if len(opened) >= t:
                four.check()
                ends["sums"] += 1
                continue
            ends["reveals"] += 1
            with pytest.raises(Unrecoverable, match="too few devices gave shares back") as caught:
                four.recover()
            assert set(caught.value.missing) == four.shares.keys()


@pytest.mark.parametrize(("devices", "sums"), [(3, 1), (4, 1 + 4 * 4), (5, 1 + 5 * 4), (6, 1 + 6 * 4)])
def test_every_pattern_of_losses_ends_in_the_sum_or_by_name(devices, sums):
    """A pattern that ends in a sum loses at most n - t devices, each at one of four steps."""
    assert explore(devices)["sums"] == sums


@pytest.mark.parametrize(
    ("devices", "lost"), [(3, 0), (4, 1), (5, 1), (6, 1), (7, 2), (8, 2), (9, 2), (10, 3)]
)
def test_so_many_losses_are_borne(devices, lost):
    names = [f"d{i}" for i in range(devices)]
    for step in ("deal", "mask", "agree", "open"):
        played(devices, {step: names[:lost]}).check()
        with pytest.raises((RemoteProtocolError, UsageError, Unrecoverable)):
            played(devices, {step: names[: lost + 1]}).check()


@pytest.mark.parametrize(
    ("devices", "seed"), [*((n, s) for n in (7, 12, 25) for s in range(4)), (50, 0), (90, 1), (200, 2)]
)
def test_losses_at_random_steps_leave_the_sum_of_the_survivors(devices, seed):
    chance = random.Random(f"{devices} {seed}")
    names = [f"d{i}" for i in range(devices)]
    most = devices - config().graph(devices).t if devices <= 64 else devices // 10
    lost = chance.sample(names, chance.randint(1, most))
    steps: dict[str, list[str]] = {}
    for name in lost:
        steps.setdefault(chance.choice(["deal", "mask", "agree", "open"]), []).append(name)
    one = played(devices, steps, lanes=(Lane(9, 6),))
    assert one.cohort.complete == (devices <= 64)
    assert len(one.reveals) == devices - len(lost)
    one.check()


def test_a_device_lost_after_masking_stays_in_the_sum():
    one = played(5, {"agree": ["d1"]})
    assert "d1" in one.masked
    assert "d1" not in one.consents
    one.check()


def test_a_device_without_a_survivor_around_it_leaves_nothing_in_the_sum():
    one = dealt(100)
    far = {"d0"} | one.cohort.neighbours("d0")
    rest = [name for name in one.maskers if name not in far]
    # So many are lost that no device would go on, so the coordinator's half is asked alone.
    with pytest.raises(Unrecoverable) as caught:
        one.session.recover(one.shares, one.shares.keys(), rest, {})
    assert "d0" not in caught.value.missing
    assert set(rest) <= set(caught.value.missing)


# -- one bad device -----------------------------------------------------------------------------------------------


def resigned(one: World, name: str, message: pb.Shares | pb.Masked | pb.Reveal, said: bytes) -> bytes:
    message.signature = one.devices[name].sign(said)
    return message.SerializeToString()


def junk_shares(one: World, name: str, slots: range) -> None:
    """A device seals junk for the neighbours in these slots, and signs it."""
    message = pb.Shares.FromString(one.shares[name])
    sealed = bytearray(message.sealed)
    for slot in slots:
        sealed[80 * slot : 80 * slot + 80] = bytes(80)
    message.sealed = bytes(sealed)
    digest = statements.dealt_digest(message.sealed)
    one.shares[name] = resigned(
        one, name, message, statements.dealt(one.session.sid, name, digest, message.commitment)
    )
    one.session.check_shares(name, one.shares[name])


def unread(one: World) -> dict[str, tuple[str, ...]]:
    return {name: one.session.check_masked(name, message).unreadable for name, message in one.masked.items()}


def test_junk_for_some_neighbours_is_reported_and_the_round_goes_on():
    one = dealt(7)
    junk_shares(one, "d2", range(2))
    one.mask()
    told = [name for name, names in unread(one).items() if names]
    assert len(told) == 2
    assert {names for names in unread(one).values() if names} == {("d2",)}
    one.agree()
    one.open()
    assert one.check().suspects == ()


def test_the_mask_with_an_unreadable_device_stays_in_also_when_that_is_lost():
    one = dealt(7)
    junk_shares(one, "d2", range(1))
    one.mask()
    del one.masked["d2"], one.uploads["d2"]
    one.agree([name for name in one.maskers if name != "d2"])
    one.open()
    one.check()


def test_junk_for_all_names_the_device_and_nobody_else():
    one = dealt(7)
    junk_shares(one, "d2", range(6))
    one.mask()
    assert {name: names for name, names in unread(one).items() if names} == {
        name: ("d2",) for name in one.maskers if name != "d2"
    }
    one.agree()
    one.open()
    with pytest.raises(Unrecoverable) as caught:
        one.recover()
    assert caught.value.missing == ("d2",)


def test_a_signature_of_somebody_else_makes_a_device_unreadable():
    one = dealt(5)
    message = pb.Shares.FromString(one.shares["d1"])
    message.signature = bytes(64)
    with pytest.raises(BadBlob, match="signature"):
        one.session.check_shares("d1", message.SerializeToString())
    inbox = pb.Inbox.FromString(one.session.inbox_for("d0", one.shares))
    signatures = bytearray(inbox.signatures)
    signatures[:64] = bytes(64)
    inbox.signatures = bytes(signatures)
    (named,) = one.maskers["d0"].receive(inbox.SerializeToString())
    assert named == next(name for name in one.cohort.order if name != "d0")


def junk_reveal(one: World, name: str, owners: set[str] | None = None) -> None:
    """A device gives back junk, of all or of some owners, and signs it."""
    message = pb.Reveal.FromString(one.reveals[name])
    positions = one.cohort.positions
    mine = sorted(one.shares, key=positions.__getitem__)
    shares = [message.shares[i : i + 32] for i in range(0, len(message.shares), 32)]
    assert len(shares) == len(mine), "in a complete graph a device has a share of every dealer"
    message.shares = b"".join(
        bytes(32) if owners is None or owner in owners else share
        for owner, share in zip(mine, shares, strict=True)
    )
    survivors = bitmap((positions[n] for n in one.masked), len(one.cohort.order))
    said = statements.opened(
        one.session.sid, name, statements.agreement(survivors),
        statements.opened_digest(message.owners, message.shares),
    )  # fmt: skip
    one.reveals[name] = resigned(one, name, message, said)
    one.session.check_reveal(name, one.reveals[name], one.shares.keys(), one.masked.keys())


@pytest.mark.parametrize("bad", [["d3"], ["d0", "d7"]])
def test_junk_given_back_costs_the_sum_nothing(bad):
    one = played(10, {"mask": ["d9"]})
    for name in bad:
        junk_reveal(one, name)
    recovery = one.check()
    assert set(recovery.suspects) <= set(bad)
    assert recovery.suspects


def test_who_gives_back_junk_is_found_whoever_it_is():
    found = set()
    for i in range(10):
        one = played(10)
        junk_reveal(one, f"d{i}")
        suspects = one.check().suspects
        assert suspects in ((), (f"d{i}",))
        found |= set(suspects)
    assert len(found) == 7, "all whose shares are among the first seven that are tried"


def test_junk_of_a_lost_devices_key_costs_the_sum_nothing():
    one = played(10, {"mask": ["d9"]})
    first = next(name for name in one.cohort.order if name != "d9")
    junk_reveal(one, first, {"d9"})
    recovery = one.check()
    assert recovery.wrong == ((first, "d9"),)
    assert recovery.suspects == tuple(sorted((first, "d9"))), "whose fault it is cannot be seen"


def test_whoever_was_wrong_once_is_asked_last(monkeypatch):
    one = played(10)
    junk_reveal(one, one.cohort.order[0])
    tried = []
    real = _Search._right
    monkeypatch.setattr(
        _Search, "_right", lambda self, owner, secret: tried.append(owner) or real(self, owner, secret)
    )
    one.recover()
    assert {owner for owner in tried if tried.count(owner) > 1} == {one.cohort.order[0]}


def test_junk_without_spare_shares_ends_by_name():
    one = played(10, {"open": ["d7", "d8", "d9"]})
    one.check()
    junk_reveal(one, "d0", {"d4"})
    with pytest.raises(Unrecoverable, match="given back, is wrong") as caught:
        one.recover()
    assert caught.value.missing == ("d4",)


def test_who_deals_shares_of_nothing_is_named_and_nobody_else(monkeypatch):
    one = world(7)
    one.advertise()
    one.seat()
    real = shamir.split
    with monkeypatch.context() as patch:
        patch.setattr(
            shamir, "split",
            lambda secrets, t, points, entropy: [
                bytes([p]) * 64 for p, _ in zip(points, real(secrets, t, points, entropy), strict=True)
            ],
        )  # fmt: skip
        one.deal(["d2"])
    one.deal([name for name in one.maskers if name != "d2"])
    one.mask()
    one.agree()
    one.open()
    with pytest.raises(Unrecoverable) as caught:
        one.recover()
    assert caught.value.missing == ("d2",)


def test_a_dealer_of_some_wrong_shares_is_the_suspect_and_not_those_who_gave_them_back(monkeypatch):
    one = world(10)
    one.advertise()
    one.seat()
    real = shamir.split
    with monkeypatch.context() as patch:
        patch.setattr(
            shamir, "split",
            lambda *told: [bytes(64) if i in (1, 3) else s for i, s in enumerate(real(*told))],
        )  # fmt: skip
        one.deal(["d2"])
    one.deal([name for name in one.maskers if name != "d2"])
    one.mask()
    one.agree()
    one.open()
    recovery = one.check()
    assert recovery.suspects == ("d2",)
    assert {owner for _, owner in recovery.wrong} == {"d2"}
    assert {helper for helper, _ in recovery.wrong} == {one.cohort.order[1], one.cohort.order[3]}


# -- what the coordinator does not take -----------------------------------------------------------------------------


def spoiled(kind, message: bytes, **fields) -> bytes:
    said = kind.FromString(message)
    for name, value in fields.items():
        setattr(said, name, value)
    return said.SerializeToString()


def test_what_a_device_says_is_checked_before_it_is_a_fact():
    one, other = played(5), played(5, seed=1)
    check = one.session
    u2, u3 = one.shares.keys(), one.masked.keys()
    cases = {
        "shares": (lambda m: check.check_shares("d0", m), one.shares, other.shares, pb.Shares),
        "masked": (lambda m: check.check_masked("d0", m), one.masked, other.masked, pb.Masked),
        "consent": (lambda m: check.check_consent("d0", m, u3), one.consents, other.consents, pb.Consent),
        "reveal": (lambda m: check.check_reveal("d0", m, u2, u3), one.reveals, other.reveals, pb.Reveal),
    }
    for call, mine, others, kind in cases.values():
        call(mine["d0"])
        bad = [
            b"", b"\xff", mine["d0"][:-1], bytes(5 << 20), mine["d1"], others["d0"],
            spoiled(kind, mine["d0"], signature=bytes(64)), spoiled(kind, mine["d0"], signature=b""),
            spoiled(kind, mine["d0"], id="d1"), spoiled(kind, mine["d0"], session=other.session.sid),
            spoiled(kind, mine["d1"], id="d0"),
        ]  # fmt: skip
        for message in bad:
            with pytest.raises(BadBlob):
                call(message)
    with pytest.raises(BadBlob, match="80"):
        check.check_shares("d0", spoiled(pb.Shares, one.shares["d0"], sealed=bytes(80)))
    with pytest.raises(BadBlob, match="must have"):
        check.check_masked("d0", spoiled(pb.Masked, one.masked["d0"], size=1 << 60))
    own = bytes([1 << one.cohort.positions["d0"]])
    with pytest.raises(BadBlob, match="dealt it none"):
        check.check_masked("d0", spoiled(pb.Masked, one.masked["d0"], unreadable=own))
    with pytest.raises(BadBlob, match="beyond the 5"):
        check.check_masked("d0", spoiled(pb.Masked, one.masked["d0"], unreadable=b"\x20"))
    with pytest.raises(BadBlob, match="signature"):
        check.check_consent("d0", one.consents["d0"], [name for name in u3 if name != "d4"])
    with pytest.raises(BadBlob, match="cannot hold"):
        check.check_reveal("d0", one.reveals["d0"], [name for name in u2 if name != "d4"], u3)
    with pytest.raises(RemoteProtocolError, match="not in this group"):
        check.check_shares("stranger", one.shares["d0"])


def test_a_device_that_is_not_in_the_sum_gives_nothing_back():
    one = played(5, {"mask": ["d3"]})
    size = len(one.cohort.order)
    owners = bitmap([one.cohort.positions["d0"]], size)
    survivors = bitmap((one.cohort.positions[name] for name in one.masked), size)
    said = statements.opened(
        one.session.sid, "d3", statements.agreement(survivors), statements.opened_digest(owners, bytes(32))
    )
    message = resigned(
        one, "d3", pb.Reveal(session=one.session.sid, id="d3", owners=owners, shares=bytes(32)), said
    )
    with pytest.raises(BadBlob, match="cannot hold"):
        one.session.check_reveal("d3", message, one.shares.keys(), one.masked.keys())


def test_what_a_device_signs_has_its_size_all_the_same():
    one = played(5)
    sid = one.session.sid
    dealing = pb.Shares.FromString(one.shares["d0"])
    dealing.commitment = bytes(31)
    digest = statements.dealt_digest(dealing.sealed)
    with pytest.raises(BadBlob, match="commitment of 'd0' has 32 bytes, not 31"):
        one.session.check_shares(
            "d0", resigned(one, "d0", dealing, statements.dealt(sid, "d0", digest, dealing.commitment))
        )
    lanes = pb.Masked.FromString(one.masked["d0"])
    lanes.sha256 = bytes(33)
    with pytest.raises(BadBlob, match="masked lanes of 'd0' has 32 bytes, not 33"):
        one.session.check_masked(
            "d0",
            resigned(
                one, "d0", lanes, statements.masked(sid, "d0", lanes.size, lanes.sha256, lanes.unreadable)
            ),
        )


def test_shares_of_devices_that_are_not_neighbours_are_not_taken():
    one = world(70)
    one.advertise()
    one.seat()
    everyone = one.cohort.order
    far = next(name for name in everyone if name not in one.cohort.neighbours("d0"))
    owners = bitmap([one.cohort.positions[far]], 70)
    survivors = statements.agreement(bitmap(range(70), 70))
    said = statements.opened(one.session.sid, "d0", survivors, statements.opened_digest(owners, bytes(32)))
    message = pb.Reveal(session=one.session.sid, id="d0", owners=owners, shares=bytes(32))
    with pytest.raises(BadBlob, match="cannot hold"):
        one.session.check_reveal("d0", resigned(one, "d0", message, said), everyone, everyone)


def test_what_was_read_of_a_dealer_is_not_taken_for_what_it_says_now():
    one = dealt(5)
    one.session.inbox_for("d0", one.shares)
    with pytest.raises(BadBlob, match="signature"):
        one.session.inbox_for(
            "d0", {**one.shares, "d1": spoiled(pb.Shares, one.shares["d1"], signature=bytes(64))}
        )


def test_what_the_coordinator_may_not_ask_is_its_own_error():
    one = played(5)
    with pytest.raises(UsageError, match="leave it out"):
        one.session.survivors(["d0"], ["d0", "d1"])
    with pytest.raises(UsageError, match="not in this group"):
        one.session.survivors(["x"], ["x"])
    with pytest.raises(UsageError, match="leave it out"):
        one.session.recover({}, [], ["d0"], {})
    one.adverts["d0"], one.adverts["d1"] = one.adverts["d1"], one.adverts["d0"]
    with pytest.raises(UsageError, match="do not make this group"):
        one.sit(one.cohort, dict.fromkeys(one.adverts, "00" * 32))


def test_a_device_that_was_killed_before_it_wrote_down_is_a_device_that_was_lost():
    one = world(5)
    one.advertise()
    one.seat()
    one.deal()
    before = one.maskers["d0"].dump()
    one.mask()
    old = Masker.load(before, one.devices["d0"], None, None)
    with pytest.raises(RemoteProtocolError, match="is shared in this session and cannot be consented next"):
        old.consent(one.session.survivors(one.shares, one.masked))
    one.agree([name for name in one.maskers if name != "d0"])
    one.open()
    one.check()
