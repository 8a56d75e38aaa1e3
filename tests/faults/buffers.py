"""What must hold of asynchronous runs beside the other laws.

Their rounds are read here once more, event by event and without the machine: who works on what, since when and for
which buffer, what counts, how old it is, and what is due when.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from koinon_core.round import events
from koinon_core.round.machine import Round
from koinon_core.round.terms import Terms

if TYPE_CHECKING:
    from .laws import Laws

__all__ = ["BufferLaws"]

_LATE = 8.0
_UNTOLD = 4.0  # seconds after which a device that is there knows what it was given


@dataclass(frozen=True, slots=True)
class Work:
    """What a device was given: the round, how many models there were by then, and since when, in owned time."""

    round: int
    version: int
    terms: str
    model: str
    since: float


@dataclass(slots=True)
class Buffer:
    """A round as its events tell it. `silent` have lost their places without a word."""

    terms: Terms
    goal: int
    due: float
    opened: float
    expected: dict[str, Work]
    work: dict[str, Work] = field(default_factory=dict)
    heard: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    enough: float | None = None
    timely: bool = False
    over: str = ""

    @property
    def awaited(self) -> set[str]:
        return self.work.keys() - self.heard.keys() - self.gone - self.silent


@dataclass(frozen=True, slots=True)
class Wait:
    """A device was waited for, from one moment to another; `due` is by when it had to answer, in owned time."""

    client: str
    start: float
    end: float
    due: float
    why: str


class BufferLaws:
    """Watches the buffered rounds of one world."""

    def __init__(self, laws: "Laws"):
        self.laws, self.world = laws, laws.world
        self.buffers: dict[int, Buffer] = {}
        self.counted: dict[tuple[int, str], int] = {}
        self.lost: set[tuple[int, str]] = set()
        self._last = self._made = 0
        self._now: Buffer | None = None
        self._waits: list[Wait] = []
        self._since: dict[str, float] = {}
        self._taken: list[events.TakenUp] = []
        self._idle: dict[str, tuple[Any, float]] = {}

    # -- what the events say ----------------------------------------------------------------------------------

    def read(self) -> None:
        """Take in what was stored since."""
        for at, number, event in self.laws.stored_since(self._last):
            self._last = at
            if isinstance(event, events.Opened):
                self._opened(event)
            elif (now := self.buffers.get(number)) is not None:
                assert now is self._now, f"{event} is stored of round {number}, which is not the last"
                assert not now.over, f"{event} is stored of round {number}, which is over"
                self._happened(now, event)

    def _opened(self, event: events.Opened) -> None:
        terms, spec, before = event.terms, self.world.run.spec, self._now
        if before is not None and not before.over:
            # It gave up: it had its time, and whoever had work has left it with a word.
            given_up = before.timely and not before.awaited and before.gone
            assert given_up, f"round {before.terms.round} ended with {before.awaited} at work"
            self._abandoned(before)
        if terms.kind != "train":
            self._now = None
            for client in list(self._since):
                self._ends(client, event.at, 0.0, "the run needs no more")
            return
        assert terms.version == self._made, (
            f"round {terms.round} says {terms.version} models, there are {self._made}"
        )
        assert (terms.concurrency, terms.staleness) == (spec.concurrency or spec.max_clients, spec.staleness)
        going_on = {c: before.work[c] for c in before.awaited} if before is not None else {}
        self._now = Buffer(terms, spec.buffer, event.at + terms.deadline, event.at, going_on)
        self.buffers[terms.round] = self._now

    def _happened(self, now: Buffer, event: events.Event) -> None:
        number = now.terms.round
        if now.expected:
            assert isinstance(event, events.Carried), (
                f"round {number} forgets that {set(now.expected)} are at work"
            )
        match event:
            case events.Carried():
                self._carried(now, event)
            case events.Heard(at, client, "joined"):
                assert client not in now.heard, (
                    f"{client} has its part in round {number}, and is given more work"
                )
                assert client not in now.gone, f"{client} left round {number}, and is asked in it again"
                before = now.work.get(client)
                # Who has lost this very round's work has no more time for it than before.
                since = before.since if before is not None and before.round == number else at
                if since + now.terms.deadline <= at:
                    self._leaves(now, client, at, "overdue")
                    return
                if client in now.awaited:
                    self._ends(client, at, now.work[client].since + now.terms.deadline, "lost")
                now.silent.discard(client)
                now.work[client] = Work(number, self._made, now.terms.digest, now.terms.model, since)
                self._since[client] = at
            case events.Heard(at, client):
                self._heard(now, client, event.digest, at)
            case events.Left(at, client, code):
                assert client in now.awaited | now.silent, (
                    f"{client} leaves {number}, which did not wait for it"
                )
                self._leaves(now, client, at, code)
            case events.Tick(at):
                for client in sorted(now.awaited):
                    if now.work[client].since + now.terms.deadline <= at:
                        self._leaves(now, client, at, "overdue")
                if now.due <= at:
                    now.goal, now.timely = min(now.goal, now.terms.quorum), True
            case events.TakenUp(_, away):
                self._taken.append(event)
                now.due += away
                now.work = {c: replace(w, since=w.since + away) for c, w in now.work.items()}
            case events.Folded(at):
                self._folded(now, at)
            case events.Unfoldable() | events.Cancelled():
                self._abandoned(now)
        assert len(now.awaited) <= now.terms.concurrency, f"{now.awaited} are at work after {event}"

    def _carried(self, now: Buffer, event: events.Carried) -> None:
        number = now.terms.round
        given = {w.client: Work(w.round, w.version, w.terms, w.model, w.since) for w in event.work}
        if now.expected:
            assert given == now.expected, f"round {number} goes on with {given}, at work are {now.expected}"
            now.expected = {}
        else:
            for client, work in given.items():
                assert client in now.silent, f"{client} comes back to round {number}, which it never left"
                assert work == now.work.get(client), f"{client} comes back to round {number} with other work"
                self._since[client] = event.at
        now.silent -= given.keys()
        now.work |= given

    def _heard(self, now: Buffer, client: str, digest: str, at: float) -> None:
        number, work = now.terms.round, now.work.get(client)
        assert work is not None, f"{client} is heard in {number}, and has no work"
        assert client not in now.gone, f"{client} is heard in {number}, which it left"
        assert client not in now.heard, f"two updates of {client} are in round {number}"
        key = work.round, client
        assert key not in self.counted.keys() | self.lost, f"{key} is heard twice"
        age = self._made - work.version
        assert 0 <= age <= self.world.run.spec.staleness, f"{key} is {age} models old in round {number}"
        assert self.laws.sent[key][0] == digest, f"{client} sent other bytes for {work.round}"
        if client in now.awaited:
            self._ends(client, at, work.since + now.terms.deadline, "heard")
        now.heard[client] = digest
        now.silent.discard(client)
        assert len(now.heard) <= now.goal, f"round {number} takes more updates than make a model"
        if len(now.heard) >= now.terms.quorum and now.enough is None:
            now.enough = at

    def _leaves(self, now: Buffer, client: str, at: float, why: str) -> None:
        if client in now.awaited:
            self._ends(client, at, now.work[client].since + now.terms.deadline, why)
        if why == "LEASE":
            now.silent.add(client)
            return
        now.silent.discard(client)
        if now.work[client].round == now.terms.round:
            now.gone.add(client)
        else:  # it was late with something else, and may have this round's work
            del now.work[client]

    def _folded(self, now: Buffer, at: float) -> None:
        number, spec = now.terms.round, self.world.run.spec
        assert spec.min_clients <= len(now.heard), f"round {number} is a sum over fewer than the quorum"
        assert now.goal <= len(now.heard), f"round {number} had its updates together at {now.goal}"
        now.over = "closed"
        self._made += 1
        for client in now.heard:
            key = now.work[client].round, client
            assert self.counted.setdefault(key, number) == number, f"{key} counts in two rounds"
        for client in now.awaited:
            if self._made - now.work[client].version > spec.staleness:
                self._ends(client, at, now.work[client].since + now.terms.deadline, "outdated")
                now.gone.add(client)

    def _abandoned(self, now: Buffer) -> None:
        now.over = "abandoned"
        self.lost |= {(now.work[client].round, client) for client in now.heard}

    def _ends(self, client: str, at: float, due: float, why: str) -> None:
        self._waits.append(Wait(client, self._since.pop(client), at, due, why))

    # -- while it lives ---------------------------------------------------------------------------------------

    def open_work(self, key: tuple[int, str]) -> bool:
        """Whether it is not known yet what became of the update that this device makes, or made, of that round's."""
        now, (number, client) = self._now, key
        work = now.work.get(client) if now is not None and not now.over else None
        return work is not None and now is not None and work.round == number and client not in now.gone

    def counts(self, key: tuple[int, str]) -> None:
        """A device is told COUNTED."""
        self.read()
        assert key in self.counted, f"{key} is told that it counts, and by no event it does"
        made = self.laws.sql("SELECT 1 FROM models WHERE round=?", self.counted[key])
        assert made, f"round {self.counted[key]} counted {key}, and its model is not stored"

    def counts_not(self, key: tuple[int, str]) -> None:
        """A device is told NOT_COUNTED, and never will be told otherwise."""
        self.read()
        assert key not in self.counted, f"{key} is told that it does not count, and it did"
        now = self._now
        assert not (self.open_work(key) and now is not None and key[1] in now.heard), (
            f"{key} is in the buffer"
        )

    def needs(self, digest: str) -> bool:
        """Whether somebody works on this model."""
        self.read()
        now = self._now
        if now is None or now.over or self.laws.over():
            return False
        return digest in {now.work[client].model for client in now.awaited | now.silent}

    def check(self) -> None:
        """What devices work on can be had, and who is waited for knows it."""
        self.read()
        now = self._now
        if now is None or now.over or self.laws.over():
            return
        for client in sorted(now.awaited | now.silent):  # who is silent may come back
            model = now.work[client].model
            rows = self.laws.sql("SELECT data IS NULL FROM contents WHERE digest=?", model)
            assert rows, f"{client} works on {model[:12]}, which is gone"
        for gadget in self.world.gadgets:
            self._knows(now, gadget)
        for run in (
            d.run
            for house in self.world.houses
            if self._driven(house)
            for d in house.federation.drivers.values()
        ):
            if run.round is not None and run.round.terms == now.terms and run.round.stage == "update":
                endless = run.round.update.awaited - run.leases.keys()
                assert not endless, f"{endless} may be silent for ever"

    def _knows(self, now: Buffer, gadget: Any) -> None:
        """Whoever is there and idle is not waited for, and is given work where there is some for it."""
        name, stream, time = gadget.name, gadget.stream, self.world.loop.now
        there = gadget.alive and stream is not None and stream.open and self._driven(stream.house)
        idle = there and gadget.talk._clear and gadget.talk.member.stage in ("idle", "offered")
        room = len(now.awaited) < now.terms.concurrency and name not in now.heard.keys() | now.gone
        given = now.work[name] if name in now.awaited else None
        waits = (stream, now.terms.round, given) if idle and (given or (room and self._gives())) else None
        if waits is None or self._idle.get(name, (None, 0.0))[0] != waits:
            self._idle[name] = waits, time
            return
        for_ = time - self._idle[name][1]
        assert given is None or for_ <= _UNTOLD, (
            f"{name} is waited for since {for_} s, and knows nothing of it"
        )
        assert for_ <= 2 * _UNTOLD, f"{name} is free since {for_} s, and is given nothing"

    def _gives(self) -> bool:
        """Whether the open round gives work now: it is not being summed, and nobody has paused the run."""
        status, stage = self.laws.sql(
            "SELECT s.status, r.stage FROM runs s JOIN rounds r ON r.run=s.id AND r.number=s.number"
        )[0]
        return (status, stage) == ("running", "update")

    def _driven(self, house: Any) -> bool:
        """Whether this coordinator has the run, and no turn of it is in doubt."""
        epoch = self.laws.sql("SELECT epoch FROM runs")[0][0]
        drivers = house.federation.drivers.values() if house.alive and not house.frozen else ()
        return any(d.ledger.epoch == epoch and d.ledger.sound for d in drivers)

    # -- at the end -------------------------------------------------------------------------------------------

    def expected_change(self, r: Round, models: list[float]) -> float:
        """What the round's model differs from the newest of these, which were made before it, by: the powers of two of
        those in it, as their age lets them count, over how many they are; or half the way to the mean of their
        models."""
        now, exponent = self.buffers[r.terms.round], self.world.exponent
        total = 0.0
        for client in now.heard:
            began = now.work[client].version
            made = 2.0 ** -int(client[1:])
            if self.world.mixes:
                total += 0.5 * (models[began] + made - models[-1])
            else:
                total += round((1 + now.terms.version - began) ** -exponent * 2**40) / 2**40 * made
        return total / len(now.heard)

    def check_round(self, r: Round, _stored: list[events.Event]) -> set[tuple[int, str]]:
        """A round that is over, as the machine has it; returns what counts in it."""
        number = r.terms.round
        now = self.buffers[number]
        assert now.over == r.stage or r.reason.startswith("had its time"), f"round {number} {r.reason}"
        # Nothing here makes a sum impossible.
        assert r.stage == "closed" or r.reason.startswith("had its time"), f"round {number} {r.reason}"
        assert set(now.heard) == set(r.update.heard), f"round {number} heard {set(now.heard)}"
        if r.stage == "closed":
            assert now.awaited == r.update.awaited, f"round {number} leaves {now.awaited} at work"
            if not self.world.skewed and not self.world.mix.freeze and now.enough is not None:
                assert r.folding_at is not None
                assert r.folding_at <= max(now.due, now.enough) + _LATE, (
                    f"round {number} outlived its deadline"
                )
        keys = {(now.work[client].round, client) for client in r.accepted}
        for key in keys:
            assert self.laws.status(*key) == "counted", (
                f"{key} counts in round {number}, and its row denies it"
            )
        return keys

    def check_end(self) -> None:
        """Of the whole run."""
        self.read()
        rows = self.laws.sql(
            "SELECT p.round, p.client FROM participants p JOIN rounds r ON r.run=p.run AND r.number=p.round "
            "WHERE p.status='counted' AND r.kind='train'"
        )
        assert {(n, c) for n, c in rows} == self.counted.keys(), "rows and events disagree on what counts"
        asked = self.laws.sql("SELECT round, client FROM participants WHERE status='asked'")
        assert not asked, f"of {asked} no row says what became"
        for key in self.laws.told("VERDICT_STAGED"):
            # Of an evaluation nothing is in a buffer.
            known = key in self.counted or key in self.lost or key[0] not in self.buffers
            assert known, f"{key} was told STAGED, and it is in no sum"
        if not self.world.skewed and not self.world.mix.freeze:
            self._check_waits()

    def _check_waits(self) -> None:
        """A device is waited for as long as its work may take, and while it says a word within its lease: in time in
        which somebody owned the run."""
        lease = self.world.run.spec.lease
        unowned = [(e.at - e.away, e.at) for e in self._taken]
        for e in self._taken:
            owned = self.world.owned_until(e.at - e.away - _LATE, e.at)
            assert e.away <= e.at - owned + _LATE, f"the run was owned until {owned}, not {e.at - e.away}"

        def silence(before: float, after: float) -> float:
            return after - before - sum(max(0.0, min(after, b) - max(before, a)) for a, b in unowned)

        for w in self._waits:
            if w.due:
                assert w.end <= w.due + _LATE, f"{w.client} was waited for beyond its deadline: {w}"
            spoke = [*(at for _, at in unowned), *self.laws.heard_from(w.client)]
            signs = sorted([w.start, w.end, *(t for t in spoke if w.start < t < w.end)])
            silent = max(silence(a, b) for a, b in pairwise(signs))
            assert silent <= lease + _LATE, f"{w.client} was waited for through {silent} s of silence: {w}"
            if w.why == "LEASE":
                began = max([w.start, *(at for _, at in unowned if at <= w.end)])
                assert w.end >= began + lease / 2, f"{w.client} lost its lease too early: {w}"
