"""Whether what is stored of a run agrees with itself: its events, the rows that follow from them, and the two chains.

Everything here reads, and yields a `Finding` for whatever does not belong. Events are what a round is; every other row
about it can be computed again from them, and is compared with that.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from sqlalchemy import Connection, select

from koinon_coordinator.store import changes, models, queries
from koinon_coordinator.store.queries import RunRow
from koinon_core import audit
from koinon_core.audit import Entry
from koinon_core.canonical import sha256
from koinon_core.costs import Spent
from koinon_core.errors import KoinonError
from koinon_core.history import extend, genesis, link_of
from koinon_core.round.machine import Round, rebuild
from koinon_core.spec import RunSpec
from koinon_core.update import Head, Stats

__all__ = ["UNREADABLE", "Finding", "of_run"]

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, KoinonError)
"""What reading a damaged value can raise, whatever it was meant to be."""

_PAGE = 500
_STATUSES = ("running", "paused", "finished", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, in a sentence, and what it is about."""

    text: str
    run: str = ""
    round: int | None = None
    device: str = ""
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def of_run(tx: Connection, row: RunRow, contents: set[str]) -> Iterator[Finding]:
    """What is wrong with a run. `contents` are the digests of all contents that have a row."""
    try:
        log = _Log(tx, row)
        yield from log.findings()
        yield from _row(row, log)
    except UNREADABLE as error:
        yield Finding(
            run=row.name, text=f"run {row.name!r}: its row or its audit log cannot be read ({error})"
        )
        log = None
    yield from _Rounds(tx, row, log).findings()
    yield from _versions(tx, row, contents)


# -- the audit log and the run's own row ----------------------------------------------------------------------


class _Log:
    """A run's audit log, followed once: what it says that the rows must say too."""

    def __init__(self, tx: Connection, row: RunRow):
        self.row, self.epoch, self.recovery = row, 0, 0
        self.first: Entry | None = None
        self.report = audit.verify(self._noted(chain.from_iterable(_pages(tx, row.id))))

    def _noted(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self.first = self.first or entry
            try:
                value = entry.value
                if value["kind"] == "taken up":
                    self.epoch = max(self.epoch, int(value["epoch"]))
                if value["kind"] == "recovered":
                    self.recovery = int(value["recovery"])
            except UNREADABLE:
                pass  # whoever follows the chain says so
            yield entry

    @property
    def anchored(self) -> bool:
        """Whether the run began under an older version, which wrote no history."""
        return self.first is None or self.first.value["kind"] == "anchored"

    @property
    def genesis(self) -> str:
        """The head that the history begins with; empty if it has not begun."""
        return str(self.first.value["head"]) if self.first is not None else ""

    def findings(self) -> Iterator[Finding]:
        row, report = self.row, self.report
        said: list[str] = [f"its audit log is broken: {problem}" for problem in report.problems]
        if not said and (report.entries, report.hash) != (row.audit_number, row.audit_hash):
            said.append(
                f"its audit log ends with entry {report.entries} ({report.hash[:12]}), its row says "
                f"{row.audit_number} ({row.audit_hash[:12]})"
            )
        if not said and report.head != row.head:
            said.append(f"its audit log leads to head {report.head[:12]}, its row says {row.head[:12]}")
        yield from (Finding(run=row.name, text=f"run {row.name!r}: {text}") for text in said)


def _pages(tx: Connection, run: str) -> Iterator[list[Entry]]:
    after = 0
    while page := queries.audit(tx, run, after, _PAGE):
        yield page
        after = page[-1].number


def _row(row: RunRow, log: _Log) -> Iterator[Finding]:
    """The run's row against its spec and its log."""
    said: list[str] = []
    if RunSpec.decode(row.spec).name != row.name:
        said.append("its spec has another name")
    first = log.first.value if log.first is not None else {}
    if first.get("kind") == "created" and first["spec"].encode() != row.spec:
        said.append("its spec is not the one that it was created with")
    if row.status not in _STATUSES or row.kind not in ("train", "evaluate"):
        said.append(f"its status {row.status!r} ({row.kind!r}) is none")
    if (row.ended_at is None) != (row.status in ("running", "paused")):
        said.append(f"its status is {row.status!r}, and that it ended at {row.ended_at}")
    if row.epoch < log.epoch or row.recovery != log.recovery:
        said.append(
            f"its row says epoch {row.epoch} and recovery {row.recovery}, its audit log {log.epoch} and "
            f"{log.recovery}"
        )
    yield from (Finding(run=row.name, text=f"run {row.name!r}: {text}") for text in said)


# -- rounds ---------------------------------------------------------------------------------------------------


class _Rounds:
    """A run's rounds, from the first on: each against its events, and the chain of their links."""

    def __init__(self, tx: Connection, row: RunRow, log: _Log | None):
        self.tx, self.row, self.log = tx, row, log
        self.head = log.genesis if log is not None else ""
        self.streak = 0

    def findings(self) -> Iterator[Finding]:
        r = models.Round
        numbers = list(
            self.tx.execute(select(r.number).where(r.run == self.row.id).order_by(r.number)).scalars()
        )
        for number in numbers:
            for text, device in self._readable(number):
                yield Finding(
                    run=self.row.name, round=number, device=device,
                    text=f"run {self.row.name!r}, round {number}{', ' + device if device else ''}: {text}",
                )  # fmt: skip
        yield from self._counts(numbers)

    def _counts(self, numbers: list[int]) -> Iterator[Finding]:
        """The run's row against its rounds."""
        row, r, e, p = self.row, models.Round, models.Event, models.Payload
        made = (r.run == row.id) & (r.stage == "closed") & (r.kind == "train")
        closed = len(self.tx.execute(select(r.number).where(made)).all())
        said: list[str] = []
        if (row.number, row.closed) != (max(numbers, default=0), closed):
            said.append(
                f"its row counts {row.number} rounds and {row.closed} that made a model, there are "
                f"{max(numbers, default=0)} and {closed}"
            )
        if row.streak != self.streak:
            said.append(f"its row counts {row.streak} rounds abandoned in a row, there are {self.streak}")
        if self.log is not None and self.head != row.head:
            said.append(
                f"the links of its rounds lead to head {self.head[:12]}, its row says {row.head[:12]}"
            )
        for what, table in (("events", e), ("words of sessions", p), ("costs", models.Cost)):
            of = self.tx.execute(select(table.round).where(table.run == row.id).distinct()).scalars()
            if strays := sorted(set(of) - set(numbers)):
                said.append(f"there are {what} of round {strays[0]}, which it does not have")
        yield from (Finding(run=row.name, text=f"run {row.name!r}: {text}") for text in said)

    def _readable(self, number: int) -> Iterator[tuple[str, str]]:
        try:
            yield from self._round(number)
        except UNREADABLE as error:
            yield f"what is stored of it cannot be read ({error})", ""

    def _round(self, number: int) -> Iterator[tuple[str, str]]:
        """(what is wrong, with which device)."""
        r = rebuild(queries.events(self.tx, self.row.id, number))
        if r is None:
            yield "it has no events", ""
            return
        yield from ((text, "") for text in self._stored(number, r))
        yield from self._people(r)
        yield from self._costs(number)
        if r.over and r.terms.kind == "train" and r.reason != "was cancelled: the run was recovered":
            counts = r.stage == "closed" or not r.reason.startswith("was cancelled: ")
            self.streak = 0 if r.stage == "closed" else self.streak + counts

    def _stored(self, number: int, r: Round) -> Iterator[str]:
        """The round's row, its place in the history and its model."""
        t, terms = models.Round.__table__, r.terms
        row = self.tx.execute(select(t).where(t.c.run == self.row.id, t.c.number == number)).one()
        wanted = {
            "number": terms.round, "run": terms.run, "kind": terms.kind, "stage": r.stage, "reason": r.reason,
            "terms_digest": terms.digest, "opened_at": r.opened_at, "asked_at": r.asked_at,
            "folding_at": r.folding_at, "ended_at": r.ended_at,
        }  # fmt: skip
        for name, value in wanted.items():
            if row._mapping[name] != value:
                yield f"its row says {name} = {row._mapping[name]!r}, its events {value!r}"
        if not 0 <= row.fold_s < math.inf:
            yield f"its sum is said to have taken {row.fold_s} seconds"
        yield from self._history(row.link, row.head, r)
        yield from self._made(number, r)

    def _history(self, link: str, head: str, r: Round) -> Iterator[str]:
        if not r.over:
            if link or head:
                yield "it is open, and has a place in the history"
            return
        if not link and self.log is not None and self.log.anchored:
            return  # it was over before the run had a history
        if link != link_of(r):
            yield f"its link {link[:12]!r} is not that of what it did"
        self.head = extend(self.head, link)
        if self.log is not None and head != self.head:
            yield f"its head {head[:12]!r} does not follow from the rounds before it"

    def _made(self, number: int, r: Round) -> Iterator[str]:
        m = models.Model
        version = self.tx.execute(
            select(m.digest, m.state, m.kept).where(m.run == self.row.id, m.round == number)
        ).one_or_none()
        if r.stage != "closed" or r.terms.kind != "train":
            if version is not None:
                yield "it closed no training, and there is a model of it"
        elif version is None:
            yield "it closed, and there is no model of it"
        elif version.digest != r.made.model:
            yield f"it made model {r.made.model[:12]}, and {version.digest[:12]} is there"
        elif version.state and r.made.sum and version.state != r.made.state:
            yield f"it made state {r.made.state[:12]}, and {version.state[:12]} is there"

    def _people(self, r: Round) -> Iterator[tuple[str, str]]:
        """Participants and updates against those whom the round asked and heard."""
        p, people = models.Participant, list(changes.participants(r))
        rounds = {r.terms.round} | {number for number, *_ in people}
        rows = self.tx.execute(
            select(p.round, p.client, p.status, p.reason).where(p.run == self.row.id, p.round.in_(rounds))
        )
        told = {(number, client): (status, reason) for number, client, status, reason in rows}
        for number, client, status, reason in people:
            if r.over and status == "asked":
                continue  # it went on, and a later round says what became of it
            if told.get((number, client)) != (status, reason):
                yield f"its row says {told.get((number, client))}, the events {(status, reason)}", client
        accepted = set(r.accepted) if r.stage == "closed" else set()
        for (number, client), (status, reason) in sorted(told.items()):
            elsewhere = r.buffered and (number != r.terms.round or reason.startswith("in round "))
            if status == "counted" and client not in accepted and not elsewhere:
                yield "it is told that it counted, and it is not in the sum", client
        yield from self._updates(r)
        if r.secure and r.over:
            yield from self._left_over(r)

    def _costs(self, number: int) -> Iterator[tuple[str, str]]:
        """What devices said of the cost of their part: figures that there can be, of devices that had one."""
        c, p = models.Cost, models.Participant
        mine = (p.run == c.run) & (p.round == c.round) & (p.client == c.client)
        columns = select(c.client, c.spent, c.joules, c.at, p.client.is_not(None)).outerjoin(p, mine)
        for client, said, joules, at, took_part in self.tx.execute(
            columns.where(c.run == self.row.id, c.round == number)
        ):
            if not took_part:
                yield "it said what its part has cost, and it had none", client
            spent = Spent.from_json(said)
            spent.check()
            if spent.to_json() != said or spent.joules != joules or not 0 <= at < math.inf:
                yield "what its part has cost is not what it said", client

    def _updates(self, r: Round) -> Iterator[tuple[str, str]]:
        u = models.Update
        columns = (
            u.round, u.client, u.digest, u.size, u.kept, u.data, u.codec, u.head, u.at, u.seal, u.stats, u.upload_s,
        )  # fmt: skip
        asked_in = {r.terms.round} | {r.round_of(client) for client in r.update.heard}
        rows = self.tx.execute(select(*columns).where(u.run == self.row.id, u.round.in_(asked_in)))
        there = set()
        for number, client, digest, size, kept, data, codec, said, at, seal, stats, upload_s in rows:
            if r.buffered and (client not in r.update.heard or number != r.round_of(client)):
                continue  # another round's
            there.add(client)
            head = Head.from_json(said)
            if r.secure:  # it says nothing: what there is to say went into the sum
                if head != Head():
                    yield "its update is masked, and there are numbers of it", client
            else:
                head.check(
                    trained=r.terms.kind == "train", max_examples=r.terms.max_examples, totals=said["totals"]
                )
            Stats.from_json(stats).check()
            if not 0 <= upload_s < math.inf:
                yield f"its update's upload is said to have taken {upload_s} seconds", client
            update = changes.UpdateRow(client, number, digest, size, codec, head, at, data)
            if seal not in ("", update.seal(self.row.id)):
                yield "its update's row does not say any more what was written", client
            # Who was lost in a session is not heard any more, and in another attempt masks the same update anew.
            lost = r.secure and client in r.update.asked and client not in r.update.heard
            if r.update.heard.get(client) != digest and not lost:
                yield f"its update {digest[:12]} is not the one that the round heard", client
            if codec != r.terms.codec:
                yield f"its update is said to be {codec!r}, the round's are {r.terms.codec!r}", client
            if data is not None and not kept:
                yield "its update was to go, and is still there", client
            if data is not None and (len(data) != size or sha256(data) != digest):
                yield f"its update {digest[:12]} is damaged", client
        for client in sorted(r.update.heard.keys() - there):
            yield "the round heard its update, and there is none", client

    def _in_session(self, number: int) -> frozenset[str]:
        """The devices in the session of the run's open round that were given their work by this one."""
        now = rebuild(queries.events(self.tx, self.row.id, self.row.number))
        if now is None or now.over:
            return frozenset()
        return frozenset(client for client in now.cohort if now.round_of(client) == number)

    def _left_over(self, r: Round) -> Iterator[tuple[str, str]]:
        """What goes with the end of a secure round, in the same transaction."""
        u, p, number = models.Update, models.Payload, r.terms.round
        masked = select(u.client).where(u.run == self.row.id, u.round == number, u.kept)
        for client in self.tx.execute(masked.order_by(u.client)).scalars():
            if r.buffered and client in self._in_session(number):
                continue  # it went on, and is in a later round's session
            yield "its masked update is kept, and the round is over", client
        said = select(p.client).where(p.run == self.row.id, p.round == number).distinct()
        for client in self.tx.execute(said.order_by(p.client)).scalars():
            yield "what it said in a session is kept, and the round is over", client


def _versions(tx: Connection, row: RunRow, contents: set[str]) -> Iterator[Finding]:
    """Models and states that are kept, and must have a content; and the first of them, which the history names."""
    m = models.Model
    rows = tx.execute(
        select(m.round, m.digest, m.state, m.down, m.delta, m.kept).where(m.run == row.id).order_by(m.round)
    ).all()
    for number, digest, state, down, delta, kept in rows:
        parts = (
            ("model", digest if kept else ""),
            ("state", state),
            ("state for devices", down),
            ("delta", delta),
        )
        for what, named in parts:
            if named and named not in contents:
                yield Finding(
                    run=row.name, round=number, digest=named,
                    text=f"run {row.name!r}, round {number}: its {what} {named[:12]} is missing from the database",
                )  # fmt: skip
    if not rows:
        yield Finding(run=row.name, text=f"run {row.name!r}: it has no model")
        return
    if not rows[-1].kept:
        yield Finding(run=row.name, text=f"run {row.name!r}: its newest model is marked as gone")
    entries = queries.audit(tx, row.id, 0, 1)
    try:
        value = entries[0].value if entries else {}
        first = next((v for v in rows if v.round == 0), None)
        if value.get("kind") == "created" and first is not None:
            state = first.state
            begun = genesis(row.spec, first.digest, state) == value["head"]
            # A state that is kept no longer cannot be compared any more.
            if first.digest != value["model"] or (state and not begun):
                yield Finding(
                    run=row.name, round=0, digest=first.digest,
                    text=f"run {row.name!r}: the model in its first row is not the one that it began with",
                )  # fmt: skip
    except UNREADABLE:
        return  # whoever follows the chain says so
