"""How an event comes into a run's open round, and what the run makes of what the round wants then: who is at work,
whose lease runs, and what follows where the round ends."""

from dataclasses import replace

from koinon_core import history
from koinon_core.round import effects, events
from koinon_core.round.machine import Round
from koinon_core.round.machine import step as step_round
from koinon_core.run.ending import over
from koinon_core.run.state import Moved, Run

__all__ = ["eligible", "engage", "feed", "is_work", "renew"]

_LINKS = 8  # of the history, at hand for the next Ask


def feed(run: Run, event: events.Event) -> Moved:
    """Give the open round an event; it is a record if it changed the round."""
    round_, did = step_round(run.round, event)
    records = (event,) if round_ is not run.round else ()
    run = replace(run, round=round_)
    for effect in did:
        match effect:
            case effects.Ask(client):
                run = engage(run, client, event.at)  # of the round as it is now
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
    return Moved(run, records, did).then(over(run, closes[0]))


def engage(run: Run, client: str, at: float) -> Run:
    """This device is asked for something. For work it must be free; what it has to say in a session it says whatever
    else it does, and it stays ready for the next round."""
    devices = dict(run.devices)
    if client in devices and run.round is not None and is_work(run.round, client):
        devices[client] = replace(devices[client], ready=False)
    return renew(replace(run, devices=devices, leases={client: 0.0, **run.leases}), client, at)


def renew(run: Run, client: str, at: float) -> Run:
    """A device that is waited for shows a sign of life."""
    if client not in run.leases:
        return run
    # What was said earlier and read later takes nothing back.
    return replace(run, leases={**run.leases, client: max(run.leases[client], at + run.spec.lease)})


def is_work(r: Round, client: str) -> bool:
    """Whether what is awaited of a device is its work itself, which it has been given and will answer when it is
    done."""
    if r.buffered:
        return client in r.working
    return r.stage == "update" or (r.stage == "keys" and not r.masking.attempt)


def eligible(run: Run, client: str) -> bool:
    """Whether an attached device may be in the next round, and is free for it."""
    standing = run.devices[client]
    if client in run.barred or standing.misfit:
        return False
    return standing.ready and (run.kind == "train" or standing.evaluates)
