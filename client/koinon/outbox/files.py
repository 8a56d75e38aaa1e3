"""A file of an outbox: it is whole or it is not there, and it is never taken for another.

    magic, header, SHA-256 of both; parts; SHA-256 of all that

The header (JSON) and the parts stand behind their lengths (u64). The header has a digest of its own because it may
say more than its file is for: `sent` tells where its run stood, and that holds even if the update's bytes do not.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, StoreError, UsageError
from koinon_core.failpoints import hit

__all__ = [
    "Damaged", "Drafted", "File", "json_of", "make", "read", "read_header", "remove", "safe", "sync", "whole", "write",
]  # fmt: skip

_MAGIC = b"KOINBOX\n"
_VERSION = 1
_LENGTH = struct.Struct("<Q")
_DIGEST = hashlib.sha256().digest_size
_PIECE = 1 << 20


class Damaged(StoreError):
    """A file is not what was written; `why` says so without the advice."""

    def __init__(self, path: Path, why: str):
        self.why = f"{path} {why}"
        super().__init__(
            f"this device's memory is damaged: {self.why}; remove {path.parent} to let the device begin anew, "
            "without what its runs' strategies kept on it"
        )


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Where `path` is read: what is wrong with it is Damaged."""
    try:
        yield
    except FileNotFoundError:
        raise Damaged(path, "is missing") from None
    except (BadBlob, UsageError, ValueError, LookupError, TypeError, struct.error) as error:
        raise Damaged(path, f"cannot be read: {error}") from error


def safe(name: str) -> str:
    """A file's name for `name`: what can be read of it, and a digest that tells it from all others."""
    return f"{re.sub('[^A-Za-z0-9_-]', '_', name)[:40]}-{sha256(name.encode(errors='surrogatepass'))[:16]}"


# -- reading ----------------------------------------------------------------------------------------------------


def read_header(path: Path, kind: str, run: str) -> dict[str, Any]:
    """What a file's header says, whatever became of the rest of the file."""
    with path.open("rb") as file:
        return _header(file, os.fstat(file.fileno()).st_size, kind, run)


def read(path: Path, kind: str, run: str) -> tuple[dict[str, Any], Iterator[bytes]]:
    """A file's header, and its parts one at a time, once all of it is known to be whole."""
    content = _read(path, kind, run)
    return next(content), content


def _read(path: Path, kind: str, run: str) -> Iterator[Any]:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        end = left = os.fstat(file.fileno()).st_size - _DIGEST
        while left > 0 and (piece := file.read(min(left, _PIECE))):
            digest.update(piece)
            left -= len(piece)
        if left or file.read() != digest.digest():
            raise BadBlob("its content does not have the SHA-256 that it was written with")
        file.seek(0)
        yield _header(file, end, kind, run)
        while file.tell() < end:
            yield _part(file, end)


def _header(file: IO[bytes], end: int, kind: str, run: str) -> dict[str, Any]:
    """The header, if the file is what it is taken for."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise BadBlob("it is not a file of an outbox")
    content = _part(file, end)
    if file.read(_DIGEST) != _framed_digest(content) or file.tell() > end:
        raise BadBlob("its header does not have the SHA-256 that it was written with")
    header: dict[str, Any] = json.loads(content)
    if header["version"] != _VERSION:
        raise BadBlob(f"it is of version {header['version']}, and this Koinon reads version {_VERSION}")
    if (header["kind"], header["run"]) != (kind, run):
        raise BadBlob(f"it is the {header['kind']!r} of run {header['run']!r}")
    return header


def _framed_digest(content: bytes) -> bytes:
    return hashlib.sha256(_MAGIC + _LENGTH.pack(len(content)) + content).digest()


def _part(file: IO[bytes], end: int) -> bytes:
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > end - file.tell():
        raise BadBlob("it declares more bytes than it has")
    return file.read(length)


# -- writing ----------------------------------------------------------------------------------------------------


class File(NamedTuple):
    """What shall be at `path`. The header says its "kind" and its "run"."""

    path: Path
    header: Mapping[str, Any]
    parts: Iterable[bytes] = ()

    @property
    def kind(self) -> str:
        return str(self.header["kind"])

    @property
    def new(self) -> Path:
        return self.path.with_name(f"{self.path.name}.new")


class Drafted(NamedTuple):
    """What shall be at `path`, and is durable already, at `new`: bytes of no form of ours."""

    path: Path
    new: Path
    kind: str


def write(*files: File | Drafted) -> None:
    """Put files of one folder under their names, in this order, whole and durable; what is there stands until then."""
    try:
        for file in files:
            if isinstance(file, File):
                _draft(file)
        for file in files:
            file.new.replace(file.path)
            hit("outbox.named", file.kind)
        sync(files[0].path.parent)
    except Exception:
        for file in files:
            with suppress(OSError):
                file.new.unlink(missing_ok=True)
        raise


def _draft(file: File) -> None:
    """The file, durable under a name that nothing leads to."""
    with os.fdopen(os.open(file.new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as draft:
        digest = hashlib.sha256()
        for piece in _pieces(file):
            digest.update(piece)
            draft.write(piece)
        draft.write(digest.digest())
        draft.flush()
        hit("outbox.written", file.kind)
        os.fsync(draft.fileno())
    hit("outbox.synced", file.kind)


def _pieces(file: File) -> Iterator[bytes]:
    header = json_of({**file.header, "version": _VERSION})
    yield from (_MAGIC, _LENGTH.pack(len(header)), header, _framed_digest(header))
    for part in file.parts:
        yield from (_LENGTH.pack(len(part)), part)


def json_of(value: Any) -> bytes:
    """The one JSON of it; numpy's numbers are numbers."""

    def number(scalar: Any) -> Any:
        if getattr(scalar, "shape", None) == ():
            return scalar.item()
        raise TypeError(f"{type(scalar).__name__} is no JSON value")

    # NaN may stand here: whether such a metric is taken is for the coordinator to say.
    return json.dumps(value, sort_keys=True, default=number).encode()


def remove(path: Path) -> None:
    """The name is gone; the power may bring it back until the folder is synced."""
    path.unlink(missing_ok=True)
    hit("outbox.removed", path.name.partition(".")[2].partition("-")[0])


def sync(folder: Path) -> None:
    """What was named in `folder`, or removed from it, is so for good."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make(folder: Path) -> None:
    """A folder of its user's own, and those above it."""
    if not folder.is_dir():
        make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync(folder.parent)
