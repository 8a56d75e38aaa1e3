"""A run as a value, and what a fact leads to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from koinon_core.canonical import sha256
from koinon_core.flow.best import Found
from koinon_core.round import events
from koinon_core.round.machine import Round
from koinon_core.round.terms import Kind
from koinon_core.run import gather
from koinon_core.run.facts import Answered, Fact, Gone, Offered, Resigned, Voiced
from koinon_core.run.gather import Gather
from koinon_core.run.orders import Order, Status
from koinon_core.selection.traits import Seen
from koinon_core.spec import RunSpec

__all__ = ["WORK", "Moved", "Run", "Standing", "rank"]

WORK = "work"
"""What is asked of a device that has lost what it was given for a round whose first collection is over."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An attached device: whether it waits for work now, whether it evaluates models, the model that it keeps, the
    labels that it was given, what it says of itself, why it may not be in a round, if it may not, and the round whose
    work it had when it offered itself."""

    ready: bool
    evaluates: bool
    held: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    able: Mapping[str, float] = field(default_factory=dict)
    misfit: str = ""
    engaged: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run's state; a value.

    `closed` counts rounds that made a model, `streak` those abandoned in a row. `head` is its history after the last
    round that is over, `links` the newest of its links by round. `ahead` names devices that have seen more than this
    database knows; `beyond` is a number that no new round may have, nor any below. `evaluators` evaluated in the last
    round that was summed; `returning` were in the round when the run was taken up, and are expected back. Of rounds up
    to `remembered` no device need know. `tuning` is what the next secure round is sized by. `barred`
    devices dealt shares that opened nothing, and are in no further round (until the coordinator starts again). `best`
    is the best model so far, where the run asks for that, and `measured` what the owner said of models where it is for
    them to say.

    Where [selection] draws from all devices, `gather` is how the next round's are gathered (`gathered`: it was done
    since the coordinator began), `seen` what earlier updates said of devices, and `scores` their losses at the model,
    which those of the next round are chosen by.
    """

    id: str
    spec: RunSpec
    model: str
    down: str = ""
    weights: str = ""
    tuning: str = ""
    best: Found | None = None
    measured: Mapping[int, float] = field(default_factory=dict)
    barred: frozenset[str] = frozenset()
    status: Status = "running"
    reason: str = ""
    number: int = 0
    closed: int = 0
    streak: int = 0
    kind: Kind = "train"
    head: str = ""
    links: Mapping[int, str] = field(default_factory=dict)
    recovery: int = 0
    evaluators: int = 0
    returning: int = 0
    beyond: int = 0
    remembered: int = 0
    ahead: Mapping[str, int] = field(default_factory=dict)
    round: Round | None = None
    gather: Gather | None = None
    gathered: bool = False
    seen: Mapping[str, Seen] = field(default_factory=dict)
    scores: Mapping[str, float | None] = field(default_factory=dict)
    devices: Mapping[str, Standing] = field(default_factory=dict)
    leases: Mapping[str, float] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.status in ("finished", "failed", "cancelled")

    @property
    def trains(self) -> bool:
        """Whether there are rounds to come that make a model."""
        stopped = self.spec.watch is not None and self.spec.watch.ends(self.best)
        return self.closed < self.spec.rounds and not stopped

    @property
    def waiting_for(self) -> str:
        """One sentence for the operator; empty when nothing is being waited for."""
        if self.over:
            return ""
        paused = "paused: `koinon run resume` lets it go on" if self.status == "paused" else ""
        if self.gather is not None:
            return "; ".join(
                filter(None, (gather.sentence(self, self.next), gather.misfits(self), self._older))
            )
        if self.round is not None and not self.round.over:
            # A buffer never ends by itself while nobody is given work.
            paused = paused if self.round.buffered else ""
            misfits = gather.misfits(self) if self.round.stage == "joined" or self.round.buffered else ""
            return "; ".join(
                filter(None, (paused, self.round.waiting_for, self._alone, misfits, self._older))
            )
        return paused

    @property
    def _alone(self) -> str:
        """Of devices that are free, and given no work because a sum of so few would show them."""
        r = self.round
        if r is None or not (r.buffered and r.secure and r.gathers) or self.status != "running":
            return ""
        free = [
            c for c, s in self.devices.items() if s.ready and not s.misfit and c not in r.busy and r.gives(c)
        ]
        if not free or len(r.busy) >= r.terms.concurrency:
            return ""
        return (
            f"{len(free)} that are free wait for others: work is given to {r.terms.quorum} or more together"
        )

    @property
    def evaluating(self) -> int:
        """How many devices would evaluate the last model: those who did in the last round that evaluated. Of an
        asynchronous run that says little, whose rounds have work of others: those who are there."""
        here = [s for s in self.devices.values() if s.evaluates and not s.misfit] if self.spec.buffer else []
        return max(self.evaluators, len(here))

    @property
    def next(self) -> int:
        """The number of the next round."""
        return max(self.number, self.beyond) + 1

    @property
    def _older(self) -> str:
        if not self.ahead:
            return ""
        most = max(self.ahead, key=lambda client: self.ahead[client])
        return (
            f"{len(self.ahead)} devices ({most} first) have seen round {self.ahead[most]} of another history and stay "
            "away: this database is older than they are; restore the newest one, or let the run go on from here with "
            f"`koinon run recover {self.spec.name}`"
        )

    @property
    def wakes_at(self) -> float | None:
        """When a Tick is due, whatever else happens: a round's deadline or a device's lease."""
        if self.gather is not None and not self.over:
            return self.gather.until
        if self.over or self.round is None or self.round.over:
            return None
        if self.summing:
            return None  # whoever is late is late in the next round
        return min((t for t in (self.round.wakes_at, *self.leases.values()) if t is not None), default=None)

    def wants(self, client: str, round_: int, collection: str = "update", attempt: int = 0) -> bool:
        """Whether an answer of `client` in this collection of `round_` (an update) is still being waited for."""
        r = self.round
        return r is not None and r.round_of(client) == round_ and r.wants(client, collection, attempt)

    def holds(self, fact: Fact) -> bool:
        """Whether this must wait until the open round is summed: those who work for a buffer go on in the next one, and
        what they say meanwhile is about that."""
        return self.summing and isinstance(fact, Offered | Answered | Voiced | Resigned | Gone)

    @property
    def summing(self) -> bool:
        """Whether a buffer is being summed."""
        return self.round is not None and self.round.buffered and self.round.stage == "folding"

    def takes(self, client: str, round_: int) -> bool:
        """Whether the open round is where an answer of `client` to what `round_` asked belongs, wanted or not."""
        r = self.round
        if r is None or r.over:
            return r is not None and r.terms.round == round_
        return r.round_of(client) == round_ if client in r.taken else r.terms.round == round_


@dataclass(frozen=True, slots=True)
class Moved:
    """What a fact led to. `records` belong to the round that is `run.number`."""

    run: Run
    records: tuple[events.Event, ...] = ()
    orders: tuple[Order, ...] = ()

    def then(self, other: "Moved") -> "Moved":
        return Moved(other.run, self.records + other.records, self.orders + other.orders)


def rank(seed: int, round_: int, client: str) -> str:
    """The place of a device in a round's draw: devices with the smallest ranks are in. Uniform, and the same on
    every machine."""
    return sha256(f"{seed}/{round_}/{client}".encode())
