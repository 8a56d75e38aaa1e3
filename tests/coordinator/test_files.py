"""The folder beside the database: uploads go on where they stopped, blobs are whole or not there, and are counted."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest

from koinon_coordinator.service.receiving import Receiving
from koinon_coordinator.store import Part
from koinon_coordinator.store.blobs import Blobs
from koinon_coordinator.store.drafts import WrittenContent
from koinon_coordinator.store.folder import Folder
from koinon_coordinator.store.incoming import Incoming
from koinon_coordinator.store.uploads import Uploads
from koinon_core import failpoints
from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, StoreError, Unavailable
from lab import files, raising

C0, C1 = Part("r", 1, "c0"), Part("r", 1, "c1")


class Put(Blobs):
    """Blobs, into which all of a content is put at once, however small it is."""

    def put(self, data: bytes) -> str:
        with WrittenContent(self._folder, self, lambda digest, data: None, inline=0) as draft:
            draft.write(data)
            return draft.finish()[0]


@pytest.fixture
def folder(tmp_path):
    one = Folder(tmp_path / "blobs")
    yield one
    failpoints.disarm()
    one.close()


@pytest.fixture
def uploads(folder):
    return Uploads(folder)


@pytest.fixture
def blobs(folder):
    return Put(folder)


def counted(folder):
    """Whether the bytes that the quota is about are those that are there."""
    return folder.used == sum(f.stat().st_size for f in folder.root.rglob("*") if f.is_file())


def upload(uploads, part, data, declared=None):
    with uploads.receive(part, declared or sha256(data), len(data)) as incoming:
        incoming.write(data[incoming.offset :])
        incoming.finish()


# -- uploads --------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_was_cut(folder, uploads):
    data = os.urandom(300_000)
    digest = sha256(data)
    with uploads.receive(C0, digest, len(data)) as first:
        first.write(data[:100_000])
    assert uploads.received(C0, digest) == 100_000
    assert uploads.received(C1, digest) == 0, "another device's part is not mine to go on with"
    assert not uploads.has(C0, digest)
    with uploads.receive(C0, digest, len(data)) as rest:
        assert rest.offset == 100_000
        rest.write(data[100_000:])
        rest.finish()
    window = uploads.window(C0, digest)
    assert window(0, len(data)) == data
    assert window(299_990, 50) == data[299_990:]
    assert counted(folder)


def test_an_upload_of_other_bytes_is_forgotten(folder, uploads):
    with pytest.raises(BadBlob, match="SHA-256"):
        upload(uploads, C0, b"wrong", sha256(b"right"))
    assert uploads.received(C0, sha256(b"right")) == 0
    assert not uploads.has(C0, sha256(b"right"))
    assert counted(folder)


def test_more_bytes_than_declared_are_refused_before_they_are_written(folder, uploads):
    with uploads.receive(C0, sha256(b"right"), 5) as incoming, pytest.raises(BadBlob, match="more were sent"):
        incoming.write(b"righteous")
    assert counted(folder)


def test_an_upload_that_is_shorter_than_declared_is_not_finished(uploads):
    with uploads.receive(C0, sha256(b"right"), 5) as incoming:
        incoming.write(b"ri")
        with pytest.raises(BadBlob, match="2 of 5 bytes"):
            incoming.finish()
    assert uploads.received(C0, sha256(b"right")) == 2, "the rest may still come"


def test_the_old_stream_of_a_device_that_is_back_writes_no_more(uploads):
    old = uploads.receive(C0, sha256(b"right"), 5)
    old.write(b"ri")
    with uploads.receive(C0, sha256(b"right"), 5) as new:
        with pytest.raises(Unavailable, match="another stream"):
            old.write(b"XX")
        new.write(b"ght")
        new.finish()
    assert uploads.has(C0, sha256(b"right"))


def test_nobody_writes_into_an_update_that_is_finished(uploads):
    with uploads.receive(C0, sha256(b"right"), 5) as incoming:
        incoming.write(b"right")
        incoming.finish()
        with pytest.raises(Unavailable):
            incoming.write(b"!")
    assert uploads.receive(C0, sha256(b"right"), 5) is None, "what is here is not received again"
    assert uploads.window(C0, sha256(b"right"))(0, 10) == b"right"


def test_what_a_device_began_and_left_is_not_kept_beside_its_next_upload(folder, uploads):
    for n in range(5):
        with uploads.receive(C0, sha256(b"%d" % n), 10) as incoming:
            incoming.write(b"half")
    with uploads.receive(C1, sha256(b"other"), 10) as other:
        other.write(b"half")
    assert [uploads.received(C0, sha256(b"%d" % n)) for n in range(5)] == [0, 0, 0, 0, 4]
    assert counted(folder)


def test_the_sha256_is_taken_while_bytes_arrive_and_not_from_the_whole_file_at_the_end(uploads, monkeypatch):
    data = os.urandom(300_000)
    reads, read = [], Incoming._read
    monkeypatch.setattr(
        Incoming, "_read", lambda self, digest: (reads.append(self.offset), read(self, digest))
    )
    with uploads.receive(C0, sha256(data), len(data)) as first:
        for at in range(0, 200_000, 50_000):
            first.write(data[at : at + 50_000])
    assert reads == []
    with uploads.receive(C0, sha256(data), len(data)) as rest:
        rest.write(data[200_000:250_000])
        rest.write(data[250_000:])
        rest.finish()
    assert reads == [200_000], "what the first stream left, once"
    assert uploads.has(C0, sha256(data))


@pytest.mark.parametrize("damage", [False, True])
def test_what_an_earlier_stream_left_is_gone_on_with_unless_it_was_damaged(folder, damage):
    data = os.urandom(3_000_000)
    digest = sha256(data)
    with Uploads(folder).receive(C0, digest, len(data)) as first:
        first.write(data[:2_500_000])
    (part,) = folder.root.rglob("*.part")
    if damage:
        part.write_bytes(bytes(100) + data[100:2_500_000])
    later = Uploads(folder)
    with later.receive(C0, digest, len(data)) as rest:
        rest.write(data[2_500_000:])
        if damage:
            with pytest.raises(BadBlob, match="send it again"):
                rest.finish()
        else:
            rest.finish()
    assert later.received(C0, digest) == (0 if damage else len(data))


def test_a_stream_that_takes_over_does_not_wait_for_what_was_left_to_be_read(folder, monkeypatch):
    data = os.urandom(3_000_000)
    with Uploads(folder).receive(C0, sha256(data), len(data)) as first:
        first.write(data[:2_500_000])
    later = Uploads(folder)
    old = later.receive(C0, sha256(data), len(data))
    old._wanted = False  # as another stream says first of all
    with pytest.raises(Unavailable, match="another stream"):
        old.write(data[2_500_000:])


def test_what_is_written_is_durable_after_a_sync_and_more_is_written_beside_it(uploads, monkeypatch):
    data = os.urandom(3000)
    begun, go_on, sync = threading.Event(), threading.Event(), os.fdatasync

    def fdatasync(fd):
        begun.set()
        assert go_on.wait(10)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with uploads.receive(C0, sha256(data), len(data)) as incoming:
        incoming.write(data[:1000])
        assert incoming.durable == 0
        syncing = threading.Thread(target=incoming.sync)
        syncing.start()
        assert begun.wait(10)
        incoming.write(data[1000:2000])  # a disk that takes long keeps nobody from receiving
        go_on.set()
        syncing.join()
        assert (incoming.durable, incoming.offset) == (1000, 2000)
        incoming.sync()
        assert incoming.durable == 2000
    incoming.sync()  # of a stream that was superseded


def received(incoming, pieces, pause=0.0):
    """Receive `pieces`; returns what was written and not durable when each was taken."""

    async def receive():
        receiving = Receiving(incoming, asyncio.to_thread)
        lag = []
        for piece in pieces:
            await receiving.take(memoryview(piece))
            lag.append(receiving.unsynced)
            await asyncio.sleep(pause)
        await receiving.written()
        await receiving.close()
        return lag

    return asyncio.run(receive())


def test_bytes_are_durable_every_mebibyte_however_slow_the_disk_is(uploads, monkeypatch):
    synced, sync = [], os.fdatasync

    def fdatasync(fd):
        time.sleep(0.02)
        sync(fd)
        synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    data = os.urandom(1 << 20)
    incoming = uploads.receive(C0, "0" * 64, 12 << 20)
    lag = received(incoming, [data] * 12)
    assert max(lag) <= 3 << 20, "two that wait for the disk, and the one that is being written"
    assert len(synced) >= 5
    assert incoming.durable == 12 << 20
    assert incoming.closed


def test_small_pieces_are_durable_every_hundred_milliseconds(uploads, monkeypatch):
    synced, sync = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (sync(fd), synced.append(time.monotonic())))
    received(uploads.receive(C0, "0" * 64, 1 << 20), [b"piece"] * 25, pause=0.02)
    assert 3 <= len(synced) <= 8, "half a second"


def test_a_round_that_is_scrubbed_takes_its_streams_along(folder, uploads):
    upload(uploads, C1, b"whole")
    late = uploads.receive(C0, sha256(b"right"), 5)
    late.write(b"ri")
    uploads.scrub("r", 1)
    with pytest.raises(Unavailable):
        late.write(b"ght")
    assert files(folder.root) == set()
    assert counted(folder)
    uploads.scrub("r", 1)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_name_that_is_no_digest_reaches_no_file(blobs, uploads, digest):
    with pytest.raises(BadBlob, match="not the SHA-256"):
        blobs.path(digest)
    with pytest.raises(BadBlob, match="not the SHA-256"):
        uploads.path(C0, digest)


def test_a_devices_name_reaches_no_other_file(folder, uploads):
    upload(uploads, Part("r", 1, "../../../c0"), b"right")
    (path,) = files(folder.root)
    assert path.parts[:3] == ("updates", "r", "1")


# -- blobs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blob.written", "blob.synced", "blob.named"])
def test_a_disk_that_fails_is_the_coordinators_fault_and_leaves_no_half_blob(folder, blobs, name):
    full = OSError(28, "No space left on device")
    with raising(name, full), pytest.raises(StoreError, match="No space left"):
        blobs.put(b"anything")
    assert all(path.name == sha256(b"anything") for path in files(folder.root))
    assert counted(folder)
    assert blobs.window(blobs.put(b"anything"))(0, 100) == b"anything"
    assert counted(folder)


def test_what_another_thread_named_is_synced_before_it_counts(blobs, folder, monkeypatch):
    """The name of a blob may be there and not durable yet: whoever puts the same bytes waits for that too."""
    digest = sha256(b"same")
    with raising("blob.named", OSError(5, "Input/output error")), pytest.raises(StoreError):
        blobs.put(b"same")
    assert blobs.has(digest)
    synced, sync = [], os.fsync

    def fsync(fd):
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    blobs.put(b"same")
    assert str(blobs.path(digest).parent) in synced


def test_two_threads_may_put_the_same_bytes(folder, blobs):
    data = os.urandom(100_000)
    gate = threading.Barrier(4)

    def put():
        gate.wait()
        blobs.put(data)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(folder.root) == {blobs.path(sha256(data)).relative_to(folder.root)}
    assert blobs.window(sha256(data))(0, len(data)) == data


def test_what_was_put_is_not_collected_before_its_row_is_there(blobs):
    digest = blobs.put(b"mine")
    asked = []

    def release(free):
        asked.append(free)
        return free

    blobs.collect([digest], release)
    assert blobs.has(digest)
    blobs.unpin([digest])
    blobs.collect([digest], release)
    assert asked == [set(), {digest}]
    assert not blobs.has(digest)


def test_a_put_waits_for_a_collection_of_the_same_bytes(blobs):
    digest = blobs.put(b"mine")
    blobs.unpin([digest])
    putting = threading.Thread(target=blobs.put, args=[b"mine"])

    def release(free):
        putting.start()
        time.sleep(0.1)
        return free

    blobs.collect([digest], release)
    putting.join()
    assert blobs.window(digest)(0, 10) == b"mine", "it was put again, after it had gone"


def test_a_quota_counts_what_is_there(folder, blobs, uploads):
    folder.quota = folder.used + 1000
    digest = blobs.put(bytes(600))
    with pytest.raises(StoreError, match="--quota"):
        blobs.put(b"x" * 600)
    with pytest.raises(StoreError, match="--quota"):
        uploads.receive(C0, "0" * 64, 401)
    upload(uploads, C0, bytes(400))
    assert counted(folder)
    blobs.unpin([digest])
    blobs.collect([digest], lambda free: free)
    blobs.put(b"x" * 600)
    assert counted(folder)


FULL = """
import os, resource, sys
from pathlib import Path
from koinon_coordinator.store import Part
from koinon_coordinator.store.blobs import Blobs
from koinon_coordinator.store.drafts import WrittenContent
from koinon_coordinator.store.folder import Folder
from koinon_coordinator.store.uploads import Uploads
from koinon_core.canonical import sha256
from koinon_core.errors import StoreError

folder = Folder(Path(sys.argv[1]))
blobs, uploads = Blobs(folder), Uploads(folder)

def put(data):
    with WrittenContent(folder, blobs, lambda digest, data: None) as draft:
        draft.write(data)
        return draft.finish()[0]

first = put(bytes(80_000))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
data = os.urandom(200_000)
part = Part("r", 1, "c0")
for attempt in (put, lambda data: uploads.receive(part, sha256(data), 200_000).write(data)):
    try:
        attempt(data)
    except StoreError as error:
        print(error)
there = {p.name: p.stat().st_size for p in folder.root.rglob("*") if p.is_file()}
assert folder.used == sum(there.values()), (folder.used, there)
assert uploads.received(part, sha256(data)) == 100_000
assert blobs.window(first)(0, 100_000) == bytes(80_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert blobs.window(put(data))(0, 200_000) == data
with uploads.receive(part, sha256(data), 200_000) as rest:
    rest.write(data[rest.offset:])
    rest.finish()
"""


def test_a_disk_that_is_full_loses_nothing_and_goes_on_when_there_is_room(tmp_path):
    """The kernel itself ends the writes, half way."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "blobs"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert all("cannot be written: File too large; free some space" in line for line in said)
