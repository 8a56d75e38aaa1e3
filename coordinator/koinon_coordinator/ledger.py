"""The ledger: one run's machine with its store. It has no network, no thread and no clock of its own.

A *turn* takes what happened, steps the machine on a copy, commits what came of it in one transaction, and only then
makes the copy the run and says what is to be told to whom. So nothing is said that is not durable, and what arrives
together shares one commit. The driver calls it from a worker thread; the simulation calls it in virtual time.

When a write is refused (the database is well, one of the items is not) the items are taken one by one, and the one
at fault is dropped, by name. When a write failed and nobody can know what of it is there, StoreError is raised and the
ledger must be taken up again from the database.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from koinon_coordinator.closing import Closed, Plan, close_round, close_secure
from koinon_coordinator.retention import Kept
from koinon_coordinator.store import (
    EVALUATED,
    Change,
    Incident,
    ModelVersion,
    PayloadRow,
    RefusedWrite,
    RunRow,
    SessionGone,
    Store,
    Superseded,
    UpdateRow,
)
from koinon_coordinator.unmasking import summed
from koinon_core import audit
from koinon_core import run as runs
from koinon_core.errors import KoinonError, StoreError
from koinon_core.history import facts_of, genesis
from koinon_core.round import effects, events
from koinon_core.round.machine import Round, rebuild, step
from koinon_core.run import Fact, Moved, Order, Run
from koinon_core.run.machine import WORK
from koinon_core.secagg.recovery import Unrecoverable
from koinon_core.secagg.unmasker import Session
from koinon_core.secure.sessions import Sessions, public_keys
from koinon_core.spec import RunSpec
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["OPERATORS", "Item", "Ledger", "Said"]

OPERATORS = runs.Paused | runs.Resumed | runs.Cancelled | runs.Recovered
"""What comes from an operator, and is not said again by itself."""

_log = structlog.get_logger("koinon.run")
_INCIDENTS_EACH = 100  # kept of one device, from one start of the coordinator to the next
_QUICK = 1 << 20  # bytes of an update whose sum takes milliseconds


@dataclass(frozen=True, slots=True)
class Item:
    """A fact on its way into the machine, with what must be written if it changes anything. `fold_s` is how long a sum
    took, for the round's row alone: a fact is the same however long it takes. `keys` are what a
    device advertises."""

    fact: Fact
    update: UpdateRow | None = None
    payload: PayloadRow | None = None
    incident: Incident | None = None
    closed: Closed | None = None
    fold_s: float = 0.0
    keys: tuple[bytes, ...] = ()
    incidents: tuple[Incident, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """An encoded message for a device. `round` is the one that its bytes are counted for, 0 for none."""

    client: str
    message: bytes
    round: int = 0


@dataclass(slots=True)
class _Book:
    """What a turn may change: copied when it begins, put in place when it is committed."""

    run: Run
    version: ModelVersion
    kept: Kept
    staged: dict[str, UpdateRow] = field(default_factory=dict)
    said: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """What devices said in the open round's attempt at a secure sum, by collection and device."""
    keys: frozenset[bytes] = frozenset()
    """What was advertised in it: nobody may advertise another's."""
    entries: int = 0
    hash: str = ""

    def copy(self) -> "_Book":
        return replace(self, staged=dict(self.staged), said=dict(self.said))


class Ledger:
    """One run, owned in one epoch. `clock` gives seconds since 1970. `sound` says that what it holds is what is stored,
    and was told: not so after a write of which nobody knows whether it happened."""

    def __init__(self, store: Store, plan: Plan, clock: Callable[[], float], book: _Book, epoch: int):
        self.plan, self.epoch, self.sound = plan, epoch, True
        self.bytes_down: Counter[int] = Counter()
        self._store, self._clock, self._book = store, clock, book
        self._quick = plan.layout.update.nbytes <= _QUICK
        self._incidents: Counter[str] = Counter()
        self._ask: tuple[int, bytes] | None = None
        self._known: tuple[tuple[int, int], dict[int, Session]] = ((0, 0), {})
        self._log = _log.bind(run=book.run.spec.name)

    # -- how it begins ----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, store: Store, plan: Plan, clock: Callable[[], float], run_id: str, version: ModelVersion,
        contents: list[tuple[str, int, bytes | None]], operator: str = "",
    ) -> "Ledger":  # fmt: skip
        """A new run, durable, which is that operator's. Conflict if its name is taken."""
        spec = plan.spec
        head = genesis(spec.encoded, version.digest, version.state)
        run = Run(
            id=run_id, spec=spec, model=version.digest, down=version.down, weights=version.weights, head=head
        )
        ledger = cls(store, plan, clock, _Book(run, version, Kept((), (version,))), epoch=1)
        change = ledger._change(ledger._book)
        change.before, change.owner, change.operator = None, store.owner, operator
        change.models, change.contents = [version], contents
        ledger._enter(
            ledger._book, change, "created", {"spec": spec.encoded.decode(), "model": version.digest}
        )
        store.create_run(change)
        return ledger

    @classmethod
    def take_up(cls, store: Store, row: RunRow, clock: Callable[[], float]) -> tuple["Ledger", list[Said]]:
        """Own a stored run, where its events left it. Conflict while another coordinator drives it; UsageError if
        its strategy is not known here."""
        plan = Plan.of(RunSpec.decode(row.spec))
        now = clock()
        held = store.take(row.id, now)
        ledger = cls(store, plan, clock, _read(store, store.run(row.id)), held.epoch)
        away = now - held.beat if held.beat else 0.0
        return ledger, ledger._begin(runs.TakenUp(now, away))

    def _begin(self, fact: runs.TakenUp) -> list[Said]:
        """The first turn after a change of hands: open deadlines move by the time that nobody owned them."""
        before, book = self._book, self._book.copy()
        change = self._change(book)
        if not book.entries:  # an older version's run: what it counted was not written down then
            self._enter(book, change, "anchored", {"model": book.version.digest})
        about = {"epoch": self.epoch, "owner": self._store.owner, "away": fact.away}
        self._enter(book, change, "taken up", about)
        book.kept, change.scrub = book.kept.after(book.run.spec, book.run.number - 1)
        change.opened = self._left_over(book.run)
        items = [Item(fact)]
        r = book.run.round
        if r is not None and not _remembered(r, book.said):
            lost = "lost what its devices said: the key of its session is not in this coordinator's folder"
            items.append(Item(runs.Unfoldable(fact.at, r.terms.round, lost)))
        orders = self._step(book, change, items)
        self._log.info("run taken up", epoch=self.epoch, round=before.run.number, away_s=round(fact.away, 3))
        return self._commit(book, change, orders)

    def _left_over(self, run: Run) -> list[int]:
        """Rounds that are over and have a key: whoever ended them did not come to destroy it."""
        open_ = run.round is not None and not run.round.over
        keys = [number for name, number in self._store.vault.rounds() if name == run.id]
        return [number for number in keys if not (open_ and number == run.number)]

    @property
    def run(self) -> Run:
        return self._book.run

    @property
    def version(self) -> ModelVersion:
        return self._book.version

    @property
    def log_end(self) -> tuple[int, str]:
        """Number and hash of the audit log's last entry."""
        return self._book.entries, self._book.hash

    @property
    def sessions(self) -> Sessions:
        """Those of the open round, which is a secure one."""
        return self._sessions(self._book)

    def _sessions(self, book: _Book) -> Sessions:
        r = book.run.round
        assert r is not None
        attempt = (r.terms.round, r.masking.attempt)
        if self._known[0] != attempt:
            self._known = (attempt, {})
        return Sessions(r, book.said, self._known[1])

    @property
    def folding(self) -> bool:
        """Whether the open round waits for its sum, which the next turn takes."""
        return _folding(self.run) is not None

    # -- a turn -----------------------------------------------------------------------------------------------

    def turn(self, items: Sequence[Item]) -> list[Said]:
        """What is to be told, once these items are durable. Superseded if the run is another coordinator's."""
        assert self.sound, "this ledger may not be what is stored: take the run up again"
        try:
            return self._turn(items)
        except StoreError as error:
            if not isinstance(error, RefusedWrite):
                raise
            fault: Exception = error
        except Exception as error:
            fault = error
        # Nothing of the turn is stored: the items are well but for one, which is found by taking them alone.
        if len(items) > 1:
            return [said for item in items for said in self.turn([item])]
        return self._drop(items, fault)

    def _turn(self, items: Sequence[Item]) -> list[Said]:
        book = self._book.copy()
        change = self._change(book)
        # What an operator wants must not wait for a sum, which may find no room: that has the next turn.
        wanted = any(isinstance(item.fact, OPERATORS) for item in items)
        if _folding(book.run) is not None and not self._quick and not wanted:
            items = [self._fold(book), *items]
        orders = self._step(book, change, items)
        # A small sum is taken before the commit, so that the last updates and the next model share one; a large one
        # in a turn of its own, because its updates should not wait that long to be durable.
        while self._quick and _folding(book.run) is not None and not wanted:
            orders += self._step(book, change, [self._fold(book)])
        return self._commit(book, change, orders)

    def _commit(self, book: _Book, change: Change, orders: list[Order]) -> list[Said]:
        change.run = book.run
        if not change.empty:
            self.sound = False  # until the database says that it is written, or certainly not
            try:
                self._store.write(change)
            except RefusedWrite:
                self.sound = True
                raise
            self.sound = True
        elif orders and not self._store.owns(book.run.id, self.epoch):
            # Said from memory alone, and another coordinator may know better by now.
            raise Superseded(f"run {book.run.spec.name!r} was taken over by another coordinator")
        self._book = book
        try:
            return self._say(orders)
        except StoreError:
            self.sound = False  # it is stored, and not all of it can be told: devices must ask again
            raise

    def _drop(self, items: Sequence[Item], fault: Exception) -> list[Said]:
        """What cannot be stored is left out, and named; its device is told that it does not count."""
        if not items:
            raise fault
        fact = items[0].fact
        client, kind = getattr(fact, "client", ""), type(fact).__name__
        self._log.error("an item was dropped", kind=kind, client=client, reason=repr(fault), exc_info=fault)
        reason = f"{kind} could not be stored, and is left out: {fault}"
        if isinstance(fact, runs.Answered | runs.Voiced):
            reason = f"the update could not be stored: {fault}"
            resigned = runs.Resigned(fact.at, client, fact.round, "REFUSED", reason)
            return self._turn(
                [Item(resigned, incident=Incident(fact.at, client, fact.round, "STORE", reason))]
            )
        if isinstance(fact, runs.Tick | runs.Folded | runs.Opening):
            raise fault  # not anybody's message: the run itself cannot go on
        self._store.write(
            replace(
                self._change(self._book),
                incidents=[Incident(self._clock(), client, self.run.number, "STORE", reason)],
            )
        )
        return []

    def _change(self, book: _Book) -> Change:
        return Change(book.run, at=self._clock(), epoch=self.epoch, before=book.run)

    def _step(self, book: _Book, change: Change, items: Iterable[Item]) -> list[Order]:
        """The machine's moves for these items, on the copy that the turn holds."""
        orders: list[Order] = []
        waiting = deque(items)
        first = runs.start(book.run)  # a new run's first round; nothing while a round is open
        if any(isinstance(order, runs.Open) for order in first.orders):
            book.run = first.run
            waiting.appendleft(self._opening())
        while waiting:
            item = _unchecked(book.run, _own_keys(book, waiting.popleft()))
            before, moved = book.run, runs.step(book.run, item.fact)
            book.run = moved.run
            self._record(book, change, item, before, moved)
            for order in moved.orders:
                if isinstance(order, runs.Open):
                    waiting.appendleft(self._opening())
                else:
                    orders.append(order)
                if isinstance(order, effects.Close):
                    self._close(book, change, order)
                    # Nobody is asked for what was over before this turn was: the next round may be at the same stage.
                    orders = [o for o in orders if not isinstance(o, effects.Ask)]
                if isinstance(order, runs.Finish):
                    change.ended_at = self._clock()
            if moved.run.status != before.status:
                about = {"status": moved.run.status, "reason": moved.run.reason}
                self._enter(book, change, "status", about)
        return orders

    def _opening(self) -> Item:
        return Item(runs.Opening(self._clock(), os.urandom(16).hex()))

    def _record(self, book: _Book, change: Change, item: Item, before: Run, moved: Moved) -> None:
        """What must be durable of a move: its events, what came with them, and the audit log's words."""
        run = moved.run
        if moved.records:
            number = run.number
            change.events += ((number, event) for event in moved.records)
            if run.round is not None:
                if before.round is None or run.round.masking.attempt != before.round.masking.attempt:
                    # Another attempt has nothing of the one before.
                    book.said, book.staged, book.keys = {}, {}, frozenset()
                change.rounds[number] = run.round
                change.bytes_down[number] = self.bytes_down[number]
                if item.fold_s:
                    change.fold_s[number] = item.fold_s
            self._attach(book, change, item)
        if run.head != before.head:
            change.heads[run.number] = (run.links[run.number], run.head)
        for incident in (item.incident, *item.incidents):
            if incident is not None and self._worth_keeping(incident):
                change.incidents.append(incident)
        for event in moved.records:
            if isinstance(event, events.Opened):
                terms = event.terms
                about = {"round": terms.round, "terms": terms.digest, "incarnation": terms.incarnation}
                self._enter(book, change, "opened", about)
        if isinstance(item.fact, runs.Recovered):
            self._enter(book, change, "recovered", {"recovery": run.recovery, "beyond": run.beyond})

    def _attach(self, book: _Book, change: Change, item: Item) -> None:
        if item.payload is not None:
            book.keys |= set(item.keys)
            change.payloads.append(item.payload)
            book.said[item.payload.collection, item.payload.client] = item.payload.data
        if item.update is not None:
            change.updates.append(item.update)
            book.staged[item.update.client] = item.update
            book.kept = book.kept.with_round(item.update.round)
        if item.closed is not None:
            version, number = item.closed.version, book.run.number
            change.contents += item.closed.contents
            measured = book.version.round
            change.metrics += (
                (measured if name.startswith("eval.") else number, name, value)
                for name, value in item.closed.metrics.items()
            )
            if version is not book.version:
                change.models.append(version)
                book.version, book.kept = version, book.kept.with_version(version)

    def _close(self, book: _Book, change: Change, close: effects.Close) -> None:
        """A round is over: the audit log says how, and what is kept no longer goes."""
        r = book.run.round
        assert r is not None
        staged, book.staged, book.said, book.keys = book.staged, {}, {}, frozenset()
        if r.secure:
            change.opened.append(close.round)
        people = [
            [client, status, staged[client].size if client in staged else 0]
            for client, status in _outcomes(r)
        ]
        about = {"facts": facts_of(r), "head": book.run.head, "reason": close.reason, "devices": people}
        self._enter(book, change, "ended", about)
        book.kept, scrub = book.kept.after(book.run.spec, close.round)
        earlier = change.scrub
        change.scrub = replace(
            scrub, updates=earlier.updates + scrub.updates, states=earlier.states + scrub.states,
            models=earlier.models + scrub.models,
        )  # fmt: skip
        self._log.info(
            "round closed" if close.counted else "round abandoned", round=close.round,
            **({"reason": close.reason} if close.reason else {}),
        )  # fmt: skip

    def _enter(self, book: _Book, change: Change, kind: str, about: Mapping[str, object]) -> None:
        """An entry of the audit log."""
        if kind in ("created", "anchored"):
            about = {**about, "head": book.run.head}
        entry = audit.append(book.entries, book.hash, change.at, kind, about)
        change.entries.append(entry)
        book.entries, book.hash = entry.number, entry.hash

    def _worth_keeping(self, incident: Incident) -> bool:
        """One device cannot fill the database with its mistakes."""
        self._incidents[incident.client] += 1
        return self._incidents[incident.client] <= _INCIDENTS_EACH

    def _fold(self, book: _Book) -> Item:
        """Take the sum; the answer is a fact like any other. That the round waits for it is seen from its stage, so
        that a restarted coordinator takes it too."""
        r = book.run.round
        assert r is not None
        number, begun = r.terms.round, self._clock()
        try:
            closed = self._sum(book, r)
        except StoreError:
            raise
        except Unrecoverable as error:
            now = self._clock()
            wrong = "its secrets cannot be put together from the shares that it dealt"
            blamed = tuple(Incident(now, client, number, "SHARES", wrong) for client in error.blamed)
            return Item(runs.Spoiled(now, number, str(error), error.blamed), incidents=blamed)
        except MemoryError as error:
            # Of this machine, like a full disk: the round is not at fault, and waits.
            raise StoreError(
                f"there is not enough memory to sum round {number}; give the coordinator more, or end other programs"
            ) from error
        except Exception as error:
            if not isinstance(error, KoinonError):  # a strategy of the owner's own may fail in any way
                self._log.exception("the strategy failed", round=number)
            reason = f"made no model: {error if isinstance(error, KoinonError) else repr(error)}"
            code = error.code if isinstance(error, KoinonError) else KoinonError.code
            incident = Incident(self._clock(), "", number, code, reason)
            unfoldable = runs.Unfoldable(self._clock(), number, reason)
            return Item(unfoldable, incident=incident, fold_s=unfoldable.at - begun)
        version, evaluated = closed.version, closed.evaluated
        fact = runs.Folded(
            self._clock(), number, version.digest, version.down, version.state, closed.sum, evaluated,
            version.weights, version.tuning,
        )  # fmt: skip
        return Item(fact, closed=closed, fold_s=fact.at - begun)

    def _sum(self, book: _Book, r: Round) -> Closed:
        """The sum over those who are in it, and what comes of it."""
        staged = [book.staged[c] for c in r.accepted]
        delta = self.plan.spec.downlink == "delta" and _keep_models(book.run)
        if not r.secure:
            return close_round(self._store, self.plan, r.terms, book.version, staged, delta=delta)
        opened = self._sessions(book).opened()
        for suspect in sorted({c for one in opened for c in one.recovery.suspects}):
            self._log.warning("wrong shares were revealed", client=suspect, round=r.terms.round)
        total = summed(self._store, r.terms, r.masking.attempt, [one.recovery for one in opened], staged)
        closed = close_secure(self._store, self.plan, r.terms, book.version, total, r.accepted, delta=delta)
        # No row says of a single device whether it evaluated, so what is known of all is kept.
        return replace(closed, metrics={**closed.metrics, EVALUATED: float(closed.evaluated)})

    # -- what is said -----------------------------------------------------------------------------------------

    def _say(self, orders: Iterable[Order]) -> list[Said]:
        """What the machine wants said, but for a Fold, which is taken and not said."""
        said: list[Said] = []
        run = self.run
        for order in orders:
            match order:
                case effects.Ask(client, collection):
                    r = run.round
                    # The round may have gone on, or be over, by the turn's end.
                    if r is not None and collection == WORK and r.awaits(client):
                        said.append(Said(client, self._the_ask()[1], run.number))
                    elif r is not None and r.stage == collection and r.awaits(client):
                        said.append(Said(client, self._asked(r, client), run.number))
                case effects.Receipt(client, number, verdict, reason):
                    said.append(Said(client, _receipt(run.id, number, verdict, reason)))
                case effects.Cancel(client, number, reason):
                    cancel = pb.Cancel(run=run.id, round=number, reason=reason)
                    said.append(Said(client, convert.envelope(pb.CoordinatorMessage(cancel=cancel))))
                case effects.Close(number):
                    self.bytes_down.pop(number, None)
                case runs.Recall(client, number):
                    verdict, reason = self._store.verdict(run.id, number, client)
                    said.append(Said(client, _receipt(run.id, number, verdict, reason)))
                case runs.Finish(status, reason):
                    self._log.info("run ended", status=status, reason=reason)
                    said += [Said(client, self.ended()) for client in run.devices]
        return said

    def belated(self, facts: Iterable[Fact]) -> list[Said]:
        """Those who spoke while the run ended are told so too."""
        said: list[Said] = []
        r = self.run.round
        for fact in facts:
            if isinstance(fact, runs.Answered) and r is not None and fact.round == r.terms.round:
                said += self._say(step(r, events.Heard(fact.at, fact.client, "update", fact.digest))[1])
            elif isinstance(fact, runs.Voiced) and r is not None and fact.round == r.terms.round:
                voiced = events.Voiced(fact.at, fact.client, fact.collection, fact.attempt, fact.digest)
                said += self._say(step(r, voiced)[1])
            elif isinstance(fact, runs.Offered) and fact.client not in self.run.devices:
                said.append(Said(fact.client, self.ended()))
        return said

    def ended(self) -> bytes:
        """How the run ended, as devices hear it."""
        ended = pb.Ended(run=self.run.id, status=self.run.status, reason=self.run.reason)
        return convert.envelope(pb.CoordinatorMessage(ended=ended))

    def _asked(self, r: Round, client: str) -> bytes:
        """What a device is asked: for the round's work, or in a session of its secure sum."""
        if r.stage == "update" or (r.stage == "keys" and not r.masking.attempt):
            return self._the_ask()[1]
        call = pb.Call(
            run=self.run.id, round=r.terms.round, attempt=r.masking.attempt, collection=r.stage, epoch=self.epoch,
            payload=self.sessions.call(client),
        )  # fmt: skip
        return convert.envelope(pb.CoordinatorMessage(call=call))

    def _the_ask(self) -> tuple[int, bytes]:
        """The Ask of the open round: the same bytes for every device, made once."""
        r = self.run.round
        assert r is not None
        number = r.terms.round
        if self._ask is None or self._ask[0] != number:
            ask = pb.Ask(
                run=self.run.id, round=number, terms=r.terms.encoded, epoch=self.epoch,
                links=convert.links_to({n: d for n, d in self.run.links.items() if n < number}),
            )  # fmt: skip
            ask.model.CopyFrom(self._content(r.terms.model))
            if r.terms.down:
                ask.down.CopyFrom(self._content(r.terms.down))
            if self.version.delta and self.version.digest == r.terms.model:
                ask.delta.CopyFrom(self._content(self.version.delta))
                ask.delta_base = self.version.base
            self._ask = (number, convert.envelope(pb.CoordinatorMessage(ask=ask)))
        return self._ask

    def _content(self, digest: str) -> pb.Content:
        window, size = self._store.window(digest)
        small = bytes(window(0, size)) if size <= convert.INLINE else b""
        return pb.Content(digest=digest, size=size, inline=small)


def _read(store: Store, row: RunRow) -> _Book:
    """A run as its stored events left it."""
    spec = RunSpec.decode(row.spec)
    version = store.latest_model(row.id)
    _, links = store.standing(row.id, max(1, row.number - 8))
    # The row's status and kind are text to the type checker; they were written from a Run.
    run = Run(
        id=row.id, spec=spec, model=version.digest, down=version.down, weights=version.weights,
        tuning=version.tuning, status=row.status,  # type: ignore[arg-type]
        reason=row.reason, kind=row.kind, number=row.number, closed=row.closed, streak=row.streak,  # type: ignore[arg-type]
        head=row.head or genesis(row.spec, version.digest, version.state), links=links, recovery=row.recovery,
        beyond=row.beyond, remembered=row.remembered, evaluators=store.evaluated(row.id, version.round),
        round=rebuild(store.events(row.id, row.number)) if row.number else None,
    )  # fmt: skip
    kept = Kept(tuple(store.kept_rounds(row.id)), tuple(store.kept_versions(row.id)))
    open_ = run.round is not None and not run.round.over
    staged = {u.client: u for u in store.updates(row.id, row.number)} if open_ else {}
    said: dict[tuple[str, str], bytes] = {}
    if open_ and run.round is not None and run.round.secure:
        # What an earlier attempt masked is in no sum of this one.
        staged = {c: u for c, u in staged.items() if run.round.update.heard.get(c) == u.digest}
        with suppress(SessionGone):
            payloads = store.payloads(row.id, row.number, run.round.masking.attempt)
            said = {(p.collection, p.client): p.data for p in payloads}
    keys = frozenset(
        key for (what, _), advert in said.items() if what == "keys" for key in public_keys(advert)
    )
    return _Book(run, version, kept, staged, said, keys, row.audit_number, row.audit_hash)


def _remembered(r: Round, said: Mapping[tuple[str, str], bytes]) -> bool:
    """Whether all is there that devices said in the session of a round, and that it goes on from."""
    if not r.secure or r.over:
        return True
    keys = r.masking.leaves or (r.masking.now.heard if r.stage == "keys" else ())
    return all(("keys", client) in said for client in keys)


def _own_keys(book: _Book, item: Item) -> Item:
    """A device that advertises a key which somebody else has is refused: the others would refuse whoever has it, and
    nobody knows who was first to draw it."""
    fact = item.fact
    if not isinstance(fact, runs.Voiced) or book.keys.isdisjoint(item.keys):
        return item
    if (fact.collection, fact.client) in book.said:
        return item  # its own, said again
    reason = "refused: it advertises a key that another device has"
    incident = Incident(fact.at, fact.client, fact.round, "REFUSED", reason)
    return Item(runs.Resigned(fact.at, fact.client, fact.round, "REFUSED", reason), incident=incident)


def _unchecked(run: Run, item: Item) -> Item:
    """An answer that came when none was wanted was not checked; if one is wanted by now, it is refused: nothing is
    heard in a round that was not verified, and is not stored with it."""
    fact = item.fact
    if isinstance(fact, runs.Voiced) and item.payload is None:
        if run.wants(fact.client, fact.round, fact.collection, fact.attempt):
            return Item(
                runs.Progressed(fact.at, fact.client)
            )  # nobody asked then; it is asked now, and says it again
        return item
    if (
        not isinstance(fact, runs.Answered)
        or item.update is not None
        or not run.wants(fact.client, fact.round)
    ):
        return item
    reason = "refused: it was sent before it was asked for"
    incident = Incident(fact.at, fact.client, fact.round, "REFUSED", reason)
    return Item(runs.Resigned(fact.at, fact.client, fact.round, "REFUSED", reason), incident=incident)


def _keep_models(run: Run) -> bool:
    """Whether some device will still hold this round's model when it is asked in the next."""
    return any(standing.held is not None for standing in run.devices.values())


def _folding(run: Run) -> Round | None:
    return run.round if run.round is not None and run.round.stage == "folding" else None


def _outcomes(r: Round) -> list[tuple[str, str]]:
    """(client, what became of its part) of everyone who was asked."""
    counted = set(r.accepted)
    return [
        (c, "counted" if c in counted else "left" if c in r.update.left else "not counted")
        for c in sorted(r.update.asked)
    ]


def _receipt(run: str, number: int, verdict: effects.Verdict, reason: str) -> bytes:
    return convert.envelope(convert.receipt(run, number, verdict, reason))
