"""Sections: how each kind of tensor travels and is joined, by default and where the run's config says otherwise.

    kind      what                                    joined by   codec
    param     trained parameters                      mean        the run's
    lora_a    LoRA's A matrices                       mean        the run's
    lora_b    LoRA's B matrices                       mean        the run's
    extra     what the strategy sends beside them     mean        the run's
    stat      running statistics (BatchNorm)          mean        lossless, where the run's is lossy
    buffer    other float buffers                     mean        lossless, where the run's is lossy
    count     integers                                max         lossless, where the run's is lossy

`mean` is the weighted mean of changes; `max` the largest value; `equal` is what all must have alike, so that an update
that differs is refused; `local` stays on the device. A secure run only adds: integers stay local there, unless they
are said to be equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Self, get_args

from koinon_core import codecs
from koinon_core.errors import UsageError
from koinon_core.schema import FLOATS, Field, Rule

__all__ = ["How", "Section", "group_of", "how", "kind_of", "label_of", "sent_dtype"]

_STATISTICS = ("running_mean", "running_var")
_KINDS = ("param", "lora_a", "lora_b", "extra", "stat", "buffer", "count")
_TRAINED = ("param", "lora_a", "lora_b", "extra")
_CHANGED = ("param", "lora_a", "lora_b")
_WIDE = 1024.0  # a variance may be larger than any change of a weight, and so may a gradient


def kind_of(field: Field) -> str:
    """The kind of a tensor of the model, by its role, its dtype and its name."""
    if field.role == "param":
        parts = field.name.lower().split(".")
        return "lora_a" if "lora_a" in parts else "lora_b" if "lora_b" in parts else "param"
    if field.dtype not in FLOATS:
        return "count"
    return "stat" if field.name.rpartition(".")[2] in _STATISTICS else "buffer"


def group_of(name: str, field: Field) -> str:
    """Sections of one group share the step of a quantiser: sizes of changes differ between matrices and vectors
    (biases, norms), between LoRA's two factors, and between what is averaged side by side."""
    what = name.rpartition(f"/{field.name}")[0]
    return f"{what}:{kind_of(field)}:{'vector' if len(field.shape) < 2 else 'matrix'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What the run's config says of the tensors whose KIND/NAME matches a shell pattern (`stat/*`, `param/*.bias`,
    `extra/control/*`). What is None is as the kind has it; of several that match, the first holds."""

    match: str
    codec: str | None = None
    rule: Rule | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.match, str) or self.match.partition("/")[0] not in (*_KINDS, "*"):
            raise UsageError(
                f"match = {self.match!r} in the run's [[sections]] must begin with a kind ({', '.join(_KINDS)}) and "
                "a slash, for example 'stat/*'"
            )
        if self.codec is not None:
            codecs.by_name(str(self.codec))
        if self.rule is not None and str(self.rule) not in get_args(Rule):
            raise UsageError(
                f"rule = {self.rule!r} of {self.match!r} must be one of {', '.join(get_args(Rule))}"
            )
        if self.bound is not None and not (type(self.bound) is float and 0 < self.bound < 2.0**60):
            raise UsageError(f"bound = {self.bound} of {self.match!r} must be a number above 0")

    @classmethod
    def make(cls, values: Any) -> Self:
        """From a table of the run's config."""
        allowed = [f.name for f in fields(cls)]
        if not isinstance(values, Mapping) or (unknown := values.keys() - set(allowed)):
            key = min(unknown) if isinstance(values, Mapping) else values
            raise UsageError(f"the run's [[sections]] have no key {key!r}; there are {', '.join(allowed)}")
        if "match" not in values:
            raise UsageError("one of the run's [[sections]] has no match; say which tensors it is about")
        bound = values.get("bound")
        if isinstance(bound, int) and not isinstance(bound, bool) and abs(bound) < 1 << 60:
            values = {**values, "bound": float(bound)}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class How:
    """How one section travels: its codec by name, how it is joined, its largest |value| when it is decoded, its group's
    name, and the binary places of its exact sum. A lossy codec may move a value by a step, which is at most the bound
    that the run's config says: what is decoded may be twice that."""

    codec: str
    rule: Rule
    bound: float
    group: str
    grid: int = 0


def label_of(field: Field, extra: str = "") -> str:
    """What a section's pattern is compared with: KIND/NAME."""
    return f"extra/{extra}/{field.name}" if extra else f"{kind_of(field)}/{field.name}"


def how(
    name: str, field: Field, sections: Sequence[Section], codec: str, bound: float, *, extra: str = "",
    secure: bool = False,
) -> How:  # fmt: skip
    """How the section `name`, which is about the model's `field`, travels in a run with this `codec` and `bound`.
    `extra` is what it is beside the delta; a `secure` run cannot know the largest of values. UsageError where the
    run's config asks for what cannot be."""
    kind = "extra" if extra else kind_of(field)
    label = label_of(field, extra)
    said = next((s for s in sections if fnmatchcase(label, s.match)), None)
    trained = kind in _TRAINED
    lossless_here = not trained and not codecs.by_name(codec).exact
    rule: Rule = "mean" if trained else field.rule
    if secure and rule == "max":
        rule = "local"
    chosen, largest = "lossless" if lossless_here else codec, bound if kind in _CHANGED else max(bound, _WIDE)
    if said is not None:
        rule, chosen, largest = said.rule or rule, said.codec or chosen, said.bound or largest
    if trained and rule not in ("mean", "local"):
        raise UsageError(f"{label} is trained and can be joined by mean or stay local, not by {rule}")
    if kind == "extra" and rule != "mean":
        raise UsageError(f"{label} belongs to the strategy, which joins it by mean")
    if rule == "mean" and field.dtype not in FLOATS:
        raise UsageError(
            f"{label} is {field.dtype}, and half a counter means nothing: use max, equal or local"
        )
    lossy = not codecs.by_name(chosen).exact
    if lossy and (rule in ("max", "equal") or not codecs.by_name(chosen).takes(sent_dtype(field.dtype))):
        raise UsageError(
            f"{label} is joined by {rule} as {field.dtype}, and must be lossless; drop its codec"
        )
    return How(chosen, rule, largest * 2 if lossy else largest, group_of(name, field))


def sent_dtype(dtype: str) -> str:
    """The dtype in which a change travels. That of a 16-bit parameter has 32: most of it would round away in 16."""
    return "float32" if dtype == "float16" else dtype
