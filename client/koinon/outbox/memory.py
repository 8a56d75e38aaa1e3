"""What a device remembers of a run, and what may happen to it: one law, on disk or not.

    keep(N)  ->  an update is out  ->  commit(N): its pending state is the state
                                   ->  drop(N): both are gone

A memory on disk need not hurry with the second half. The coordinator says again at any time what became of an update:
a device that dies after COUNTED, and comes back with the update still out, sends it again, hears COUNTED again, and is
where it was. So what `keep` was called for is durable when it returns, and its fate with the next `keep`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from koinon.outbox.files import json_of
from koinon.outbox.journal import Journal, MemoryJournal
from koinon_core.blob import Blob
from koinon_core.draft import Draft, MemoryDraft
from koinon_core.errors import LocalProtocolError
from koinon_core.strategy.protocol import State
from koinon_core.update import Head, Stats

__all__ = [
    "NOTHING", "Kept", "MemoryOutbox", "Outbox", "Sent", "counted", "not_counted", "plain", "with_update",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """An update handed in, until its fate is known. `terms` is `Terms.encoded`, `blob` the update itself (NO_BYTES
    in a round that only evaluates), `pending` the device state that becomes final if it is counted (None: it
    stays as it is). `pin`, where there is one, is the run's pin from `keep` on, and outlives the update. `stats`
    is what was measured when it was made, and no part of what makes two updates the same."""

    round: int
    terms: bytes
    blob: Blob
    head: Head
    pending: State | None
    pin: Mapping[str, Any] = field(default_factory=dict)
    stats: Stats = field(default_factory=Stats)

    @property
    def digest(self) -> str:
        """The SHA-256 of the update's bytes."""
        return self.blob.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept of one run: the committed device state, the last round whose update was COUNTED here (0: none),
    the update whose fate is not known, and a few small JSON values of the session's own."""

    state: State
    settled: int
    sent: Sent | None
    pin: Mapping[str, Any]


class Outbox(Protocol):
    """What a device remembers. A call that was cut short, by a kill or a StoreError, has happened or has not, and may
    be repeated. `keep`, `pin` and `forget` are durable when they return; `commit` and `drop` become so with the next of
    these or with `close`. Until then a kill takes them back, and no more: the update is out again, and its fate, asked
    for again, is the same."""

    instance: str
    """This memory's own id, in hex: drawn once."""
    boot: int
    """How often a process has started on this memory, this one included."""
    models: Path | None
    """A folder for models that need not be fetched again; None: there is none."""
    journal: Journal
    """What must outlive a kill of this process, and nothing else, while a secure sum is under way."""

    def enter(self, run: str) -> Kept:
        """What is kept of `run`. StoreError if the committed part of it is damaged."""
        ...

    def draft(self, run: str) -> Draft:
        """What the next update is written into, by calls that raise StoreError if it cannot be. One at a time: what
        was not kept is gone when the next one begins, or with `close`."""
        ...

    def keep(self, run: str, sent: Sent) -> None:
        """Call before the first byte is sent. The same update again changes nothing; LocalProtocolError for another
        one of its round, for one while another round's is out, and for a round that is settled."""
        ...

    def commit(self, run: str, round_: int) -> None:
        """COUNTED: the pending state is the state. LocalProtocolError if no update of that round was kept."""
        ...

    def drop(self, run: str, round_: int) -> None:
        """NOT_COUNTED: the update and its pending state are gone; nothing happens where there is none."""
        ...

    def pin(self, run: str, pin: Mapping[str, Any]) -> None:
        """Replace the session's own values."""
        ...

    def forget(self, run: str) -> None:
        """The run is over, and another one has another id: all that is kept of it is removed."""
        ...

    def close(self) -> None:
        """Let another process have this memory, which leaves nothing open that is known to be settled."""
        ...


# -- the law ----------------------------------------------------------------------------------------------------

NOTHING = Kept(state={}, settled=0, sent=None, pin={})
"""What is kept of a run that was never heard of."""


def with_update(kept: Kept, sent: Sent) -> Kept:
    """`kept` and this update; the very same object if the update is in it already."""
    held = kept.sent
    if held is not None and held.round != sent.round:
        raise LocalProtocolError(
            f"the update of round {held.round} is still out: its fate comes before the update of round {sent.round}"
        )
    if held is not None and _says(held) != _says(sent):
        raise LocalProtocolError(
            f"round {sent.round} has its update already, and this is another: the same bytes are sent, always"
        )
    if sent.round <= kept.settled:
        raise LocalProtocolError(f"round {sent.round} is settled: round {kept.settled} was counted already")
    return kept if held is not None else replace(kept, sent=sent, pin=plain(sent.pin) or kept.pin)


def _says(sent: Sent) -> tuple[bytes, str, bytes]:
    return sent.terms, sent.digest, json_of(sent.head.to_json())


def counted(kept: Kept, number: int) -> Kept:
    """`kept` after COUNTED in round `number`; the very same object if that is in it already."""
    sent = kept.sent
    if sent is not None and sent.round == number:
        state = kept.state if sent.pending is None else sent.pending
        return replace(kept, state=state, settled=number, sent=None)
    if number > kept.settled:
        raise LocalProtocolError(f"round {number} is said to be counted, and no update of it is kept here")
    return kept


def not_counted(kept: Kept, number: int) -> Kept:
    """`kept` after NOT_COUNTED in round `number`; the very same object if that changes nothing."""
    return replace(kept, sent=None) if kept.sent is not None and kept.sent.round == number else kept


def plain(pin: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as it would be read again; TypeError if it is no JSON."""
    copy: dict[str, Any] = json.loads(json_of(pin))
    return copy


class MemoryOutbox:
    """Nothing durable: for devices without a name of their own, and for the simulation."""

    def __init__(self) -> None:
        self.instance, self.boot = os.urandom(16).hex(), 0
        self.models: Path | None = None
        self.journal: Journal = MemoryJournal()
        self._runs: dict[str, Kept] = {}

    def enter(self, run: str) -> Kept:
        return self._runs.get(run, NOTHING)

    def draft(self, run: str) -> MemoryDraft:
        return MemoryDraft()

    def keep(self, run: str, sent: Sent) -> None:
        self._runs[run] = with_update(self.enter(run), sent)

    def commit(self, run: str, round_: int) -> None:
        self._runs[run] = counted(self.enter(run), round_)

    def drop(self, run: str, round_: int) -> None:
        self._runs[run] = not_counted(self.enter(run), round_)

    def pin(self, run: str, pin: Mapping[str, Any]) -> None:
        self._runs[run] = replace(self.enter(run), pin=plain(pin))

    def forget(self, run: str) -> None:
        self._runs.pop(run, None)
        self.journal.end(run)

    def close(self) -> None:
        pass
