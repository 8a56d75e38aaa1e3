"""How a round opens: its terms, and its first devices. Where a rule draws them of all who are there, they are gathered
before (koinon_core.run.gather); in a buffered round those who are at work go on."""

from dataclasses import replace

from koinon_core.canonical import digest_of
from koinon_core.flow.schedule import scheduled
from koinon_core.round import events
from koinon_core.round.terms import Kind, Terms
from koinon_core.run import gather
from koinon_core.run.ending import dismissed
from koinon_core.run.facts import Opening
from koinon_core.run.feeding import eligible, feed
from koinon_core.run.giving import at_work, filled
from koinon_core.run.state import Moved, Run, rank

__all__ = ["gathering", "opening"]


def opening(run: Run, fact: Opening) -> Moved:
    spec = run.spec
    if spec.selecting.gathers and run.kind == "train":
        return gathering(replace(run, gather=gather.begin(run, fact.incarnation)), fact.at)
    welcome = [c for c in run.devices if c not in run.barred and not run.devices[c].misfit]
    attached = [c for c in welcome if run.kind == "train" or run.devices[c].evaluates]
    # Before any model was made nobody knows how many will come: the first round waits a moment for whoever does.
    expected = max(len(attached), run.returning) if run.closed else spec.max_clients
    goal = spec.clients or min(spec.max_clients, max(spec.quorum, expected))
    quorum = spec.quorum
    if run.kind == "evaluate":
        # Those who evaluated in the round before: they will come, though after a restart none of them is here yet.
        asynchronous = spec.buffer and not spec.secure
        most = spec.max_clients if asynchronous else max(spec.devices, spec.selecting.d)
        goal = min(most, run.evaluating)
        quorum = spec.quorum if spec.aggregation == "secure" else 1
    terms = _terms(run, fact.incarnation, run.kind, goal, quorum)
    working, done = at_work(run, fact.forgotten)
    going_on, no_more = (working, ()) if terms.buffered else ((), dismissed(run))
    leases = {w.client: run.leases[w.client] for w in going_on if w.client in run.leases}
    run = replace(run, number=terms.round, round=None, leases=leases, returning=0)
    moved = feed(run, events.Opened(fact.at, terms))
    if terms.buffered:
        if going_on:
            moved = moved.then(feed(moved.run, events.Carried(fact.at, going_on, done)))
        return filled(moved, fact.at)
    moved = moved.then(Moved(moved.run, (), no_more))
    ready = [c for c in attached if eligible(run, c)]
    # Anyone may still come before `joined` closes, so a draw is due only where there are too many at once.
    for client in sorted(ready, key=lambda c: rank(spec.seed, terms.round, c))[: terms.invited]:
        moved = moved.then(feed(moved.run, events.Heard(fact.at, client, "joined")))
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
        most = spec.devices if terms.buffered else terms.invited
        terms = replace(terms, secure=spec.secure_terms(kind, tuning, most))
    return terms


def gathering(run: Run, at: float) -> Moved:
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
        return gathering(replace(run, gather=gather.begin(run, g.incarnation)), at)
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
    moved = feed(run, events.Opened(at, replace(terms, join_wait=0.0)))
    for client in drawn:
        moved = moved.then(feed(moved.run, events.Heard(at, client, "joined")))
    if len(drawn) < spec.quorum:
        short = (
            f"drew {len(drawn)} of {len(here)} devices, and min_clients needs {spec.quorum}: another is drawn"
        )
        return moved.then(feed(moved.run, events.Unfoldable(at, short)))
    if moved.run.round is not None and moved.run.round.stage == "joined":  # fewer than would have been asked
        moved = moved.then(feed(moved.run, events.Tick(at)))
    return moved
