"""Telling: the encoded words for devices that come of a run's orders, once what they say is durable."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from koinon_coordinator.book import Book
from koinon_coordinator.store import Store
from koinon_core import run as runs
from koinon_core.round import effects, events
from koinon_core.round.machine import Round, step
from koinon_core.run import Fact, Order, Run
from koinon_core.run.state import WORK
from koinon_core.secure.sessions import Sessions
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Said", "Telling", "ended"]

_AT_ONCE = 1.0  # seconds of a deadline that nobody misses


@dataclass(frozen=True, slots=True)
class Said:
    """An encoded message for a device. `round` is the one that its bytes are counted for, 0 for none."""

    client: str
    message: bytes
    round: int = 0


def ended(run: Run) -> bytes:
    """How the run ended, as devices hear it."""
    return _envelope(ended=pb.Ended(run=run.id, status=run.status, reason=run.reason))


class Telling:
    """What the devices of a run are told in one epoch. What every device is asked alike is encoded once a round."""

    def __init__(self, store: Store, epoch: int, clock: Callable[[], float]):
        self._store, self._epoch, self._clock = store, epoch, clock
        self._ask: tuple[int, float, bytes] | None = None

    def said(self, book: Book, sessions: Callable[[], Sessions], orders: Iterable[Order]) -> list[Said]:
        """What the machine wants said, but for a Fold, which is taken and not said. `sessions` gives those of the open
        round, where that is a secure one."""
        run, said = book.run, list[Said]()
        for order in orders:
            match order:
                case effects.Ask(client, collection):
                    r = run.round
                    # The round may have gone on, or be over, by the turn's end.
                    if r is None or r.over:
                        continue
                    number = r.round_of(client)
                    works = (r.buffered and client in r.working) or (collection == WORK and r.awaits(client))
                    if works:
                        said.append(Said(client, self._work(book, r, number, client), number))
                    elif r.stage == collection and r.awaits(client):
                        said.append(Said(client, self._asked(book, r, sessions, client), number))
                case effects.Receipt(client, number, verdict, reason):
                    said.append(Said(client, _receipt(run, number, verdict, reason)))
                case effects.Cancel(client, number, reason):
                    cancel = pb.Cancel(run=run.id, round=number, reason=reason)
                    said.append(Said(client, _envelope(cancel=cancel)))
                case runs.Recall(client, number):
                    verdict, reason = self._store.verdict(run.id, number, client)
                    said.append(Said(client, _receipt(run, number, verdict, reason)))
                case runs.Finish():
                    said += [Said(client, ended(run)) for client in run.devices]
        return said

    def belated(self, book: Book, sessions: Callable[[], Sessions], facts: Iterable[Fact]) -> list[Said]:
        """Those who spoke while the run ended are told so too."""
        said: list[Said] = []
        run, r = book.run, book.run.round
        for fact in facts:
            if isinstance(fact, runs.Offered) and fact.client not in run.devices:
                said.append(Said(fact.client, ended(run)))
            if not isinstance(fact, runs.Answered | runs.Voiced | runs.Resigned) or r is None:
                continue
            # What was refused may have been because its bytes went with the round: its device does not know that.
            if r.buffered or fact.round != r.terms.round or isinstance(fact, runs.Resigned):
                said += self.said(book, sessions, [runs.Recall(fact.client, fact.round)])
                continue
            heard: events.Event = (
                events.Heard(fact.at, fact.client, "update", fact.digest)
                if isinstance(fact, runs.Answered)
                else events.Voiced(fact.at, fact.client, fact.collection, fact.attempt, fact.digest)
            )
            said += self.said(book, sessions, step(r, heard)[1])
        return said

    def _asked(self, book: Book, r: Round, sessions: Callable[[], Sessions], client: str) -> bytes:
        """What a device is asked: for the round's work, or in a session of its secure sum."""
        if r.stage == "update" or (r.stage == "keys" and not r.masking.attempt):
            return self._work(book, r, r.terms.round, client)
        call = pb.Call(
            run=book.run.id, round=r.round_of(client), attempt=r.masking.attempt, collection=r.stage, epoch=self._epoch,
            payload=sessions().call(client),
        )  # fmt: skip
        return _envelope(call=call)

    def _work(self, book: Book, r: Round, number: int, client: str) -> bytes:
        """The Ask of the open round, or of the round `number`, whose work the open one goes on with: the same bytes for
        all who are asked when it begins; for who comes back, with how much of the deadline is over."""
        run, version = book.run, book.version
        elapsed = r.elapsed(self._clock(), client)
        elapsed = elapsed if elapsed >= _AT_ONCE else 0.0
        if self._ask is None or self._ask[:2] != (number, elapsed):
            terms = book.terms[number]
            ask = pb.Ask(
                run=run.id, round=number, terms=terms.encoded, epoch=self._epoch,
                links=convert.links_to({n: d for n, d in run.links.items() if n < number}), elapsed=elapsed,
            )  # fmt: skip
            ask.model.CopyFrom(self._content(terms.model))
            if terms.down:
                ask.down.CopyFrom(self._content(terms.down))
            if version.delta and version.digest == terms.model:
                ask.delta.CopyFrom(self._content(version.delta))
                ask.delta_base = version.base
            self._ask = (number, elapsed, _envelope(ask=ask))
        return self._ask[2]

    def _content(self, digest: str) -> pb.Content:
        window, size = self._store.window(digest)
        small = bytes(window(0, size)) if size <= convert.INLINE else b""
        return pb.Content(digest=digest, size=size, inline=small)


def _envelope(
    *, ask: pb.Ask | None = None, call: pb.Call | None = None, cancel: pb.Cancel | None = None,
    ended: pb.Ended | None = None,
) -> bytes:  # fmt: skip
    return convert.envelope(pb.CoordinatorMessage(ask=ask, call=call, cancel=cancel, ended=ended))


def _receipt(run: Run, number: int, verdict: effects.Verdict, reason: str) -> bytes:
    return convert.envelope(convert.receipt(run.id, number, verdict, reason))
