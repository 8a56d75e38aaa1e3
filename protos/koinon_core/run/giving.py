"""Who is given work in a buffered round, which asks devices whenever they are free (koinon_core.round.buffered)."""

from dataclasses import replace

from koinon_core.round import buffered, events
from koinon_core.round.machine import Round
from koinon_core.round.taken import Taken
from koinon_core.run.facts import Offered
from koinon_core.run.feeding import eligible, feed, renew
from koinon_core.run.state import Moved, Run, rank

__all__ = ["at_work", "back", "filled", "offered_work"]


def offered_work(run: Run, r: Round, fact: Offered) -> Moved:
    """A device of a buffered round came back for work, or from a cut."""
    client, at = fact.client, fact.at
    if r.awaits(client):
        lost = fact.engaged != r.round_of(client)  # its work, which it will not answer any more
        return feed(run, events.Heard(at, client, "joined")) if lost else Moved(run)
    if len(r.update.awaited) < r.terms.concurrency and _still_works(run, client, at):
        return back(run, client, at)
    return filled(Moved(run), at)


def back(run: Run, client: str, at: float) -> Moved:
    """A device that fell silent is there again, and still has its work: it has its place again."""
    r = run.round
    assert r is not None
    run = renew(replace(run, leases={**run.leases, client: 0.0}), client, at)
    return feed(run, events.Carried(at, (r.taken[client],)))


def _still_works(run: Run, client: str, at: float) -> bool:
    """Whether a device that fell silent has said since that it has its work, and has time for it."""
    r = run.round
    if r is None or client not in r.silent or client not in run.devices:
        return False
    work = r.taken[client]
    return run.devices[client].engaged == work.round and work.since + r.terms.deadline > at


def at_work(run: Run) -> tuple[Taken, ...]:
    """What devices go on with that the last round, a buffered one, had not heard."""
    r = run.round
    return tuple(r.taken[c] for c in sorted(r.update.awaited)) if r is not None and r.buffered else ()


def filled(moved: Moved, at: float) -> Moved:
    """What follows in a buffered round: devices that are free get work, as long as there is room."""
    run, r = moved.run, moved.run.round
    if r is None or not r.buffered or r.stage != "update" or run.status != "running":
        return moved
    room = r.terms.concurrency - len(r.update.awaited)
    busy = r.update.awaited
    free = [c for c in run.devices if eligible(run, c) and c not in busy and r.gives(c)] if room > 0 else []
    for client in sorted(free, key=lambda c: rank(run.spec.seed, r.terms.round, c))[:room]:
        # Whoever has its work still gets its place, and no other work.
        again = _still_works(moved.run, client, at)
        given = back(moved.run, client, at) if again else feed(moved.run, events.Heard(at, client, "joined"))
        moved = moved.then(given)
    if not free and buffered.stuck(r):
        moved = moved.then(feed(moved.run, events.Tick(at)))  # nobody is left to ask
    return moved
