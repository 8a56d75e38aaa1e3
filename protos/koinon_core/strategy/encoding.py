"""Encoding an update on the device: tile by tile, each section by its codec, and what is lost is measured.

A section of a lossy codec is read twice: for the step of its group, and to be written. What a biased codec leaves out
is kept, and sent with the next update (error feedback: Seide et al. 2014, Karimireddy et al. 2019, arXiv:1901.09847).
"""

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from koinon_core import codecs, exact
from koinon_core.blob import Blob
from koinon_core.codec import Writer
from koinon_core.codecs import Codec, Step
from koinon_core.codecs.tile import Plain
from koinon_core.draft import Draft
from koinon_core.fold import counted
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import Gather, Source, spans
from koinon_core.update import Layout, Stats

__all__ = ["Encoder"]


class Encoder:
    """Writes the update that `source` has; `residual` is what earlier ones left out, `key` the dither's."""

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
        """The blob, and with `keep` what the coordinator will count of it. BadBlob for what it would refuse."""
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
