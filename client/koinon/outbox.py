"""The outbox: an update written here is sent until its fate is known, whatever happens to the power.

A device's memory is one folder, and one process at a time may have it:

    device         which device this is, and how often it was started
    RUN.run        the record: the last round counted here, which state is the committed one, the pin
    RUN.state-N    the strategy's state on this device as round N leaves it
    RUN.sent       the update whose fate is not known

The record alone says what holds. `keep` writes its round's state beside the committed one, then `sent`; COUNTED is
one rename, that of a record which names the new state; NOT_COUNTED is one removal, that of `sent`. Whatever nothing
leads to was left by a process that died, and goes when the run is entered again.

A file is a magic, parts (u64 length, bytes), of which the first is a header in JSON, and the SHA-256 of all that.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol
from weakref import WeakSet

import numpy as np

from koinon_core import codec
from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, Conflict, LocalProtocolError, StoreError, UsageError
from koinon_core.failpoints import hit
from koinon_core.schema import Schema
from koinon_core.strategy.protocol import State
from koinon_core.tensors import Tensors
from koinon_core.update import Head, pack_state, state_schema, unpack_state

__all__ = ["DiskOutbox", "Kept", "MemoryOutbox", "Outbox", "Sent", "open_outbox"]

_MAGIC = b"KOINBOX\n"
_VERSION = 1
_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 20
_log = logging.getLogger("koinon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """An update handed in, until its fate is known. `terms` is `Terms.encoded`, `digest` the SHA-256 of `blob` (""
    and b"" in a round that only evaluates), `pending` the device state that becomes final if it is counted (None: it
    stays as it is). `pin`, where there is one, is the run's pin from `keep` on, and outlives the update."""

    round: int
    terms: bytes
    digest: str
    blob: bytes
    head: Head
    pending: State | None
    pin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept of one run: the committed device state, the last round whose update was COUNTED here (0: none),
    the update whose fate is not known, and a few small JSON values of the session's own."""

    state: State
    settled: int
    sent: Sent | None
    pin: Mapping[str, Any]


class Outbox(Protocol):
    """What a device remembers. What a call has changed is durable when it returns; a call that was cut short, by a
    kill or a StoreError, has happened or has not, and may be repeated."""

    instance: str
    """This memory's own id, in hex: drawn once."""
    boot: int
    """How often a process has started on this memory, this one included."""

    def enter(self, run: str) -> Kept:
        """What is kept of `run`. StoreError if the committed part of it is damaged."""
        ...

    def keep(self, run: str, sent: Sent) -> None:
        """Call before the first byte is sent. The same update again changes nothing; LocalProtocolError for another
        one of its round, for one while another round's is out, and for a round that is settled."""
        ...

    def commit(self, run: str, round: int) -> None:  # noqa: A002 - its name on the wire and in the terms
        """COUNTED: the pending state is the state. LocalProtocolError if no update of that round was kept."""
        ...

    def drop(self, run: str, round: int) -> None:  # noqa: A002
        """NOT_COUNTED: the update and its pending state are gone; nothing happens where there is none."""
        ...

    def pin(self, run: str, pin: Mapping[str, Any]) -> None:
        """Replace the session's own values."""
        ...

    def forget(self, run: str) -> None:
        """The run is over, and another one has another id: all that is kept of it is removed."""
        ...

    def close(self) -> None:
        """Let another process have this memory."""
        ...


def open_outbox(name: str | None, folder: Path | None = None) -> Outbox:
    """The memory of the device that its owner calls `name`, in `folder` ($KOINON_STATE, $XDG_STATE_HOME/koinon,
    ~/.local/state/koinon). Without a name it could not be recognised when it comes back: nothing is kept for it.

    Raises Conflict if another process has that memory, StoreError if it is damaged or cannot be written.
    """
    if not name:
        return MemoryOutbox()
    return DiskOutbox((folder or _home()) / _safe(name), name)


def _home() -> Path:
    if given := os.environ.get("KOINON_STATE"):
        return Path(given)
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "koinon"
    try:
        return Path.home() / ".local" / "state" / "koinon"
    except RuntimeError:
        raise UsageError(
            "this user has no home to keep the device's memory in; name a folder in KOINON_STATE"
        ) from None


def _safe(name: str) -> str:
    """A file's name for `name`: what can be read of it, and a digest that tells it from all others."""
    return f"{re.sub('[^A-Za-z0-9_-]', '_', name)[:40]}-{sha256(name.encode(errors='surrogatepass'))[:16]}"


# -- what may happen to what is kept: one law, on disk or not ---------------------------------------------------

_NOTHING = Kept(state={}, settled=0, sent=None, pin={})


def _with(kept: Kept, sent: Sent) -> Kept:
    """`kept` and this update; the very same object if the update is in it already."""
    held = kept.sent
    if held is not None and held.round != sent.round:
        raise LocalProtocolError(
            f"the update of round {held.round} is still out: its fate comes before the update of round {sent.round}"
        )
    if held is not None and _sends(held) != _sends(sent):
        raise LocalProtocolError(
            f"round {sent.round} has its update already, and this is another: the same bytes are sent, always"
        )
    if sent.round <= kept.settled:
        raise LocalProtocolError(f"round {sent.round} is settled: round {kept.settled} was counted already")
    return kept if held is not None else replace(kept, sent=sent, pin=_plain(sent.pin) or kept.pin)


def _sends(sent: Sent) -> tuple[bytes, str, bytes]:
    return sent.terms, sent.digest, _json(sent.head.to_json())


def _counted(kept: Kept, number: int) -> Kept:
    sent = kept.sent
    if sent is not None and sent.round == number:
        state = kept.state if sent.pending is None else sent.pending
        return replace(kept, state=state, settled=number, sent=None)
    if number > kept.settled:
        raise LocalProtocolError(f"round {number} is said to be counted, and no update of it is kept here")
    return kept


def _not_counted(kept: Kept, number: int) -> Kept:
    return replace(kept, sent=None) if kept.sent is not None and kept.sent.round == number else kept


def _plain(pin: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as it would be read again; TypeError if it is no JSON."""
    plain: dict[str, Any] = json.loads(_json(pin))
    return plain


class MemoryOutbox:
    """Nothing durable: for devices without a name of their own, and for the simulation."""

    def __init__(self) -> None:
        self.instance, self.boot = os.urandom(16).hex(), 0
        self._runs: dict[str, Kept] = {}

    def enter(self, run: str) -> Kept:
        return self._runs.get(run, _NOTHING)

    def keep(self, run: str, sent: Sent) -> None:
        self._runs[run] = _with(self.enter(run), sent)

    def commit(self, run: str, round: int) -> None:  # noqa: A002
        self._runs[run] = _counted(self.enter(run), round)

    def drop(self, run: str, round: int) -> None:  # noqa: A002
        self._runs[run] = _not_counted(self.enter(run), round)

    def pin(self, run: str, pin: Mapping[str, Any]) -> None:
        self._runs[run] = replace(self.enter(run), pin=_plain(pin))

    def forget(self, run: str) -> None:
        self._runs.pop(run, None)

    def close(self) -> None:
        pass


# -- files ------------------------------------------------------------------------------------------------------

_locks: WeakSet[IO[bytes]] = WeakSet()


def _let_go() -> None:
    for lock in _locks:
        lock.close()


# A forked data loader would hold the folder for its dead parent, and keep the device from starting again.
os.register_at_fork(after_in_child=_let_go)


class _Damaged(StoreError):
    """A file is not what was written; `why` says so without the advice."""

    def __init__(self, path: Path, why: str):
        self.why = f"{path} {why}"
        super().__init__(
            f"this device's memory is damaged: {self.why}; remove {path.parent} to let the device begin anew, "
            "without what its runs' strategies kept on it"
        )


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _Damaged(path, "is missing") from None
    except (BadBlob, UsageError, ValueError, LookupError, TypeError, struct.error) as error:
        raise _Damaged(path, f"cannot be read: {error}") from error


def _json(value: Any) -> bytes:
    def number(scalar: Any) -> Any:
        if isinstance(scalar, np.generic):
            return scalar.item()
        raise TypeError(f"{type(scalar).__name__} is no JSON value")

    # NaN may stand here: whether such a metric is taken is for the coordinator to say.
    return json.dumps(value, sort_keys=True, default=number).encode()


def _parts(path: Path) -> Iterator[bytes]:
    """The parts of a file, one at a time, once all of it is known to be whole."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        end = left = os.fstat(file.fileno()).st_size - digest.digest_size
        while left > 0 and (piece := file.read(min(left, _PIECE))):
            digest.update(piece)
            left -= len(piece)
        if left or file.read() != digest.digest():
            raise BadBlob("its content does not have the SHA-256 that it was written with")
        file.seek(0)
        if file.read(len(_MAGIC)) != _MAGIC:
            raise BadBlob("it is not a file of an outbox")
        while file.tell() < end:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > end - file.tell():
                raise BadBlob("it declares more bytes than it has")
            yield file.read(length)


def _read(path: Path, kind: str, run: str) -> tuple[dict[str, Any], Iterator[bytes]]:
    """A file's header and its other parts, if it is what it is taken for."""
    parts = _parts(path)
    header = json.loads(next(parts, b""))
    if header["version"] != _VERSION:
        raise BadBlob(f"it is of version {header['version']}, and this Koinon reads version {_VERSION}")
    if (header["kind"], header["run"]) != (kind, run):
        raise BadBlob(f"it is the {header['kind']!r} of run {header['run']!r}")
    return header, parts


def _write(path: Path, header: Mapping[str, Any], parts: Iterable[bytes] = ()) -> None:
    """Put a file under its name, whole and durable; what is there stands until then."""
    new, kind = path.with_name(f"{path.name}.new"), header["kind"]
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            digest = hashlib.sha256()
            framed = (
                (_LENGTH.pack(len(p)), p) for p in chain([_json({**header, "version": _VERSION})], parts)
            )
            for piece in chain([_MAGIC], chain.from_iterable(framed)):
                digest.update(piece)
                file.write(piece)
            file.write(digest.digest())
            file.flush()
            hit("outbox.written", kind)
            os.fsync(file.fileno())
        hit("outbox.synced", kind)
        new.replace(path)
        hit("outbox.named", kind)
        _sync(path.parent)
    except Exception:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    hit("outbox.removed", path.name.partition(".")[2].partition("-")[0])
    _sync(path.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make(folder: Path) -> None:
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync(folder.parent)


class DiskOutbox:
    """A device's memory in `folder`. Safe for several threads; one process at a time may have it (Conflict)."""

    def __init__(self, folder: Path, name: str = ""):
        self._folder = folder.absolute()
        self._guard = threading.RLock()
        self._runs: dict[str, tuple[Kept, int]] = {}  # and the round of its state's file, 0 for none
        with self._disk():
            _make(self._folder)
            self._lock = os.fdopen(os.open(self._folder / "lock", os.O_WRONLY | os.O_CREAT, 0o600), "wb")
            _locks.add(self._lock)
            try:
                self._occupy(name or folder.name)
                self.instance, self.boot = self._start()
            except BaseException:
                self._lock.close()
                raise

    def close(self) -> None:
        with self._guard:
            self._lock.close()

    def enter(self, run: str) -> Kept:
        with self._ours():
            for left in self._folder.glob("*.new"):
                _remove(left)
            path = self._path(run, "run")
            if all(file.suffix == ".damaged" for file in self._files(run)):
                record: dict[str, Any] = {"over": True}
            else:
                with _whole(path):
                    record, _ = _read(path, "run", run)
            if record["over"]:
                self._erase(run)
                self._settle(run, _NOTHING, 0)
                return _NOTHING
            base, settled = record["base"], record["round"]
            state = self._state(run, base) if base else {}
            sent = self._sent(run, settled)
            pin = record["pin"]
            if sent is not None and sent.round > record["pinned"]:
                pin = sent.pin or pin  # `keep` leaves the record as it was
            kept = Kept(state=state, settled=settled, sent=sent, pin=pin)
            self._runs[run] = kept, base
            self._sweep(run)
            return kept

    def keep(self, run: str, sent: Sent) -> None:
        with self._ours():
            before, base = self._kept(run)
            after = _with(before, sent)
            if after is before:
                return
            header = {"kind": "sent", "run": run, "round": sent.round, "digest": sent.digest}
            header |= {"head": sent.head.to_json(), "pending": sent.pending is not None, "pin": sent.pin}
            if sent.pending is not None:
                self._write_state(run, sent.round, sent.pending)
            _write(self._path(run, "sent"), header, (sent.terms, sent.blob))
            self._runs[run] = after, base

    def commit(self, run: str, round: int) -> None:  # noqa: A002
        with self._ours():
            before, base = self._kept(run)
            after = _counted(before, round)
            if after is not before:
                self._settle(run, after, base if after.state is before.state else round)
            self._sweep(run)

    def drop(self, run: str, round: int) -> None:  # noqa: A002
        with self._ours():
            before, base = self._kept(run)
            after = _not_counted(before, round)
            if after is not before and before.sent is not None and before.sent.pin:
                self._settle(run, before, base)  # the pin came with the update, and does not go with it
            self._runs[run] = after, base
            self._sweep(run)

    def pin(self, run: str, pin: Mapping[str, Any]) -> None:
        with self._ours():
            before, base = self._kept(run)
            after = replace(before, pin=_plain(pin))
            if after.pin != before.pin:
                self._settle(run, after, base)

    def forget(self, run: str) -> None:
        with self._ours():
            if self._files(run):  # cut short once the record says so, it is finished by `enter`
                _write(self._path(run, "run"), {"kind": "run", "run": run, "round": 0, "over": True})
                self._erase(run)
            self._runs.pop(run, None)

    # -- whose folder it is -----------------------------------------------------------------------------------

    @contextmanager
    def _ours(self) -> Iterator[None]:
        with self._guard, self._disk():
            if self._lock.closed:
                raise LocalProtocolError(f"{self._folder} was let go: this process writes there no more")
            yield

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"this device cannot keep its memory in {self._folder}: {error.strerror or error}; free some space "
                "there, or see that its user may write there and that the disk is sound"
            ) from error

    def _occupy(self, name: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another process of this machine is device {name!r} already, and has {self._folder}; stop that one, "
                "or give this one a name of its own"
            ) from None

    def _start(self) -> tuple[str, int]:
        """The memory's id, and the number of this start."""
        path, instance, boot = self._folder / "device", os.urandom(16).hex(), 0
        if path.exists() or any(self._folder.glob("*.run")):
            with _whole(path):
                header, _ = _read(path, "device", "")
                instance, boot = header["instance"], header["boot"]
        header = {"kind": "device", "run": "", "round": 0, "instance": instance, "boot": boot + 1}
        _write(path, header)
        return instance, boot + 1

    # -- what is where ----------------------------------------------------------------------------------------

    def _path(self, run: str, what: str) -> Path:
        return self._folder / f"{_safe(run)}.{what}"

    def _files(self, run: str) -> list[Path]:
        return sorted(self._folder.glob(f"{_safe(run)}.*"))

    def _kept(self, run: str) -> tuple[Kept, int]:
        if run not in self._runs:
            self.enter(run)
        return self._runs[run]

    def _settle(self, run: str, kept: Kept, base: int) -> None:
        """Let this hold, from the record's renaming on."""
        header = {"kind": "run", "run": run, "round": kept.settled, "base": base, "over": False}
        pinned = (
            kept.sent.round if kept.sent is not None else kept.settled
        )  # an older update's pin is older too
        _write(self._path(run, "run"), {**header, "pin": kept.pin, "pinned": pinned})
        self._runs[run] = kept, base

    def _write_state(self, run: str, number: int, state: State) -> None:
        tensors, fields = pack_state(state), state_schema(state)
        header = {
            "kind": "state",
            "run": run,
            "round": number,
            "names": list(state),
            "schema": fields.to_json(),
        }
        # A container a tensor: what is in memory once more is one tensor, not the state.
        parts = (codec.encode(Tensors({f.name: tensors[f.name]}), Schema((f,)), "raw") for f in fields)
        _write(self._path(run, f"state-{number}"), header, parts)

    def _state(self, run: str, number: int) -> State:
        path = self._path(run, f"state-{number}")
        with _whole(path):
            header, parts = _read(path, "state", run)
            if header["round"] != number:
                raise BadBlob(f"it is of round {header['round']}")
            pairs = zip(Schema.from_json(header["schema"]), parts, strict=True)
            arrays = Tensors({f.name: codec.decode(part, Schema((f,)))[f.name] for f, part in pairs})
            return {name: Tensors() for name in header["names"]} | dict(unpack_state(arrays))

    def _sent(self, run: str, settled: int) -> Sent | None:
        path = self._path(run, "sent")
        if not path.exists():
            return None
        try:
            with _whole(path):
                header, parts = _read(path, "sent", run)
                number = header["round"]
                if number <= settled:
                    return None  # counted: its process died before this was removed
                terms, blob = parts
                head, pending = Head.from_json(header["head"]), None
                if header["pending"]:
                    pending = self._state(run, number)
                digest, pin = header["digest"], header["pin"]
                return Sent(
                    round=number, terms=terms, digest=digest, blob=blob, head=head, pending=pending, pin=pin
                )
        except _Damaged as damage:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            hit("outbox.named", "sent")
            _sync(self._folder)
            _log.error(
                "an update whose fate is not known is lost, and set aside as %s: %s", aside, damage.why
            )
            return None

    def _sweep(self, run: str) -> None:
        """Remove what the record does not lead to; `sent` before its state, without which it would look damaged."""
        kept, base = self._runs[run]
        wanted = {"run", f"state-{base}"}
        if kept.sent is not None:
            wanted |= {"sent", f"state-{kept.sent.round}"}
        for path in self._files(run):
            if path.suffix != ".damaged" and path.name.partition(".")[2] not in wanted:
                _remove(path)

    def _erase(self, run: str) -> None:
        for path in reversed(self._files(run)):  # the record, first by name, goes last
            _remove(path)
