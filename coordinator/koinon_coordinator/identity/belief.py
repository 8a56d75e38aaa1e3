"""Whom the coordinator believes in a secure round: the devices that are enrolled here, under the keys that they have.

Devices hold each other's entries against the roster's key themselves. That the coordinator looks first keeps a device
with another entry than its own from spoiling a round for all who would refuse it.
"""

from threading import Lock

from koinon_coordinator.store import People
from koinon_core.errors import BadBlob, NotFound
from koinon_core.identity import Entry, verify

__all__ = ["Belief"]

_MOST = 1 << 16


class Belief:
    """koinon_core.secagg's `Trust` of a coordinator: (id, public Ed25519 key) of an encoded entry of `domain`, BadBlob
    if it is nobody's here. An entry is signed by this coordinator (`roster_key`), or by the owner who pinned the
    roster. Reads of a device where it meets an entry for the first time under this roster: no name ever gets another
    key, but an owner's new roster may leave an entry behind."""

    def __init__(self, people: People, domain: str, roster_key: bytes):
        self._people, self._domain, self._roster_key = people, domain, roster_key
        self._met: dict[bytes, tuple[str, bytes]] = {}
        self._roster = ("", 1)
        self._guard = Lock()

    def __call__(self, entry: bytes) -> tuple[str, bytes]:
        roster = self._people.roster()
        with self._guard:
            if roster != self._roster:
                self._met, self._roster = {}, roster
            met = self._met
        known = met.get(entry)
        if known is None:
            one = Entry.decode(entry)
            self._check(one, roster[0])
            known = one.id, one.key
            with self._guard:
                if len(met) >= _MOST:
                    met.clear()
                met[entry] = known
        return known

    def _check(self, one: Entry, pinned: str) -> None:
        if one.domain != self._domain:
            raise BadBlob(f"the entry of {one.id!r} is of domain {one.domain!r}, not of {self._domain!r}")
        try:
            row = self._people.device(one.id)
        except NotFound as error:
            raise BadBlob(str(error)) from None
        if row.key != one.key.hex():
            raise BadBlob(f"the entry of {one.id!r} has another key than the device that is enrolled")
        if pinned and one.version == 1:
            raise BadBlob(
                f"{one.id!r} is not in the roster that the owner signed; it takes part once the owner has signed it "
                "(koinon roster export, sign, import)"
            )
        if row.entry is not None and one.version < Entry.decode(row.entry).version:
            raise BadBlob(f"{one.id!r} shows an older entry than it has; it gets the newest within seconds")
        if row.entry == one.encoded:
            return
        signer = bytes.fromhex(pinned) if pinned else self._roster_key
        verify(signer, one.signature, one.statement, f"the entry of {one.id!r}")
