"""What a device remembers, in its folder.

    RUN.run        the record: where the run stands
    RUN.sent       an update, and where the run stood when it was kept
    RUN.update-T   the bytes of the update of turn T, where they are many
    RUN.state-T    the strategy's state on this device, brought by the update of turn T

Every record and every `sent` of a run has a number, its turn, and the newer of the two says what holds: the last round
counted here, which state is the committed one, the pin. A record says also whether the `sent` before it is still out.

    keep     the pending state's file, the update's, then `sent`, under their names with one sync of the folder; the
             update's was written before, as it was made (RUN.draft.new)
    commit   nothing: the next `sent`, or the record that `close` writes, says so in passing
    drop     nothing, likewise
    pin      a record

Whatever nothing leads to any more is removed once what replaces it is durable, or when the run is entered again.
"""

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from koinon.outbox import files, states, updates
from koinon.outbox.files import Damaged, Drafted, File, remove, whole
from koinon.outbox.folder import Folder
from koinon.outbox.journal import Journal
from koinon.outbox.memory import NOTHING, Kept, Sent, counted, not_counted, plain, with_update
from koinon.outbox.secrets import DiskJournal
from koinon.outbox.updates import UpdateDraft
from koinon_core.blob import NO_BYTES, Blob
from koinon_core.errors import BadBlob, StoreError
from koinon_core.failpoints import hit
from koinon_core.update import Head, Stats

__all__ = ["DiskOutbox"]

_log = logging.getLogger("koinon")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What is kept of a run, and how that lies on disk."""

    kept: Kept
    base: int = 0
    """The turn that brought the committed state, 0 for none."""
    turn: int = 1
    """The last that was given to a file, or was to be."""
    out: int = 0
    """The turn of the `sent` that a start would look into, 0 for none."""
    level: bool = True
    """Whether a start would find just this."""


class DiskOutbox:
    """A device's memory in `folder`. Safe for several threads; one process at a time may have it (Conflict)."""

    def __init__(self, folder: Path, name: str = ""):
        self._place = Folder(folder, name)
        self._folder, self._lock = self._place.path, self._place.lock
        self.instance, self.boot = self._place.instance, self._place.boot
        self.models: Path | None = self._folder / "models"
        self.journal: Journal = DiskJournal(self._folder)
        self._guard = threading.RLock()
        self._runs: dict[str, _Run] = {}
        self._drafts: dict[str, UpdateDraft] = {}

    def draft(self, run: str) -> UpdateDraft:
        with self._guard, self._place.ours():
            self._let_go(run)
            self._drafts[run] = UpdateDraft(self._path(run, "draft.new"))
            return self._drafts[run]

    def enter(self, run: str) -> Kept:
        with self._guard, self._place.ours():
            return self._entered(run).kept

    def keep(self, run: str, sent: Sent) -> None:
        with self._guard, self._place.ours():
            before = self._entered(run).kept
            after = with_update(before, sent)
            if after is before:
                self._let_go(run)
                return
            one = self._turn(run)
            path, pending = self._path(run, f"state-{one.turn}"), sent.pending
            first: list[File | Drafted] = []
            if pending is not None:
                first.append(states.file_of(path, run, one.turn, pending))
            header = {"kind": "sent", "run": run, "round": sent.round, "digest": sent.digest}
            header |= {"head": sent.head.to_json(), "pending": pending is not None, "pins": bool(sent.pin)}
            header |= {"stats": sent.stats.to_json()}
            header |= _standing(replace(one, kept=after))
            parts = [sent.terms]
            if updates.filed(sent.blob.size):
                new = self._drafted(run, sent.blob)
                first.append(Drafted(self._path(run, f"update-{one.turn}"), new, "update"))
                header |= {"size": sent.blob.size}
            else:
                self._let_go(run)
                parts.append(sent.blob.bytes())
            # No `sent` without its state and its update: one that is there alone was never kept.
            files.write(*first, File(self._path(run, "sent"), header, parts))
            self._runs[run] = replace(one, kept=after, out=one.turn, level=True)
            self._sweep(run)

    def commit(self, run: str, round_: int) -> None:
        with self._guard, self._place.ours():
            one = self._entered(run)
            after = counted(one.kept, round_)
            if after is not one.kept:
                base = one.base if after.state is one.kept.state else one.out
                self._runs[run] = replace(one, kept=after, base=base, level=False)

    def drop(self, run: str, round_: int) -> None:
        with self._guard, self._place.ours():
            one = self._entered(run)
            after = not_counted(one.kept, round_)
            if after is not one.kept:
                self._runs[run] = replace(one, kept=after, level=False)

    def pin(self, run: str, pin: Mapping[str, Any]) -> None:
        with self._guard, self._place.ours():
            one = self._entered(run)
            after = replace(one.kept, pin=plain(pin))
            if after.pin != one.kept.pin or not one.level:
                self._runs[run] = self._record(run, replace(self._turn(run), kept=after))
                self._sweep(run)

    def forget(self, run: str) -> None:
        self.journal.end(run)
        with self._guard, self._place.ours():
            if self._files(run):  # cut short once the record says so, it is finished by `enter`
                self._entered(run)
                over = {"kind": "run", "run": run, "turn": self._turn(run).turn, "over": True}
                files.write(File(self._path(run, "run"), over))
                del self._runs[run]
                self._erase(run)
                remove(self._path(run, "run"))

    def close(self) -> None:
        with self._guard:
            if self._place.gone:
                return
            try:
                for run in [r for r, one in self._runs.items() if not one.level]:
                    with self._place.ours():
                        self._runs[run] = self._record(run, self._turn(run))
                        self._sweep(run)
            except StoreError as error:
                _log.warning("what became of the last update is asked for again at the next start: %s", error)
            finally:
                for run in list(self._drafts):
                    self._let_go(run)
                self._place.let_go()

    # -- updates on their way ---------------------------------------------------------------------------------

    def _drafted(self, run: str, blob: Blob) -> Path:
        """The file that has these bytes, durable, for the caller to name or remove."""
        draft = self._drafts.get(run)
        if draft is None or draft.blob != blob:
            # Made elsewhere, or kept again after a keep that was cut short.
            draft = self.draft(run)
            for piece in blob.pieces(updates.PIECE):
                draft.write(bytes(piece))
            draft.finish()
        del self._drafts[run]
        return draft.path

    def _let_go(self, run: str) -> None:
        """What was drafted and not kept is gone."""
        if draft := self._drafts.pop(run, None):
            draft.let_go()

    # -- what is found ----------------------------------------------------------------------------------------

    def _entered(self, run: str) -> _Run:
        if run not in self._runs:
            self._runs[run] = self._found(run)
            self._sweep(run)
        return self._runs[run]

    def _found(self, run: str) -> _Run:
        """What the last process left, which may have died anywhere."""
        for left in self._folder.glob("*.new"):
            if not self._in_progress(left):
                remove(left)
        if all(path.suffix == ".damaged" for path in self._files(run)):
            return self._record(run, _Run(kept=NOTHING))
        path = self._path(run, "run")
        with whole(path):
            record, _ = files.read(path, "run", run)
        newest, out, path = record, 0, self._path(run, "sent")
        if path.exists():
            with whole(path):
                header = files.read_header(path, "sent", run)
            newest = max(record, header, key=lambda one: int(one["turn"]))
            if newest is header or record.get("out") == header["turn"]:
                out = header["turn"]
        if newest.get("over"):
            self._erase(run)
            return self._record(run, _Run(kept=NOTHING))
        base, settled, pin = newest["base"], newest["settled"], newest["pin"]
        state = states.read(self._path(run, f"state-{base}"), run, base) if base else {}
        kept = Kept(state=state, settled=settled, sent=None, pin=pin)
        one = _Run(kept=kept, base=base, turn=newest["turn"], out=out)
        return self._with_sent(run, one) if out else one

    def _with_sent(self, run: str, one: _Run) -> _Run:
        """The run with the update that is out. That the header of `sent` is whole is known."""
        path, pending = self._path(run, "sent"), None
        state, update = self._path(run, f"state-{one.out}"), self._path(run, f"update-{one.out}")
        try:
            with whole(path):
                header, parts = files.read(path, "sent", run)
                terms, *inside = parts
                for file, needed in ((state, header["pending"]), (update, "size" in header)):
                    if needed and not file.exists():
                        # The power went between their names, and nothing was sent before all had theirs.
                        _log.warning("run %s: %s was not kept, for it has no %s", run, path, file.name)
                        return replace(one, level=False)
                if "size" in header:
                    blob = updates.checked(update, header["digest"], header["size"])
                else:  # 0.2.0 kept them all so, however large
                    (data,) = inside
                    blob = _blob(header["digest"], data)
                if header["pending"]:
                    pending = states.read(state, run, one.out)
                sent = Sent(
                    round=header["round"], terms=terms, blob=blob,
                    head=Head.from_json(header["head"]), pending=pending, pin=header["pin"] if header["pins"] else {},
                    stats=Stats.from_json(header.get("stats", {})),  # 0.2.0 measured nothing
                )  # fmt: skip
        except Damaged as damage:
            return self._set_aside(run, one, damage.why)
        return replace(one, kept=replace(one.kept, sent=sent))

    def _set_aside(self, run: str, one: _Run, why: str) -> _Run:
        """The run without the update that is out, some part of which is damaged."""
        aside = self._path(run, "sent.damaged")
        _log.error(
            "run %s: an update whose fate is not known is lost, and set aside as %s: %s", run, aside, why
        )
        update = self._path(run, f"update-{one.out}")
        # Where the run stands may be written nowhere else.
        one = self._record(run, replace(one, turn=one.turn + 1))
        if update.exists():  # under one name for all turns: large as it is, there is at most one
            update.replace(self._path(run, "update.damaged"))
            hit("outbox.named", "update")
        self._path(run, "sent").replace(aside)
        hit("outbox.named", "sent")
        return one

    # -- what is where ----------------------------------------------------------------------------------------

    def _path(self, run: str, what: str) -> Path:
        return self._folder / f"{files.safe(run)}.{what}"

    def _files(self, run: str) -> list[Path]:
        """All that the folder has of a run, but for what somebody is writing."""
        found = self._folder.glob(f"{files.safe(run)}.*")
        return sorted(path for path in found if not self._in_progress(path))

    def _in_progress(self, path: Path) -> bool:
        return any(draft.path == path for draft in self._drafts.values())

    def _turn(self, run: str) -> _Run:
        """The run, with a number for what is about to be written. Only if that succeeds is the disk level with it."""
        one = self._runs[run]
        self._runs[run] = one = replace(one, turn=one.turn + 1, level=False)
        return one

    def _record(self, run: str, one: _Run) -> _Run:
        """Let this hold, from the record's renaming on."""
        one = replace(one, out=one.out if one.kept.sent is not None else 0, level=True)
        header = {"kind": "run", "run": run, "out": one.out, "over": False, **_standing(one)}
        files.write(File(self._path(run, "run"), header))
        return one

    def _sweep(self, run: str) -> None:
        """Remove what nothing leads to."""
        one = self._runs[run]
        wanted = {"run", f"state-{one.base}"}
        if one.out:
            wanted |= {"sent", f"state-{one.out}", f"update-{one.out}"}
        for path in self._files(run):
            if path.suffix != ".damaged" and path.name.partition(".")[2] not in wanted:
                with suppress(OSError):  # it takes some place, and that is all
                    remove(path)

    def _erase(self, run: str) -> None:
        """Remove all but the record, which says that there is nothing, and goes last."""
        for path in self._files(run):
            if path != self._path(run, "run"):
                remove(path)
        files.sync(self._folder)


def _blob(digest: str, data: bytes) -> Blob:
    """The update that `sent` holds itself; BadBlob if it is another one."""
    blob = Blob.of(data) if digest else NO_BYTES
    if blob.digest != digest:
        raise BadBlob("its update does not have the SHA-256 that it was written with")
    return blob


def _standing(one: _Run) -> dict[str, Any]:
    """What the newer of record and `sent` says of the run."""
    return {"turn": one.turn, "settled": one.kept.settled, "base": one.base, "pin": one.kept.pin}
