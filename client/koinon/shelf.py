"""The shelf: the models that a device holds, so that it fetches each of them once, and of the next one only what
changed.

A model lies in a file under the digest of its tensors, however it came: as a snapshot, or as the lossless difference to
one that lay here already. One is kept, the newest. What was damaged meanwhile is noticed when it is put into the
owner's model, because its tensors have another digest then; it is fetched again.
"""

import hashlib
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import numpy as np

from koinon.arriving import file_blob
from koinon_core.blob import Blob
from koinon_core.codec import Reader, Writer, as_they_are
from koinon_core.errors import BadBlob, BadUpdate, NotFound, StoreError
from koinon_core.round.terms import Terms
from koinon_core.schema import Schema
from koinon_core.tensors import Array
from koinon_core.tiles import Sink, Source, Tee, copy
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Fetch", "Shelf", "Weighing"]

Fetch = Callable[[pb.Content, Path | None], Blob]
_DIGEST = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger("koinon")


class Weighing:
    """A sink that takes the digest of the tensors that come by, in the schema's order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def put(self, name: str, offset: int, values: Array) -> None:
        self._digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data)

    @property
    def weights(self) -> str:
        return self._digest.hexdigest()


class Shelf:
    """Models in `folder`; in memory, and none held from one round to the next, without one."""

    def __init__(self, folder: Path | None, fetch: Fetch):
        self._folder, self._fetch = folder, fetch

    @property
    def held(self) -> str | None:
        """The digest of the newest model that is here, "" if none is; None where none is ever kept."""
        if self._folder is None:
            return None
        newest, name = -1.0, ""
        for path in self._folder.glob("*"):
            with suppress(OSError):  # the owner's thread may be removing it just now
                if not path.suffix and (at := path.stat().st_mtime) > newest:
                    newest, name = at, path.name
        return name

    def load(self, ask: pb.Ask, terms: Terms, schema: Schema, into: Sink) -> Source:
        """Put the round's model into `into`; returns it as a source, which may be read again. BadBlob if the
        coordinator sends another model than the terms name."""
        if ask.model.digest != terms.model:
            raise BadBlob("the round's model is not the one that its terms name")
        if self._folder is None or ask.model.inline or not _DIGEST.fullmatch(terms.weights):
            return _put(self._fetch(ask.model, None), terms, schema, into)
        path = self._folder / terms.weights
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for lies in (path.exists, lambda: self._rebuild(ask, terms, schema, path)):
                if lies():
                    with suppress(BadBlob):
                        return self._keep(path, _put(_file(path), terms, schema, into))
                    _log.warning("the model that was kept in %s is damaged: it is fetched again", path)
                    path.unlink()
            self._fetch(ask.model, path)
            return self._keep(path, _put(_file(path), terms, schema, into))
        except OSError as error:
            raise StoreError(
                f"this device cannot keep the round's model in {self._folder}: {error.strerror}; free some space there"
            ) from error

    def _rebuild(self, ask: pb.Ask, terms: Terms, schema: Schema, path: Path) -> bool:
        """Make the model of the one that is here and the difference to it; False if that cannot be."""
        if not ask.delta.digest or not _DIGEST.fullmatch(ask.delta_base):
            return False
        base = path.with_name(ask.delta_base)
        if not base.exists():
            return False
        change, made = path.with_suffix(".delta"), path.with_suffix(".made")
        try:
            blob = self._fetch(ask.delta, change)
            older = _reader(_file(base), schema)
            difference = Reader(blob.window, blob.size, schema, "the difference to the last model", older)
            with made.open("wb", buffering=1 << 20) as file:
                writer, weighing = Writer(file.write, schema, as_they_are("raw")), Weighing()
                copy(difference, schema, Tee(writer, weighing))
                writer.close()
            if weighing.weights != terms.weights:
                raise BadBlob("it comes to another model")
            made.replace(path)
        except (BadBlob, NotFound) as error:
            _log.warning(
                "the difference to the last model is of no use (%s): the whole model is fetched", error
            )
            return False
        finally:
            for left in (change, made):
                left.unlink(missing_ok=True)
        return True

    def _keep(self, path: Path, reader: Source) -> Source:
        """This one stays; what lay here before is needed no more."""
        assert self._folder is not None
        for other in self._folder.glob("*"):
            if other.name.partition(".")[0] != path.name:
                other.unlink(missing_ok=True)
        return reader


def _file(path: Path) -> Blob:
    # Its tensors are what is checked, not its bytes: those differ with how it came.
    return file_blob(path, "", path.stat().st_size)


def _reader(blob: Blob, schema: Schema) -> Reader:
    return Reader(blob.window, blob.size, schema, "the round's model")


class _Remembered:
    """A source that notices when a tile is not any more what it was when it came by as a sink: the file may have been
    damaged since, and what was learned is the difference to it."""

    def __init__(self, source: Source):
        self._source = source
        self._sums: dict[tuple[str, int], int] = {}

    def put(self, name: str, offset: int, values: Array) -> None:
        self._sums[name, offset] = crc32(np.ascontiguousarray(values).data)

    def values(self, name: str, offset: int) -> Array:
        values = self._source.values(name, offset)
        if crc32(np.ascontiguousarray(values).data) != self._sums[name, offset]:
            raise BadUpdate(
                f"the round's model was damaged on this device's disk: {name!r} is not what it was"
            )
        return values


def _put(blob: Blob, terms: Terms, schema: Schema, into: Sink) -> Source:
    """Read a model once, into `into`; BadBlob if it is not the one that the terms name."""
    reader, weighing = _reader(blob, schema), Weighing()
    again = _Remembered(reader)
    copy(reader, schema, Tee(into, weighing, again))
    if terms.weights and weighing.weights != terms.weights:
        raise BadBlob(
            "the round's model has other weights than its terms name; the coordinator sent another model"
        )
    return again
