"""What must hold in every world, checked while it lives and at its end.

The truth is the database: what is said is compared with what is durable at the moment when it is said.
"""

import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from koinon_coordinator.closing import Plan
from koinon_coordinator.replay import replay
from koinon_coordinator.store import Store
from koinon_core import audit, codec
from koinon_core.errors import Conflict, KoinonError, Unavailable
from koinon_core.history import facts_of, link_of
from koinon_core.round.machine import rebuild
from koinon_core.round.terms import Terms
from koinon_core.update import state_schema, unpack_state
from koinon_core.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from .gadget import Gadget
    from .house import House
    from .world import World

__all__ = ["Laws"]


class Laws:
    """Watches one world."""

    def __init__(self, world: "World"):
        self.world = world
        self.receipts: dict[tuple[int, str], set[str]] = defaultdict(set)
        self.sent: dict[tuple[int, str], tuple[str, bytes]] = {}
        self.settled_by: dict[tuple[int, str], list[str]] = defaultdict(list)
        self.epochs: dict[str, int] = defaultdict(int)
        self.last_round: dict[str, int] = defaultdict(int)
        self.rounds_seen = 0
        self._reader: sqlite3.Connection | None = None

    # -- the truth --------------------------------------------------------------------------------------------

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What is committed."""
        if self._reader is None:
            self._reader = sqlite3.connect(self.world.db)
        rows = self._reader.execute(query, values).fetchall()
        self._reader.commit()
        return rows

    def status(self, number: int, client: str) -> str:
        rows = self.sql("SELECT status FROM participants WHERE round=? AND client=?", number, client)
        return rows[0][0] if rows else ""

    def over(self) -> bool:
        return self.sql("SELECT status FROM runs")[0][0] in ("finished", "failed", "cancelled")

    def waiting_for(self) -> str:
        return "; ".join(
            f"{driver.run.waiting_for} {driver.run.devices} {driver.run.leases}"
            for house in self.world.houses
            for driver in house.federation.drivers.values()
        ) + f" {[(g.name, g.alive, g.stream is not None, g.talk.member) for g in self.world.gadgets]}"

    # -- while it lives ---------------------------------------------------------------------------------------

    def said(self, house: "House", gadget: "Gadget", message: pb.CoordinatorMessage) -> None:
        """A coordinator lets a message leave: what it says must be durable."""
        match message.WhichOneof("says"):
            case "ask":
                ask = message.ask
                rows = self.sql("SELECT terms_digest, stage FROM rounds WHERE number=?", ask.round)
                assert rows, f"round {ask.round} is asked for, and its opening is not stored"
                assert rows[0][0] == Terms.decode(ask.terms).digest, "other terms are asked than are stored"
                asked = self.status(ask.round, gadget.name)
                assert asked, f"{gadget.name} is asked in round {ask.round}, and that is not stored"
            case "receipt":
                receipt = message.receipt
                number, name = receipt.round, gadget.name
                staged = self.sql("SELECT 1 FROM updates WHERE round=? AND client=?", number, name)
                if receipt.verdict == pb.VERDICT_STAGED:
                    assert staged, f"{name} is told STAGED in round {number}, and its update is not stored"
                elif receipt.verdict == pb.VERDICT_COUNTED:
                    assert self.status(number, name) == "counted", f"{name} is told COUNTED in round {number} too early"
                else:
                    assert self.status(number, name) != "counted", f"{name} is told NOT_COUNTED in round {number}"

    def heard(self, gadget: "Gadget", message: pb.CoordinatorMessage) -> None:
        if message.HasField("receipt"):
            r = message.receipt
            self.receipts[r.round, gadget.name].add(pb.Verdict.Name(r.verdict))
        elif message.HasField("ask"):
            self.world.tell(f"{gadget.name} is asked in round {message.ask.round} (epoch {message.ask.epoch})")
            self._epoch_asked = message.ask.epoch

    def begins(self, gadget: "Gadget", terms: Terms) -> None:
        key = terms.round, gadget.name
        assert key not in self.sent, f"{gadget.name} trains again for round {terms.round}, which it had finished"
        assert terms.round >= self.last_round[gadget.name], "a round is asked for after a later one"
        self.last_round[gadget.name] = terms.round
        assert self._epoch_asked >= self.epochs[gadget.name] or self._epoch_asked == 0, (
            f"{gadget.name} works for an owner of epoch {self._epoch_asked} after one of {self.epochs[gadget.name]}"
        )
        self.epochs[gadget.name] = max(self.epochs[gadget.name], self._epoch_asked)

    _epoch_asked = 0

    def answers(self, gadget: "Gadget", answer: pb.Answer) -> None:
        key = answer.round, gadget.name
        said = answer.update.digest, answer.head.SerializeToString(deterministic=True)
        assert self.sent.setdefault(key, said) == said, f"{key} is answered with other bytes than before"
        kept = gadget.outbox._read_sent_for_test(gadget.talk.run) if False else None  # noqa: F841
        path = gadget.outbox._path(gadget.talk.run, "sent")
        assert path.exists(), f"{key} is sent before it is on disk"

    def settled(self, gadget: "Gadget", number: int, outcome: str) -> None:
        self.settled_by[number, gadget.name].append(outcome)
        if outcome == "counted":
            assert self.status(number, gadget.name) == "counted", (
                f"{gadget.name} makes its state of round {number} final, and it was not counted"
            )

    def refused(self, gadget: "Gadget", error: KoinonError) -> None:
        # Nothing that a world does is the owner's fault; a coordinator that lost the run or stops may say so.
        assert isinstance(error, Unavailable | Conflict), f"{gadget.name} is refused: {error!r}"
        self.world.tell(f"{gadget.name} is refused: {error}")

    # -- now and then -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """The live coordinators' memory is the fold of what is stored; state follows what was counted."""
        for house in self.world.houses:
            if not house.alive or house.frozen or house.world.acting is not None:
                continue
            for driver in house.federation.drivers.values():
                run = driver.run
                epoch, number = self.sql("SELECT epoch, number FROM runs")[0]
                if driver.ledger.epoch != epoch or run.number != number or not driver.ledger.sound:
                    continue  # a turn is under way, or it lost the run
                stored = rebuild(house.store.events(run.id, number)) if number else None
                if driver.run is run:
                    assert stored == run.round, "folding the stored events does not give the round"
        self._devices_follow()

    def _devices_follow(self) -> None:
        """SCAFFOLD's law: the server's c is the mean of the devices' c_i, with every update counted once."""
        with_store = next((h for h in self.world.houses if h.alive and not h.frozen), None)
        if with_store is None or not self.world.gadgets or self.over():  # devices forget a run that is over
            return
        store = with_store.store
        row = store.runs()[0]
        plan = Plan.of(self.world.run.spec)
        version = store.latest_model(row.id)
        fresh = plan.strategy.init(self.world.run.model, self.world.n)
        state = fresh
        if version.state:
            data = store.bytes(version.state)
            state = unpack_state(codec.decode(data, state_schema(fresh), "state"))
        mine = []
        for gadget in self.world.gadgets:
            talk = gadget.talk
            c, sent = talk.state, talk._sent
            if not talk.run or (not c and sent is None and talk.spec is None):
                return  # it has not looked into its memory yet
            if sent is not None and sent.pending is not None and self.status(sent.round, gadget.name) == "counted":
                c = sent.pending
            mine.append(_control(c))
        server = _control(state)
        assert np.isclose(server, sum(mine) / self.world.n, atol=1e-9), (
            f"the server's c is {server}, the mean of the devices' is {sum(mine) / self.world.n} {mine}"
        )

    # -- at the end -------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        store = Store(f"sqlite:///{self.world.db}", self.world.folder / "look")
        try:
            self._check_end(store)
        finally:
            store.close()

    def _check_end(self, store: Store) -> None:
        row = store.runs()[0]
        assert row.status == "finished", f"the run {row.status}: {row.reason}"
        rounds = store.rounds(row.id)
        self.rounds_seen = len(rounds)
        assert [r.number for r in rounds] == list(range(1, len(rounds) + 1)), "rounds are numbered without gaps"
        assert sum(r.stage == "closed" for r in rounds) == self.world.run.spec.rounds
        report = audit.verify(store.audit(row.id))
        assert not report.problems, report.problems
        assert report.head == row.head, "the run's head is not the audit log's"
        head_entries = [e.value for e in store.audit(row.id)]
        assert [e["facts"]["round"] for e in head_entries if e["kind"] == "ended"] == [r.number for r in rounds]
        x = 0.0
        counted: set[tuple[int, str]] = set()
        links = store.standing(row.id, 1)[1]
        for stored in rounds:
            r = rebuild(store.events(row.id, stored.number))
            assert r is not None
            assert r.stage == stored.stage
            assert links[stored.number] == link_of(r), "the stored link is not that of the round's facts"
            spec = self.world.run.spec
            accepted = set(r.accepted)
            assert facts_of(r)["accepted"] == [[c, r.update.heard[c]] for c in sorted(accepted)]
            assert accepted <= r.update.asked, "someone is in the sum who was not asked"
            assert {p.client for p in stored.participants if p.status == "counted"} == accepted
            counted |= {(stored.number, c) for c in accepted}
            if r.stage == "closed":
                assert len(accepted) >= spec.min_clients, "a sum over fewer than the quorum"
                x = self._check_model(store, row.id, stored.number, x, accepted)
            else:
                assert stored.model == "", "an abandoned round made a model"
            self._check_times(r)
        for key, verdicts in self.receipts.items():
            assert not {"VERDICT_COUNTED", "VERDICT_NOT_COUNTED"} <= verdicts, f"{key} was told both"
            if "VERDICT_NOT_COUNTED" in verdicts:
                assert key not in counted, f"{key} was told NOT_COUNTED, and is in the sum"
        for key, outcomes in self.settled_by.items():
            assert len(set(outcomes)) == 1 or "counted" not in outcomes, f"{key} was settled as {outcomes}"
        for update in (u for n in store.kept_rounds(row.id) for u in store.updates(row.id, n)):
            assert self.sent[update.round, update.client][0] == update.digest
        for replayed in replay(store, row):
            assert replayed.verdict in ("match", "gone"), replayed
        self._devices_follow_to_the_end(counted)

    def _check_model(self, store: Store, run: str, number: int, before: float, accepted: set[str]) -> float:
        """The model's change, times the number of devices, is a sum of their powers of two: each once."""
        expected = sum(2.0 ** -int(c[1:]) for c in accepted) / len(accepted)
        try:
            version = store.model_at(run, number)
        except KoinonError:
            return before + expected  # kept no longer
        model = codec.decode(store.bytes(version.digest), self.world.run.spec.model, "the model")
        x = float(model["x"][0])
        assert abs(x - before - expected) < 1e-9, (
            f"round {number} moved the model by {x - before}, its devices {sorted(accepted)} make {expected}"
        )
        return x

    def _check_times(self, r: Any) -> None:
        """A deadline counts time in which somebody owned the round."""
        if r.reason.startswith("reached its deadline") and r.update.deadline is not None:
            over = r.folding_at or r.ended_at
            assert over >= r.update.deadline, "a round ended before its deadline"

    def _devices_follow_to_the_end(self, counted: set[tuple[int, str]]) -> None:
        for gadget in self.world.gadgets:
            if gadget.alive and gadget.stream is not None:
                assert gadget.talk.member.stage not in ("sent", "staged"), (
                    f"{gadget.name} still waits for the fate of round {gadget.talk.member.round}"
                )


def _control(state: Any) -> float:
    for name, tensors in state.items():
        if name.endswith("c") or name in ("c", "control", "c_i"):
            return float(tensors["x"][0])
    return 0.0
