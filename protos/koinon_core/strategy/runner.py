"""The device's half of a round: who calls a strategy, when, and with what; and the update that comes of it.

Pure: the session and the simulator call the same functions, so a strategy that works in one works in both. A strategy
without a device half of its own costs no copy of the model: the update is encoded tile by tile from the weights before
and after.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from koinon_core import codecs, exact
from koinon_core.blob import Blob
from koinon_core.canonical import canonical, sha256
from koinon_core.codec import Writer
from koinon_core.codecs import Codec, Step
from koinon_core.codecs.tile import Plain
from koinon_core.draft import Draft, MemoryDraft
from koinon_core.errors import BadBlob, BadUpdate
from koinon_core.fold import counted
from koinon_core.round.terms import Terms
from koinon_core.strategy.chain import Chain
from koinon_core.strategy.protocol import Base, Plan, State, Strategy, Up, Work
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import Gather, Held, Made, Source, gather, spans
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
    """The device half of one run's strategy."""

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
        client: str, draft: Draft | None = None,
    ) -> Prepared:  # fmt: skip
        """The update from weights `start` to `end`, written into `draft`. BadUpdate, in one sentence, if it may not be
        sent."""
        layout, mine = self.layout.under(terms), _without_sdk(state)
        changes = Made(lambda name, offset: _change(layout, start, end, name, offset))
        learned, up = None, Up(Tensors())
        if not self.light:
            learned = Up(gather(Made(lambda n, o: changes.values(f"delta/{n}", o)), layout.params))
            up = self.strategy.finish(mine, down, work, learned)
        head = replace(head, totals=dict(up.totals))
        source = changes if learned is None else _finished(layout, up, changes)
        try:
            head.check(trained=True, max_examples=terms.max_examples, totals=self.strategy.totals())
            encoder = _Encoder(layout, source, state.get(_RESIDUAL, Tensors()), dither_key(terms, client))
            blob, sent = encoder.write(draft or MemoryDraft(), keep=learned is not None)
        except BadBlob as error:
            raise BadUpdate(f"this update is not sent: {error}") from error
        committed: dict[str, Tensors] = {}
        if learned is not None:
            assert sent is not None
            committed |= self.strategy.commit(mine, down, work, learned, layout.split(sent, head.totals))
        if encoder.residual:
            committed[_RESIDUAL] = Tensors(encoder.residual)
        if layout.local:
            committed[_OWN] = gather(end, layout.model.only(layout.local))
        return Prepared(blob, head, committed, encoder.stats)


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


class _Encoder:
    """Writes an update: a first pass over lossy sections for their groups' steps, a second one that encodes."""

    def __init__(self, layout: Layout, source: Source, residual: Tensors, key: bytes):
        self._layout, self._source, self._old = layout, source, residual
        self._codecs = {name: codecs.by_name(how.codec) for name, how in layout.how.items()}
        found = ((name, codecs.quantiser(how.codec)) for name, how in layout.how.items())
        self._lossy = {name: quantiser for name, quantiser in found if quantiser is not None}
        self._key = key if self._lossy else b""
        self.residual: dict[str, Array] = {}
        """What biased codecs left out, by section."""
        self.stats = Stats()

    def write(self, draft: Draft, *, keep: bool) -> tuple[Blob, Tensors | None]:
        """The blob, and with `keep` what the coordinator will count of it."""
        steps, lossy = self._steps()
        writer = Writer(draft.write, self._layout.update, lambda name: steps[name], key=self._key)
        sent = Gather(self._layout.update) if keep else None
        self._errors, self._exact = 0.0, 0.0
        for section in self._layout.update:
            biased = section.name in self._lossy and self._lossy[section.name].biased
            left = np.empty(section.size, dtype=section.dtype) if biased else None
            for offset, _ in spans(section):
                arrives, missed = self._put(writer, section.name, offset, keep)
                if sent is not None:
                    sent.put(section.name, offset, arrives)
                if left is not None:
                    left[offset : offset + missed.size] = missed
            if left is not None:
                self.residual[section.name] = left.reshape(section.shape)
        writer.close()
        squares = sum(lossy.values())
        self.stats = Stats(
            parameters=self._layout.update.size,
            nmse=self._errors / squares if squares else 0.0,
            norm=math.sqrt(squares + self._exact),
        )
        return draft.finish(), sent.tensors if sent is not None else None

    def _put(self, writer: Writer, name: str, offset: int, keep: bool) -> tuple[Array, Array]:
        """Write a tile. Returns what arrives of it (where that is kept or lossy), and what does not."""
        values, how = self._values(name, offset), self._layout.how[name]
        writer.put(name, offset, self._within(name, values))
        if how.rule != "mean":
            return values, values
        if name not in self._lossy:
            self._exact += exact.square(values)
            if keep:
                return counted(writer.again(), how, name), values
            writer.again().check(how.grid, how.bound, name)
            return values, values
        arrives = counted(writer.again(), how, name)
        missed: Array = values - arrives.astype(values.dtype, copy=False)
        self._errors += exact.square(missed)
        return arrives, missed

    def _values(self, name: str, offset: int) -> Array:
        values = self._source.values(name, offset)
        if name in self._old:
            values = values + self._old[name].reshape(-1)[offset : offset + values.size]
        return values

    def _limit(self, name: str) -> float:
        """The largest |value| that may be encoded: a lossy codec may move it by a step, up to what may be decoded."""
        return self._layout.how[name].bound / (2 if name in self._lossy else 1)

    def _within(self, name: str, values: Array) -> Array:
        """What is sent of values to which a residual was added: no more than one update may hold. The rest stays."""
        limit = self._limit(name)
        return np.clip(values, -limit, limit) if name in self._old else values

    def _steps(self) -> tuple[Mapping[str, tuple[Codec, Step | None]], Mapping[str, float]]:
        """Each section's codec with its group's step; and each group's sum of squares."""
        squares: dict[str, float] = defaultdict(float)
        peaks: dict[str, float] = defaultdict(float)
        sizes: dict[str, int] = defaultdict(int)
        for section in self._layout.update:
            if section.name in self._lossy:
                group = self._layout.how[section.name].group
                sizes[group] += section.size
                for offset, _ in spans(section):
                    values = self._values(section.name, offset)
                    squares[group] += exact.square(values)
                    peak = Plain(self._within(section.name, values)).largest(
                        self._limit(section.name), section.name
                    )
                    peaks[group] = max(peaks[group], peak)
        steps: dict[str, tuple[Codec, Step | None]] = {}
        for name, codec in self._codecs.items():
            how, step = self._layout.how[name], None
            if name in self._lossy:
                rms = math.sqrt(squares[how.group] / max(1, sizes[how.group]))
                step = self._lossy[name].step_for(rms, how.grid, peaks[how.group], self._limit(name))
            steps[name] = (codec, step)
        return steps, squares
