"""What a device is known by where rounds are drawn: labels that an operator gave it, what it says of itself, and what
was seen of it in earlier rounds of an open run.

Labels are the words NAME=VALUE among those that an operator wrote on it: `koinon device label ward-7 'second floor
site=ward-7 weight=3'` gives two. What a device says of itself are three numbers: memory_mb, cores, gpu.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from koinon_core.errors import UsageError
from koinon_core.update import Head

__all__ = ["CAPABILITIES", "LABEL", "Seen", "check_labels", "labels_in", "weight_of"]

CAPABILITIES = ("memory_mb", "cores", "gpu")
"""What a device may say of itself: megabytes of memory, processor cores, graphics processors."""
LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_HEAVIEST, _DIGITS = 10**9, 20


@dataclass(frozen=True, slots=True)
class Seen:
    """Of the last update of a device that was counted: its examples, and the loss that it reported, if it did."""

    examples: int = 0
    loss: float | None = None

    @classmethod
    def of(cls, head: Head) -> "Seen":
        """Of an update with this head. The loss is that of the training where the device handed one in, else the one
        that `evaluate` gave of the weights before it."""
        loss = head.training.get("loss", head.evaluation.get("loss"))
        return cls(head.examples, loss)


def labels_in(words: str) -> dict[str, str]:
    """The labels among the words that an operator wrote on a device; a name that is there twice has the last value."""
    pairs = (word.partition("=") for word in re.split(r"[\s,;]+", words))
    return {name: value for name, is_, value in pairs if is_ and LABEL.fullmatch(name)}


def check_labels(client: str, labels: Mapping[str, object]) -> dict[str, str]:
    """Labels as an operator could have written them; UsageError for what could not be."""
    found = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in labels.items()}
    for name, value in found.items():
        if not LABEL.fullmatch(name) or labels_in(f"{name}={value}") != {name: value}:
            raise UsageError(
                f"the label {name!r} = {value!r:.80} of {client!r} cannot be: names are of letters, digits, '_', '.' "
                "and '-', and no value has spaces, ',' or ';'"
            )
    return found


def weight_of(said: str) -> Fraction | None:
    """The weight that a label says, exactly; None for what is no number from 0 to a billion in up to 20 characters."""
    try:
        number = Decimal(said)
    except InvalidOperation:
        return None
    fits = len(said) <= _DIGITS and number.is_finite() and abs(number.adjusted()) <= _DIGITS
    return Fraction(number) if fits and 0 <= number <= _HEAVIEST else None
