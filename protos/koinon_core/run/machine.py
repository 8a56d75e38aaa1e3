"""The machine of a run: `step(run, fact) -> Moved(run, records, orders)`.

It decides which devices are in a round, when the next one opens and when the run is over. `records` are the round's
events that must be durable before the orders are carried out; devices' comings and goings are not among them (after
a restart they come again by themselves).

    running <-> paused        running -> finished | failed        any -> cancelled
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from koinon_core import history
from koinon_core.canonical import digest_of, sha256
from koinon_core.flow.best import Found
from koinon_core.flow.schedule import scheduled
from koinon_core.round import buffered, effects, events
from koinon_core.round.machine import Round
from koinon_core.round.machine import step as step_round
from koinon_core.round.taken import Taken
from koinon_core.round.terms import Kind, Terms
from koinon_core.run import gather
from koinon_core.run.facts import (
    Ahead,
    Answered,
    Cancelled,
    Fact,
    Folded,
    Gone,
    Labelled,
    Measured,
    Offered,
    Opening,
    Paused,
    Progressed,
    Recovered,
    Resigned,
    Resumed,
    Spoiled,
    TakenUp,
    Tick,
    Unfoldable,
    Voiced,
)  # fmt: skip
from koinon_core.run.gather import Gather
from koinon_core.run.orders import Finish, Open, Order, Recall, Status
from koinon_core.selection.traits import Seen
from koinon_core.spec import RunSpec

__all__ = ["WORK", "Moved", "Run", "Standing", "rank", "start", "step"]


WORK = "work"
"""What is asked of a device that has lost what it was given for a round whose first collection is over."""
_LINKS = 8  # of the history, at hand for the next Ask


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
            return "; ".join(filter(None, (paused, self.round.waiting_for, misfits, self._older)))
        return paused

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
        if self.round.buffered and self.round.stage == "folding":
            return None  # whoever is late is late in the next round
        return min((t for t in (self.round.wakes_at, *self.leases.values()) if t is not None), default=None)

    def wants(self, client: str, round_: int, collection: str = "update", attempt: int = 0) -> bool:
        """Whether an answer of `client` in this collection of `round_` (an update) is still being waited for."""
        r = self.round
        return (
            r is not None and r.round_of(client) == round_ and r.hears(client) and r.masking.attempt == attempt
            and (r.stage == collection or (r.buffered and collection == "update"))
        )  # fmt: skip

    def holds(self, fact: Fact) -> bool:
        """Whether this must wait until the open round is summed: those who work for a buffer go on in the next one, and
        what they say meanwhile is about that."""
        return (
            self.round is not None and self.round.buffered and self.round.stage == "folding"
            and isinstance(fact, Offered | Answered | Resigned | Gone)
        )  # fmt: skip

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


def start(run: Run) -> Moved:
    """The first order of a new run, or of a run whose last round is over."""
    if run.status != "running" or run.gather is not None or (run.round is not None and not run.round.over):
        return Moved(run)
    return _next(run)


def step(run: Run, fact: Fact) -> Moved:
    """The run after `fact`. A run that is over no longer moves."""
    if run.over:
        return Moved(run)
    match fact:
        case Offered():
            return _offered(run, fact)
        case Labelled(at, client, labels):
            return _labelled(run, client, labels, at)
        case Gone(at, client):
            run = _follows(
                replace(run, devices={c: s for c, s in run.devices.items() if c != client}), client
            )
            in_joined = run.round is not None and run.round.stage == "joined"
            return _feed(run, events.Left(at, client, "GONE")) if in_joined else _gathering(run, at)
        case Progressed(at, client):
            return Moved(_renew(run, client, at))
        case Answered(at, client, number, digest):
            return _answered(run, at, client, number, events.Heard(at, client, "update", digest))
        case Voiced(at, client, number, attempt, collection, digest, missing):
            said = events.Voiced(at, client, collection, attempt, digest, missing)
            return _answered(run, at, client, number, said)
        case Resigned(at, client, number, code, detail):
            if not run.takes(client, number):
                return Moved(run)
            return _filled(_feed(run, events.Left(at, client, code, detail)), at)
        case Opening():
            return _opening(run, fact)
        case Folded():
            if run.number != fact.round:
                return Moved(run)
            event = events.Folded(fact.at, fact.model, fact.state, fact.sum)
            # Where only some rounds evaluate, those who did in the last of them will again.
            evaluators = fact.evaluated if run.spec.evaluates_in(run.number) else run.evaluators
            run = replace(
                run, model=fact.model, down=fact.down, weights=fact.weights, evaluators=evaluators,
                tuning=fact.tuning or run.tuning, best=_better(run, fact.watched),
            )  # fmt: skip
            if _asking(run):
                run = replace(
                    run, scores={c: seen.loss for c, seen in fact.seen.items()}, evaluators=fact.evaluated
                )
            else:
                run = replace(run, seen={**run.seen, **fact.seen})
            return _feed(run, event)
        case Unfoldable(at, number, reason):
            return Moved(run) if run.number != number else _feed(run, events.Unfoldable(at, reason))
        case Spoiled(at, number, reason, blamed):
            if run.number != number:
                return Moved(run)
            moved = _feed(run, events.Spoiled(at, reason))
            if moved.run.number == number and moved.run.round is not None and not moved.run.round.over:
                return moved  # the rest of the answers may open it
            return replace(moved, run=replace(moved.run, barred=moved.run.barred | set(blamed)))
        case Measured(_, number, value):
            # It comes late, and perhaps not in order: the rounds' order is what counts, as for who takes the run up.
            measured = {**run.measured, number: value}
            best = run.spec.watch.over(sorted(measured.items())) if run.spec.watch is not None else None
            return Moved(replace(run, measured=measured, best=best))
        case Tick(at):
            return _tick(run, at)
        case TakenUp():
            return _taken_up(run, fact)
        case Ahead(_, client, number):
            return Moved(replace(run, ahead={**run.ahead, client: number}))
        case Recovered():
            return _recovered(run, fact)
        case Paused():
            return Moved(replace(run, status="paused", gather=None))
        case Resumed(at):
            return (
                _filled(start(replace(run, status="running")), at) if run.status == "paused" else Moved(run)
            )
        case Cancelled(at, reason):
            moved = Moved(replace(run, status="cancelled", reason=reason), (), ())
            if run.round is not None and not run.round.over:
                moved = _feed(moved.run, events.Cancelled(at, reason))
            return moved.then(Moved(moved.run, (), (Finish("cancelled", reason),)))


def _feed(run: Run, event: events.Event) -> Moved:
    """Give the open round an event; it is a record if it changed the round."""
    round_, did = step_round(run.round, event)
    records = (event,) if round_ is not run.round else ()
    run = replace(run, round=round_)
    for effect in did:
        match effect:
            case effects.Ask(client):
                run = _engage(run, client, event.at)  # of the round as it is now
            case effects.Receipt(client, _, "COUNTED" | "NOT_COUNTED") | effects.Cancel(client):
                run = replace(run, leases={c: t for c, t in run.leases.items() if c != client})
    closes = [e for e in did if isinstance(e, effects.Close)]
    if not closes:
        return Moved(run, records, did)
    assert round_ is not None
    link = history.link_of(round_)
    links = {**run.links, run.number: link}
    newest = {number: links[number] for number in sorted(links)[-_LINKS:]}
    run = replace(run, head=history.extend(run.head, link), links=newest)
    return Moved(run, records, did).then(_over(run, closes[0]))


def _engage(run: Run, client: str, at: float) -> Run:
    """This device is asked for something. For work it must be free; what it has to say in a session it says whatever
    else it does, and it stays ready for the next round."""
    devices = dict(run.devices)
    if client in devices and run.round is not None and _is_work(run.round):
        devices[client] = replace(devices[client], ready=False)
    return _renew(replace(run, devices=devices, leases={client: 0.0, **run.leases}), client, at)


def _renew(run: Run, client: str, at: float) -> Run:
    if client not in run.leases:
        return run
    # What was said earlier and read later takes nothing back.
    return replace(run, leases={**run.leases, client: max(run.leases[client], at + run.spec.lease)})


def _offered(run: Run, fact: Offered) -> Moved:
    run = _follows(_renew(run, fact.client, fact.at), fact.client)
    standing = Standing(
        ready=True, evaluates=fact.evaluates, held=fact.held, labels=fact.labels, able=fact.able,
        misfit=run.spec.selecting.misfit(fact.labels, fact.able, fact.evaluates), engaged=fact.engaged,
    )  # fmt: skip
    run = replace(run, devices={**run.devices, fact.client: standing})
    r = run.round
    if r is not None and r.buffered and r.stage == "update":
        return _offered_work(run, r, fact)
    if r is not None and r.awaits(fact.client) and (fact.engaged != run.number or not _is_work(r)):
        # It came back without the work that it had been given, or may not have heard what it is asked: say it again.
        orders = [effects.Ask(fact.client, r.stage)]
        if fact.engaged != run.number and not _is_work(r):
            orders.insert(0, effects.Ask(fact.client, WORK))  # it knows nothing of the round any more
        return Moved(_engage(run, fact.client, fact.at), (), tuple(orders))
    return _welcome(run, fact.client, fact.at)


def _welcome(run: Run, client: str, at: float) -> Moved:
    """This device is ready, or not what it was: it may come into a round that waits for devices, or leave one."""
    r = run.round
    if r is not None and r.buffered:
        return _filled(Moved(run), at)
    if r is None or r.stage != "joined":
        return _gathering(run, at)
    if _eligible(run, client):
        return _feed(run, events.Heard(at, client, "joined"))
    if client in r.joined.heard:
        return _feed(run, events.Left(at, client, "MISFIT", run.devices[client].misfit))
    return Moved(run)


def _labelled(run: Run, client: str, labels: Mapping[str, str], at: float) -> Moved:
    standing = run.devices.get(client)
    if standing is None:
        return Moved(run)  # it is not here, and says so with its next offer
    misfit = run.spec.selecting.misfit(labels, standing.able, standing.evaluates)
    devices = {**run.devices, client: replace(standing, labels=labels, misfit=misfit)}
    return _welcome(replace(run, devices=devices), client, at)


def _back(run: Run, client: str, at: float) -> Moved:
    """A device that fell silent is there again, and still has its work: it has its place again."""
    r = run.round
    assert r is not None
    run = _renew(replace(run, leases={**run.leases, client: 0.0}), client, at)
    return _feed(run, events.Carried(at, (r.taken[client],)))


def _still_works(run: Run, client: str, at: float) -> bool:
    """Whether a device that fell silent has said since that it has its work, and has time for it."""
    r = run.round
    if r is None or client not in r.silent or client not in run.devices:
        return False
    work = r.taken[client]
    return run.devices[client].engaged == work.round and work.since + r.terms.deadline > at


def _eligible(run: Run, client: str) -> bool:
    standing = run.devices[client]
    if client in run.barred or standing.misfit:
        return False
    return standing.ready and (run.kind == "train" or standing.evaluates)


def _is_work(r: Round) -> bool:
    """Whether what is awaited is a device's work itself, which it has been given and will answer when it is done."""
    return r.stage == "update" or (r.stage == "keys" and not r.masking.attempt)


def _answered(run: Run, at: float, client: str, number: int, said: events.Event) -> Moved:
    run = _renew(run, client, at)
    if not run.takes(client, number):
        return Moved(run, (), (Recall(client, number),))
    moved = _filled(_feed(run, said), at)
    r = moved.run.round
    if r is None or not r.secure or r.awaits(client):
        return moved
    # Until it is asked again, nothing is expected of it: its lease must not run out meanwhile.
    leases = {c: t for c, t in moved.run.leases.items() if c != client}
    return replace(moved, run=replace(moved.run, leases=leases))


def _tick(run: Run, at: float) -> Moved:
    moved = Moved(run)
    if run.round is not None and run.round.buffered and run.round.stage == "folding":
        return moved
    for client in sorted(c for c, until in run.leases.items() if until <= at):
        current = moved.run
        if current.round is None or current.round.over:
            break
        rest = {c: t for c, t in current.leases.items() if c != client}
        if client in current.devices:  # whatever it said is as old as its lease
            there = replace(current.devices[client], engaged=0)
            current = replace(current, devices={**current.devices, client: there})
        lapsed = f"nothing was heard of it for {run.spec.lease:g} s"
        moved = moved.then(_feed(replace(current, leases=rest), events.Left(at, client, "LEASE", lapsed)))
    if moved.run.gather is not None:
        return moved.then(_gathering(moved.run, at))
    if moved.run.round is not None and not moved.run.round.over:
        moved = moved.then(_feed(moved.run, events.Tick(at)))
    return _filled(moved, at)


def _taken_up(run: Run, fact: TakenUp) -> Moved:
    """Everybody who is awaited gets a whole lease again: nobody could have renewed one while nobody was there."""
    r = run.round
    if r is None or r.over:
        return Moved(run)
    run = replace(run, returning=len(r.update.asked))
    open_ = r.collecting if r.stage != "joined" else None
    if r.buffered:  # devices work on while a sum is taken
        open_ = r.update
    leases = dict.fromkeys(open_.awaited, fact.at + run.spec.lease) if open_ is not None else {}
    return _feed(replace(run, leases=leases), events.TakenUp(fact.at, fact.away))


def _follows(run: Run, client: str) -> Run:
    """A device that is gone, or offers itself again, is not one that stays away."""
    if client not in run.ahead:
        return run
    return replace(run, ahead={c: n for c, n in run.ahead.items() if c != client})


def _recovered(run: Run, fact: Recovered) -> Moved:
    """The open round, which some devices know otherwise, is abandoned; the next one's number is new to everybody."""
    beyond = max(fact.beyond, run.number, *run.ahead.values())
    # And what devices remember of the history that is given up, they may forget.
    run = replace(
        run, recovery=run.recovery + 1, beyond=beyond, ahead={}, remembered=run.number, gather=None, scores={}
    )
    if run.round is None or run.round.over:
        return start(run)
    # A run that is cancelled neither counts the end of its round nor opens another.
    moved = _feed(replace(run, status="cancelled"), events.Cancelled(fact.at, "the run was recovered"))
    return moved.then(start(replace(moved.run, status=run.status)))


# -- from round to round --------------------------------------------------------------------------------------


def _opening(run: Run, fact: Opening) -> Moved:
    spec = run.spec
    if spec.selecting.gathers and run.kind == "train":
        return _gathering(replace(run, gather=gather.begin(run, fact.incarnation)), fact.at)
    welcome = [c for c in run.devices if c not in run.barred and not run.devices[c].misfit]
    attached = [c for c in welcome if run.kind == "train" or run.devices[c].evaluates]
    # Before any model was made nobody knows how many will come: the first round waits a moment for whoever does.
    expected = max(len(attached), run.returning) if run.closed else spec.max_clients
    goal = spec.clients or min(spec.max_clients, max(spec.quorum, expected))
    quorum = spec.quorum
    if run.kind == "evaluate":
        # Those who evaluated in the round before: they will come, though after a restart none of them is here yet.
        goal = min(max(spec.devices, spec.selecting.d), run.evaluators)
        quorum = spec.quorum if spec.aggregation == "secure" else 1
    terms = _terms(run, fact.incarnation, run.kind, goal, quorum)
    at_work = _at_work(run)
    going_on = at_work if terms.buffered else ()
    leases = {w.client: run.leases[w.client] for w in going_on if w.client in run.leases}
    run = replace(run, number=terms.round, round=None, leases=leases, returning=0)
    moved = _feed(run, events.Opened(fact.at, terms))
    if terms.buffered:
        if going_on:
            moved = moved.then(_feed(moved.run, events.Carried(fact.at, going_on)))
        return _filled(moved, fact.at)
    no_more = tuple(effects.Cancel(w.client, w.round, "the run needs no more updates") for w in at_work)
    moved = moved.then(Moved(moved.run, (), no_more))
    ready = [c for c in attached if _eligible(run, c)]
    # Anyone may still come before `joined` closes, so a draw is due only where there are too many at once.
    for client in sorted(ready, key=lambda c: rank(spec.seed, terms.round, c))[: terms.invited]:
        moved = moved.then(_feed(moved.run, events.Heard(fact.at, client, "joined")))
    return moved


def _offered_work(run: Run, r: Round, fact: Offered) -> Moved:
    """A device of a buffered round came back for work, or from a cut."""
    client, at = fact.client, fact.at
    if r.awaits(client):
        lost = fact.engaged != r.round_of(client)  # its work, which it will not answer any more
        return _feed(run, events.Heard(at, client, "joined")) if lost else Moved(run)
    if len(r.update.awaited) < r.terms.concurrency and _still_works(run, client, at):
        return _back(run, client, at)
    return _filled(Moved(run), at)


def _at_work(run: Run) -> tuple[Taken, ...]:
    """What devices go on with that the last round, a buffered one, had not heard."""
    r = run.round
    return tuple(r.taken[c] for c in sorted(r.update.awaited)) if r is not None and r.buffered else ()


def _filled(moved: Moved, at: float) -> Moved:
    """What follows in a buffered round: devices that are free get work, as long as there is room."""
    run, r = moved.run, moved.run.round
    if r is None or not r.buffered or r.stage != "update" or run.status != "running":
        return moved
    room = r.terms.concurrency - len(r.update.awaited)
    busy = r.update.awaited
    free = [c for c in run.devices if _eligible(run, c) and c not in busy and r.gives(c)] if room > 0 else []
    for client in sorted(free, key=lambda c: rank(run.spec.seed, r.terms.round, c))[:room]:
        # Whoever has its work still gets its place, and no other work.
        again = _still_works(moved.run, client, at)
        given = (
            _back(moved.run, client, at) if again else _feed(moved.run, events.Heard(at, client, "joined"))
        )
        moved = moved.then(given)
    if not free and buffered.stuck(r):
        moved = moved.then(_feed(moved.run, events.Tick(at)))  # nobody is left to ask
    return moved


def _terms(run: Run, incarnation: str, kind: Kind, goal: int, quorum: int) -> Terms:
    """The terms of the next round."""
    spec = run.spec
    terms = Terms(
        run=run.id, round=run.next, incarnation=incarnation, kind=kind,
        aggregation=spec.aggregation, groups=spec.groups, goal=goal, quorum=quorum,
        over_selection=spec.over_selection, join_wait=spec.join_wait, deadline=spec.deadline,
        schema=spec.model.digest, strategy=spec.recipe_digest, model=run.model, down=run.down, codec=spec.codec,
        weights=run.weights, sections=digest_of(list(spec.sections)) if spec.sections else "",
        max_examples=spec.max_examples, bound=spec.bound, grid=spec.grid, seed=spec.seed,
        config=scheduled(spec.config, run.closed, spec.rounds), head=run.head, recovery=run.recovery,
        patience=spec.lease if kind == "evaluate" else 0.0,
    )  # fmt: skip
    if spec.buffer and kind == "train":
        most = spec.concurrency or spec.max_clients
        terms = replace(
            terms, goal=spec.buffer, concurrency=most, staleness=spec.staleness, version=run.closed
        )
    if spec.aggregation == "secure":
        # After a round that came to nothing, perhaps because it was sized too tightly, one that cannot be.
        tuning = "" if run.streak else run.tuning
        terms = replace(terms, secure=spec.secure_terms(kind, tuning, terms.invited))
    return terms


def _gathering(run: Run, at: float) -> Moved:
    """Draw the next round, if its devices are here or were waited for; nothing where none is gathered for."""
    g = run.gather
    if g is None:
        return Moved(run)
    here, least = gather.present(run), gather.enough(run)
    if len(here) < least and not run.scores:
        return Moved(replace(run, gather=replace(g, until=None)))
    if not gather.complete(run, here):
        until = at + run.spec.join_wait if g.until is None else g.until
        if at < until:
            return Moved(replace(run, gather=replace(g, until=until)))
    if len(here) < least:  # who was asked for a loss did not come back: ask others
        run = replace(run, scores={})
        return _gathering(replace(run, gather=gather.begin(run, g.incarnation)), at)
    return _draw(run, g.incarnation, at, here)


def _draw(run: Run, incarnation: str, at: float, here: list[str]) -> Moved:
    """Open the next round for devices that are drawn of those who are here: all of them at once, and nobody else."""
    spec = run.spec
    asking = spec.selecting.asks and not run.scores
    drawn = gather.draw(run, here, run.next)
    # Where too few were drawn, nobody may be asked: the round's goal stays out of reach.
    goal = gather.size(run, len(drawn), asking)
    terms = _terms(run, incarnation, "evaluate" if asking else "train", max(goal, spec.quorum), spec.quorum)
    # Those who were asked for losses say nothing of who else may be there.
    gathered = run.gathered or not run.scores
    run = replace(
        run, number=terms.round, round=None, leases={}, returning=0, gather=None, gathered=gathered, scores={}
    )
    moved = _feed(run, events.Opened(at, replace(terms, join_wait=0.0)))
    for client in drawn:
        moved = moved.then(_feed(moved.run, events.Heard(at, client, "joined")))
    if len(drawn) < spec.quorum:
        short = (
            f"drew {len(drawn)} of {len(here)} devices, and min_clients needs {spec.quorum}: another is drawn"
        )
        return moved.then(_feed(moved.run, events.Unfoldable(at, short)))
    if moved.run.round is not None and moved.run.round.stage == "joined":  # fewer than would have been asked
        moved = moved.then(_feed(moved.run, events.Tick(at)))
    return moved


def _asking(run: Run) -> bool:
    """Whether the round asks for losses, by which those of the next one are chosen."""
    return run.kind == "train" and run.round is not None and run.round.terms.kind == "evaluate"


def _short(run: Run) -> bool:
    """Whether the round ended because too few were drawn: that is chance, and nobody's failure."""
    return run.spec.selecting.rule == "poisson" and run.round is not None and not run.round.update.asked


def _over(run: Run, close: effects.Close) -> Moved:
    """A round ended: count it, and open the next or finish."""
    if run.status == "cancelled":
        return Moved(run)
    if run.kind == "evaluate":
        return _finish(run, "finished", _told(run))
    if _asking(run):
        run = replace(run, streak=run.streak if close.counted else run.streak + 1)
    elif not _short(run):
        run = replace(
            run,
            closed=run.closed + close.counted,
            streak=0 if close.counted else run.streak + 1,
        )
    if run.streak >= run.spec.patience:
        return _finish(
            run, "failed", f"{run.streak} rounds in a row were abandoned; the last one {close.reason}"
        )
    # Those who work for a buffer answer into the next one; while the run is paused nobody is given more work.
    return _next(run) if run.status == "running" or (run.spec.buffer and run.trains) else Moved(run)


def _better(run: Run, watched: tuple[int, float] | None) -> Found | None:
    best = run.spec.watch
    return run.best if best is None or watched is None else best.after(run.best, *watched)


def _next(run: Run) -> Moved:
    if run.trains:
        return Moved(run, (), (Open(max(run.number, run.beyond) + 1),))
    fewest = run.spec.quorum if run.spec.aggregation == "secure" else 1
    if run.spec.evaluate and run.kind == "train" and run.evaluators >= fewest:
        return Moved(replace(run, kind="evaluate"), (), (Open(max(run.number, run.beyond) + 1),))
    return _finish(run, "finished", _told(run))


def _told(run: Run) -> str:
    best = run.spec.watch
    early = best is not None and best.ends(run.best) and run.closed < run.spec.rounds
    why = f" early: {best.sentence(run.best)}" if early and best is not None and run.best is not None else ""
    return f"{run.closed} rounds closed{why}"


def _finish(run: Run, status: Status, reason: str) -> Moved:
    return Moved(replace(run, status=status, reason=reason), (), (Finish(status, reason),))
