"""What must hold of asynchronous runs of which only sums are seen, beside the other laws.

Who is in which sum is read from the rounds as the stored events made them; that they were what devices sent is shown by
the models, in which every device is a power of two. What is worked out here once more is who may be summed together,
and who is left behind by that.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from koinon_core.round import events
from koinon_core.round.machine import Round, step

if TYPE_CHECKING:
    from .laws import Laws

__all__ = ["CohortLaws", "awaiting"]


def awaiting(r: Round) -> frozenset[str]:
    """Who has what some round gave, and may still be summed with it."""
    return (r.update.asked - r.update.left.keys()) | r.silent


class CohortLaws:
    """Watches the buffered rounds of one world whose run is secure."""

    def __init__(self, laws: "Laws"):
        self.laws, self.world = laws, laws.world
        self.counted: dict[tuple[int, str], int] = {}

    # -- while it lives ---------------------------------------------------------------------------------------

    def now(self) -> Round | None:
        """The newest round, as it is stored, if that is a buffered one."""
        rows = self.laws.sql("SELECT number FROM runs")
        r = self.laws.sessions.durable(rows[0][0]) if rows else None
        return r if r is not None and r.buffered else None

    def open_work(self, key: tuple[int, str]) -> bool:
        """Whether it is not known yet what became of the update that this device makes, or made, of that round's."""
        r, (number, client) = self.now(), key
        if r is None or client not in r.taken or r.round_of(client) != number:
            return False
        return client in (awaiting(r) if not r.over else r.update.awaited) and not self.laws.over()

    def counts(self, key: tuple[int, str]) -> None:
        """A device is told COUNTED."""
        found = [n for n, r in self._rounds(key[0]) if r.stage == "closed" and self._in(r, key)]
        assert len(found) == 1, f"{key} is told that it counts, and it does in {found}"
        assert self.laws.sql("SELECT 1 FROM models WHERE round=?", found[0]), f"round {found[0]} has no model"

    def counts_not(self, key: tuple[int, str]) -> None:
        """A device is told NOT_COUNTED, and never will be told otherwise."""
        assert not self.open_work(key), f"{key} is told that it does not count, and it may still"
        found = [n for n, r in self._rounds(key[0]) if r.stage == "closed" and self._in(r, key)]
        assert not found, f"{key} is told that it does not count, and it does in {found}"

    def needs(self, digest: str) -> bool:
        """Whether somebody works on this model."""
        r = self.now()
        if r is None or r.over or self.laws.over():
            return False
        return digest in {r.taken[client].model for client in awaiting(r)}

    def check(self) -> None:
        """What devices work on can be had, and nobody may be silent for ever."""
        r = self.now()
        if r is None or r.over or self.laws.over():
            return
        for client in sorted(awaiting(r)):
            rows = self.laws.sql("SELECT 1 FROM contents WHERE digest=?", r.taken[client].model)
            assert rows, f"{client} works on a model that is gone"
        for number, client, at in self.laws.sql("SELECT round, client, at FROM updates WHERE kept"):
            older = at < r.opened_at and not self.world.skewed
            assert not older, f"the masked update of {client} in {number} is kept, and its session is over"
        epoch = self.laws.sql("SELECT epoch FROM runs")[0][0]
        for house in self.world.houses:
            if not house.alive or house.frozen:
                continue
            for driver in house.federation.drivers.values():
                run = driver.run
                if (
                    driver.ledger.epoch != epoch
                    or not driver.ledger.sound
                    or run.round is None
                    or run.summing
                ):
                    continue
                if run.round.terms == r.terms and not run.round.over:
                    waits = {c for c in run.round.update.asked if run.round.awaits(c)}
                    waits |= {c for c in run.round.ready if c not in run.devices}
                    endless = waits - run.leases.keys()
                    assert not endless, f"{endless} may be silent for ever"

    def _rounds(self, since: int) -> Iterable[tuple[int, Round]]:
        last = self.laws.sql("SELECT number FROM runs")[0][0]
        for number in range(since, last + 1):
            r = self.laws.sessions.durable(number)
            if r is not None:
                yield number, r

    @staticmethod
    def _in(r: Round, key: tuple[int, str]) -> bool:
        return key[1] in r.accepted and r.round_of(key[1]) == key[0]

    # -- at the end -------------------------------------------------------------------------------------------

    def expected_change(self, r: Round, models: list[float]) -> float:
        """What the round's model differs from the newest of these, which were made before it, by."""
        began = r.taken[r.accepted[0]].version
        mean = sum(2.0 ** -int(c[1:]) for c in r.accepted) / len(r.accepted)
        if self.world.mixes:
            return 0.5 * (models[began] + mean - models[-1])
        return float(round((1 + len(models) - 1 - began) ** -self.world.exponent * 2**40) / 2**40 * mean)

    def check_round(self, r: Round, stored: list[events.Event]) -> set[tuple[int, str]]:
        """A round that is over; returns what counts in it."""
        number, least = r.terms.round, self.world.run.spec.min_clients
        self._check_steps(stored, least)
        keys = {(r.round_of(client), client) for client in r.accepted}
        for key in keys:
            assert self.counted.setdefault(key, number) == number, f"{key} counts in two rounds"
            assert self.laws.status(*key) == "counted", (
                f"{key} counts in round {number}, and its row denies it"
            )
        if r.stage == "closed":
            assert len({n for n, _ in keys}) == 1, f"a sum of {keys}"
            assert least <= len(keys) <= self.world.run.spec.devices
            age = r.age(r.accepted[0])
            assert 0 <= age <= self.world.run.spec.staleness, f"{keys} are {age} models old in round {number}"
        return keys

    def _check_steps(self, stored: list[events.Event], least: int) -> None:
        """Who is in a session had the same, and it leaves nobody behind whom no other could hide."""
        assert isinstance(stored[0], events.Opened)
        r, given_now = step(None, stored[0])[0], False
        for event in stored[1:]:
            gives = isinstance(event, events.Heard) and event.collection == "joined"
            if given_now and not gives:  # all who are free are given work together
                there = [c for c in (*r.working, *r.ready) if r.round_of(c) == r.terms.round]
                assert len(there) >= least, f"{there} are given work that no sum could hide"
            before, r = r, step(r, event)[0]
            # Who lost its work gets it again, whoever is left; and who had its time for it hears that.
            new = gives and event.client in r.working and event.client not in {*before.working, *before.ready}
            given_now = gives and (given_now or new)
            assert len(r.working) <= r.terms.concurrency, f"{sorted(r.working)} are at work"
            if r.over:
                others = (before.working | before.ready.keys()) - before.cohort
                lost = {c for c in others if r.update.left.get(c) == f"round {r.terms.round} {r.reason}"}
                fine = isinstance(event, events.Cancelled) or getattr(event, "forgotten", False)
                assert fine or not lost, f"{sorted(lost)} lost their work with another's session"
                return
            left = Counter(r.round_of(c) for c in (*r.working, *r.ready))
            alone = {n: m for n, m in left.items() if m < least and n < r.terms.round}
            assert not alone, f"{alone} wait in round {r.terms.round} in vain"
            if r.cohort and not before.cohort:
                (given,) = {r.round_of(c) for c in r.cohort}
                assert left[given] == 0 or left[given] >= least, f"{left[given]} are left behind of {given}"
                advertised = {
                    e.client for e in stored if isinstance(e, events.Voiced) and e.collection == "keys"
                }
                advertised |= {c for e in stored if isinstance(e, events.Carried) for c, _ in e.ready}
                assert r.cohort <= advertised, f"{r.cohort - advertised} have not done their work"

    def check_end(self) -> None:
        """Of the whole run."""
        rows: list[Any] = self.laws.sql("SELECT round, client FROM participants WHERE status='counted'")
        assert {(n, c) for n, c in rows} == self.counted.keys(), "rows and events disagree on what counts"
        asked = self.laws.sql("SELECT round, client FROM participants WHERE status='asked'")
        assert not asked, f"of {asked} no row says what became"
        told = set(
            self.laws.told("VERDICT_NOT_COUNTED")
        )  # who is lost in an attempt masked for the one before
        for key in self.laws.told("VERDICT_STAGED"):
            assert key in self.counted or key in told, f"{key} was told STAGED, and never what became of it"
