"""The sum of a secure round as the coordinator takes it: from where the store has the masked updates, on every core."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from koinon_coordinator.store import Store, UpdateRow
from koinon_core.blob import Blob
from koinon_core.ring import Sum
from koinon_core.round.terms import Terms
from koinon_core.secure import opening
from koinon_core.secure.opening import Opens

__all__ = ["summed"]


def summed(
    store: Store, terms: Terms, attempt: int, opens: Iterable[Opens], updates: Sequence[UpdateRow]
) -> Sum:  # fmt: skip
    """koinon_core.secure.opening's sum of the stored `updates`. Blocks."""
    blobs = {u.client: Blob(u.digest, u.size, store.update_window(terms.run, u)) for u in updates}
    # The cipher and numpy let go of the interpreter's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="unmask") as pool:
        return opening.summed(terms, attempt, opens, blobs, pool.map)
