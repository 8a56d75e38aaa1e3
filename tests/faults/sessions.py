"""What must hold of secure rounds beside the other laws: of every word that a device says, of what it is asked, and of
the collections that the stored events made. Sets, thresholds and deadlines are worked out here once more, from facts.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from koinon_core.round import events
from koinon_core.round.machine import Round, step
from koinon_core.secagg.messages import positions
from koinon_core.wire.v1 import fleet_pb2 as pb
from koinon_core.wire.v1 import secagg_pb2

if TYPE_CHECKING:
    from koinon_core.secagg.cohort import Cohort

    from .gadget import Gadget
    from .laws import Laws

__all__ = ["SessionLaws"]

_LATE = 8.0
_ORDER = ("joined", "keys", "shares", "masked", "consistent", "reveal", "folding", "closed", "abandoned")
_HALF = 32
_ENDS = (
    "lost its quorum", "gave up", "made no group", "was abandoned at reveal", "waited in vain", "had its time",
)  # fmt: skip


@dataclass(slots=True)
class Phase:
    """A collection as its events made it: `due` moves by what nobody owned, `said` is when devices answered or left."""

    name: str
    attempt: int
    opened: float
    wait: float
    asked: frozenset[str]
    due: float = 0.0
    closed: float = 0.0
    said: dict[str, float] = field(default_factory=dict)
    taken: list[events.TakenUp] = field(default_factory=list)
    left: bool = False
    awaited: frozenset[str] = frozenset()


class SessionLaws:
    """Watches the secure rounds of one world."""

    def __init__(self, laws: "Laws"):
        self.laws, self.world = laws, laws.world
        self._words: dict[tuple[str, int, int, str], tuple[bytes, str]] = {}
        self._masked: dict[tuple[int, str], set[str]] = defaultdict(set)
        self._shares: dict[tuple[str, bytes, str], bytes] = {}
        self._revealed: dict[tuple[str, int], int] = {}
        self._told: dict[tuple[bytes, str], Any] = {}
        self._agreed: dict[tuple[int, int], set[frozenset[str]]] = defaultdict(set)
        self._formed: dict[tuple[int, int], tuple[Cohort, ...]] = {}
        self._known: dict[int, tuple[int, Round | None]] = {}

    # -- what devices say -------------------------------------------------------------------------------------

    def speaks(self, gadget: "Gadget", voice: pb.Voice) -> None:
        """A device's word leaves it."""
        if not voice.collection:
            return  # no word: it asks what became of the round
        name, key = gadget.name, (gadget.name, voice.round, voice.attempt, voice.collection)
        word = voice.payload, voice.update.digest
        if voice.collection == "keys" and self.laws.lost_power(name, voice.round):
            self._words[key] = word  # it knows of none before
        assert self._words.setdefault(key, word) == word, f"{key} is answered with another word than before"
        entry = gadget.outbox.journal.load(gadget.talk.run)
        assert entry is not None, f"{key} is said before it is in the journal"
        said = entry.facts["said"], bytes.fromhex(entry.facts["payload"]), entry.facts["digest"]
        assert said == (voice.collection, *word), f"{key} is said before it is in the journal"
        revealed = self._revealed.get((name, voice.round), voice.attempt)
        assert voice.attempt <= revealed, f"{key}: it has said what opens attempt {revealed} of this round"
        sent = gadget.talk._sent
        if sent is not None and sent.round == voice.round:
            self.laws.hands_in((voice.round, name), sent)
        if voice.collection == "masked":
            self._masked[voice.round, name].add(voice.update.digest)
        if voice.collection == "reveal":
            self._revealed[name, voice.round] = voice.attempt
            self._reveals(gadget, voice)

    def _reveals(self, gadget: "Gadget", voice: pb.Voice) -> None:
        """Of one secret of one device, for ever: which of the two it is shows in the bytes."""
        reveal = secagg_pb2.Reveal.FromString(voice.payload)
        order = self._order(voice.round, voice.attempt, gadget.name)
        owners = sorted(positions(reveal.owners, len(order), "owners"))
        assert len(reveal.shares) == len(owners) * _HALF, (
            f"{gadget.name} gives more than a share of each device"
        )
        for at, owner in enumerate(owners):
            share = reveal.shares[at * _HALF : (at + 1) * _HALF]
            key = gadget.name, reveal.session, order[owner]
            assert self._shares.setdefault(key, share) == share, f"{key}: both shares of one device are given"

    def masked(self, number: int, client: str) -> set[str]:
        """The digests of all masked updates that it ever sent in this round; none in an open one."""
        return self._masked.get((number, client), set())

    # -- what they are asked ----------------------------------------------------------------------------------

    def asks(self, name: str, call: pb.Call) -> None:
        """A coordinator lets a Call leave: the collection that it is of is open, and stored; and of who deals, and who
        is in the sum, everybody is told the same, by every coordinator there ever was."""
        number = self._session(call.round, name)
        r = self.durable(number)
        assert r is not None, f"round {call.round} calls, and its opening is not stored"
        there = (r.masking.attempt, _ORDER.index(r.stage))
        assert (call.attempt, _ORDER.index(call.collection)) <= there or r.over, (
            f"{name} is called for {call.collection} of attempt {call.attempt}, and stored is {there}"
        )
        match call.collection:
            case "shares":
                roster = secagg_pb2.Roster.FromString(call.payload)
                # The terms say nothing of which session it is: late devices of a round have one of their own.
                self._tell(roster.config + str(number).encode(), "who advertised", roster.leaves)
            case "masked":
                inbox = secagg_pb2.Inbox.FromString(call.payload)
                self._tell(inbox.session, "who dealt", inbox.dealers)
                self._is(call, number, name, inbox.dealers, "shares")
            case "consistent":
                said = secagg_pb2.Survivors.FromString(call.payload)
                self._tell(said.session, "who is in the sum", said.survivors)
                self._agreed[call.round, call.attempt].add(
                    self._is(call, number, name, said.survivors, "masked")
                )

    def _tell(self, session: bytes, what: str, said: Any) -> None:
        assert self._told.setdefault((session, what), said) == said, (
            f"two devices are told differently {what}"
        )

    def _session(self, number: int, client: str) -> int:
        """The round whose session a device is in that was given its work in that one: in an asynchronous run another
        than that, perhaps."""
        if not self.world.asynchronous:
            return number
        last = self.laws.sql("SELECT number FROM runs")[0][0]
        for later in range(last, number, -1):
            r = self.durable(later)
            if r is not None and client in r.cohort and r.round_of(client) == number:
                return later
        return number

    def _is(self, call: pb.Call, number: int, name: str, bits: bytes, collection: str) -> frozenset[str]:
        """Those in the bitmap are whose words of that collection are stored."""
        if (r := self.durable(number)) is None or r.masking.attempt != call.attempt:
            return frozenset()
        order = self._order(call.round, call.attempt, name)
        told = frozenset(order[p] for p in positions(bits, len(order), "devices"))
        stored = self._heard(self.laws.stored(number), call.attempt, collection).intersection(order)
        assert told == stored, f"{name} is told of {sorted(told)}, {collection} came of {sorted(stored)}"
        return told

    @staticmethod
    def _heard(stored: list[events.Event], attempt: int, collection: str) -> frozenset[str]:
        return frozenset(
            e.client
            for e in stored
            if isinstance(e, events.Voiced) and (e.attempt, e.collection) == (attempt, collection)
        )

    def _order(self, number: int, attempt: int, client: str) -> tuple[str, ...]:
        """The devices of the client's group by position."""
        number = self._session(number, client)
        self.durable(number)
        return next(c.order for c in self._formed[number, attempt] if client in c)

    def durable(self, number: int) -> Round | None:
        """The round as it is stored."""
        last, r = self._known.get(number, (0, None))
        for at, event in self.laws.stored_after(number, last):
            last, r = at, step(r, event)[0]
            if r.masking.cohorts:  # later, groups may be left out
                self._formed.setdefault((number, r.masking.attempt), r.masking.cohorts)
        self._known[number] = last, r
        return r

    # -- now and then -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing that was said in a session outlives its round."""
        left = self.laws.sql(
            "SELECT p.round FROM payloads p JOIN rounds r ON r.run=p.run AND r.number=p.round "
            "WHERE r.stage IN ('closed', 'abandoned')"
        )
        assert not left, f"what was said in round {left[0][0]} is kept, and it is over"
        epoch = self.laws.sql("SELECT epoch FROM runs")[0][0]
        for house in self.world.houses:
            for driver in house.federation.drivers.values():
                if house.alive and not house.frozen and driver.ledger.epoch == epoch and driver.ledger.sound:
                    keys = {n for _, n in house.store.vault.rounds() if self.laws.stage(n) in _ORDER[-2:]}
                    assert not keys, f"the keys of {keys} are there, and these rounds are over"

    # -- at the end -------------------------------------------------------------------------------------------

    def check_round(self, r: Round, stored: list[events.Event]) -> None:
        """A round that is over."""
        number, least = r.terms.round, self.world.run.spec.min_clients
        lost = self.world.mix.freeze and r.reason.startswith("lost what its devices said")
        assert r.stage == "closed" or r.reason.startswith(_ENDS) or lost, f"round {number} {r.reason}"
        attempt, phases = r.masking.attempt, self._phases(stored)
        for client, digest in r.update.heard.items():
            assert digest in self._masked[r.round_of(client), client], (
                f"{client} never said what is heard of it in {number}"
            )
        if r.stage == "closed":
            revealed = self._heard(stored, attempt, "reveal")
            assert revealed <= self._heard(stored, attempt, "consistent"), (
                "one who did not agree opened the sum"
            )
            for cohort in r.masking.cohorts:
                members = set(r.accepted).intersection(cohort.order)
                assert len(members) >= least, f"a sum of {sorted(members)}, fewer than {least}"
                assert len(revealed.intersection(cohort.order)) >= _threshold(cohort), "opened by too few"
                assert members in self._agreed[r.round_of(cohort.order[0]), attempt], (
                    "another sum than devices agreed to is opened"
                )
        reveals = [p.attempt for p in phases if p.name == "reveal"]
        assert not reveals or attempt == reveals[0], f"round {number} began again after devices had revealed"
        self._check_times(r, phases)

    def _phases(self, stored: list[events.Event]) -> list[Phase]:
        """The collections of a round, each of which must have been worth asking for."""
        first = stored[0]
        assert isinstance(first, events.Opened)
        terms, phases, now = first.terms, list[Phase](), None
        short, long = terms.secure["phase"], terms.deadline
        r = step(None, first)[0]
        for event in stored[1:]:
            before, r = r, step(r, event)[0]
            if now is not None:
                self._notes(now, event)
            if isinstance(event, events.Spoiled) and r.over:
                assert before.masking.thorough or not before.masking.now.awaited, (
                    f"round {terms.round} was given up while {sorted(before.masking.now.awaited)} had more to say"
                )
            if (r.stage, r.masking.attempt) != (before.stage, before.masking.attempt):
                if now is not None and before.stage == now.name:
                    now.closed, now.left = (
                        event.at,
                        bool(before.masking.now.left) or isinstance(event, events.Left | events.Unfoldable),
                    )
                    now.awaited = before.masking.now.awaited - now.said.keys()
                    self._worth(r, before, now, stored)
                if r.stage in _ORDER[1:6]:
                    early = r.stage == "keys" and (r.masking.attempt or terms.secure["keys"] == "early")
                    wait = long if r.stage in ("keys", "masked") and not early else short
                    again = now is not None and now.name == r.stage and now.attempt == r.masking.attempt
                    if not again:  # a reveal that goes on is the same
                        asked = r.masking.now.asked
                        if r.stage != "keys" and not (r.buffered and r.stage == "shares"):
                            before_it = self._heard(
                                stored, r.masking.attempt, _ORDER[_ORDER.index(r.stage) - 1]
                            )
                            assert asked <= before_it, f"asked for {r.stage} is who was not heard before it"
                        now = Phase(r.stage, r.masking.attempt, event.at, wait, asked, event.at + wait)
                        phases.append(now)
            if now is not None and r.stage == now.name:
                due = r.masking.now.deadline
                assert due is not None
                assert abs(due - now.due) < 1e-3, (
                    f"{now.name} of round {terms.round} was due at {now.due} of owned time, not at {due}"
                )
        return phases

    @staticmethod
    def _notes(now: Phase, event: events.Event) -> None:
        if isinstance(event, events.TakenUp):
            now.due += event.away
            now.taken.append(event)
        if isinstance(event, events.Voiced | events.Left):
            now.said.setdefault(event.client, event.at)

    def _worth(self, r: Round, before: Round, now: Phase, stored: list[events.Event]) -> None:
        """Going on, and not going on, were right."""
        heard = self._heard(stored, now.attempt, now.name)
        least = self.world.run.spec.min_clients
        went_on = _ORDER.index(r.stage) > _ORDER.index(now.name) and r.stage != "abandoned"
        if now.name == "keys":
            return
        groups = r.masking.cohorts if went_on else before.masking.cohorts
        fewest = least if now.name in ("shares", "masked") else 0  # from then on those in the sum are fixed
        enough = [len(heard.intersection(c.order)) >= max(fewest, _threshold(c)) for c in groups]
        if went_on:
            assert all(enough), f"round {r.terms.round} went on from {now.name} with {sorted(heard)} alone"
        elif not self.world.liars and "cancelled" not in r.reason and "lost what" not in r.reason:
            assert not any(enough), (
                f"round {r.terms.round} gave up {now.name} with {sorted(heard)}: {r.reason}"
            )

    def _check_times(self, r: Round, phases: list[Phase]) -> None:
        """Collections end by their deadlines, and not before without a reason; nobody is waited for who is silent."""
        if self.world.skewed:
            return
        for p in phases:
            about = f"{p.name} {p.attempt} of round {r.terms.round}"
            closed = p.closed or r.ended_at
            assert closed is not None
            if not self.world.mix.freeze:
                assert closed <= p.due + _LATE, f"{about} outlived its deadline"
                for e in p.taken:
                    owned = self.world.owned_until(e.at - e.away - _LATE, e.at)
                    assert e.away <= e.at - owned + _LATE, (
                        f"{about} was owned until {owned}, not {e.at - e.away}"
                    )
                self._check_lapses(p, closed, about)
            if p.name in ("shares", "masked", "consistent") and p.awaited and not p.left and p.closed:
                dead = self.world.dead_between(p.opened, closed)
                assert closed >= p.opened + p.wait + dead - 0.01, f"{about} ended before its deadline"

    def _check_lapses(self, p: Phase, closed: float, about: str) -> None:
        unowned = [(e.at - e.away, e.at) for e in p.taken]

        def silence(before: float, after: float) -> float:
            return after - before - sum(max(0.0, min(after, b) - max(before, a)) for a, b in unowned)

        for client in p.asked:
            end = min(closed, p.said.get(client, closed))
            spoke = [*(at for _, at in unowned), *self.laws.heard_from(client)]
            signs = sorted([p.opened, end, *(t for t in spoke if p.opened < t < end)])
            silent = max(silence(before, after) for before, after in pairwise(signs))
            allowed = self.world.run.spec.lease + _LATE
            assert silent <= allowed, f"{client} was waited for through {silent} s in {about}"


def _threshold(cohort: "Cohort") -> int:
    """How many of a complete graph open a secret; groups here are too small for another graph."""
    return 2 * len(cohort.order) // 3 + 1
