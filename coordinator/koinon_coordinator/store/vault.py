"""The vault: what devices say in a secure round, sealed before it is a row, under a key that lives as long as it.

Shares of secrets are of use until the sum is open, and a danger from then on. Rows outlive their deletion (in pages
that are free, in backups), a file of 32 bytes is gone when it is removed: so the key is a file of its own, in
`sessions/RUN/ROUND.key`, and no copy of the database opens what was said once the round is over.
"""

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from koinon_coordinator.store.folder import Folder, disk, name_file
from koinon_core.errors import StoreError

__all__ = ["SessionGone", "Vault", "keys"]

_NONCE = 12


def keys(root: Path) -> list[tuple[Path, str, int]]:
    """(file, run, round) of every key in the folder `root` of a coordinator."""
    found = sorted((root / "sessions").glob("*/*.key"))
    return [(path, path.parent.name, int(path.stem)) for path in found if path.stem.isdecimal()]


class SessionGone(StoreError):
    """The key of a round's session is not here any more: what its devices said can never be read again."""


class Vault:
    """Keys of secure rounds, in a folder."""

    def __init__(self, folder: Folder):
        self._root = folder.root / "sessions"
        self._keys: dict[tuple[str, int], bytes] = {}

    def seal(self, run: str, round_: int, data: bytes, about: str) -> bytes:
        """`data` under the round's key, which is made if there is none; `about` is what it must be opened as."""
        nonce = os.urandom(_NONCE)
        key = self._key(run, round_) or self._make(run, round_)
        return nonce + AESGCM(key).encrypt(nonce, data, about.encode())

    def unseal(self, run: str, round_: int, sealed: bytes, about: str) -> bytes:
        """The inverse. SessionGone if the key is not here any more, or does not open these bytes: they are damaged, or
        were sealed where another folder was."""
        key = self._key(run, round_)
        if key is None:
            raise SessionGone(
                f"the key of round {round_} is not in {self._root}: what its devices said cannot be read"
            )
        try:
            return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], about.encode())
        except InvalidTag:
            raise SessionGone(
                f"what is kept of round {round_}'s session is damaged, or another coordinator's: the key in "
                f"{self._root} "
                "does not open it"
            ) from None

    def destroy(self, run: str, round_: int) -> None:
        """Nothing that was said in the round can be read again."""
        self._keys.pop((run, round_), None)
        path = self._path(run, round_)
        with disk(path):
            path.unlink(missing_ok=True)

    def rounds(self) -> list[tuple[str, int]]:
        """(run, round) of every key."""
        return [(run, round_) for _, run, round_ in keys(self._root.parent)]

    def _path(self, run: str, round_: int) -> Path:
        return self._root / run / f"{round_}.key"

    def _key(self, run: str, round_: int) -> bytes | None:
        known = self._keys.get((run, round_))
        path = self._path(run, round_)
        if known is None and path.exists():
            with disk(path):
                known = self._keys[run, round_] = path.read_bytes()
        return known

    def _make(self, run: str, round_: int) -> bytes:
        path, key = self._path(run, round_), AESGCM.generate_key(256)
        with disk(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(key)
                file.flush()
                name_file(new, path, file.fileno())
        self._keys[run, round_] = key
        return key
