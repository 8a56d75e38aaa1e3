"""Who is given work in a buffered round, which asks devices whenever they are free (koinon_core.round.buffered)."""

from dataclasses import replace

from koinon_core.round import buffered, events
from koinon_core.round.machine import Round
from koinon_core.round.taken import Taken
from koinon_core.run.facts import Offered
from koinon_core.run.feeding import eligible, feed, renew
from koinon_core.run.state import Moved, Run, rank

__all__ = ["at_work", "back", "filled", "left_waiting", "offered_work"]


def offered_work(run: Run, r: Round, fact: Offered) -> Moved:
    """A device of a buffered round came back for work, or from a cut."""
    client, at = fact.client, fact.at
    if client in r.ready:
        if fact.engaged == r.round_of(client):  # nothing is expected of it until it is asked for its shares
            return Moved(replace(run, leases={c: t for c, t in run.leases.items() if c != client}))
        return feed(run, events.Heard(at, client, "joined"))  # it has lost what it had done
    if r.awaits(client):
        lost = fact.engaged != r.round_of(client)  # its work, which it will not answer any more
        return feed(run, events.Heard(at, client, "joined")) if lost else Moved(run)
    if len(r.busy) < r.terms.concurrency and _still_works(run, client, at):
        return back(run, client, at)
    return filled(Moved(run), at)


def back(run: Run, client: str, at: float) -> Moved:
    """A device that fell silent is there again, and still has its work: it has its place again."""
    r = run.round
    assert r is not None
    run = renew(replace(run, leases={**run.leases, client: 0.0}), client, at)
    return feed(run, events.Carried(at, (r.taken[client],)))


def left_waiting(run: Run, client: str, at: float) -> Run:
    """A device that waits to be summed is gone: it has a lease to come back in."""
    r = run.round
    if r is None or client not in r.ready:
        return run
    return replace(run, leases={**run.leases, client: at + run.spec.lease})


def _still_works(run: Run, client: str, at: float) -> bool:
    """Whether a device that fell silent has said since that it has its work, and has time for it."""
    r = run.round
    if r is None or client not in r.silent or client not in run.devices:
        return False
    work = r.taken[client]
    return run.devices[client].engaged == work.round and work.since + r.terms.deadline > at


def at_work(
    run: Run, forgotten: frozenset[str] = frozenset()
) -> tuple[tuple[Taken, ...], tuple[tuple[str, str], ...]]:
    """What devices go on with that the last round, a buffered one, had not summed; and those of them who have done it,
    with the digests of their keys. Whose are `forgotten` says them again."""
    r = run.round
    if r is None or not r.buffered:
        return (), ()
    ready = tuple((c, digest) for c, digest in r.ready.items() if c in r.update.awaited - forgotten)
    return tuple(r.taken[c] for c in sorted(r.update.awaited)), ready


def filled(moved: Moved, at: float) -> Moved:
    """What follows in a buffered round: devices that are free get work, as long as there is room."""
    run, r = moved.run, moved.run.round
    if r is None or not r.buffered or not r.gathers or run.status != "running":
        return moved
    room = r.terms.concurrency - len(r.busy)
    free = [c for c in run.devices if eligible(run, c) and c not in r.busy and r.gives(c)] if room > 0 else []
    for client in [c for c in free if buffered.spent(r, c, at)]:
        free.remove(client)
        moved = moved.then(feed(moved.run, events.Heard(at, client, "joined")))  # it hears that it is late
    if moved.run.round is not r:
        return filled(moved, at)
    free = sorted(free, key=lambda c: rank(run.spec.seed, r.terms.round, c))[:room]
    free = _hidden(run, r, free, at)
    for client in free:
        # Whoever has its work still gets its place, and no other work.
        again = _still_works(moved.run, client, at)
        given = back(moved.run, client, at) if again else feed(moved.run, events.Heard(at, client, "joined"))
        moved = moved.then(given)
    if not free and buffered.stuck(r):
        moved = moved.then(feed(moved.run, events.Tick(at)))  # nobody is left to ask
    return moved


def _hidden(run: Run, r: Round, free: list[str], at: float) -> list[str]:
    """Those of the free devices that are given work now. Where only sums are seen, a sum is one of devices that had the
    same model: fewer than the quorum would wait for others in vain, so they wait for company first."""
    if not r.secure:
        return free
    again = [c for c in free if _still_works(run, c, at)]
    there = [c for c in (*r.working, *r.ready) if r.round_of(c) == r.terms.round]
    return free if len(there) + len(free) - len(again) >= r.terms.quorum else again
