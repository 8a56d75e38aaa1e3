"""What a coordinator keeps of the session of a secure round, and for how long."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from koinon_coordinator import ledger
from koinon_coordinator.book import Item
from koinon_coordinator.store import PayloadRow, SessionGone, Store
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.errors import StoreError
from koinon_core.round import effects
from koinon_core.wire.v1 import fleet_pb2 as pb
from koinon_core.wire.v1 import secagg_pb2
from lab import Lab, raising

SECURE = {"aggregation": "secure", "codec": "exact", "min_clients": 3, "clients": 3}


def keys_of(name: str) -> bytes:
    seal, mask = (bytes.fromhex(sha256(f"{kind} {name}".encode())) for kind in ("sealing", "masking"))
    entry = f"keys of {name}".encode()
    return secagg_pb2.Advert(id=name, entry=entry, sealing=seal, masking=mask).SerializeToString()


def lab_of(store: Store) -> Lab:
    """A round in which two of three devices have sent their keys."""
    lab = Lab.create(store, **SECURE)
    lab.ledger.turn([Item(runs.Offered(lab.clock(), name)) for name in lab.names])
    for name in lab.names[:2]:
        said = keys_of(name)
        fact = runs.Voiced(lab.clock(), name, 1, 0, "keys", sha256(said))
        lab.ledger.turn([Item(fact, payload=PayloadRow(1, 0, "keys", name, said))])
    assert lab.run.round is not None
    assert sorted(lab.run.round.masking.now.heard) == lab.names[:2]
    return lab


def keys(store: Store) -> list[int]:
    return sorted(number for _, number in store.vault.rounds())


def test_what_devices_said_is_there_after_a_restart(store: Store) -> None:
    lab = lab_of(store)
    again = Lab.take_up(store, lab.row)
    assert again.ledger._book.said == {("keys", n): keys_of(n) for n in lab.names[:2]}
    assert again.run.round is not None
    assert again.run.round.masking.now.heard == lab.run.round.masking.now.heard  # type: ignore[union-attr]


def test_what_devices_said_is_not_there_in_clear(store: Store, tmp_path: Path) -> None:
    lab = lab_of(store)
    (sealed,) = {p.data for p in store.payloads(lab.run.id, 1, 0) if p.client == "c0"}
    assert sealed == keys_of("c0"), "it opens with the key"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"keys of c0" not in path.read_bytes()


def test_when_the_round_is_over_its_key_and_its_rows_are_gone(store: Store) -> None:
    lab = lab_of(store)
    assert keys(store) == [1]
    lab.ledger.turn([Item(runs.Cancelled(lab.clock(), "enough"))])
    assert keys(store) == []
    assert store.payloads(lab.run.id, 1, 0) == []


def test_without_the_key_the_round_is_given_up_by_name(store: Store) -> None:
    """Also before its keys are all in: they would be in no session that anybody could open."""
    lab = lab_of(store)
    store.vault.destroy(lab.run.id, 1)
    Lab.take_up(store, lab.row)
    assert lab.row.number == 2, "and another is opened"
    (first, _) = store.rounds(lab.run.id)
    assert first.stage == "abandoned"
    assert "the key of its session is not in this coordinator's folder" in first.reason


def test_a_key_of_another_folder_opens_nothing_and_says_so(store: Store) -> None:
    lab = lab_of(store)
    store.vault.destroy(lab.run.id, 1)
    store.vault.seal(lab.run.id, 1, b"what the other coordinator heard", "0/keys/c2")
    with pytest.raises(SessionGone, match="another coordinator's"):
        store.payloads(lab.run.id, 1, 0)
    Lab.take_up(store, lab.row)
    assert store.rounds(lab.run.id)[0].stage == "abandoned"


def test_a_key_that_a_killed_turn_left_goes_when_the_run_is_taken_up(store: Store) -> None:
    lab = lab_of(store)
    store.vault.seal(lab.run.id, 7, b"of a round that is over", "0/keys/c0")
    assert keys(store) == [1, 7]
    Lab.take_up(store, lab.row)
    assert keys(store) == [1]


def test_a_word_opens_only_as_what_it_was_said(store: Store) -> None:
    sealed = store.vault.seal("r", 1, b"shares", "0/shares/c0")
    assert store.vault.unseal("r", 1, sealed, "0/shares/c0") == b"shares"
    for about in ("0/shares/c1", "1/shares/c0", "0/reveal/c0"):
        with pytest.raises(SessionGone):
            store.vault.unseal("r", 1, sealed, about)


def test_the_keys_of_a_run_that_another_coordinator_took_are_forgotten(
    store: Store, database_url: str, tmp_path: Path
) -> None:
    lab = lab_of(store)
    store.release(lab.run.id, lab.ledger.epoch, lab.clock())
    other = Store(database_url, tmp_path / "other", alone=False)
    try:
        Lab.take_up(other, other.run(lab.run.id))
        store.forget_sessions(lab.run.id)
    finally:
        other.close()
    assert keys(store) == []


def test_whoever_took_a_run_from_itself_still_reads_what_was_said(store: Store) -> None:
    """It bumped the epoch and did not hear so: what it then takes up is its own."""
    lab = lab_of(store)
    store.take(lab.run.id, lab.clock())
    store.forget_sessions(lab.run.id)
    assert keys(store) == [1]
    assert len(store.payloads(lab.run.id, 1, 0)) == 2


def test_a_database_that_does_not_answer_ends_nobody(store: Store) -> None:
    lab = lab_of(store)
    with raising("store.begun", StoreError("the database does not answer")):
        store.forget_sessions(lab.run.id)
    store.forget_sessions("no such run")


def test_the_end_of_a_round_is_told_before_the_next_one_is_asked_for(store: Store) -> None:
    """Also where the round that ends was about to ask for the same: in another attempt, which then was not."""
    lab = lab_of(store)
    at, again = lab.clock(), effects.Ask("c0", "keys")
    lab.ledger.turn([Item(runs.Offered(at, name, engaged=1)) for name in lab.names])
    with patch.object(ledger.runs, "step", _first_asks(again)):
        said = lab.ledger.turn(
            [Item(runs.Progressed(at, "c0")), Item(runs.Unfoldable(at, 1, "made no model"))]
        )
    told = [pb.AttendResponse.FromString(s.message).messages[0] for s in said if s.client == "c0"]
    assert [m.WhichOneof("says") for m in told] == ["receipt", "ask"]
    assert (told[0].receipt.round, told[1].ask.round) == (1, 2)


def _first_asks(order: effects.Ask) -> Callable[[runs.Run, runs.Fact], runs.Moved]:
    """The run's step, which orders this where somebody shows a sign of life."""
    real = runs.step

    def step(run: runs.Run, fact: runs.Fact) -> runs.Moved:
        moved = real(run, fact)
        return replace(moved, orders=(order,)) if isinstance(fact, runs.Progressed) else moved

    return step
