"""What one update is made of: the layout of its tensors, and the head that goes along in clear.

The layout follows from the run's schema and its strategy alone, so both ends know it before anything is sent:

    delta/NAME         trained parameters and float buffers: what changed
    count/NAME         what is joined by its largest value, or is equal on all devices: the value itself
    extra/WHAT/NAME    what the strategy averages beside the delta

Names that the strategy keeps local are in no section.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from koinon_core.errors import BadBlob, UsageError
from koinon_core.round.terms import Terms
from koinon_core.schema import Field, Schema
from koinon_core.sections import How, Section, how, label_of, sent_dtype
from koinon_core.strategy.protocol import State, Strategy, Up
from koinon_core.tensors import Tensors

__all__ = [
    "LONGEST_NAME",
    "Head",
    "Layout",
    "Stats",
    "layout_of",
    "pack_state",
    "state_schema",
    "unpack_state",
]

_MAX_METRICS = 64
LONGEST_NAME = 64
"""Characters of a metric's name."""
_LARGEST_METRIC = 1e30  # times any number of examples and devices it stays finite
_MOST_PARAMETERS = 1 << 48
_LARGEST_FIGURE = 1e100  # beyond what float32 values and a quantiser's coarsest step can come to
_YEAR = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Which tensors of the model leave a device, by how they are joined, and the schema of the update that carries
    them. `how` says of every section of the update how it travels."""

    model: Schema
    params: Schema
    buffers: Schema
    counters: Schema
    extras: Mapping[str, Schema]
    local: frozenset[str]
    update: Schema
    how: Mapping[str, How]

    @property
    def shared(self) -> tuple[str, ...]:
        """Names that the federation has in common."""
        return tuple(n for n in self.model.by_name if n not in self.local)

    def under(self, terms: Terms) -> "Layout":
        """The layout in a round with these terms: sections with the run's bound have the grid that was agreed to."""
        if not terms.weights:  # a round of 0.2.0: one bound and one grid for all that is averaged
            return replace(
                self, how={n: replace(h, grid=terms.grid, bound=terms.bound) for n, h in self.how.items()}
            )
        if all(h.grid == terms.grid for h in self.how.values() if h.bound == terms.bound):
            return self
        how = {n: replace(h, grid=terms.grid) if h.bound == terms.bound else h for n, h in self.how.items()}
        return replace(self, how=how)

    def join(self, up: Up, buffers: Tensors, counters: Tensors) -> Tensors:
        """The sections of an update."""
        sections = {f"delta/{n}": a for t in (up.delta, buffers) for n, a in t.items()}
        sections |= {f"count/{n}": a for n, a in counters.items()}
        sections |= {f"extra/{what}/{n}": a for what, t in up.extra.items() for n, a in t.items()}
        return Tensors(
            {f.name: sections[f.name].astype(f.dtype, copy=False) for f in self.update if f.name in sections}
        )

    def split(self, sections: Tensors, totals: Mapping[str, float]) -> Up:
        """The inverse of `join`, as far as strategies see it: parameters and extras, in the model's dtypes."""
        return Up(
            self.part(sections, "delta/", self.params),
            {what: self.part(sections, f"extra/{what}/", s) for what, s in self.extras.items()},
            totals,
        )

    def part(self, sections: Tensors, prefix: str, schema: Schema) -> Tensors:
        """The sections under `prefix` as tensors of `schema`."""
        return Tensors({f.name: sections[prefix + f.name].astype(f.dtype, copy=False) for f in schema})


def layout_of(
    model: Schema, strategy: Strategy, sections: Sequence[Section] = (), *, codec: str = "lossless",
    bound: float = 1024.0, grid: Callable[[float], int] = lambda bound: 20, secure: bool = False,
) -> Layout:  # fmt: skip
    """The layout of updates to `model` under `strategy`, in a run with these settings; `grid` gives the grid of the
    exact sum for a bound, and `secure` says that there is none of single values. UsageError if nothing would be
    left to send."""
    by_config = {f.name: how(f"delta/{f.name}", f, sections, codec, bound, secure=secure) for f in model}
    local = strategy.local(model) | {n for n, h in by_config.items() if h.rule == "local"}
    if unknown := local - model.by_name.keys():
        raise UsageError(f"the strategy keeps {min(unknown)!r} local, which the model does not have")
    shared = model.without(local)
    params = shared.only(shared.names(role="param"))
    if not params:
        raise UsageError("no trained parameter would leave the devices: there is nothing to federate")
    buffers = shared.only(n for n in shared.names(role="buffer") if by_config[n].rule == "mean")
    counters = shared.only(n for n in shared.by_name if by_config[n].rule in ("max", "equal"))
    extras = dict(strategy.extra(params))
    fields: list[Field] = []
    ways: dict[str, How] = {}

    def add(field: Field, way: How) -> None:
        fields.append(field)
        ways[field.name] = replace(way, grid=grid(way.bound))

    for f in (*params, *buffers):
        add(_section("delta/", f), by_config[f.name])
    for f in counters:
        add(replace(f, name=f"count/{f.name}"), by_config[f.name])
    for what, schema in extras.items():
        for f in schema:
            prefix = f"extra/{what}/"
            add(_section(prefix, f), how(f"{prefix}{f.name}", f, sections, codec, bound, extra=what))
    labels = [label_of(f) for f in model] + [label_of(f, what) for what, s in extras.items() for f in s]
    for section in sections:
        if not any(fnmatchcase(label, section.match) for label in labels):
            near = get_close_matches(section.match, labels, n=1, cutoff=0.3) or labels[:1]
            raise UsageError(
                f"match = {section.match!r} in the run's [[sections]] is about no tensor of the model; there is for "
                f"example {near[0]!r}"
            )
    return Layout(model, params, buffers, counters, extras, local, Schema(tuple(fields)), ways)


def _section(prefix: str, f: Field) -> Field:
    return Field(prefix + f.name, f.shape, sent_dtype(f.dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The numbers beside an open update's tensors; in a secure round they are lanes, and the head of its update is
    empty. `training` holds metrics of the local training, `evaluation` those of the round's starting model on this
    device's data. `partial` says that the training was stopped early."""

    examples: int = 0
    totals: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    evaluation_examples: int = 0
    steps: int = 0
    partial: bool = False

    def check(
        self, *, trained: bool, max_examples: int, totals: Mapping[str, float], whole: str = ""
    ) -> None:  # fmt: skip
        """Raise BadBlob, with the reason, for numbers that may not enter a sum. `whole` says why work that was stopped
        early may not (RunSpec.whole)."""
        if self.partial and (whole or not trained):
            raise BadBlob(
                f"it is of work that was stopped early, and {whole or 'an evaluation is done or it is not'}"
            )
        if trained and not 1 <= self.examples <= max_examples:
            raise BadBlob(
                f"an update over {self.examples} examples is refused: this run takes 1 to {max_examples} a device "
                "(max_examples in the run's config)"
            )
        if not trained and self.examples:
            raise BadBlob("a round that only evaluates takes no examples")
        if not 0 <= self.evaluation_examples <= max_examples:
            raise BadBlob(f"an evaluation over {self.evaluation_examples} examples is refused")
        if trained and self.totals.keys() != totals.keys():
            raise BadBlob(f"the strategy sums {sorted(totals)}, the update has {sorted(self.totals)}")
        for name, value in self.totals.items():
            if not abs(value) <= totals.get(name, 0.0):
                raise BadBlob(f"the total {name!r} is {value}, beyond the strategy's bound")
        for metrics in (self.training, self.evaluation):
            if len(metrics) > _MAX_METRICS:
                raise BadBlob(f"{len(metrics)} metrics are more than the {_MAX_METRICS} that are kept")
            for name, value in metrics.items():
                if len(name) > LONGEST_NAME or not name.isprintable() or not abs(value) <= _LARGEST_METRIC:
                    raise BadBlob(
                        f"the metric {name[:64]!r} is {value}: metrics are numbers up to {_LARGEST_METRIC:g}, with "
                        "names of at most 64 printable characters"
                    )

    def to_json(self) -> dict[str, Any]:
        # What older versions do not know is left out where it says nothing: the seals of their rows are over this.
        return {k: v for k, v in asdict(self).items() if v or k != "partial"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Head":
        return cls(**value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a device measured of its open update, for the operator: it is shown, and nothing is decided by it.

    `parameters` is the number of elements that were encoded (0: nothing was measured), `nmse` the codec's error
    ||x - decoded||^2 / ||x||^2 (0 where it loses nothing), `norm` the Euclidean norm of the delta as it was sent, and
    `encode_s` the seconds that encoding took.
    """

    parameters: int = 0
    nmse: float = 0.0
    norm: float = 0.0
    encode_s: float = 0.0

    def check(self, most: int = _MOST_PARAMETERS) -> None:
        """Raise BadBlob, with the reason, for what no update of at most `most` elements can measure."""
        if not 0 <= self.parameters <= most:
            raise BadBlob(f"the update is said to hold {self.parameters} parameters: there are 0 to {most}")
        figures = (
            ("NMSE", self.nmse, _LARGEST_FIGURE),
            ("norm", self.norm, _LARGEST_FIGURE),
            ("time to encode, in seconds,", self.encode_s, _YEAR),
        )
        for name, value, largest in figures:
            if not 0 <= value <= largest:  # nor is NaN
                raise BadBlob(
                    f"the update's {name} is said to be {value}: it is a number from 0 to {largest:g}"
                )

    def bits(self, nbytes: int) -> float:
        """Bits a parameter of an update of `nbytes` bytes; 0 if nothing was measured."""
        return 8 * nbytes / self.parameters if self.parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Stats":
        return cls(**value)


def state_schema(state: State) -> Schema:
    """The schema of a strategy's state as one set of tensors, `NAME/TENSOR`."""
    return Schema(
        tuple(
            # Integers (a count of steps) are no parameters, which a schema holds to be floats.
            Field(f"{what}/{n}", a.shape, str(a.dtype), "param" if a.dtype.kind == "f" else "buffer")
            for what, t in state.items()
            for n, a in t.items()
        )
    )


def pack_state(state: State) -> Tensors:
    """A strategy's state as one set of tensors."""
    return Tensors({f"{what}/{n}": a for what, t in state.items() for n, a in t.items()})


def unpack_state(tensors: Tensors) -> State:
    """The inverse of `pack_state`."""
    state: dict[str, dict[str, Any]] = {}
    for name, array in tensors.items():
        what, _, rest = name.partition("/")
        state.setdefault(what, {})[rest] = array
    return {what: Tensors(arrays) for what, arrays in state.items()}
