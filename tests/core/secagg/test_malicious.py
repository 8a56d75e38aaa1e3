"""A coordinator that lies: for each attack that the design names, an honest device that refuses, and says why.

Not here: cohorts that overlap from round to round, which no single session can see; and what a bad device can do, which
is among the dropouts.
"""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, RemoteProtocolError, UsageError
from koinon_core.secagg import Config, Masker, check_advert, form, statements
from koinon_core.secagg.adverts import write_advert
from koinon_core.secagg.hazmat import agree, graph, shamir
from koinon_core.secagg.messages import bitmap
from koinon_core.wire.v1 import secagg_pb2 as pb
from sessions import Device, Stream, World, config, dealt, played, trust, world


def seated(devices: int, **changes) -> World:
    one = world(devices, **changes)
    one.advertise()
    one.seat()
    return one


def changed(kind, message: bytes, **fields) -> bytes:
    said = kind.FromString(message)
    for name, value in fields.items():
        if isinstance(value, list):
            del getattr(said, name)[:]
            getattr(said, name).extend(value)
        else:
            setattr(said, name, value)
    return said.SerializeToString()


def refused(masker: Masker, step: Callable[[Masker], object], why: str) -> None:
    """The device refuses, by name, and is as it was."""
    before = masker.dump()
    with pytest.raises(RemoteProtocolError, match=why):
        step(masker)
    assert masker.dump() == before


def who(one: World, names) -> bytes:
    """Survivors that the coordinator says there are."""
    places = [one.cohort.positions[name] for name in names]
    return pb.Survivors(
        session=one.session.sid, survivors=bitmap(places, len(one.cohort.order))
    ).SerializeToString()


# -- both secrets of one device -------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [5, 10, 16])
def test_half_the_neighbours_are_asked_for_one_secret_and_half_for_the_other(devices):
    """The victim is a survivor to some and lost to others. However they are split, no more than one half consents to
    enough to be asked at all."""
    start = dealt(devices)
    start.mask()
    victim, *others = start.maskers
    full, without = list(start.maskers), others
    for cut in range(devices):
        one = start.fork()
        said = {
            name: (one.maskers[name].consent(who(one, full if i < cut else without)), i < cut)
            for i, name in enumerate(others)
        }
        said[victim] = (one.maskers[victim].consent(who(one, full)), True)
        asked = {True: 0, False: 0}
        for view in (True, False):
            consents = {name: m for name, (m, side) in said.items() if side == view}
            for name, (_, side) in said.items():
                if side == view:
                    try:
                        quorum = one.session.quorum_for(name, consents)
                    except UsageError:
                        continue
                    one.maskers[name].reveal(quorum)
                    asked[view] += 1
        assert not (asked[True] and asked[False])
        # Nor with the consents of the other half, or with one counted twice.
        for name in said:
            masker = one.maskers[name]
            if masker.phase == "consented":
                quorum = _any_quorum(one, name, {n: m for n, (m, _) in said.items()})
                refused(
                    masker, lambda m, quorum=quorum: m.reveal(quorum), r"signature|a quorum is of|agreed to"
                )


def _any_quorum(one: World, name: str, consents: dict[str, bytes]) -> bytes:
    places = sorted((one.cohort.positions[n], n) for n in consents if n != name)
    return pb.Quorum(
        session=one.session.sid,
        signers=bitmap((p for p, _ in places), len(one.cohort.order)),
        signatures=b"".join(pb.Consent.FromString(consents[n]).signature for _, n in places),
    ).SerializeToString()


def test_a_device_agrees_to_one_list_of_survivors_ever():
    one = dealt(6)
    one.mask()
    first = who(one, one.maskers)
    masker = one.maskers["d0"]
    said = masker.consent(first)
    other = who(one, [name for name in one.maskers if name != "d5"])
    refused(masker, lambda m: m.consent(other), "told something else")
    refused(one.reload("d0"), lambda m: m.consent(other), "told something else")
    assert masker.consent(first) == said


def test_no_reply_gives_both_secrets_of_a_device(monkeypatch):
    shares: dict[bytes, list[bytes]] = {}
    real = shamir.split

    def record(secrets, threshold, points, entropy):
        shares[secrets] = real(secrets, threshold, points, entropy)
        return shares[secrets]

    monkeypatch.setattr(shamir, "split", record)
    one = played(8, {"mask": ["d3"], "agree": ["d5"]})
    one.check()
    halves: dict[tuple[str, bool], int] = {}
    for name, masker in one.maskers.items():
        masking, seed = masker._entropy.drawn[1], masker._entropy.drawn[2]
        for share in shares[seed + masking]:
            for reply in one.reveals.values():
                for own, piece in ((True, share[:32]), (False, share[32:])):
                    halves[name, own] = halves.get((name, own), 0) + (piece in reply)
    for name in one.maskers:
        lost = name == "d3"
        assert halves[name, True] == (0 if lost else 6)
        assert halves[name, False] == (6 if lost else 0)


# -- views that differ ----------------------------------------------------------------------------------------------


def test_consents_to_another_list_of_survivors_open_nothing():
    one = dealt(7)
    one.mask()
    small = [f"d{i}" for i in range(5)]
    consents = {"d0": one.maskers["d0"].consent(who(one, one.maskers))}
    for name in small[1:]:
        consents[name] = one.maskers[name].consent(who(one, small))
    quorum = one.session.quorum_for("d0", consents)
    refused(one.maskers["d0"], lambda m: m.reveal(quorum), "signature is not that of key")


def test_too_few_consents_open_nothing():
    one = dealt(7)
    one.mask()
    one.agree()
    full = pb.Quorum.FromString(one.session.quorum_for("d0", one.consents))
    signers = [p for p in range(7) if full.signers[0] >> p & 1]
    fewer = changed(
        pb.Quorum, full.SerializeToString(), signers=bitmap(signers[:-1], 7), signatures=full.signatures[:-64]
    )
    refused(one.maskers["d0"], lambda m: m.reveal(fewer), "too few of 5")
    own = bitmap([one.cohort.positions["d0"], *signers[:-1]], 7)
    doubled = changed(pb.Quorum, full.SerializeToString(), signers=own)
    refused(one.maskers["d0"], lambda m: m.reveal(doubled), "other than this device itself")


def test_consents_of_devices_that_are_not_neighbours_open_nothing():
    one = dealt(100)
    one.mask()
    one.agree()
    far = [n for n in one.cohort.order if n != "d0" and n not in one.cohort.neighbours("d0")][:40]
    quorum = _any_quorum(one, "d0", {n: one.consents[n] for n in far})
    refused(one.maskers["d0"], lambda m: m.reveal(quorum), "a quorum is of neighbours")


def test_consents_of_devices_that_are_no_survivors_open_nothing():
    """One that dropped out and is on the coordinator's side would sign any list."""
    one = dealt(6)
    one.mask()
    lost = one.cohort.order[0] if one.cohort.order[0] != "d0" else one.cohort.order[1]
    rest = [name for name in one.maskers if name != lost]
    del one.masked[lost]
    one.agree(rest)
    agreed = statements.consent(
        one.session.sid, 5, statements.agreement(pb.Survivors.FromString(who(one, rest)).survivors)
    )
    forged = pb.Consent(session=one.session.sid, id=lost, signature=one.devices[lost].sign(agreed))
    consents = {lost: forged.SerializeToString(), **dict(list(one.consents.items())[:4])}
    quorum = _any_quorum(one, "d0", consents)
    refused(one.maskers["d0"], lambda m: m.reveal(quorum), "neighbours that survived")
    one.maskers["d0"].reveal(one.session.quorum_for("d0", one.consents))


# -- who the neighbours are -----------------------------------------------------------------------------------------


def listed(one: World, adverts: dict[str, bytes]) -> bytes:
    """A sound roster of these advertisements, whatever is in them."""
    leaves = sorted(statements.advert_leaf(advert) for advert in adverts.values())
    s = one.settings
    cohorts = form(
        {name: statements.advert_leaf(a).hex() for name, a in adverts.items()}, groups=s.groups, least=s.least,
        gamma=s.gamma, delta=s.delta,
    )  # fmt: skip
    order = cohorts[0].order if cohorts else list(adverts)
    return pb.Roster(
        config=s.digest, leaves=b"".join(leaves), adverts=[adverts[name] for name in order]
    ).SerializeToString()


def own_keys(one: World, person: Device, *, seed: str = "coordinator") -> bytes:
    """Keys that the coordinator has drawn, under `person`'s entry; signed by whoever `person` is."""
    return write_advert(
        one.settings, person, agree.generate(Stream(seed))[1], agree.generate(Stream(seed + "2"))[1]
    )


def test_keys_that_the_coordinator_put_in_place_of_a_neighbours_are_refused():
    one = seated(4)
    forger = Device("d1", seed=7)
    forger.entry = one.devices["d1"].entry
    forged = listed(one, {**one.adverts, "d1": own_keys(one, forger)})
    refused(one.maskers["d0"], lambda m: m.share(forged), "signature is not that of key")


def test_a_device_that_nobody_enrolled_is_refused():
    one = seated(4)
    sybil = Device("sybil")
    sybil.entry = b"who? " + sybil.entry
    roster = listed(one, {**one.adverts, "sybil": own_keys(one, sybil)})
    refused(one.maskers["d0"], lambda m: m.share(roster), "no roster entry")


def test_a_name_under_anothers_entry_is_refused():
    one = seated(4)
    thief = Device("d1")
    thief.id = "d9"
    roster = listed(one, {**one.adverts, "d9": own_keys(one, thief)})
    refused(one.maskers["d0"], lambda m: m.share(roster), "'d9' advertises under the roster entry of 'd1'")
    with pytest.raises(BadBlob, match="advertises under"):
        check_advert(one.settings, "d9", own_keys(one, thief), trust)
    with pytest.raises(BadBlob, match="sent the advertisement of 'd1'"):
        check_advert(one.settings, "d0", one.adverts["d1"], trust)


def test_one_device_does_not_count_twice():
    one = seated(4)
    twice = listed(one, {**one.adverts, "again": own_keys(one, one.devices["d1"])})
    refused(one.maskers["d0"], lambda m: m.share(twice), "have the same id")
    mirror = own_keys(one, one.devices["d0"])
    refused(
        one.maskers["d0"], lambda m: m.share(listed(one, {**one.adverts, "d0b": mirror})), "have the same id"
    )


def test_one_signing_key_under_two_names_does_not_count_twice():
    one = seated(4)
    double = Device("double")
    double.private, double.public = one.devices["d1"].private, one.devices["d1"].public
    double.entry = b"entry " + double.public + b"double"
    roster = listed(one, {**one.adverts, "double": own_keys(one, double)})
    refused(one.maskers["d0"], lambda m: m.share(roster), "have the same signing key")


def test_session_keys_are_of_one_device():
    one = seated(4)
    theirs = pb.Advert.FromString(one.adverts["d1"])
    copier = Device("copier")
    copied = write_advert(one.settings, copier, agree.generate(Stream("x"))[1], theirs.masking)
    roster = listed(one, {**one.adverts, "copier": copied})
    refused(one.maskers["d0"], lambda m: m.share(roster), "have the same session key")
    crossed = write_advert(one.settings, copier, theirs.masking, theirs.sealing)
    roster = listed(one, {**one.adverts, "copier": crossed})
    refused(one.maskers["d0"], lambda m: m.share(roster), "have the same session key")


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)])
def test_keys_with_which_nothing_is_secret_are_refused_on_both_sides(point):
    one = seated(4)
    good = agree.generate(Stream("x"))[1]
    for keys in ((point, good), (good, point)):
        bad = write_advert(one.settings, one.devices["d1"], *keys)
        with pytest.raises(BadBlob, match="low order"):
            check_advert(one.settings, "d1", bad, trust)
        roster = listed(one, {**one.adverts, "d1": bad})
        refused(one.maskers["d0"], lambda m, roster=roster: m.share(roster), "low order")
    same = write_advert(one.settings, one.devices["d1"], good, good)
    with pytest.raises(BadBlob, match="one key for two purposes"):
        check_advert(one.settings, "d1", same, trust)


def test_a_roster_without_this_device_is_refused():
    one = seated(5)
    others = {name: advert for name, advert in one.adverts.items() if name != "d0"}
    refused(one.maskers["d0"], lambda m: m.share(listed(one, others)), "not in the roster as it was sent")
    # ... or with other keys under its name.
    swapped = listed(one, {**one.adverts, "d0": own_keys(one, one.devices["d0"])})
    refused(one.maskers["d0"], lambda m: m.share(swapped), "not in the roster as it was sent")


# -- the graph --------------------------------------------------------------------------------------------------------


def test_neighbours_that_the_coordinator_chose_are_refused():
    one = seated(100)
    honest = pb.Roster.FromString(one.session.roster_for("d0"))
    far = [n for n in one.cohort.order if n != "d0" and n not in one.cohort.neighbours("d0")]
    chosen = [*list(honest.adverts)[:-1], one.adverts[far[0]]]
    said = honest.SerializeToString()
    why = "not those of this device's neighbours"
    for adverts in (
        chosen,
        list(honest.adverts)[::-1],
        list(honest.adverts)[:-1],
        [*honest.adverts, chosen[-1]],
        [],
    ):
        message = changed(pb.Roster, said, adverts=adverts)
        refused(one.maskers["d0"], lambda m, message=message: m.share(message), why)
    one.maskers["d0"].share(said)


def test_an_order_of_leaves_that_the_coordinator_chose_is_refused():
    one = seated(5)
    said = one.session.roster_for("d0")
    leaves = pb.Roster.FromString(said).leaves
    swapped = leaves[32:64] + leaves[:32] + leaves[64:]
    for bad in (swapped, leaves[:32] + leaves, leaves + leaves[-32:]):
        message = changed(pb.Roster, said, leaves=bad)
        refused(one.maskers["d0"], lambda m, message=message: m.share(message), "not in ascending order")
    for bad in (leaves[:-1], b"", bytes(32 * 65536)):
        message = changed(pb.Roster, said, leaves=bad)
        refused(one.maskers["d0"], lambda m, message=message: m.share(message), "leaves of 32 bytes")
    # A leaf that nobody has changes the order for all.
    more = b"".join(sorted([*(leaves[i : i + 32] for i in range(0, 160, 32)), b"\x77" * 32]))
    message = changed(pb.Roster, said, leaves=more)
    refused(one.maskers["d0"], lambda m: m.share(message), "not those of this device's neighbours")


def test_a_hardened_graph_leaves_no_neighbour_to_choose():
    one = seated(70, hardened=True)
    assert one.cohort.complete
    assert one.cohort.neighbours("d0") == frozenset(one.maskers)
    assert len(pb.Roster.FromString(one.session.roster_for("d0")).adverts) == 70


# -- replays, other configs -----------------------------------------------------------------------------------------


def test_messages_of_another_session_are_refused_at_every_step():
    """Devices, identities and config are the same; the keys are fresh, and so the session is another."""
    old = played(5)
    one = world(5)
    for name in one.maskers:
        one.maskers[name] = Masker(one.settings, one.devices[name], trust, Stream(f"again {name}"))
    one.advertise()
    one.seat()
    masker = one.maskers["d0"]
    refused(masker, lambda m: m.share(old.session.roster_for("d0")), "not in the roster as it was sent")
    one.deal()
    inbox = old.session.inbox_for("d0", old.shares)
    refused(masker, lambda m: m.receive(inbox), "of another session")
    renamed = changed(pb.Inbox, inbox, session=one.session.sid)
    refused(masker, lambda m: m.receive(renamed), "0 neighbours' shares can be read")
    one.mask()
    survivors = old.session.survivors(old.shares, old.masked)
    refused(masker, lambda m: m.consent(survivors), "of another session")
    one.agree()
    quorum = old.session.quorum_for("d0", old.consents)
    refused(masker, lambda m: m.reveal(quorum), "of another session")
    renamed = changed(pb.Quorum, quorum, session=one.session.sid)
    refused(masker, lambda m: m.reveal(renamed), "signature is not that of key")


def test_advertisements_of_another_attempt_are_refused():
    one = seated(4)
    retry = config(attempt=1)
    with pytest.raises(BadBlob, match="signature"):
        check_advert(retry, "d0", one.adverts["d0"], trust)


@pytest.mark.parametrize("change", [{"terms": "00" * 32}, {"attempt": 1}, {"least": 4}, {"gamma": 0.0}])
def test_devices_that_were_told_of_different_models_are_in_no_session_together(change):
    one = world(6)
    other = config(**change)
    for name in ("d3", "d4", "d5"):
        one.maskers[name] = Masker(other, one.devices[name], trust, Stream(name))
    one.adverts = {name: masker.advertise() for name, masker in one.maskers.items()}
    roster = listed(one, one.adverts)
    refused(one.maskers["d0"], lambda m: m.share(roster), "signature is not that of key")
    refused(one.maskers["d3"], lambda m: m.share(roster), "another config")
    told = changed(pb.Roster, roster, config=other.digest)
    refused(one.maskers["d3"], lambda m: m.share(told), r"signature is not that of key")


# -- late, or cut out -------------------------------------------------------------------------------------------------


def test_a_device_whose_shares_came_late_takes_no_part():
    one = dealt(6)
    rest = {name: message for name, message in one.shares.items() if name != "d0"}
    inbox = one.session.inbox_for("d0", rest)
    refused(one.maskers["d0"], lambda m: m.receive(inbox), "is not among the dealers")


def test_a_device_whose_lanes_came_late_gives_nothing_back():
    """Its neighbours give back its masking key; what it has masked still hides behind its own mask."""
    one = dealt(6)
    one.mask()
    rest = {name for name in one.masked if name != "d0"}
    refused(one.maskers["d0"], lambda m: m.consent(who(one, rest)), "is not among the survivors")
    one.masked.pop("d0")
    one.uploads.pop("d0")
    one.agree(rest)
    one.open(rest)
    one.check()
    again = who(one, one.maskers)
    for name in rest:
        refused(one.maskers[name], lambda m: m.consent(again), "is revealed in this session")


def test_survivors_who_never_dealt_are_refused():
    one = dealt(6)
    one.shares.pop("d5")
    one.mask()
    refused(one.maskers["d0"], lambda m: m.consent(who(one, one.cohort.order)), "never dealt shares")


# -- small sums -------------------------------------------------------------------------------------------------------


def test_a_group_of_two_is_refused():
    one = seated(4)
    two = {name: one.adverts[name] for name in ("d0", "d1")}
    refused(one.maskers["d0"], lambda m: m.share(listed(one, two)), "2 devices, and a sum needs 3")
    with pytest.raises(UsageError, match="least number of devices"):
        config(least=2)


def test_sums_of_fewer_devices_than_agreed_are_refused():
    one = seated(8, least=7)
    few = {name: one.adverts[name] for name in list(one.adverts)[:6]}
    refused(one.maskers["d0"], lambda m: m.share(listed(one, few)), "6 devices, and a sum needs 7")
    one.deal()
    all_shares = dict(one.shares)
    one.shares = {name: all_shares[name] for name in list(all_shares)[:6]}
    inbox = one.session.inbox_for("d0", one.shares)
    refused(one.maskers["d0"], lambda m: m.receive(inbox), "agreed to a sum of 7")
    one.shares = all_shares
    one.mask()
    refused(one.maskers["d0"], lambda m: m.consent(who(one, list(one.masked)[:6])), "agreed to 7")


def test_too_few_neighbours_among_the_survivors_are_refused():
    one = dealt(100)
    one.mask()
    rest = sorted(one.cohort.neighbours("d0"))[: one.cohort.t - 1]
    far = [n for n in one.cohort.order if n not in one.cohort.neighbours("d0")]
    refused(one.maskers["d0"], lambda m: m.consent(who(one, [*rest, *far])), "fewer than 22 neighbours")


@pytest.mark.parametrize("devices", [3, 4, 7, 64, 65, 100, 500])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.2, 0.3])
def test_no_threshold_lets_two_halves_of_the_neighbours_give_back_two_secrets(devices, gamma):
    try:
        found = config(gamma=gamma).graph(devices)
    except UsageError:
        assert gamma == 0.3
        return
    assert 2 * found.t > found.k + gamma * found.k


def test_a_graph_that_is_too_weak_is_refused_whoever_found_it(monkeypatch):
    monkeypatch.setattr(graph, "parameters", lambda *rules: graph.Parameters(46, 25))
    with pytest.raises(UsageError, match="25 of 46 neighbours"):
        config().graph(500)
    monkeypatch.setattr(graph, "parameters", lambda *rules: graph.Parameters(46, 26))
    assert config().graph(500).t == 26


# -- twice, and broken ------------------------------------------------------------------------------------------------


def test_another_roster_for_keys_that_have_sealed_is_refused():
    """A key seals once: shares for another roster would be sealed with other keys or not at all."""
    one = seated(6)
    first = one.session.roster_for("d0")
    said = one.maskers["d0"].share(first)
    other = listed(one, {name: one.adverts[name] for name in list(one.adverts)[:5]})
    refused(one.maskers["d0"], lambda m: m.share(other), "told something else")
    refused(one.reload("d0"), lambda m: m.share(other), "told something else")
    assert one.maskers["d0"].share(first) == said


def test_another_inbox_once_masks_may_have_been_made_is_refused():
    one = dealt(6)
    first = one.session.inbox_for("d0", one.shares)
    one.maskers["d0"].receive(first)
    other = one.session.inbox_for("d0", {name: one.shares[name] for name in list(one.shares)[:5]})
    refused(one.maskers["d0"], lambda m: m.receive(other), "told something else")
    refused(one.reload("d0"), lambda m: m.receive(other), "told something else")
    assert one.maskers["d0"].receive(first) == ()


def test_another_quorum_is_refused():
    one = dealt(6)
    one.mask()
    one.agree()
    one.open()
    signer = next(name for name in one.cohort.order if name != "d0")
    other = one.session.quorum_for("d0", {name: m for name, m in one.consents.items() if name != signer})
    refused(one.maskers["d0"], lambda m: m.reveal(other), "told something else")
    quorum = one.session.quorum_for("d0", one.consents)
    assert one.maskers["d0"].reveal(quorum) == one.reveals["d0"]


@pytest.mark.parametrize("part", ["sealed", "dealt", "commitments", "signatures"])
def test_an_inbox_has_as_many_of_each_as_there_are_dealers(part):
    one = dealt(5)
    good = one.session.inbox_for("d0", one.shares)
    whole = getattr(pb.Inbox.FromString(good), part)
    for bad in (whole[:-1], whole + whole[: len(whole) // 4], b""):
        message = changed(pb.Inbox, good, **{part: bad})
        refused(one.maskers["d0"], lambda m, message=message: m.receive(message), "come as 4 times")


@pytest.mark.parametrize("name", ["", "d\n", "d\x1b[2J", "d" * 129])
def test_a_name_that_cannot_be_one_is_refused(name):
    one = seated(4)
    said = changed(pb.Advert, one.adverts["d1"], id=name)
    with pytest.raises(BadBlob, match="1 to 128 printable"):
        check_advert(one.settings, name, said, trust)


def prepared() -> dict[str, tuple[World, Callable[[Masker, bytes], object], bytes]]:
    """Of each step a device that is about to take it, and what it is to hear."""
    one = seated(5)
    found = {"roster": (one.fork(), Masker.share, one.session.roster_for("d0"))}
    one.deal()
    found["inbox"] = (one.fork(), Masker.receive, one.session.inbox_for("d0", one.shares))
    one.mask()
    found["survivors"] = (one.fork(), Masker.consent, one.session.survivors(one.shares, one.masked))
    one.agree()
    found["quorum"] = (one.fork(), Masker.reveal, one.session.quorum_for("d0", one.consents))
    return found


PREPARED = prepared()


@pytest.mark.parametrize("step", PREPARED)
@given(data=st.data())
def test_spoiled_messages_are_refused_or_do_no_harm(step, data):
    one, call, good = PREPARED[step]
    message = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    message = bytes(message[: data.draw(st.integers(0, 2 * len(message)))])
    masker = one.reload("d0")
    before = masker.dump()
    try:
        call(masker, message)
    except RemoteProtocolError:
        assert masker.dump() == before
        return
    # What got through is the same message written differently, but for junk in an inbox, which is then unreadable.
    if message != good and step != "inbox":
        assert type(good_of(step).FromString(message)) is type(good_of(step).FromString(good))
        spare = good_of(step).FromString(message)
        spare.DiscardUnknownFields()
        assert spare == good_of(step).FromString(good)


def good_of(step: str):
    return {"roster": pb.Roster, "inbox": pb.Inbox, "survivors": pb.Survivors, "quorum": pb.Quorum}[step]


@pytest.mark.parametrize("step", PREPARED)
def test_enormous_messages_are_refused_unread(step):
    one, call, _ = PREPARED[step]
    refused(one.reload("d0"), lambda m: call(m, bytes((4 << 20) + 1)), "refused unread")


def test_a_config_is_the_devices_own_to_refuse():
    """What is agreed to is read strictly; whether a device goes along with it is for its owner's limits to say."""
    data = config().encoded.replace(b'"least":3', b'"least":1')
    with pytest.raises(BadBlob, match="least number"):
        Config.decode(data)
