"""What a device keeps of a secure round: the secrets in memory, the masked update beside the others."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from koinon.outbox.journal import Entry, Journal, MemoryJournal
from koinon.outbox.secrets import DiskJournal
from koinon_core import failpoints
from koinon_core.errors import StoreError


@pytest.fixture(params=["memory", "disk"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return MemoryJournal() if request.param == "memory" else on_disk(tmp_path)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def on_disk(folder: Path) -> DiskJournal:
    (folder / "outbox").mkdir(exist_ok=True)
    return DiskJournal(folder / "outbox", folder / "memory")


def entry(said: str = "keys", secrets: bytes = b"\x00\n\xff") -> Entry:
    return Entry({"said": said, "terms": "t"}, secrets)


def test_what_was_saved_last_is_loaded(journal: Journal) -> None:
    assert journal.load("r") is None
    journal.save("r", entry("keys"))
    journal.save("r", entry("shares", b"\n\n"))
    journal.save("other", entry("reveal"))
    assert journal.load("r") == entry("shares", b"\n\n")


def test_a_masked_update_is_kept_once_it_is_whole(journal: Journal) -> None:
    draft = journal.masked("r")
    draft.write(b"lanes")
    blob = draft.finish()
    kept = journal.kept("r", blob.digest, blob.size)
    assert kept is not None
    assert bytes(kept.bytes()) == b"lanes"
    assert journal.kept("r", "0" * 64, blob.size) is None


def test_at_the_end_both_are_gone(journal: Journal) -> None:
    journal.save("r", entry())
    draft = journal.masked("r")
    draft.write(b"lanes")
    blob = draft.finish()
    journal.end("r")
    journal.end("r")  # and it may be told so twice
    assert journal.load("r") is None
    assert journal.kept("r", blob.digest, blob.size) is None


def test_killed_while_it_saves_it_has_one_entry_or_the_other(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(_: str) -> None:
        raise Killed

    found = []
    on_disk(tmp_path).save("r", entry("keys"))
    for point in ("journal.written", "journal.named"):
        failpoints.arm(point, die)
        with pytest.raises(Killed):
            on_disk(tmp_path).save("r", entry("shares"))
        failpoints.disarm()
        found.append(on_disk(tmp_path).load("r"))
    assert found == [entry("keys"), entry("shares")]


def test_secrets_are_for_this_user_alone_and_not_beside_the_updates(tmp_path: Path) -> None:
    on_disk(tmp_path).save("r", entry())
    (path,) = (tmp_path / "memory").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "memory").stat().st_mode) == 0o700
    assert not list((tmp_path / "outbox").iterdir())


def test_a_folder_that_somebody_put_there_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "memory").symlink_to(tmp_path / "theirs")
    with pytest.raises(StoreError, match="belongs to somebody else"):
        on_disk(tmp_path)


def test_an_update_that_was_cut_short_was_not_kept(tmp_path: Path) -> None:
    draft = on_disk(tmp_path).masked("r")
    draft.write(b"lanes")
    blob = draft.finish()
    (path,) = (tmp_path / "outbox" / "masked").iterdir()
    path.write_bytes(b"lane")
    assert on_disk(tmp_path).kept("r", blob.digest, blob.size) is None


def test_something_else_in_its_place_is_nothing(tmp_path: Path) -> None:
    on_disk(tmp_path).save("r", entry())
    (path,) = (tmp_path / "memory").iterdir()
    for junk in (b"", b"no json\nsecrets", b"[1]\nsecrets"):
        path.write_bytes(junk)
        assert on_disk(tmp_path).load("r") is None
