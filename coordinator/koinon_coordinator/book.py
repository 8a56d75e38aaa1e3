"""The book: what a turn of the ledger may change of a run, what comes into it, and how it is read from the store."""

from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from koinon_coordinator.closing import Closed
from koinon_coordinator.retention import Kept
from koinon_coordinator.store import Incident, ModelVersion, PayloadRow, RunRow, SessionGone, Store, UpdateRow
from koinon_core import run as runs
from koinon_core.history import genesis
from koinon_core.round import events
from koinon_core.round.machine import Round, rebuild
from koinon_core.round.terms import Terms
from koinon_core.run import Fact, Run
from koinon_core.secure.sessions import public_keys
from koinon_core.selection import Seen
from koinon_core.spec import RunSpec

__all__ = ["Book", "Item", "fit_for", "read", "staged_of"]


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


@dataclass(slots=True)
class Book:
    """What a turn may change: copied when it begins, put in place when it is committed."""

    run: Run
    version: ModelVersion
    kept: Kept
    staged: dict[str, UpdateRow] = field(default_factory=dict)
    said: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """What devices said in the open round's attempt at a secure sum, by collection and device."""
    terms: dict[int, Terms] = field(default_factory=dict)
    """Those of the open round, and of the rounds that gave what devices of a buffered one work on."""
    keys: frozenset[bytes] = frozenset()
    """What was advertised in it: nobody may advertise another's."""
    later: tuple[Item, ...] = ()
    """What devices said while a buffer was summed: it is about the next round, and waits for that. Where the run is
    over, what was said after that."""
    entries: int = 0
    hash: str = ""

    def copy(self) -> "Book":
        return replace(self, staged=dict(self.staged), said=dict(self.said), terms=dict(self.terms))

    @property
    def remembers(self) -> bool:
        """Whether all is there that devices said in the session of the open round, and that it goes on from."""
        r = self.run.round
        if r is None or not r.secure or r.over:
            return True
        keys = r.masking.leaves or (r.masking.now.heard if r.stage == "keys" else {})
        return all(("keys", client) in self.said for client in (*keys, *r.ready))

    @property
    def forgotten(self) -> frozenset[str]:
        """Who waits for a session, and of whom it is not known what they said: a paused run has been taken up."""
        r = self.run.round
        ready = r.ready if r is not None else {}
        return frozenset(client for client in ready if ("keys", client) not in self.said)

    def keep_terms(self, before: Round | None, terms: Terms) -> None:
        """A round opens with these `terms`, after the round `before`."""
        kept = {n: t for n, t in self.terms.items() if n in _given_in(before)}
        self.terms = {**kept, terms.round: terms}

    def keep_said(self, clients: Container[str]) -> None:
        """Forget what was said, but for the keys of these."""
        self.said = {k: word for k, word in self.said.items() if k[0] == "keys" and k[1] in clients}
        self.keys = _keys_in(self.said)

    @property
    def keeps_models(self) -> bool:
        """Whether some device will still hold this round's model when it is asked in the next."""
        return any(standing.held is not None for standing in self.run.devices.values())


def read(store: Store, row: RunRow) -> Book:
    """A run as its stored events left it."""
    spec = RunSpec.decode(row.spec)
    version = store.latest_model(row.id)
    _, links = store.standing(row.id, max(1, row.number - 8))
    values = store.measured(row.id, spec.watch.metric) if spec.watch is not None else []
    best = spec.watch.over(values) if spec.watch is not None else None
    measured = dict(values)
    round_ = rebuild(store.events(row.id, row.number)) if row.number else None
    seen, scores = _seen(store, row, spec, round_)
    # The row's status and kind are text to the type checker; they were written from a Run.
    run = Run(
        id=row.id, spec=spec, model=version.digest, down=version.down, weights=version.weights,
        tuning=version.tuning, best=best, measured=measured, status=row.status,  # type: ignore[arg-type]  # see above
        reason=row.reason, kind=row.kind, number=row.number, closed=row.closed, streak=row.streak,  # type: ignore[arg-type]  # see above
        head=row.head or genesis(row.spec, version.digest, version.state), links=links, recovery=row.recovery,
        beyond=row.beyond, remembered=row.remembered, round=round_, seen=seen, scores=scores,
        evaluators=_evaluators(store, row, spec),
    )  # fmt: skip
    terms = {n: opened_under(store, row.id, n) for n in _given_in(round_)}
    if round_ is not None:
        terms[round_.terms.round] = round_.terms
    kept = Kept(tuple(store.kept_rounds(row.id)), tuple(store.kept_versions(row.id)))
    open_ = run.round is not None and not run.round.over
    staged = staged_of(store, run.round) if run.round is not None and open_ else {}
    said: dict[tuple[str, str], bytes] = {}
    if open_ and run.round is not None and run.round.secure:
        # What an earlier attempt masked is in no sum of this one.
        staged = {c: u for c, u in staged.items() if run.round.update.heard.get(c) == u.digest}
        with suppress(SessionGone):
            said = _said(store, run.round)
    return Book(
        run, version, kept, staged, said, terms, _keys_in(said), entries=row.audit_number, hash=row.audit_hash
    )


def _given_in(r: Round | None) -> set[int]:
    """The rounds that gave what devices of a buffered round work on."""
    return {work.round for work in r.taken.values()} if r is not None else set()


def opened_under(store: Store, run: str, number: int) -> Terms:
    """The terms of a round, as they are stored."""
    opened = store.events(run, number)[0]
    assert isinstance(opened, events.Opened)
    return opened.terms


def _said(store: Store, r: Round) -> dict[tuple[str, str], bytes]:
    """What devices said in the session of a round, and those who wait for the next one."""
    attempt = r.masking.attempt
    first = store.payloads(r.terms.run, r.terms.round, 0) if r.ready or not attempt else []
    waiting = {("keys", p.client): p.data for p in first if p.collection == "keys" and p.client in r.ready}
    session = first if not attempt else store.payloads(r.terms.run, r.terms.round, attempt)
    return waiting | {(p.collection, p.client): p.data for p in session if p.client not in r.ready}


def _keys_in(said: Mapping[tuple[str, str], bytes]) -> frozenset[bytes]:
    """All that are advertised."""
    return frozenset(
        key for (what, _), advert in said.items() if what == "keys" for key in public_keys(advert)
    )


def _evaluators(store: Store, row: RunRow, spec: RunSpec) -> int:
    """How many evaluated in the last round that did; any buffer may have work of rounds that do, or none."""
    every = 0 if spec.buffer else spec.evaluate_every
    return store.evaluators(row.id, every, "evaluate" if spec.selecting.asks else "train")


def staged_of(store: Store, r: Round) -> dict[str, UpdateRow]:
    """The updates that a round has: in a buffered one, of whichever round gave their devices the work."""
    if not r.buffered:
        return {u.client: u for u in store.updates(r.terms.run, r.terms.round)}
    rounds = sorted({r.round_of(client) for client in r.update.heard})
    rows = [u for number in rounds for u in store.updates(r.terms.run, number)]
    return {
        u.client: u
        for u in rows
        if (u.round, u.digest) == (r.round_of(u.client), r.update.heard.get(u.client))
    }


def _seen(
    store: Store, row: RunRow, spec: RunSpec, r: Round | None
) -> tuple[dict[str, Seen], dict[str, float | None]]:
    """What updates said of their devices, where the run's selection goes by it; and the losses at the model, where the
    last round was about those."""
    if not spec.selecting.learns:
        return {}, {}
    seen = {client: Seen.of(head) for client, head in store.heads(row.id).items()}
    if r is None or r.stage != "closed" or (r.terms.kind, row.kind) != ("evaluate", "train"):
        return seen, {}
    return seen, {client: Seen.of(head).loss for client, head in store.heads(row.id, row.number).items()}


def fit_for(book: Book, item: Item) -> Item:
    """The item as it may be stepped on this book: a refusal instead, where it may not."""
    return _unchecked(book.run, _own_keys(book, item))


def _own_keys(book: Book, item: Item) -> Item:
    """A device that advertises a key which somebody else has is refused: the others would refuse whoever has it, and
    nobody knows who was first to draw it."""
    fact = item.fact
    if not isinstance(fact, runs.Voiced) or book.keys.isdisjoint(item.keys):
        return item
    if item.payload is not None and item.payload.data == book.said.get((fact.collection, fact.client)):
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
