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
from dataclasses import replace

import structlog

from koinon_coordinator.book import Book, Item, fit_for, read
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
    Store,
    Superseded,
)
from koinon_coordinator.telling import Said, Telling, ended
from koinon_coordinator.unmasking import summed
from koinon_core import audit
from koinon_core import run as runs
from koinon_core.errors import KoinonError, StoreError
from koinon_core.history import facts_of, genesis
from koinon_core.round import effects, events
from koinon_core.round.machine import Round
from koinon_core.round.terms import Terms
from koinon_core.run import Fact, Moved, Order, Run
from koinon_core.secagg.recovery import Unrecoverable
from koinon_core.secagg.unmasker import Session
from koinon_core.secure.sessions import Sessions
from koinon_core.selection import Seen
from koinon_core.spec import RunSpec

__all__ = ["OPERATORS", "Ledger"]

OPERATORS = runs.Paused | runs.Resumed | runs.Cancelled | runs.Recovered
"""What comes from an operator, and is not said again by itself."""

_log = structlog.get_logger("koinon.run")
_INCIDENTS_EACH = 100  # kept of one device, from one start of the coordinator to the next
_QUICK = 1 << 20  # bytes of an update whose sum takes milliseconds


class Ledger:
    """One run, owned in one epoch. `clock` gives seconds since 1970. `sound` says that what it holds is what is stored,
    and was told: not so after a write of which nobody knows whether it happened."""

    def __init__(self, store: Store, plan: Plan, clock: Callable[[], float], book: Book, epoch: int):
        self.plan, self.epoch, self.sound = plan, epoch, True
        self.bytes_down: Counter[int] = Counter()
        self._store, self._clock, self._book = store, clock, book
        self._quick = plan.layout.update.nbytes <= _QUICK
        self._incidents: Counter[str] = Counter()
        self._telling = Telling(store, epoch, clock)
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
        ledger = cls(store, plan, clock, Book(run, version, Kept((), (version,))), epoch=1)
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
        ledger = cls(store, plan, clock, read(store, store.run(row.id)), held.epoch)
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
        kept = book.kept.after(book.run.spec, book.run.number - 1, book.run.best, _at_work(book.run.round))
        book.kept, change.scrub = kept
        change.opened = self._left_over(book.run)
        items = [Item(fact)]
        r = book.run.round
        if r is not None and not book.remembers:
            lost = "lost what its devices said: the key of its session is not in this coordinator's folder"
            items.append(Item(runs.Unfoldable(fact.at, r.terms.round, lost, forgotten=True)))
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

    def _sessions(self, book: Book) -> Sessions:
        r = book.run.round
        assert r is not None
        attempt = (r.terms.round, r.masking.attempt)
        if self._known[0] != attempt:
            self._known = (attempt, {})
        return Sessions(r, book.said, self._known[1], book.terms.__getitem__)

    def terms_of(self, client: str) -> Terms | None:
        """Those that a device was given its work under, in the open round or one that it goes on from."""
        r = self.run.round
        return self._book.terms[r.round_of(client)] if r is not None and not r.over else None

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
        if self._book.later:
            held, self._book.later = self._book.later, ()
            return [*self.turn(items), *(said for item in held for said in self.turn([item]))]
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
        # in a turn of its own, because its updates should not wait that long to be durable. A second sum stands on the
        # model of the first, which must be stored before it can be read.
        while self._quick and _folding(book.run) is not None and not wanted and not change.models:
            orders += self._step(book, change, [self._fold(book)])
        return self._commit(book, change, orders)

    def _commit(self, book: Book, change: Change, orders: list[Order]) -> list[Said]:
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

    def _change(self, book: Book) -> Change:
        return Change(book.run, at=self._clock(), epoch=self.epoch, before=book.run)

    def _step(self, book: Book, change: Change, items: Iterable[Item]) -> list[Order]:
        """The machine's moves for these items, on the copy that the turn holds."""
        orders: list[Order] = []
        waiting = deque(items)
        first = runs.start(book.run)  # a new run's first round; nothing while a round is open
        if any(isinstance(order, runs.Open) for order in first.orders):
            book.run = first.run
            waiting.appendleft(self._opening(book))
        while waiting:
            item = fit_for(book, waiting.popleft())
            if book.run.holds(item.fact):
                book.later += (item,)
                continue
            if book.run.over:
                book.later += (item,)  # the machine stands still: who said it is told when the driver ends
            before, moved = book.run, runs.step(book.run, item.fact)
            book.run = moved.run
            self._record(book, change, item, before, moved)
            if not book.run.summing and not book.run.over:
                waiting.extendleft(reversed(book.later))
                book.later = ()
            for order in moved.orders:
                if isinstance(order, runs.Open):
                    waiting.appendleft(self._opening(book))
                else:
                    orders.append(order)
                if (
                    book.run.spec.buffer
                    and isinstance(order, effects.Receipt | effects.Cancel)
                    and order.reason
                ):
                    change.dismissed[order.round, order.client] = order.reason
                if isinstance(order, effects.Close):
                    self._close(book, change, order)
                    # Nobody is asked for what was over before this turn was: the next round may be at the same stage.
                    # But whoever was given work in this turn and goes on with it has not heard of it yet.
                    on = before.round.working if before.round is not None and before.round.buffered else ()
                    orders = [o for o in orders if not isinstance(o, effects.Ask) or o.client in on]
                if isinstance(order, runs.Finish):
                    change.ended_at = self._clock()
                    # Where the run was paused, its last round was over long before.
                    self._let_go(book, change)
            if moved.run.status != before.status:
                about = {"status": moved.run.status, "reason": moved.run.reason}
                self._enter(book, change, "status", about)
        return orders

    def _opening(self, book: Book) -> Item:
        return Item(runs.Opening(self._clock(), os.urandom(16).hex(), book.forgotten))

    def _record(self, book: Book, change: Change, item: Item, before: Run, moved: Moved) -> None:
        """What must be durable of a move: its events, what came with them, and the audit log's words."""
        run = moved.run
        if moved.records:
            number = run.number
            change.events += ((number, event) for event in moved.records)
            if run.round is not None:
                if before.round is None or run.round.masking.attempt != before.round.masking.attempt:
                    # Another attempt has nothing of the one before.
                    book.keep_said(run.round.advertised)
                    book.staged = {}
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
            if isinstance(event, events.Heard) and before.round is not None and event.collection == "joined":
                lost = before.round.taken.get(event.client)
                if (
                    lost is not None
                    and run.round is not None
                    and run.round.round_of(event.client) != lost.round
                ):
                    why = "it lost what it was given, and was given other work"
                    change.dismissed.setdefault((lost.round, event.client), why)
            if isinstance(event, events.Carried) and run.round is not None:
                # The keys of those who still wait go from the round before into this one.
                waiting = [client for client, _ in event.ready if client in run.round.advertised]
                words = [PayloadRow(run.number, 0, "keys", c, book.said["keys", c]) for c in waiting]
                change.payloads += words
            if isinstance(event, events.Opened):
                terms = event.terms
                book.keep_terms(before.round, terms)
                about = {"round": terms.round, "terms": terms.digest, "incarnation": terms.incarnation}
                self._enter(book, change, "opened", about)
        if isinstance(item.fact, runs.Recovered):
            self._enter(book, change, "recovered", {"recovery": run.recovery, "beyond": run.beyond})

    def _attach(self, book: Book, change: Change, item: Item) -> None:
        if item.payload is not None:
            book.keys |= set(item.keys)
            # It may have waited for another round than it was said in.
            change.payloads.append(replace(item.payload, round=book.run.number))
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

    def _close(self, book: Book, change: Change, close: effects.Close) -> None:
        """A round is over: the audit log says how, and what is kept no longer goes."""
        r = book.run.round
        assert r is not None
        staged, book.staged = book.staged, {}
        book.keep_said(r.ready.keys() & r.update.awaited)
        if r.secure:
            change.opened.append(close.round)
        people = [
            [client, status, staged[client].size if client in staged else 0]
            for client, status in _outcomes(r)
        ]
        about = {"facts": facts_of(r), "head": book.run.head, "reason": close.reason, "devices": people}
        self._enter(book, change, "ended", about)
        self._let_go(book, change)
        self._log.info(
            "round closed" if close.counted else "round abandoned", round=close.round,
            **({"reason": close.reason} if close.reason else {}),
        )  # fmt: skip

    @staticmethod
    def _let_go(book: Book, change: Change) -> None:
        """What is kept no longer, now that the run's last round is over, or the run itself."""
        run = book.run
        at_work = None if run.over else _at_work(run.round)  # nothing counts any more that is still under way
        book.kept, scrub = book.kept.after(run.spec, run.number, run.best, at_work, summed=True)
        earlier = change.scrub
        change.scrub = replace(
            scrub, updates=earlier.updates + scrub.updates, states=earlier.states + scrub.states,
            models=earlier.models + scrub.models,
        )  # fmt: skip

    def _enter(self, book: Book, change: Change, kind: str, about: Mapping[str, object]) -> None:
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

    def _fold(self, book: Book) -> Item:
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
            version.weights, version.tuning, self.plan.spec.watched(closed.metrics, number, book.version.round),
            {c: Seen.of(book.staged[c].head) for c in r.accepted} if self.plan.spec.selecting.learns else {},
        )  # fmt: skip
        return Item(fact, closed=closed, fold_s=fact.at - begun)

    def _sum(self, book: Book, r: Round) -> Closed:
        """The sum over those who are in it, and what comes of it."""
        staged = [book.staged[c] for c in r.accepted]
        delta = self.plan.spec.downlink == "delta" and book.keeps_models
        if not r.secure:
            return close_round(
                self._store, self.plan, r.terms, book.version, staged, delta=delta, taken=r.taken
            )
        sessions = self._sessions(book)
        opened = sessions.opened()
        for suspect in sorted({c for one in opened for c in one.recovery.suspects}):
            self._log.warning("wrong shares were revealed", client=suspect, round=r.terms.round)
        attempt = r.masking.attempt
        agreed = sessions.agreed
        sums = (
            (summed(self._store, agreed, attempt, opens, [book.staged[c] for c in devices]), devices)
            for opens, devices in sessions.sums(opened)
        )
        work = r.taken[r.accepted[0]] if r.buffered else None
        closed = close_secure(
            self._store, self.plan, r.terms, book.version, sums, delta=delta, work=work, agreed=agreed
        )
        # No row says of a single device whether it evaluated, so what is known of all is kept.
        return replace(closed, metrics={**closed.metrics, EVALUATED: float(closed.evaluated)})

    # -- what is said -----------------------------------------------------------------------------------------

    def _say(self, orders: Iterable[Order]) -> list[Said]:
        orders = list(orders)
        for order in orders:
            if isinstance(order, effects.Close):
                self.bytes_down.pop(order.round, None)
            elif isinstance(order, runs.Finish):
                self._log.info("run ended", status=order.status, reason=order.reason)
        return self._telling.said(self._book, lambda: self.sessions, orders)

    def belated(self, facts: Iterable[Fact]) -> list[Said]:
        """Those who spoke while the run ended are told so too."""
        said = (*(item.fact for item in self._book.later), *facts)
        return self._telling.belated(self._book, lambda: self.sessions, said)

    def ended(self) -> bytes:
        """How the run ended, as devices hear it."""
        return ended(self.run)


def _folding(run: Run) -> Round | None:
    return run.round if run.round is not None and run.round.stage == "folding" else None


def _at_work(r: Round | None) -> int | None:
    """The oldest round whose work some device of a buffered round still has, or has handed in for one that is open."""
    if r is None or not r.buffered:
        return None
    open_ = set() if r.over else r.silent | r.update.heard.keys()
    return min((r.round_of(client) for client in r.update.awaited | open_), default=None)


def _outcomes(r: Round) -> list[tuple[str, str]]:
    """(client, what became of its part) of everyone who was asked."""
    counted, on = set(r.accepted), r.update.awaited if r.buffered else frozenset()

    def became(client: str) -> str:
        if client in counted:
            return "counted"
        return "left" if client in r.update.left else "goes on" if client in on else "not counted"

    return [(client, became(client)) for client in sorted(r.update.asked)]
