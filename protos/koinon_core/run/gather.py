"""Who is drawn for the next round, where a run's [selection] draws from all devices that are here.

A round with such a rule is opened when it is drawn, not before: while its devices are gathered there is none. They are
gathered until all are ready that are expected to be, or `join_wait` after there were enough; so neither the order in
which devices came nor how fast they are decides. Expected are, of the devices that are attached and may be in a round,
those that are ready or have done with the last one; when a coordinator has just begun, nobody knows, and the
run's `population` are.

Under "power-of-choice" two rounds follow each other: one in which d candidates evaluate the model, and one that those
with the largest losses train.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from koinon_core.round.state import Collection
from koinon_core.selection.draw import arrival, point, taken
from koinon_core.selection.rule import EXAMPLES
from koinon_core.selection.traits import Seen

if TYPE_CHECKING:
    from koinon_core.run.state import Run

__all__ = ["Gather", "begin", "complete", "draw", "enough", "misfits", "present", "sentence", "size"]


@dataclass(frozen=True, slots=True)
class Gather:
    """The devices of the next round are gathered. `expected` is how many are worth a wait (None: nobody knows), `until`
    when the wait is over. `incarnation` is the one of the round that they are gathered for."""

    incarnation: str
    expected: int | None
    until: float | None = None


def begin(run: "Run", incarnation: str) -> Gather:
    """Gather for the next round."""
    return Gather(incarnation, _expected(run))


def _expected(run: "Run") -> int | None:
    if run.scores:
        return len(run.scores)
    if not run.gathered:
        return run.spec.population
    last = run.round.update if run.round is not None else Collection()
    back = last.heard.keys() | last.left.keys()  # who left it, by declining say, comes back for the next one
    return sum((s.ready or c in back) and not s.misfit for c, s in run.devices.items())


def misfits(run: "Run") -> str:
    """The attached devices that may not be in a round, and why: a sentence for the operator, empty if all may."""
    found = [(c, run.devices[c].misfit) for c in sorted(run.devices) if run.devices[c].misfit]
    if not found:
        return ""
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    named = ", ".join(f"{client} ({why})" for client, why in found[:5])
    return f"{len(found)} attached may not be in it: {named}{more}"


def present(run: "Run") -> list[str]:
    """The devices that may be drawn now; those that were asked for their loss, where they were."""
    return [
        c for c, s in run.devices.items()
        if s.ready and not s.misfit and c not in run.barred and (not run.scores or c in run.scores)
    ]  # fmt: skip


def complete(run: "Run", here: list[str]) -> bool:
    """Whether all are here that are expected."""
    g = run.gather
    if g is None or g.expected is None:
        return False
    # The population counts all; those of it that may not be in a round are not waited for.
    strangers = 0 if run.gathered or run.scores else sum(bool(s.misfit) for s in run.devices.values())
    return len(here) + strangers >= g.expected


def enough(run: "Run") -> int:
    """How many must be here before a draw is worth its round: the quorum, or of how many that is drawn on average."""
    rule = run.spec.selecting
    return ceil(run.spec.quorum / rule.chance) if rule.rule == "poisson" else run.spec.quorum


def sentence(run: "Run", number: int) -> str:
    """What is being waited for, while devices are gathered."""
    here, needed = len(present(run)), enough(run)
    if here >= needed:
        return f"round {number} waits a moment for more devices: {here} are ready"
    least = f" (at q = {run.spec.selecting.q:g})" if run.spec.selecting.rule == "poisson" else ""
    return f"round {number} waits for devices: {here} of at least {needed}{least} are ready"


def size(run: "Run", drawn: int, asking: bool) -> int:
    """The goal of a round that so many devices were drawn for."""
    rule = run.spec.selecting.rule
    return drawn if asking or rule == "poisson" else min(run.spec.clients or drawn, drawn)


def draw(run: "Run", here: list[str], number: int) -> list[str]:
    """The devices of round `number`, of those that are here."""
    rule, seed = run.spec.selecting, run.spec.seed
    if rule.rule == "poisson":
        heads = [c for c in here if taken(rule.chance, seed, number, c)]
        return sorted(heads, key=lambda c: point(seed, number, c))[: run.spec.max_clients]
    if run.scores:
        return _worst(run.scores, here, seed, number)[: run.spec.devices]
    weights = _weights(run, here)
    order = sorted(here, key=lambda c: (arrival(weights[c], seed, number, c), c))
    if rule.rule == "weighted":
        return order[: run.spec.devices]
    if rule.asks:
        return order[: rule.d]
    candidates = order[: rule.d]
    new = [c for c in candidates if c not in run.seen]  # their loss counts as larger than any
    known = {c: run.seen[c].loss for c in candidates if c in run.seen}
    return [*new, *_worst(known, list(known), seed, number)][: run.spec.devices]


def _worst(losses: Mapping[str, float | None], devices: list[str], seed: int, number: int) -> list[str]:
    """Devices by their losses, the largest first, then those that reported none; equal ones as they are drawn."""

    def place(client: str) -> tuple[bool, float, int]:
        loss = losses[client]
        return loss is None, -(loss or 0.0), point(seed, number, client)

    return sorted(devices, key=place)


def _weights(run: "Run", devices: list[str]) -> dict[str, Fraction]:
    """What each weighs. Of whom nothing was seen yet weighs as much as the others do on average."""
    rule = run.spec.selecting
    if rule.by != EXAMPLES:
        return {c: rule.weight(run.devices[c].labels) for c in devices}
    seen: Mapping[str, Seen] = run.seen
    mean = Fraction(sum(s.examples for s in seen.values()), len(seen)) if seen else Fraction(1)
    return {c: Fraction(seen[c].examples) if c in seen else mean for c in devices}
