"""The coordinator's half of a secure round, from its keys on: sessions of SA-1 (koinon_core.secagg), in lock-step.

    joined -> keys -> shares -> masked -> consistent -> reveal -> folding -> closed

What devices say is opaque here: an event has its digest. The graph of who shares secrets with whom follows from the
digests of the advertisements, so a restarted coordinator finds the same one. A collection is enough when every device
whose secret will be needed has enough of its neighbours there; it waits for all of its devices until its deadline, but
for `keys`, which waits for the round's goal, and `reveal`, which needs no more than enough.

Where a rule is taken between the sums of groups, enough groups must be left too.

Where it is not enough before `reveal`, those who are left begin again with fresh keys (the same encoded updates,
another attempt), as often as the terms say. Once anybody has been asked to reveal, never: two sums over nearly the same
devices would show the difference.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from koinon_core.round.effects import Ask, Fold, Receipt
from koinon_core.round.ending import abandon, late, refuse
from koinon_core.round.events import Left, Spoiled, Voiced
from koinon_core.round.state import MASKED_STAGES, Collection, Effects, Masking, Round
from koinon_core.secagg.cohort import Cohort, form

__all__ = ["ask", "begin", "left", "spoiled", "tick", "voiced"]

_SILENT = "it did not answer in time"
_CHECKS = 64  # how often, over a collection, it is looked whether there is enough: each costs the whole graph


def ask(r: Round, at: float) -> tuple[Round, Effects]:
    """`joined` is over: ask for the work and, as its first word, fresh keys."""
    asked = frozenset(r.joined.heard)
    wait = r.terms.deadline if r.terms.secure["keys"] == "ready" else r.terms.secure["phase"]
    masking = Masking(now=Collection(asked=asked, deadline=at + wait))
    goal = min(r.terms.goal, len(asked))
    r = replace(r, stage="keys", update=Collection(asked=asked), goal=goal, asked_at=at, masking=masking)
    return r, _asks(asked, "keys")


def begin(r: Round, at: float) -> tuple[Round, Effects]:
    """A session of those whose keys are here."""
    return _keys_in(r, at)


def voiced(r: Round, event: Voiced) -> tuple[Round, Effects]:
    """A device answered. What is about another attempt or collection changes nothing: it is an echo, or too late."""
    client, m = event.client, r.masking
    if client not in r.update.asked:
        return r, refuse(r, client, "this device was not asked in this round")
    if r.stage == "closed" and client in r.update.heard:
        return r, (Receipt(client, r.round_of(client), "COUNTED"),)
    if r.stage == "abandoned":
        return r, refuse(r, client, f"round {r.terms.round} {r.reason}")
    if client in r.update.left:
        return r, refuse(r, client, r.update.left[client])
    now = (r.stage, m.attempt) if r.stage in MASKED_STAGES else None
    if (event.collection, event.attempt) != now or client not in m.now.awaited:
        staged = event.collection == "masked" and r.update.heard.get(client) == event.digest
        return r, (Receipt(client, r.round_of(client), "STAGED"),) if staged else ()
    m = replace(m, now=m.now.hear(client, event.digest))
    told: Effects = ()
    if r.stage == "masked":
        m = replace(m, missing={**m.missing, client: event.missing})
        r = replace(r, update=r.update.hear(client, event.digest))
        told = (Receipt(client, r.round_of(client), "STAGED"),)
    r, effects = _settle(replace(r, masking=m), event.at)
    return r, (*told, *effects)


def left(r: Round, event: Left) -> tuple[Round, Effects]:
    """A device will not answer. One whose masked update is in the sum stays in it."""
    m = r.masking
    if event.client not in m.now.awaited:
        return r, ()
    reason = event.detail or event.code
    r = replace(r, masking=replace(m, now=m.now.lose(event.client, reason)))
    told: Effects = ()
    if event.client not in r.update.heard:
        r, told = _lose(r, [event.client], reason)
    r, effects = _settle(r, event.at)
    return r, (*told, *effects)


def tick(r: Round, at: float) -> tuple[Round, Effects]:
    """Time is up for the collection that is open."""
    return _settle(r, at, due=True)


def spoiled(r: Round, event: Spoiled) -> tuple[Round, Effects]:
    """The answers at hand do not open the sum: wait for the rest of them, or give up."""
    m = r.masking
    if r.stage != "folding":
        return r, ()
    if m.thorough or not m.now.awaited:
        return _never_opened(r, event.at, event.reason)
    r = replace(r, stage="reveal", folding_at=None, masking=replace(m, thorough=True))
    return r, _asks(m.now.awaited, "reveal")


# -- when a collection is over --------------------------------------------------------------------------------


def _settle(r: Round, at: float, due: bool = False) -> tuple[Round, Effects]:
    """Close the open collection if it is time to, and go on, begin again, or end the round."""
    now, over = r.masking.now, due or not r.masking.now.awaited
    match r.stage:
        case "keys":
            goal = len(now.asked) if r.buffered else r.goal
            if len(now.heard) >= goal or (over and r.enough(now.heard)):
                return _keys_in(r, at)
            if over or not r.enough(now.heard.keys() | now.awaited):
                n, quorum = len(now.heard), r.terms.quorum
                return _give_up(r, at, f"lost its quorum: {n} of at least {quorum} devices were ready")
            return r, ()
        case "shares":
            if not over and _possible(r, _sharing):
                return r, ()
            return _shares_in(r, at, due)
        case "masked":
            if not over and _possible(r, _opening):
                return r, ()
            return _masked_in(r, at, due)
        case "consistent":
            if not over and _possible(r, _opening):
                return r, ()
            return _agreed(r, at)
        case _:
            return _revealed(r, at, over)


def _keys_in(r: Round, at: float) -> tuple[Round, Effects]:
    m, s = r.masking, r.terms.secure
    leaves = dict(m.now.heard)
    cohorts = form(
        leaves, groups=r.terms.groups, least=least(r), gamma=s["gamma"], delta=s["delta"], sigma=s["sigma"],
        eta=s["eta"], hardened=s["hardened"],
    )  # fmt: skip
    r, late_ = _lose(replace(r, update=replace(r.update, heard={})), _still(r) - leaves.keys(), late(r))
    if _few(r, cohorts):
        made = f"{len(cohorts)} of at least {_sums(r)} groups" if cohorts else "no group"
        return _then(late_, _give_up(r, at, f"made {made} of at least {least(r)} devices that may drop out"))
    members = _members(cohorts)
    r, small = _lose(r, leaves.keys() - members, "there were too few devices for its group")
    m = replace(m, cohorts=cohorts, leaves=leaves, shares=frozenset(), missing={}, signed=frozenset())
    return _then((*late_, *small), _go_on(replace(r, masking=m), "shares", members, at + s["phase"]))


def _shares_in(r: Round, at: float, due: bool) -> tuple[Round, Effects]:
    """U2: whose shares are here. A group goes on if all of them could be recovered by one another."""
    heard = frozenset(r.masking.now.heard)
    kept = _kept(r, lambda c: _sharing(r, c, heard))
    # Where there will not be enough before the time is up, those who are still awaited are not to blame.
    r, silent = _lose(r, r.masking.now.awaited if due else (), _SILENT)
    if _few(r, kept):
        return _then(silent, _again(r, at, f"too few devices shared their secrets{_left(r, kept)}"))
    u2 = heard & _members(kept)
    r, failed = _lose(r, heard - u2, "too few devices of its group shared their secrets")
    r = replace(r, masking=replace(r.masking, cohorts=kept, shares=u2))
    return _then((*silent, *failed), _go_on(r, "masked", u2, at + r.terms.deadline))


def _masked_in(r: Round, at: float, due: bool) -> tuple[Round, Effects]:
    """U3: who is in the sum."""
    heard = frozenset(r.update.heard)
    kept = _kept(r, lambda c: _opening(r, c, heard))
    r = replace(r, masking=replace(r.masking, excluded=_excluded(r)))
    r, silent = _lose(r, r.masking.now.awaited if due else (), _SILENT)
    if _few(r, kept):
        return _then(silent, _again(r, at, f"too few masked updates arrived{_left(r, kept)}"))
    u3 = heard & _members(kept)
    r, failed = _lose(r, heard - u3, "too few masked updates of its group arrived")
    r = _only(replace(r, masking=replace(r.masking, cohorts=kept)), u3)
    return _then((*silent, *failed), _go_on(r, "consistent", u3, at + r.terms.secure["phase"]))


def _agreed(r: Round, at: float) -> tuple[Round, Effects]:
    """Who signed that these, and no others, are in the sum; only they are asked to open it."""
    signed = frozenset(r.masking.now.heard)
    kept = _kept(r, lambda c: _opening(r, c, signed))
    if _few(r, kept):
        return _again(r, at, f"too few devices agreed on who is in the sum{_left(r, kept)}")
    members = _members(kept)
    out = r.update.heard.keys() - members
    r, failed = _lose(_only(r, members), out, "too few devices of its group agreed on who is in the sum")
    r = replace(r, masking=replace(r.masking, cohorts=kept, signed=signed & members))
    return _then(failed, _go_on(r, "reveal", signed & members, at + r.terms.secure["phase"]))


def _revealed(r: Round, at: float, over: bool) -> tuple[Round, Effects]:
    m, heard = r.masking, frozenset(r.masking.now.heard)
    if not over and (m.thorough or not _worth_a_look(r)):
        return r, ()
    kept = _kept(r, lambda c: _opening(r, c, heard))
    if len(kept) < len(m.cohorts) and not over:
        return r, ()
    if _few(r, kept):
        few = _left(r, kept)
        return _never_opened(r, at, f"only {len(heard)} of {len(m.now.asked)} devices answered{few}")
    members = _members(kept)
    out = r.update.heard.keys() - members
    r, failed = _lose(_only(r, members), out, "too few devices of its group opened the sum")
    r = replace(r, stage="folding", folding_at=at, masking=replace(r.masking, cohorts=kept))
    return r, (*failed, Fold(r.accepted))


# -- from collection to collection ----------------------------------------------------------------------------


def _go_on(r: Round, stage: str, asked: frozenset[str], deadline: float) -> tuple[Round, Effects]:
    masking = replace(r.masking, now=Collection(asked=asked, deadline=deadline))
    return replace(r, stage=stage, masking=masking), _asks(asked, stage)  # type: ignore[arg-type]  # a collection of its own


def _again(r: Round, at: float, reason: str) -> tuple[Round, Effects]:
    """Those who are left begin again, with fresh keys; at most as often as the terms say."""
    m, attempts = r.masking, r.terms.secure["attempts"]
    unread = "other devices could not read its shares"
    r, out = _lose(replace(r, update=replace(r.update, heard={})), m.excluded & _still(r), unread)
    asked = frozenset(m.leaves.keys() - r.update.left.keys())
    if m.attempt + 1 >= attempts or len(asked) < r.terms.quorum:
        tried = f" in {m.attempt + 1} attempts" if m.attempt else ""
        return _then(out, _give_up(r, at, f"gave up{tried}: {reason}"))
    deadline = at + r.terms.secure["phase"]
    masking = Masking(attempt=m.attempt + 1, now=Collection(asked=asked, deadline=deadline))
    masking = replace(masking, excluded=m.excluded)
    r = replace(r, stage="keys", masking=masking, goal=len(asked))
    return r, (*out, *_asks(asked, "keys"))


def _never_opened(r: Round, at: float, reason: str) -> tuple[Round, Effects]:
    """Devices have said what opens this sum, so there will be no other of nearly the same."""
    return _give_up(r, at, f"was abandoned at reveal: {reason}")


def _give_up(r: Round, at: float, reason: str) -> tuple[Round, Effects]:
    """The session comes to nothing, and the round with it; who is in no session of a buffered round goes on."""
    return abandon(r, at, reason, carries=r.buffered)


def _lose(r: Round, clients: Iterable[str], reason: str) -> tuple[Round, Effects]:
    """These are in the round no more; those who left it themselves keep their reason."""
    update, told = r.update, []
    for client in sorted(set(clients) - r.update.left.keys()):
        update = update.lose(client, reason)
        told.append(Receipt(client, r.round_of(client), "NOT_COUNTED", reason))
    return replace(r, update=update), tuple(told)


def _only(r: Round, members: frozenset[str]) -> Round:
    """The sum is over these alone."""
    heard = {client: digest for client, digest in r.update.heard.items() if client in members}
    return replace(r, update=replace(r.update, heard=heard))


def _still(r: Round) -> frozenset[str]:
    return (r.cohort if r.buffered else r.update.asked) - r.update.left.keys()


def _asks(clients: Iterable[str], collection: str) -> Effects:
    return tuple(Ask(client, collection) for client in sorted(clients))


def _then(first: Effects, moved: tuple[Round, Effects]) -> tuple[Round, Effects]:
    return moved[0], (*first, *moved[1])


# -- what is enough -------------------------------------------------------------------------------------------

Enough = Callable[[Round, Cohort, frozenset[str]], bool]


def least(r: Round) -> int:
    """The fewest devices whose sum a group may open."""
    return int(r.terms.quorum // r.terms.groups)


def _sums(r: Round) -> int:
    """The fewest groups whose sums make a model."""
    return max(1, int(r.terms.secure.get("apart", 0)))


def _few(r: Round, kept: Sequence[Cohort]) -> bool:
    return len(kept) < _sums(r)


def _left(r: Round, kept: Sequence[Cohort]) -> str:
    """For a sentence: how many groups are left, where one would not do."""
    return f", which leaves {len(kept)} of at least {_sums(r)} groups" if _sums(r) > 1 else ""


def _members(cohorts: Iterable[Cohort]) -> frozenset[str]:
    return frozenset(client for cohort in cohorts for client in cohort.order)


def _kept(r: Round, good: Callable[[Cohort], bool]) -> tuple[Cohort, ...]:
    return tuple(cohort for cohort in r.masking.cohorts if good(cohort))


def _sharing(r: Round, cohort: Cohort, heard: frozenset[str]) -> bool:
    """Whether those of a group who shared are enough, and each of them could be recovered by the others."""
    u2 = heard.intersection(cohort.order)
    return len(u2) >= least(r) and all(cohort.recoverable(v, u2) for v in u2)


def _opening(r: Round, cohort: Cohort, helpers: frozenset[str]) -> bool:
    """Whether these can recover what the sum needs of everyone in the group who shared: the self mask of those in it,
    the pairwise ones of those who dropped out."""
    m = r.masking
    here = helpers.intersection(cohort.order)
    in_sum = here if r.stage == "masked" else r.update.heard.keys() & frozenset(cohort.order)
    if len(in_sum) < least(r):
        return False
    blind: dict[str, set[str]] = {}  # by sender: who could not read its shares
    for helper in here:
        for sender in m.missing.get(helper, ()):
            blind.setdefault(sender, set()).add(helper)
    return all(
        cohort.recoverable(v, here - blind[v] if v in blind else here)
        for v in m.shares.intersection(cohort.order)
    )


def _possible(r: Round, enough: Enough) -> bool:
    """Whether waiting can still help: some group would have enough if all who are awaited came."""
    now = r.masking.now
    if not now.left or not _worth_a_look(r):
        return True
    hoped = frozenset(now.heard) | now.awaited
    return not _few(r, [cohort for cohort in r.masking.cohorts if enough(r, cohort, hoped)])


def _worth_a_look(r: Round) -> bool:
    """Whether it is time to look at the whole graph again."""
    now = r.masking.now
    step = max(1, len(now.asked) // _CHECKS)
    return (len(now.heard) + len(now.left)) % step == 0 or not now.awaited


def _excluded(r: Round) -> frozenset[str]:
    """Whose shares so many neighbours could not read that those who could would not be enough."""
    counts: dict[str, int] = {}
    for senders in r.masking.missing.values():
        for sender in set(senders):
            counts[sender] = counts.get(sender, 0) + 1
    found = {v for c in r.masking.cohorts for v in c.order if v in counts and counts[v] > c.k - c.t}
    return r.masking.excluded | found
