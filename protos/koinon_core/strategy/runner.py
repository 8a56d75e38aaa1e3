"""The device's half of a round: who calls a strategy, when, and with what; and the update that comes of it.

Pure: the session and the simulator call the same functions, so a strategy that works in one works in both. A strategy
without a device half of its own costs no copy of the model: the update is encoded tile by tile from the weights before
and after.
"""

import math
from dataclasses import dataclass, field, replace

from koinon_core.blob import NO_BYTES, Blob
from koinon_core.canonical import canonical, sha256
from koinon_core.draft import Draft, MemoryDraft
from koinon_core.errors import BadBlob, BadUpdate
from koinon_core.round.terms import Terms
from koinon_core.secure.agreement import Agreement
from koinon_core.secure.device import Lanes, capped
from koinon_core.secure.scratch import MemoryScratch, Scratches
from koinon_core.strategy.chain import Chain
from koinon_core.strategy.encoding import Encoder
from koinon_core.strategy.protocol import Base, Plan, State, Strategy, Up, Work
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import Held, Made, Source, gather, spans
from koinon_core.update import Head, Layout, Stats

__all__ = ["LocalHalf", "Prepared", "has_device_half"]

_OWN = "own"  # the key under which a device keeps the tensors that never leave it
_RESIDUAL = "residual"  # what a biased codec left out so far, by section: error feedback
_SDK = (_OWN, _RESIDUAL)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An update ready to send, the device state that becomes final when it is counted, and what is known of the
    bytes."""

    blob: Blob
    head: Head
    pending: State
    stats: Stats = field(default_factory=Stats)


def has_device_half(strategy: Strategy) -> bool:
    """Whether any part of a strategy does more on the device than let the owner train."""
    parts = strategy.parts if isinstance(strategy, Chain) else (strategy,)
    mine = ("begin", "finish", "commit")
    return any(getattr(type(part), name) is not getattr(Base, name) for part in parts for name in mine)


def dither_key(terms: Terms, client: str) -> bytes:
    """The key of the dither, which is public: one update of a device in a round has one encoding, however often it is
    made, simulated or deployed."""
    return bytes.fromhex(sha256(canonical(["koinon dither", terms.seed, terms.round, client])))


@dataclass(frozen=True, slots=True)
class LocalHalf:
    """The device half of one run's strategy. In a secure round everything that leaves is in lanes, and nothing
    beside."""

    strategy: Strategy
    layout: Layout

    @property
    def light(self) -> bool:
        """Whether a round needs no copy of the weights that it began with."""
        return not has_device_half(self.strategy)

    def own(self, state: State) -> Tensors:
        """The tensors that never leave the device, as far as it has some."""
        return state.get(_OWN, Tensors())

    def weights(self, w: Source, state: State) -> Source:
        """What the device trains from: the round's model, with its own tensors where it has some."""
        own = self.own(state)
        mine = Held(own)
        return Made(lambda name, offset: (mine if name in own else w).values(name, offset))

    def begin(self, state: State, down: State, w: Tensors) -> Plan:
        return self.strategy.begin(_without_sdk(state), down, w)

    def prepare(
        self, *, state: State, down: State, work: Work, start: Source, end: Source, terms: Terms, head: Head,
        client: str, draft: Draft | None = None, scratch: Scratches = MemoryScratch,
    ) -> Prepared:  # fmt: skip
        """The update from weights `start` to `end`, written into `draft`. BadUpdate, in one sentence, if it may not be
        sent. `scratch` has room for what a secure round needs to read more than once."""
        layout, mine = self.layout.under(terms), _without_sdk(state)
        if terms.aggregation == "secure":  # what is over counts for as many
            bounds = [group.bound for group in Agreement.of(terms).ring.groups if group.rotated]
            work = replace(
                work, examples=min(work.examples, terms.max_examples), clip=min(bounds, default=math.inf)
            )
        changes = Made(lambda name, offset: _change(layout, start, end, name, offset))
        learned, up = None, Up(Tensors())
        if not self.light:
            learned = Up(gather(Made(lambda n, o: changes.values(f"delta/{n}", o)), layout.params))
            up = self.strategy.finish(mine, down, work, learned)
        head = replace(head, totals=dict(up.totals))
        source = changes if learned is None else _finished(layout, up, changes)
        encode = self._in_lanes if terms.aggregation == "secure" else self._in_the_open
        try:
            made = encode(
                layout, source, start, end, state, terms, head, client, draft or MemoryDraft(), scratch
            )
        except BadBlob as error:
            raise BadUpdate(f"this update is not sent: {error}") from error
        committed: dict[str, Tensors] = {}
        if learned is not None:
            committed |= self.strategy.commit(mine, down, work, learned, layout.split(made.sent, head.totals))
        if made.residual:
            committed[_RESIDUAL] = made.residual
        if layout.local:
            committed[_OWN] = gather(end, layout.model.only(layout.local))
        return Prepared(made.blob, made.head, committed, made.stats)

    def evaluated(
        self, terms: Terms, head: Head, state: State, client: str, draft: Draft | None = None
    ) -> Prepared:  # fmt: skip
        """What a round that only evaluates gets: the head, or in a secure round its lanes. BadUpdate if there can be
        none."""
        if terms.aggregation != "secure":
            return Prepared(NO_BYTES, head, state)
        lanes = Lanes(terms, self.strategy, self.layout, client)
        try:
            blob, _ = lanes.write(Held({}), capped(head, terms.max_examples), draft or MemoryDraft())
        except BadBlob as error:
            raise BadUpdate(f"this evaluation is not sent: {error}") from error
        return Prepared(blob, Head(), state)

    def _in_the_open(
        self, layout: Layout, source: Source, start: Source, end: Source, state: State, terms: Terms, head: Head,
        client: str, draft: Draft, scratch: Scratches,
    ) -> "_Encoded":  # fmt: skip
        head.check(trained=True, max_examples=terms.max_examples, totals=self.strategy.totals())
        encoder = Encoder(layout, source, state.get(_RESIDUAL, Tensors()), dither_key(terms, client))
        blob, sent = encoder.write(draft, keep=not self.light)
        return _Encoded(blob, sent or Tensors(), head, Tensors(encoder.residual), encoder.stats)

    def _in_lanes(
        self, layout: Layout, source: Source, start: Source, end: Source, state: State, terms: Terms, head: Head,
        client: str, draft: Draft, scratch: Scratches,
    ) -> "_Encoded":  # fmt: skip
        head = capped(head, terms.max_examples)
        # Metrics that cannot be summed have no lane, and are no reason to hold an update back.
        plain = replace(head, training={}, evaluation={})
        plain.check(trained=True, max_examples=terms.max_examples, totals=self.strategy.totals())
        _check_equal(layout, start, end)
        lanes = Lanes(terms, self.strategy, layout, client)
        blob, sent = lanes.write(source, head, draft, keep=not self.light, scratch=scratch)
        return _Encoded(blob, sent or Tensors())


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An update's bytes; what the coordinator will count of it, where the strategy needs to know; and what goes
    along in clear or stays behind: of a secure round's, nothing."""

    blob: Blob
    sent: Tensors
    head: Head = field(default_factory=Head)
    residual: Tensors = field(default_factory=Tensors)
    stats: Stats = field(default_factory=Stats)


def _check_equal(layout: Layout, start: Source, end: Source) -> None:
    """BadBlob unless what is equal on all devices is here as the round's model, which the terms name, has it."""
    for f in layout.counters:
        for offset, _ in spans(f):
            here = end.values(f.name, offset)
            if here.tobytes() != start.values(f.name, offset).astype(here.dtype, copy=False).tobytes():
                raise BadBlob(
                    f"{f.name!r} is not what the model has, and in this run it must be equal on all devices"
                )


def _without_sdk(state: State) -> State:
    return {n: t for n, t in state.items() if n not in _SDK}


def _change(layout: Layout, start: Source, end: Source, name: str, offset: int) -> Array:
    """A tile of a section: what changed, or for a counter what it is."""
    kind, _, tensor = name.partition("/")
    after: Array = end.values(tensor, offset)
    if kind == "count":
        return after
    # In the section's dtype, which is never less than 32 bits.
    dtype = layout.update.by_name[name].dtype
    before = start.values(tensor, offset).astype(dtype, copy=False)
    changed: Array = after.astype(dtype, copy=False) - before
    return changed


def _finished(layout: Layout, up: Up, changes: Source) -> Source:
    """The sections of an update that the strategy has finished; buffers and counters go along as they are."""
    made = layout.join(up, Tensors(), Tensors())
    held = Held(made)
    return Made(lambda name, offset: (held if name in made else changes).values(name, offset))
