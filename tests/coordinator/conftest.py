"""Fixtures of the coordinator's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from koinon_coordinator.store import Store
from koinon_core import failpoints


@pytest.fixture
def store(database_url: str, tmp_path: Path) -> Iterator[Store]:
    """A store on a fresh database of each kind."""
    one = Store(database_url, tmp_path / "blobs")
    yield one
    failpoints.disarm()
    one.close()
