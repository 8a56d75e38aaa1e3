"""What is taken from a sum: the survivors' own masks, and those that they share with devices which dropped out.

Both grow from secrets that are put together from shares and then held against what their owners are bound to, the seed
against its commitment and the masking key against the public one. A wrong share shows; then other shares of the same
secret are tried, and once a secret is right, every share of it that is not is known. So a bad device that gives back
junk costs the sum nothing, as long as enough others answer.

Whether a wrong share is the fault of who gave it back or of who dealt it cannot be seen. Who is in most of the wrong
pairs is the suspect: one device that gives back junk is wrong about many, one that deals junk is wrong at many.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from numpy.typing import NDArray

from koinon_core.errors import KoinonError, UsageError
from koinon_core.secagg import statements
from koinon_core.secagg.cohort import Cohort
from koinon_core.secagg.config import Config
from koinon_core.secagg.hazmat import agree, graph, shamir
from koinon_core.secagg.pads import Signed, add_masks, own_seed, pair_seed, sign_of
from koinon_core.secagg.sealing import point_of

__all__ = ["Dealt", "Given", "Recovery", "Unrecoverable", "recover"]

Given = Mapping[str, bytes]
"""Of one device that gives shares back: the share by the owner of the secret."""

_TRIES = 512
"""Sets of shares that are tried for one secret, once the first was wrong."""


class Unrecoverable(KoinonError):
    """The sum cannot be opened. `missing` are the devices whose secret cannot be put together, `blamed` those of them
    who dealt nothing that could be."""

    code = "UNRECOVERABLE"

    def __init__(self, message: str, missing: tuple[str, ...] = (), blamed: tuple[str, ...] = ()):
        super().__init__(message)
        self.missing, self.blamed = missing, blamed


@dataclass(frozen=True, slots=True)
class Dealt:
    """What a dealer is bound to: its public masking key, and the commitment to the seed of its own mask."""

    masking: bytes
    commitment: bytes


class Recovery:
    """The masks that are left in a sum. `suspects` are devices that gave back, or dealt, wrong shares; `wrong` the
    pairs (who gave it back, whose secret it is of) that do not fit."""

    def __init__(self, config: Config, masks: Sequence[Signed], wrong: Sequence[tuple[str, str]]):
        self.config = config
        self.wrong = tuple(wrong)
        self.suspects = _suspects(wrong)
        self._masks = tuple(masks)

    def unmask(self, section: int, tile: int, lanes: NDArray[Any]) -> None:
        """Take the masks from one tile of the sum in place, and reduce it to its bits. `lanes` is a contiguous vector
        with all lanes of the tile, of the section's dtype. Safe in several threads, on different tiles."""
        add_masks(self.config, section, tile, self._masks, lanes)


def recover(
    config: Config,
    cohort: Cohort,
    sid: bytes,
    dealt: Mapping[str, Dealt],
    survivors: frozenset[str],
    given: Mapping[str, Given],
) -> Recovery:
    """The masks of the sum over `survivors`, of the dealers `dealt`, from the shares that devices gave back.

    Raises Unrecoverable.
    """
    if not survivors <= dealt.keys():
        raise UsageError("a device that dealt no shares cannot be in the sum; leave it out of the survivors")
    around = {owner: cohort.neighbours(owner) for owner in dealt}
    # Of a device that dropped out with no survivor around it, nothing is in the sum.
    needed = [
        owner
        for owner in cohort.order
        if owner in dealt and (owner in survivors or around[owner] & survivors)
    ]
    search = _Search(cohort, sid, dealt, survivors, given)
    secrets = {owner: search.secret(owner) for owner in needed}
    missing = tuple(owner for owner, secret in secrets.items() if secret is None)
    if missing:
        few = [owner for owner in missing if len(search.shares(owner)) < cohort.t]
        raise Unrecoverable(
            f"the secrets of {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''} cannot be put "
            "together: "
            + (
                "too few devices gave shares back"
                if few
                else "what they dealt, or what was given back, is wrong"
            )
            + "; this sum stays closed",
            missing,
            _blamed(cohort, needed, missing, search),
        )
    masks: list[Signed] = []
    for owner, secret in secrets.items():
        assert secret is not None
        if owner in survivors:
            masks.append((own_seed(sid, owner, secret), -1))
            continue
        public, private = dealt[owner].masking, agree.load(secret)
        for peer in sorted(around[owner] & survivors):
            other = dealt[peer].masking
            masks.append((pair_seed(sid, private, public, other), -sign_of(other, public)))
    return Recovery(config, masks, search.wrong())


class _Search:
    """Puts secrets together, and remembers who was wrong."""

    def __init__(
        self,
        cohort: Cohort,
        sid: bytes,
        dealt: Mapping[str, Dealt],
        survivors: frozenset[str],
        given: Mapping[str, Given],
    ):
        self.cohort, self.sid, self.dealt, self.survivors = cohort, sid, dealt, survivors
        self._by_owner: dict[str, dict[int, bytes]] = {owner: {} for owner in dealt}
        for helper, shares in given.items():
            point = point_of(cohort.positions[helper])
            for owner, share in shares.items():
                self._by_owner[owner][point] = share
        self._good: dict[str, list[int]] = {}
        self._doubted: Counter[int] = Counter()

    def shares(self, owner: str) -> Mapping[int, bytes]:
        """What was given back of a secret, by point."""
        return self._by_owner[owner]

    def secret(self, owner: str) -> bytes | None:
        """The secret that `owner` is bound to; None if no shares were found that give it."""
        shares = self._by_owner[owner]
        for number, points in enumerate(self._sets(owner, sorted(shares))):
            secret = shamir.combine(shamir.lagrange(points), [shares[p] for p in points])
            if self._right(owner, secret):
                self._good[owner] = points
                if number:
                    self._doubted.update(x for x in shares.keys() - set(points) if not self._fits(owner, x))
                return secret
        return None

    def wrong(self) -> list[tuple[str, str]]:
        """(who gave it back, whose secret it is of) of the shares that do not fit: whoever was wrong about one secret
        is held against all others, too."""
        return [
            (self.cohort.order[x - 1], owner)
            for x in sorted(self._doubted)
            for owner, good in self._good.items()
            if x in self._by_owner[owner] and x not in good and not self._fits(owner, x)
        ]

    def _sets(self, owner: str, points: list[int]) -> Iterator[list[int]]:
        """Which shares to try. First those of devices that were never wrong; then one set after another in orders drawn
        from the session, which are the same at every attempt."""
        t = self.cohort.t
        if len(points) < t:
            return
        points.sort(key=lambda p: (self._doubted[p], p))
        yield sorted(points[:t])
        if len(points) == t:
            return
        for number in range(_TRIES):
            seed = sha256(self.sid + owner.encode() + number.to_bytes(4, "little")).digest()
            yield sorted(points[i] for i in graph.permutation(len(points), seed)[:t])

    def _right(self, owner: str, secret: bytes) -> bool:
        dealt = self.dealt[owner]
        if owner in self.survivors:
            return statements.commitment(self.sid, owner, secret) == dealt.commitment
        return agree.public_of(secret) == dealt.masking

    def _fits(self, owner: str, x: int) -> bool:
        """Whether the share at `x` is on the polynomials that the secret of `owner` was found on.

        In this field x and p meet at 0 when p is shifted by x, p ^ x: what the good shares say at 0 then is the share
        that belongs at x.
        """
        shares, good = self._by_owner[owner], self._good[owner]
        weights = shamir.lagrange([p ^ x for p in good])
        return shamir.combine(weights, [shares[p] for p in good]) == shares[x]


def _blamed(
    cohort: Cohort, needed: Sequence[str], missing: Sequence[str], search: _Search
) -> tuple[str, ...]:
    """Who is at fault for a secret that is missing. Whoever gives back wrong shares must not get its dealer blamed: not
    where nobody's shares could be left out, nor where most secrets are missing and the same devices gave them back."""
    if 2 * len(missing) >= len(needed):
        return ()
    return tuple(owner for owner in missing if len(search.shares(owner)) > cohort.t)


def _suspects(wrong: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Who explains the wrong pairs: again and again whoever is in most of those that are left."""
    left, found = list(wrong), set[str]()
    while left:
        counts = Counter(name for pair in left for name in set(pair))
        most = max(counts.values())
        found |= {name for name, count in counts.items() if count == most}
        left = [pair for pair in left if not found.intersection(pair)]
    return tuple(sorted(found))
