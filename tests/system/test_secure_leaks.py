"""What a coordinator has of secure rounds: masked updates that look like noise, and at no moment a secret of a device.

Real processes; what devices draw, and the shares that they make of it, is written down here and looked for in every
file that the coordinator writes, while devices reveal (then most is there) and at the end.
"""

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import koinon
import toy
from koinon import conversation
from koinon.masking import Masking, Word
from koinon.operator import Operator
from koinon_core.secagg import masker
from koinon_core.secagg.hazmat import shamir
from system.killing import RUN, Coordinator, device, the_run

SECRET = 32
"""Bytes of a key, of a seed, and of a share of either."""


class Watch:
    """What the devices drew, and all that the coordinator had on disk whenever one of them revealed."""

    def __init__(self, folder: Path):
        self.folder, self.drawn, self.shares = folder, set[bytes](), set[bytes]()
        self.seen: list[dict[str, bytes]] = []
        self._lock = threading.Lock()

    def entropy(self, size: int) -> bytes:
        made = os.urandom(size)
        if size == SECRET:  # the others are coefficients of polynomials
            self.drawn.add(made)
        return made

    def split(self, *arguments: Any) -> list[bytes]:
        made = shamir.split(*arguments)
        self.shares |= {share[at : at + SECRET] for share in made for at in (0, SECRET)}
        return made

    def look(self) -> None:
        """Every byte of the coordinator's, now."""
        with self._lock:
            mine = (path for path in self.folder.rglob("*") if path.is_file() and "state" not in path.parts)
            self.seen.append({str(path.relative_to(self.folder)): path.read_bytes() for path in mine})


class _Watched(Masking):
    watch: Watch

    def called(self, round_: int, attempt: int, collection: str, payload: bytes) -> Word | None:
        if collection == "reveal":
            self.watch.look()
        return super().called(round_, attempt, collection, payload)


@pytest.fixture(scope="module", params=["secure", "secure-large"])
def watch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """A whole run, watched."""
    folder, kind = tmp_path_factory.mktemp("watched"), request.param
    found = Watch(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Watched, "watch", found, raising=False)
        patch.setattr(conversation, "Masking", partial(_Watched, entropy=found.entropy))
        patch.setattr(masker, "shamir", _Shamir(found))
        patch.setitem(os.environ, "RUNTIME_DIRECTORY", str(tmp_path_factory.mktemp("runtime")))
        coordinator = Coordinator(folder, [])
        try:
            the_run(kind).create(coordinator.address)
            _take_part(coordinator.address, folder / "state", kind)
            coordinator.end()
        finally:
            coordinator.kill()
    found.look()
    return found


class _Shamir:
    """koinon_core.secagg.hazmat.shamir, watched."""

    def __init__(self, watch: Watch):
        self.split = watch.split


def _take_part(address: str, state: Path, kind: str) -> None:
    said: dict[str, dict[str, Any]] = {}

    def one(name: str) -> None:
        said[name] = device(address, name, state, kind)

    threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in toy.NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert {s["status"] for s in said.values()} == {"finished"}
    assert len(said) == len(toy.NAMES)


def test_no_secret_of_a_device_is_in_any_file_of_the_coordinator(watch: Watch) -> None:
    devices, rounds = len(toy.NAMES), 4  # the last is the evaluation
    assert len(watch.drawn) == 3 * devices * rounds, "two keys and a seed each"
    assert len(watch.shares) == 2 * devices * devices * rounds
    assert len(watch.seen) > rounds
    seen = {data: name for files in watch.seen for name, data in files.items()}
    assert any(name.endswith("koinon.db") for name in seen.values())
    for data, name in seen.items():
        found = [s for s in watch.drawn | watch.shares if s in data or s.hex().encode() in data]
        assert not found, f"{len(found)} secrets are in {name}"


def test_what_is_looked_for_would_be_found(watch: Watch) -> None:
    """While devices reveal, the coordinator has sealed words of theirs, and the key that opens them, apart."""
    keys = [data for files in watch.seen[:-1] for name, data in files.items() if name.endswith(".key")]
    assert keys
    assert all(len(key) == SECRET for key in keys)
    for files in watch.seen:
        assert not any(
            key in data for key in keys for name, data in files.items() if not name.endswith(".key")
        )


def test_a_masked_update_is_noise_as_it_is_stored(watch: Watch) -> None:
    stored = {
        name: data
        for files in watch.seen
        for name, data in files.items()
        if "/updates/" in name and len(data) > 1 << 16
    }
    if not stored:
        pytest.skip("this run's updates are rows")
    assert len(stored) >= 3 * len(toy.NAMES)
    for name, data in stored.items():
        counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        expected = len(data) / 256
        chi2 = float(np.sum((counts - expected) ** 2) / expected)
        assert abs(chi2 - 255) < 6 * np.sqrt(2 * 255), f"{name}: chi-square {chi2} of 255 degrees of freedom"


def test_at_the_end_nothing_of_a_session_is_left(watch: Watch) -> None:
    last = watch.seen[-1]
    assert not [name for name in last if name.endswith(".key") or "/updates/" in name]


def test_secure_and_open_runs_at_a_time_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two secure runs and an open one, of the same four machines."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "runtime"))
    (tmp_path / "runtime").mkdir()
    coordinator = Coordinator(tmp_path, [])
    models = {"one": 1.0, "two": 2.0, "plain": 4.0}

    def take_part(run: str, i: int) -> None:
        model = {"x": np.zeros(3)}
        state = tmp_path / "state" / run
        with koinon.join(coordinator.address, run=run, name=f"machine-{i}-{run}", state=state) as session:
            for task in session.tasks(model):
                model["x"] += models[run] * 2.0**-i
                task.submit(examples=1)

    try:
        for name in models:
            secure = (
                {"aggregation": "open", "codec": "raw"}
                if name == "plain"
                else {"aggregation": "secure", "codec": "exact"}
            )
            koinon.Run(
                name, model={"x": np.zeros(3)}, rounds=2, min_clients=4, clients=4, join_wait=60.0, evaluate=False,
                max_examples=1, **secure,
            ).create(coordinator.address)  # fmt: skip
        threads = [
            threading.Thread(target=take_part, args=(run, i), daemon=True) for run in models for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        with Operator(coordinator.address) as operator:
            for name, step in models.items():
                expected = 2 * step * (1 + 0.5 + 0.25 + 0.125) / 4
                np.testing.assert_allclose(operator.model(name)[1]["x"], expected, atol=1e-6)
                assert not operator.get(name).incidents
        coordinator.end()
    finally:
        coordinator.kill()


def test_a_device_is_in_a_secure_run_after_an_open_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same names, the same folders."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "runtime"))
    (tmp_path / "runtime").mkdir()
    models = []
    for kind in ("small", "secure"):
        folder = tmp_path / kind
        folder.mkdir()
        coordinator = Coordinator(folder, [])
        try:
            the_run(kind).create(coordinator.address)
            _take_part(coordinator.address, tmp_path / "state", kind)
            with Operator(coordinator.address) as operator:
                models.append(float(operator.model(RUN)[1]["x"][0]))
            coordinator.end()
        finally:
            coordinator.kill()
    assert abs(models[0] - models[1]) < 1e-5, "the secure sum is that of the open one"
