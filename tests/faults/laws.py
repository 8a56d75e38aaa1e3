"""What must hold in every world, checked while it lives and at its end.

The truth is the database: what is said is compared with what is durable at the moment when it is said. It is read
with SQL of its own, and the sums, deadlines and leases are worked out here once more from the stored facts, so that a
mistake in the code that reads or decides does not hide itself.
"""

import json
import sqlite3
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from koinon_coordinator.closing import Plan
from koinon_coordinator.replay import replay
from koinon_coordinator.store import Store, upkeep
from koinon_core import audit, codec
from koinon_core.errors import KoinonError, Unavailable
from koinon_core.history import facts_of, genesis, link_of
from koinon_core.round import events
from koinon_core.round.machine import Round, rebuild, step
from koinon_core.round.terms import Terms
from koinon_core.strategy.protocol import State
from koinon_core.update import state_schema, unpack_state
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

from .buffers import BufferLaws
from .cohorts import CohortLaws
from .house import open_store
from .sessions import SessionLaws

if TYPE_CHECKING:
    from koinon.outbox import Sent

    from .gadget import Gadget
    from .house import Stream
    from .world import World

__all__ = ["Laws"]

_LATE = 8.0  # seconds by which a busy coordinator may be behind its own timers, its beat included
_PATIENCE = 30.0  # seconds within which an attached device is told what became of a round that is over
_OVER = ("closed", "abandoned")
_ENDS = ("reached its deadline", "lost its quorum", "drew ")  # all that ends a round without a model, here


class Laws:
    """Watches one world."""

    def __init__(self, world: "World"):
        self.world = world
        self.sent: dict[tuple[int, str], tuple[str, bytes]] = {}
        self.rounds_seen = 0
        self._reader: sqlite3.Connection | None = None
        self._receipts: dict[tuple[int, str], set[str]] = defaultdict(set)
        self._settled: dict[tuple[int, str], set[str]] = defaultdict(set)
        self._epochs: dict[tuple[str, int], int] = defaultdict(int)
        self._asked: dict[tuple[int, str], int] = {}
        self._last_round: dict[str, int] = defaultdict(int)
        self._spoke: dict[str, list[float]] = defaultdict(list)
        self._owing: dict[str, tuple[Any, float]] = {}
        self._looked_at: Any = None
        self._moved: tuple[Any, float] = (None, 0.0)
        self._untold: dict[Any, set[int]] = defaultdict(set)
        self._server: tuple[str, float] = ("", 0.0)
        self._plan = Plan.of(world.run.spec)
        self._unpowered: dict[str, int] = {}
        self._excused: set[str] = set()
        self.sessions = SessionLaws(self)
        self.buffers = CohortLaws(self) if world.secure and world.asynchronous else BufferLaws(self)

    # -- the truth --------------------------------------------------------------------------------------------

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What is committed."""
        if self._reader is None:
            self._reader = sqlite3.connect(self.world.db, isolation_level=None)
        return self._reader.execute(query, values).fetchall()

    def status(self, number: int, client: str) -> str:
        rows = self.sql("SELECT status FROM participants WHERE round=? AND client=?", number, client)
        return rows[0][0] if rows else ""

    def stage(self, number: int) -> str:
        rows = self.sql("SELECT stage FROM rounds WHERE number=?", number)
        return rows[0][0] if rows else ""

    def over(self) -> bool:
        return self.sql("SELECT status FROM runs")[0][0] in ("finished", "failed", "cancelled")

    def stored(self, number: int) -> list[events.Event]:
        """The events of a round."""
        rows = self.sql("SELECT kind, data FROM events WHERE round=? ORDER BY id", number)
        return [events.load(kind, json.loads(data)) for kind, data in rows]

    def stored_after(self, number: int, last: int) -> list[tuple[int, events.Event]]:
        """The events of a round that are newer than the one with the id `last`, each with its own."""
        rows = self.sql("SELECT id, kind, data FROM events WHERE round=? AND id>? ORDER BY id", number, last)
        return [(at, events.load(kind, json.loads(data))) for at, kind, data in rows]

    def stored_since(self, last: int) -> list[tuple[int, int, events.Event]]:
        """All events that are newer than the one with the id `last`, each with its id and its round."""
        rows = self.sql("SELECT id, round, kind, data FROM events WHERE id>? ORDER BY id", last)
        return [(at, number, events.load(kind, json.loads(data))) for at, number, kind, data in rows]

    def told(self, verdict: str) -> list[tuple[int, str]]:
        """Whom of which round devices have heard this of."""
        return [key for key, verdicts in self._receipts.items() if verdict in verdicts]

    def waiting_for(self) -> str:
        return (
            "; ".join(
                f"{driver.run.waiting_for} {driver.run.devices} {driver.run.leases}"
                for house in self.world.houses
                for driver in house.federation.drivers.values()
            )
            + f" {[(g.name, g.alive, g.stream is not None, g.talk.member) for g in self.world.gadgets]}"
        )

    # -- while it lives ---------------------------------------------------------------------------------------

    def said(self, stream: "Stream", message: pb.CoordinatorMessage) -> None:
        """A coordinator lets a message leave: what it says must be durable."""
        gadget = stream.gadget
        match message.WhichOneof("says"):
            case "ask":
                ask = message.ask
                rows = self.sql("SELECT terms_digest FROM rounds WHERE number=?", ask.round)
                assert rows, f"round {ask.round} is asked for, and its opening is not stored"
                assert rows[0][0] == Terms.decode(ask.terms).digest, "other terms are asked than are stored"
                asked = self.status(ask.round, gadget.name)
                assert asked, f"{gadget.name} is asked in round {ask.round}, and that is not stored"
                untold = {n for n in self._untold[stream] if n < ask.round}
                assert not untold, f"{gadget.name} is asked in round {ask.round} and never told of {untold}"
            case "call":
                self.sessions.asks(gadget.name, message.call)
            case "receipt":
                self._said_receipt(gadget.name, message.receipt)
                number = message.receipt.round
                if message.receipt.verdict == pb.VERDICT_STAGED:
                    self._untold[stream].add(number)
                else:
                    self._untold[stream].discard(number)

    def _said_receipt(self, name: str, receipt: pb.Receipt) -> None:
        number, status = receipt.round, self.status(receipt.round, name)
        match receipt.verdict:
            case pb.VERDICT_STAGED:
                staged = self.sql("SELECT 1 FROM updates WHERE round=? AND client=?", number, name)
                assert staged, f"{name} is told STAGED in round {number}, and its update is not stored"
            case pb.VERDICT_COUNTED:
                assert status == "counted", f"{name} is told COUNTED in round {number} too early"
                if self._buffered(number):
                    self.buffers.counts((number, name))
                else:
                    made = self.sql("SELECT 1 FROM models WHERE round=?", number) or self._evaluation(number)
                    assert made, f"round {number} counted, and its model is not stored"
            case _:
                assert status != "counted", (
                    f"{name} is told NOT_COUNTED in round {number}, and it was counted"
                )
                if self._buffered(number):
                    self.buffers.counts_not((number, name))
        drawn = self.world.run.spec.selecting.gathers  # then a round is opened when it is drawn
        paused = self.sql("SELECT status FROM runs")[0][0] == "paused"
        if self.stage(number) in _OVER and not self.over() and not drawn and not paused:
            last = self.sql("SELECT number FROM runs")[0][0]
            assert self.stage(last) not in _OVER, (
                f"round {last} is over, and no other was opened with its end"
            )

    def _evaluation(self, number: int) -> bool:
        return self.sql("SELECT kind FROM rounds WHERE number=?", number) == [("evaluate",)]

    def _buffered(self, number: int) -> bool:
        """Whether this round's work may count in a later one."""
        return self.world.asynchronous and not self._evaluation(number)

    def spoke(self, name: str) -> None:
        """A coordinator has read a device's message."""
        self._spoke[name].append(self.world.loop.now)

    def heard(self, gadget: "Gadget", message: pb.CoordinatorMessage) -> None:
        if message.HasField("receipt"):
            r = message.receipt
            self._receipts[r.round, gadget.name].add(pb.Verdict.Name(r.verdict))
        elif message.HasField("ask"):
            self.world.tell(
                f"{gadget.name} is asked in round {message.ask.round} (epoch {message.ask.epoch})"
            )
            self._asked[message.ask.round, gadget.name] = message.ask.epoch

    def begins(self, gadget: "Gadget", terms: Terms) -> None:
        name, key = gadget.name, (terms.round, gadget.name)
        assert gadget.talk.spec is not None, f"{name} begins work for a run that it has not joined"
        assert key not in self.sent, f"{name} trains again for round {terms.round}, which it had finished"
        assert terms.round >= self._last_round[name], (
            f"{name} is asked for round {terms.round} after a later one"
        )
        self._last_round[name] = terms.round
        # What a device heard and did not act upon is forgotten with its process.
        life, epoch = (name, gadget.boots), self._asked[key]
        assert epoch >= self._epochs[life], f"{name} works for an owner of epoch {epoch}, after a later one"
        self._epochs[life] = epoch

    def answers(self, gadget: "Gadget", answer: pb.Answer) -> None:
        key = answer.round, gadget.name
        said = answer.update.digest, answer.head.SerializeToString(deterministic=True)
        assert self.sent.setdefault(key, said) == said, f"{key} is answered with other bytes than before"
        path = gadget.outbox._path(gadget.talk.run, "sent")
        assert path.exists(), f"{key} is sent before it is on disk"

    def hands_in(self, key: tuple[int, str], sent: "Sent") -> None:
        """An update of a secure round is on disk: it is encoded once, however often it is masked."""
        said = sent.digest, convert.head_to(sent.head).SerializeToString(deterministic=True)
        assert self.sent.setdefault(key, said) == said, f"{key} is encoded anew"

    def may_refuse(self, name: str) -> None:
        """Something was done to this device for which it leaves a round, or is put out of one."""
        self._excused.add(name)
        self._unpowered[name] = self.sql("SELECT number FROM runs")[0][0]

    def lost_power(self, name: str, number: int) -> bool:
        """Whether a device may have lost its memory of this round before anything of it was on disk."""
        return number <= self._unpowered.get(name, 0) and (number, name) not in self.sent

    def heard_from(self, name: str) -> list[float]:
        """When a coordinator read something of this device."""
        return self._spoke[name]

    def settled(self, gadget: "Gadget", number: int, outcome: str) -> None:
        key = number, gadget.name
        self._settled[key].add("counted" if outcome == "counted" else "dropped")
        if outcome == "counted":
            assert self.status(*key) == "counted", f"{key} is made final on the device, and was not counted"
        else:
            assert self.status(*key) != "counted", f"{key} is dropped by the device, and was counted"

    def refused(self, gadget: "Gadget", error: KoinonError) -> None:
        # Nothing that a world does is a device's fault; a coordinator that stops, or waits for another, may say so.
        assert isinstance(error, Unavailable), f"{gadget.name} is refused: {error!r}"
        self.world.tell(f"{gadget.name} is refused: {error}")

    def removed(self, about: str) -> None:
        """A file of a coordinator's folder is gone: a content by its digest, or all updates of a round."""
        if about.isdecimal():
            needed = self.sql(
                "SELECT 1 FROM updates WHERE round=? AND kept AND data IS NULL AND size", int(about)
            )
        else:
            needed = self.sql("SELECT 1 FROM models WHERE (digest=?1 AND kept) OR state=?1 OR down=?1", about)
        if needed or (self.world.asynchronous and not about.isdecimal() and self.buffers.needs(about)):
            self.world.fail(AssertionError(f"{about} is removed, and what is stored needs it"))

    def stays_away(self, gadget: "Gadget", reason: str) -> None:
        raise AssertionError(f"{gadget.name} does not know this run's history: {reason}")

    # -- now and then -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """The live coordinators' memory is the fold of what is stored; devices are told, and their states follow."""
        epoch, number, last = self.sql("SELECT epoch, number, (SELECT max(id) FROM events) FROM runs")[0]
        for house in self.world.houses:
            if not house.alive or house.frozen or self.world.acting is not None:
                continue
            for driver in house.federation.drivers.values():
                run = driver.run
                if driver.ledger.epoch != epoch or run.number != number or not driver.ledger.sound:
                    continue  # a turn is under way, or it lost the run
                if (last, run.round) != self._looked_at:
                    assert rebuild(self.stored(number)) == run.round, (
                        "memory is not the fold of the stored events"
                    )
                    self._looked_at = last, run.round
        self.sessions.check()
        if self.world.asynchronous:
            self.buffers.check()
        self._devices_forget()
        if not self.over():  # devices forget a run that is over
            self._goes_on(last)
            self._devices_are_told()
            if not self.world.asynchronous:
                self._devices_follow()

    def _goes_on(self, last: int) -> None:
        """While everybody is attached, something happens at least when a deadline is due."""
        now, streams = self.world.loop.now, [g.stream for g in self.world.gadgets if g.alive]
        there = len(streams) == self.world.n and all(s and s.open and not s.house.frozen for s in streams)
        at = (last, streams) if there else None
        if at is None or at != self._moved[0]:
            self._moved = at, now
        spec = self.world.run.spec
        longest = max(spec.deadline, spec.phase) + spec.join_wait
        assert now - self._moved[1] <= longest + _PATIENCE, f"hangs: {self.waiting_for()}"

    def _devices_are_told(self) -> None:
        """Whoever is attached hears of the end of a round, and does not have to ask."""
        now = self.world.loop.now
        for gadget in self.world.gadgets:
            m, stream = gadget.talk.member, gadget.stream
            owes = m.stage in ("sent", "staged") and self.stage(m.round) in _OVER
            owes = owes and not (self._buffered(m.round) and self.buffers.open_work((m.round, gadget.name)))
            there = gadget.alive and stream is not None and stream.open and not stream.house.frozen
            waits = (m.round, stream) if owes and there else None
            if waits is None or self._owing.get(gadget.name, (None, 0.0))[0] != waits:
                self._owing[gadget.name] = waits, now
            elif now - self._owing[gadget.name][1] > _PATIENCE:
                raise AssertionError(
                    f"{gadget.name} is not told what became of round {m.round}, which is over"
                )

    def _devices_forget(self) -> None:
        """A device that waits for work has no secret of the round before."""
        if not self.world.secure or self.world.run.spec.keys == "early":
            return  # or it may have them of a round that it will be given again
        for gadget in self.world.gadgets:
            if gadget.alive and gadget.talk.spec and gadget.talk.member.stage in ("idle", "offered"):
                entry = gadget.outbox.journal.load(gadget.talk.run)
                assert entry is None or not entry.secrets, (
                    f"{gadget.name} still has secrets of its last round"
                )

    def _devices_follow(self) -> None:
        """SCAFFOLD's law: the server's c is the mean of the devices' c_i, with every update counted once."""
        house = next((h for h in self.world.houses if h.alive and not h.frozen), None)
        if house is None or not self.world.gadgets:
            return
        mine = []
        for gadget in self.world.gadgets:
            talk = gadget.talk
            c, sent = talk.state, talk._sent
            if talk.spec is None:
                return  # it has not looked into its memory yet
            if (
                sent is not None
                and sent.pending is not None
                and self.status(sent.round, gadget.name) == "counted"
            ):
                c = sent.pending
            mine.append(_control(c))
        server, mean = self._control_of(house.store), sum(mine) / self.world.n
        assert abs(server - mean) < 1e-9, f"the server's c is {server}, the devices' {mine} make {mean}"

    def _control_of(self, store: Store) -> float:
        digest = self.sql("SELECT state FROM models ORDER BY round DESC LIMIT 1")[0][0]
        assert digest, "the newest state of the strategy is not kept"
        if self._server[0] != digest:
            like = self._plan.strategy.init(self.world.run.model, self.world.n)
            state = unpack_state(codec.decode(store.bytes(digest), state_schema(like), "state"))
            self._server = digest, _control(state)
        return self._server[1]

    # -- at the end -------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        if self.world.asynchronous:
            with upkeep.opened(f"sqlite:///{self.world.db}", self.world.data) as place:
                found = upkeep.check(place).findings
            # Whoever was killed as it ended a session leaves its key, for the next to remove.
            found = [one for one in found if not one.text.startswith("the key of a session")]
            assert not found, f"`db check` says: {found[0].text}"
        store = open_store(self.world.db, self.world.data)
        try:
            self._check_end(store)
        finally:
            store.close()

    def _check_end(self, store: Store) -> None:
        row, spec = store.runs()[0], self.world.run.spec
        assert row.status == "finished", f"the run {row.status}: {row.reason}"
        rounds = self.sql("SELECT number, stage, link, terms_digest FROM rounds ORDER BY number")
        self.rounds_seen = len(rounds)
        assert [n for n, *_ in rounds] == list(range(1, len(rounds) + 1)), "rounds are numbered without gaps"
        trained = [n for n, stage, *_ in rounds if stage == "closed" and not self._evaluation(n)]
        assert len(trained) == spec.rounds, "not as many models as asked for"
        models = {n: rest for n, *rest in self.sql("SELECT round, digest, state, down, kept FROM models")}
        counted: set[tuple[int, str]] = set()
        facts, x, last, made = [], 0.0, 0, [0.0]
        for number, stage, link, terms in rounds:
            stored = self.stored(number)
            r = self._lived(stored)
            facts.append(facts_of(r))
            assert (r.stage, link_of(r), r.terms.digest) == (stage, link, terms), (
                "a row and its events disagree"
            )
            digest, _, down, _ = models[last]
            assert r.terms.model == digest, f"round {number} does not stand on the newest model"
            assert r.terms.down == down or not down, f"round {number} does not stand on the newest state"
            if r.buffered:
                counted |= self.buffers.check_round(r, stored)
                change = self.buffers.expected_change(r, made) if stage == "closed" else 0.0
            else:
                accepted = self._check_accepted(r)
                counted |= {(number, c) for c in accepted}
                change = sum(2.0 ** -int(c[1:]) for c in accepted) / max(1, len(accepted))
            if number in trained:
                x, last = self._check_model(store, number, models[number], x + change), number
                made.append(x)
                assert models[number][:2] == [r.made.model, r.made.state] or not models[number][1]
            else:
                assert number not in models, "an abandoned round made a model"
            if r.secure:
                self.sessions.check_round(r, stored)
                self._check_refusals(stored)
            elif not r.buffered:
                ends = _ENDS if r.terms.kind == "train" else (*_ENDS, "waited in vain")
                assert r.stage == "closed" or r.reason.startswith(ends), f"round {number} {r.reason}"
                self._check_times(r)
        assert models.keys() == {0, *trained}, "a model too many"
        if self.world.asynchronous:
            self.buffers.check_end()
        self._check_log(store, row, facts)
        self._check_devices(counted)
        self._check_kept(store, len(rounds), models)
        # The others' sums are checked above; replay itself costs as much as living through the round.
        for number in range(1 + self.world.seed % 5, len(rounds) + 1, 5):
            for replayed in replay(store, row, number):
                sums = "by design" if self.world.secure else "match"
                right = "evaluation" if self._evaluation(number) else sums
                assert replayed.verdict in (right, "gone"), replayed

    def _check_refusals(self, stored: list[events.Event]) -> None:
        """What a device does wrong, or what is done to it, costs it and nobody else."""
        excused = self._excused | {f"c{index}" for index in self.world.liars}
        for e in stored:
            if not isinstance(e, events.Left) or e.code != "REFUSED" or e.client in excused:
                continue
            # In a session of the fewest devices nobody can do without the shares of the one that lies.
            tight = "shares" in self.world.liars.values() and "neighbours' shares can be read" in e.detail
            assert tight, f"{e.client} left for no fault of its own: {e.detail}"

    def _lived(self, stored: list[events.Event]) -> Round:
        """The round that these events made, of which each must have been possible."""
        assert isinstance(stored[0], events.Opened)
        r, folding, away = step(None, stored[0])[0], None, 0.0
        for event in stored[1:]:
            assert not r.over, f"{event} is stored after the round's end"
            if isinstance(event, events.TakenUp) and r.stage == "update":
                away += event.away
            r = step(r, event)[0]
            if r.stage == "folding":
                folding = folding or r.accepted
                assert r.accepted == folding, "who is in the sum changed while it was taken"
        if r.asked_at is not None and not r.secure and not r.buffered:
            due = r.asked_at + r.terms.deadline + away
            assert r.update.deadline is not None
            assert abs(r.update.deadline - due) < 1e-3, (
                f"round {r.terms.round} was due at {due} of owned time"
            )
        return r

    def _check_accepted(self, r: Round) -> set[str]:
        number, accepted = r.terms.round, set(r.accepted)
        rows = self.sql("SELECT client FROM participants WHERE round=? AND status='counted'", number)
        assert {c for (c,) in rows} == accepted, f"round {number}: its participants are not who was accepted"
        assert accepted <= r.update.asked, "someone is in the sum who was not asked"
        if r.stage == "closed":
            least = r.terms.quorum // r.terms.groups  # a group that lost too many is left out
            assert len(accepted) >= least, "a sum over fewer than the quorum"
            assert len(accepted) <= r.goal, "more are in the sum than it waited for"
        for client in r.update.heard if not r.secure else ():
            assert self.sent[number, client][0] == r.update.heard[client], (
                f"{client} sent other bytes in {number}"
            )
        return accepted

    def _check_model(self, store: Store, number: int, row: list[Any], expected: float) -> float:
        """The model's change, times the number of devices, is a sum of their powers of two: each once."""
        digest, _, _, kept = row
        if not kept:
            return expected
        x = float(codec.decode(store.bytes(digest), self.world.run.spec.model, "the model")["x"][0])
        assert abs(x - expected) < 1e-6, f"round {number} made {x}, those in it make {expected}"
        return x

    def _check_times(self, r: Round) -> None:
        """A deadline and a lease count time in which somebody owned the round, all of it and nothing else."""
        if self.world.skewed or r.asked_at is None:
            return
        number, over = r.terms.round, r.folding_at or r.ended_at
        assert over is not None
        happened = self.stored(number)
        taken = [e for e in happened if isinstance(e, events.TakenUp) and r.asked_at <= e.at <= over]
        dead, away = self.world.dead_between(r.asked_at, over), sum(e.away for e in taken)
        if not self.world.mix.freeze:
            assert over <= r.asked_at + r.terms.deadline + away + _LATE, (
                f"round {number} outlived its deadline"
            )
            for e in taken:
                owned = self.world.owned_until(e.at - e.away - _LATE, e.at)
                assert e.away <= e.at - owned + _LATE, (
                    f"round {number} was owned until {owned}, not {e.at - e.away}"
                )
            self._check_lapses(r, happened, over)
        if r.reason.startswith("reached its deadline"):
            assert over >= r.asked_at + r.terms.deadline + dead - 0.01, (
                f"round {number} ended before its deadline"
            )
        for e in happened:
            if isinstance(e, events.Left) and e.code == "LEASE":
                began = max([r.asked_at, *(t.at for t in taken if t.at <= e.at)])
                # What it said before somebody took the run up, and was read after that, counts from when it was said.
                assert e.at >= began + self.world.run.spec.lease / 2, (
                    f"{e.client} lost its lease in {number} too early"
                )

    def _check_lapses(self, r: Round, happened: list[events.Event], over: float) -> None:
        """Nobody is waited for who shows no sign of life for a lease."""
        assert r.asked_at is not None
        unowned = [(e.at - e.away, e.at) for e in happened if isinstance(e, events.TakenUp)]

        def silence(before: float, after: float) -> float:
            # While nobody owned the round, nobody could hear anything either.
            lost = (max(0.0, min(after, until) - max(before, since)) for since, until in unowned)
            return after - before - sum(lost)

        said = {
            e.client: e.at
            for e in happened
            if (isinstance(e, events.Heard) and e.collection == "update")
            or (isinstance(e, events.Left) and e.at >= r.asked_at)
        }
        for client in r.update.asked:
            end = min(over, said.get(client, over))
            signs = sorted(
                [
                    r.asked_at,
                    end,
                    *(t for t in [*(at for _, at in unowned), *self._spoke[client]] if r.asked_at < t < end),
                ]
            )
            silent = max(silence(before, after) for before, after in pairwise(signs))
            allowed = self.world.run.spec.lease + _LATE
            assert silent <= allowed, f"{client} was waited for through {silent} s in round {r.terms.round}"

    def _check_log(self, store: Store, row: Any, facts: list[Any]) -> None:
        """The audit log says all of this again, and its two chains end where the run does."""
        log = list(store.audit(row.id))
        report = audit.verify(log)
        assert not report.problems, report.problems
        first = self.sql("SELECT digest, state FROM models WHERE round=0")[0]
        assert log[0].value["model"] == first[0]
        assert first[1] == "" or log[0].value["head"] == genesis(row.spec, *first)
        assert (report.head, report.hash, report.entries) == (row.head, row.audit_hash, row.audit_number)
        assert [e.value["facts"] for e in log if e.value["kind"] == "ended"] == facts, (
            "the log tells it otherwise"
        )
        hands = [e.value["epoch"] for e in log if e.value["kind"] == "taken up"]
        assert all(a < b for a, b in pairwise([1, *hands])), f"the run changed hands in the epochs {hands}"

    def _check_devices(self, counted: set[tuple[int, str]]) -> None:
        for key, verdicts in self._receipts.items():
            told = {"VERDICT_COUNTED": True, "VERDICT_NOT_COUNTED": False}
            wrong = {v for v in verdicts if v in told and told[v] != (key in counted)}
            assert not wrong, f"{key} was told {wrong}"
        for key, outcomes in self._settled.items():
            assert outcomes == {"counted" if key in counted else "dropped"}, (
                f"{key} was settled as {outcomes}"
            )
        for gadget in self.world.gadgets:
            m = gadget.talk.member
            if gadget.alive and gadget.stream is not None:
                left = gadget.talk.run and gadget.outbox.journal.load(gadget.talk.run)
                assert not left, f"{gadget.name} still has secrets of a round, and the run is over"
                assert m.stage not in ("sent", "staged"), (
                    f"{gadget.name} waits for the fate of round {m.round}"
                )

    def _check_kept(self, store: Store, last: int, models: dict[int, list[Any]]) -> None:
        """What the run's policy keeps is there, whole, and nothing else is."""
        spec = self.world.run.spec
        for number, client, digest, kept in self.sql("SELECT round, client, digest, kept FROM updates"):
            # What counts in a round may have been made in earlier ones, as far back as updates may be old.
            asked = last - spec.updates_kept - (spec.staleness if spec.buffer and spec.updates_kept else 0)
            assert bool(kept) == (number > asked), f"round {number}: kept is {kept}"
            ours = self.sessions.masked(number, client) or {self.sent[number, client][0]}
            assert digest in ours, f"what is kept of {client} in round {number} is not its own"
        for update in (
            u
            for n in store.kept_rounds(store.runs()[0].id)
            for u in store.updates(store.runs()[0].id, n)
            if not self._evaluation(n)
        ):
            assert store.update_window(store.runs()[0].id, update)(0, update.size), (
                "a kept update has no bytes"
            )
        newest = max(models)
        oldest = max((n for n in models if n <= last - spec.models_kept), default=0)
        for number, (digest, state, _, kept) in models.items():
            assert bool(kept) == (number >= oldest), f"the model of round {number}: kept is {kept}"
            for content in (digest, state) if kept else ():
                assert not content or store.bytes(content)
        keeps = bool(self._plan.strategy.init(self.world.run.model, self.world.n))
        assert bool(models[newest][1]) == keeps, "the newest state is not kept"


def _control(state: State) -> float:
    return float(state["c"]["x"][0]) if state else 0.0
