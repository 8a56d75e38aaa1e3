"""What a secure round's strategy steps by where a rule stands liars between the sums of groups.

Of each group there is a sum, as there is of a round that adds them; here each is decoded by itself, to the mean of its
devices, and the rule joins these means, of which each counts once. Nothing of a single device is seen. A group whose
sum cannot be that of its devices is left out, like one that lost too many of them: it is one device's doing, and costs
its group. So is one that wrapped around, if enough others are left; else it is one of the liars that the rule stands.
Numbers (examples, metrics) are added over the groups that are left.

One group's lanes are in memory at a time, and all groups' means in a scratch.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from koinon_core.canonical import canonical
from koinon_core.errors import BadBlob
from koinon_core.ring import Sum
from koinon_core.round.events import OVERFLOWED
from koinon_core.round.terms import Terms
from koinon_core.secure.agreement import Agreement
from koinon_core.secure.scratch import MemoryScratch, Scratches
from koinon_core.secure.sizing import Tuning
from koinon_core.secure.total import Total, joined
from koinon_core.strategy.closing import Aggregate
from koinon_core.strategy.protocol import Strategy
from koinon_core.strategy.robust import F64, Liars, Robust
from koinon_core.strategy.robust_sum import Judged, judged_of, robust_parts
from koinon_core.tensors import Array
from koinon_core.tiles import Source
from koinon_core.update import Layout

__all__ = ["FEWEST", "Apart", "Sums", "aggregate", "sums_needed"]

Sums = Iterable[tuple[Sum, Sequence[str]]]
"""Sums, each with the devices that are in it."""

FEWEST = 5
"""Groups, whatever the rule: with fewer, one liar is a large part of what is left."""


def sums_needed(strategy: Strategy) -> int:
    """The fewest groups whose sums a strategy's rules are taken between; 0 where it has none, and sums are added."""
    return max((max(FEWEST, rule.fewest) for rule in robust_parts(strategy)), default=0)


def aggregate(
    strategy: Strategy, layout: Layout, terms: Terms, sums: Sums, model: Source, scratch: Scratches = MemoryScratch
) -> Aggregate:  # fmt: skip
    """What a secure round's strategy steps by: its one sum, or where the terms say so the sums of its groups."""
    if Agreement.of(terms).apart:
        return Apart(strategy, layout, terms, sums, model, scratch)
    ((total, devices),) = sums
    return Total(strategy, layout, terms, total, devices, model, scratch)


class Apart:
    """An aggregate (koinon_core.strategy.closing) of the sums of groups, each with its devices, in the order of the
    groups. BadBlob where fewer of them can be read than the terms ask for, or, beginning with "overflowed:", where more
    wrapped around than the rule stands."""

    def __init__(
        self, strategy: Strategy, layout: Layout, terms: Terms, sums: Sums,
        model: Source, scratch: Scratches = MemoryScratch,
    ):  # fmt: skip
        rules, read, unread = robust_parts(strategy), list[Total](), ""
        for total, devices in sums:
            try:
                read.append(Total(strategy, layout, terms, total, devices, model, scratch, wrapped=True))
            except BadBlob as error:
                unread = f"; of another, {error}"
                continue
            read[-1].settle()
            del total  # before the next is taken
        self._groups = _believed(read, Agreement.of(terms).apart, rules, unread)
        self._stands = _stands(rules, len(self._groups))
        self._judged = Judged(
            rules, len(self._groups), self._fill, layout.update, judged_of(layout), "sums of groups"
        )
        self.count, self.weight = sum(one.count for one in self._groups), float(len(self._groups))
        self.totals: Mapping[str, float] = {}
        self.floored = self._groups[0].floored

    def values(self, name: str, offset: int) -> Array:
        if name.startswith("count/"):
            return self._groups[0].values(name, offset)
        return self._judged.values(name, offset)

    @property
    def evaluated(self) -> int:
        return sum(one.evaluated for one in self._groups)

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """As the sum of all groups would have them, and how many groups there were."""
        return {**joined(self._groups), "groups": float(len(self._groups))}

    @cached_property
    def tuning(self) -> str:
        """Sized to the largest sums but those of as many groups as may lie: one of them must not make all others'
        steps coarse, and a group whose sum is much larger is left out."""
        told = [Tuning.decode(one.tuning) for one in self._groups]
        known = [one for one in told if one is not None]
        devices, weight = sum(one.devices for one in known), sum(one.weight for one in known)

        def size(name: str) -> float:
            """Per device of a mean weight."""
            sums = sorted((one.rms[name] * one.weight / one.devices for one in known), reverse=True)
            return sums[self._stands] * devices / weight

        return Tuning(
            devices=devices,
            weight=weight,
            rms={name: size(name) for name in known[0].rms},
            steps=known[0].steps,
        ).encoded

    def digest(self) -> str:
        """The SHA-256 over the digests of the groups' sums, in their order."""
        whole = hashlib.sha256(canonical({"groups": len(self._groups), "metrics": dict(self.metrics)}))
        for one in self._groups:
            whole.update(bytes.fromhex(one.digest()))
        return whole.hexdigest()

    def _fill(self, name: str, offset: int, rows: F64) -> None:
        for row, one in zip(rows, self._groups, strict=True):
            row[:] = one.values(name, offset)


def _believed(read: Sequence[Total], needed: int, rules: Sequence[Robust], unread: str) -> list[Total]:
    """The groups that a rule is taken between: those that did not wrap around, or, where they are too few, all, if
    those that did are no more than it stands."""
    sound = [one for one in read if not one.overflow]
    if len(sound) >= needed:
        return sound
    if len(read) < needed:
        raise BadBlob(
            f"the sums of {len(read)} groups can be read, and the run's rule is taken between {needed} or more{unread}"
        )
    if len(read) - len(sound) > _stands(rules, len(read)):
        raise BadBlob(
            f"{OVERFLOWED} the sums of {len(read) - len(sound)} of {len(read)} groups are larger than the round was "
            "sized for; the next round is wide again"
        )
    return list(read)


def _stands(rules: Sequence[Robust], groups: int) -> int:
    """How many of so many groups may lie: as many as a rule says, and of one that says nothing less than half."""
    return min([(groups - 1) // 2, *(rule.f for rule in rules if isinstance(rule, Liars))])
