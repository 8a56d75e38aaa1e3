"""Who is in which group, and who is whose neighbour: the same for everybody, from the digests of advertisements alone.

Once the devices of a round are known, their leaves (the SHA-256 of each one's advertisement) are sorted, and the Merkle
root over them is the seed of an order that nobody chose. Devices are dealt into G groups in that order, one after the
other, and a device's place in its group is its place in the group's graph. A device repeats all of it from the list of
leaves; that is why there are no proofs of inclusion: a list of 32 bytes a device is shorter than what it would prove.

Whoever decides which devices are in the list may still try many lists (Bell et al. 2020, section 4, on a malicious
server); in the complete graph, `hardened`, there is nothing to gain by it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from koinon_core.errors import UsageError
from koinon_core.secagg import statements
from koinon_core.secagg.config import strong
from koinon_core.secagg.hazmat import graph, merkle

__all__ = ["Cohort", "draw", "form"]


@dataclass(frozen=True)
class Cohort:
    """One group: its number, its devices by position, and its graph, in which `t` of a device's `k` neighbours can give
    its secrets back. In a `complete` graph each device is its own neighbour, too, and k is the number of devices."""

    group: int
    order: tuple[str, ...]
    k: int
    t: int
    complete: bool

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Where each device stands."""
        return {client: at for at, client in enumerate(self.order)}

    def __contains__(self, client: object) -> bool:
        return client in self.positions

    def neighbours(self, client: str) -> frozenset[str]:
        """Who holds a share of this device's secrets: k devices; KeyError for one that is not in the group."""
        return self._neighbours[client]

    def recoverable(self, client: str, helpers: Collection[str]) -> bool:
        """Whether these devices are enough to give back a secret of `client`."""
        around = self.neighbours(client)
        if isinstance(helpers, frozenset | set):
            return len(around & helpers) >= self.t
        return len(around.intersection(helpers)) >= self.t

    @cached_property
    def _neighbours(self) -> Mapping[str, frozenset[str]]:
        if self.complete:
            return dict.fromkeys(self.order, frozenset(self.order))
        n = len(self.order)
        return {
            client: frozenset(self.order[p] for p in graph.neighbours(at, n, self.k))
            for at, client in enumerate(self.order)
        }


def draw(leaves: Sequence[bytes], groups: int) -> tuple[bytes, tuple[tuple[bytes, ...], ...]]:
    """The Merkle root over `leaves` (distinct, ascending), and the leaves of each of the groups by position."""
    root = merkle.root(leaves)
    order = [leaves[i] for i in graph.permutation(len(leaves), statements.seed_of_order(root))]
    return root, tuple(tuple(order[group::groups]) for group in range(groups))


def form(
    leaves: Mapping[str, str],
    *,
    groups: int = 1,
    least: int,
    gamma: float,
    delta: float,
    sigma: int = 40,
    eta: int = 30,
    hardened: bool = False,
) -> tuple[Cohort, ...]:
    """The groups of a round, from the digest in hex of each device's advertisement.

    A group of fewer than `least` devices, or of too few for any graph, is left out: its devices are not in a sum.
    Raises UsageError if two devices have the same leaf.
    """
    clients = {bytes.fromhex(leaf): client for client, leaf in leaves.items()}
    if len(clients) < len(leaves):
        raise UsageError("two devices have the same advertisement; refuse the one that came later")
    cohorts = []
    for group, members in enumerate(draw(sorted(clients), groups)[1]):
        if len(members) < least:
            continue
        try:
            found = strong(len(members), gamma, delta, sigma, eta, hardened)
        except UsageError:
            continue
        order = tuple(clients[leaf] for leaf in members)
        cohorts.append(Cohort(group, order, found.k, found.t, found.k == len(members)))
    return tuple(cohorts)
