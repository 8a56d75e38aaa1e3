"""The machine of a run: `step(run, fact) -> Moved(run, records, orders)`.

It decides which devices are in a round, when the next one opens and when the run is over. `records` are the round's
events that must be durable before the orders are carried out; devices' comings and goings are not among them (after
a restart they come again by themselves).

    running <-> paused        running -> finished | failed        any -> cancelled
"""

from collections.abc import Mapping
from dataclasses import replace

from koinon_core.round import effects, events
from koinon_core.run.ending import asks_for_losses, go_on, watching
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
from koinon_core.run.feeding import eligible, engage, feed, is_work, renew
from koinon_core.run.giving import filled, left_waiting, offered_work
from koinon_core.run.opening import gathering, opening
from koinon_core.run.orders import Finish, Recall
from koinon_core.run.state import WORK, Moved, Run, Standing

__all__ = ["start", "step"]


def start(run: Run) -> Moved:
    """The first order of a new run, or of a run whose last round is over."""
    if run.status != "running" or run.gather is not None or (run.round is not None and not run.round.over):
        return Moved(run)
    return go_on(run)


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
            run = left_waiting(run, client, at)
            in_joined = run.round is not None and run.round.stage == "joined"
            return feed(run, events.Left(at, client, "GONE")) if in_joined else gathering(run, at)
        case Progressed(at, client):
            return Moved(renew(run, client, at))
        case Answered(at, client, number, digest):
            return _answered(run, at, client, number, events.Heard(at, client, "update", digest))
        case Voiced(at, client, number, attempt, collection, digest, missing):
            said = events.Voiced(at, client, collection, attempt, digest, missing)
            return _answered(run, at, client, number, said)
        case Resigned(at, client, number, code, detail):
            if not run.takes(client, number):
                return Moved(run)
            return filled(feed(run, events.Left(at, client, code, detail)), at)
        case Opening():
            return opening(run, fact)
        case Folded():
            if run.number != fact.round:
                return Moved(run)
            event = events.Folded(fact.at, fact.model, fact.state, fact.sum)
            # Where only some rounds evaluate, those who did in the last of them will again.
            due = run.spec.evaluates_in(run.number) if not run.spec.buffer else fact.evaluated > 0
            evaluators = fact.evaluated if due else run.evaluators
            run = replace(
                run, model=fact.model, down=fact.down, weights=fact.weights, evaluators=evaluators,
                tuning=fact.tuning or run.tuning,
            )  # fmt: skip
            run = watching(run, fact.watched)
            if asks_for_losses(run):
                run = replace(
                    run, scores={c: seen.loss for c, seen in fact.seen.items()}, evaluators=fact.evaluated
                )
            else:
                run = replace(run, seen={**run.seen, **fact.seen})
            return feed(run, event)
        case Unfoldable(at, number, reason, forgotten):
            return Moved(run) if run.number != number else feed(run, events.Unfoldable(at, reason, forgotten))
        case Spoiled(at, number, reason, blamed):
            if run.number != number:
                return Moved(run)
            moved = feed(run, events.Spoiled(at, reason))
            if moved.run.number == number and moved.run.round is not None and not moved.run.round.over:
                return moved  # the rest of the answers may open it
            return replace(moved, run=replace(moved.run, barred=moved.run.barred | set(blamed)))
        case Measured(_, number, value):
            run = watching(run, (number, value))
            if run.gather is not None and not run.trains:
                return go_on(replace(run, gather=None))  # no round is open whose end would say so
            return Moved(run)
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
            return filled(start(replace(run, status="running")), at) if run.status == "paused" else Moved(run)
        case Cancelled(at, reason):
            moved = Moved(replace(run, status="cancelled", reason=reason), (), ())
            if run.round is not None and not run.round.over:
                moved = feed(moved.run, events.Cancelled(at, reason))
            return moved.then(Moved(moved.run, (), (Finish("cancelled", reason),)))


def _offered(run: Run, fact: Offered) -> Moved:
    run = _follows(renew(run, fact.client, fact.at), fact.client)
    standing = Standing(
        ready=True, evaluates=fact.evaluates, held=fact.held, labels=fact.labels, able=fact.able,
        misfit=run.spec.selecting.misfit(fact.labels, fact.able, fact.evaluates), engaged=fact.engaged,
    )  # fmt: skip
    run = replace(run, devices={**run.devices, fact.client: standing})
    r = run.round
    if r is not None and r.buffered and r.gathers and fact.client not in r.cohort:
        return offered_work(run, r, fact)
    number = r.round_of(fact.client) if r is not None else 0
    if r is not None and r.awaits(fact.client) and (fact.engaged != number or not is_work(r, fact.client)):
        # It came back without the work that it had been given, or may not have heard what it is asked: say it again.
        orders = [effects.Ask(fact.client, r.stage)]
        if fact.engaged != number and not is_work(r, fact.client):
            orders.insert(0, effects.Ask(fact.client, WORK))  # it knows nothing of the round any more
        return Moved(engage(run, fact.client, fact.at), (), tuple(orders))
    return _welcome(run, fact.client, fact.at)


def _welcome(run: Run, client: str, at: float) -> Moved:
    """This device is ready, or not what it was: it may come into a round that waits for devices, or leave one."""
    r = run.round
    if r is not None and r.buffered:
        return filled(Moved(run), at)
    if r is None or r.stage != "joined":
        return gathering(run, at)
    if eligible(run, client):
        return feed(run, events.Heard(at, client, "joined"))
    if client in r.joined.heard:
        return feed(run, events.Left(at, client, "MISFIT", run.devices[client].misfit))
    return Moved(run)


def _labelled(run: Run, client: str, labels: Mapping[str, str], at: float) -> Moved:
    standing = run.devices.get(client)
    if standing is None:
        return Moved(run)  # it is not here, and says so with its next offer
    misfit = run.spec.selecting.misfit(labels, standing.able, standing.evaluates)
    devices = {**run.devices, client: replace(standing, labels=labels, misfit=misfit)}
    return _welcome(replace(run, devices=devices), client, at)


def _answered(run: Run, at: float, client: str, number: int, said: events.Event) -> Moved:
    run = renew(run, client, at)
    if not run.takes(client, number):
        return Moved(run, (), (Recall(client, number),))
    moved = filled(feed(run, said), at)
    r = moved.run.round
    if r is None or not r.secure or r.awaits(client):
        return moved
    # Until it is asked again, nothing is expected of it: its lease must not run out meanwhile.
    run = replace(moved.run, leases={c: t for c, t in moved.run.leases.items() if c != client})
    if client not in run.devices:  # it was cut off since
        run = left_waiting(run, client, at)
    return replace(moved, run=run)


def _tick(run: Run, at: float) -> Moved:
    moved = Moved(run)
    if run.summing:
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
        moved = moved.then(feed(replace(current, leases=rest), events.Left(at, client, "LEASE", lapsed)))
    if moved.run.gather is not None:
        return moved.then(gathering(moved.run, at))
    if moved.run.round is not None and not moved.run.round.over:
        moved = moved.then(feed(moved.run, events.Tick(at)))
    return filled(moved, at)


def _taken_up(run: Run, fact: TakenUp) -> Moved:
    """Everybody who is awaited gets a whole lease again: nobody could have renewed one while nobody was there."""
    r = run.round
    if r is None or r.over:
        return Moved(run)
    run = replace(run, returning=len(r.update.asked))
    open_ = r.collecting.awaited if r.collecting is not None and r.stage != "joined" else frozenset()
    if r.buffered:  # devices work on while a sum is taken, and those who wait for a session must come back
        open_ |= r.working | r.ready.keys()
    leases = dict.fromkeys(sorted(open_), fact.at + run.spec.lease)
    return feed(replace(run, leases=leases), events.TakenUp(fact.at, fact.away))


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
    moved = feed(replace(run, status="cancelled"), events.Cancelled(fact.at, "the run was recovered"))
    return moved.then(start(replace(moved.run, status=run.status)))
