"""The way down: a model is fetched once, and of the next one what changed."""

import numpy as np
import pytest

import koinon
from hostile import until
from koinon.operator import Operator
from koinon_core import codec
from koinon_core.errors import BadBlob
from koinon_core.tensors import Tensors

SIZE = 60_000
FIRST = np.random.default_rng(3).standard_normal(SIZE).astype(np.float32)


def submit(coordinator, **settings) -> koinon.RunHandle:
    given = {"rounds": 4, "min_clients": 1, "clients": 1, "evaluate": False, "codec": "raw"}
    values = {**given, "aggregation": "open", **settings}
    return koinon.Run("r", model={"w": FIRST, "n": np.array(0)}, **values).create(coordinator.address)


class Device:
    """A device that takes part in as many rounds as asked, and notes what it fetched."""

    def __init__(self, coordinator, folder, name="a"):
        self.session = koinon.join(coordinator.address, run="r", name=name, state=folder)
        self.model = {"w": np.zeros(SIZE, np.float32), "n": np.array(0)}
        self.tasks, self.fetched, self.seen = self.session.tasks(self.model), [], []
        shelf, fetch = self.session._shelf, self.session._shelf._fetch

        def noted(content, into):
            self.fetched.append(content.size)
            return fetch(content, into)

        shelf._fetch = noted

    def work(self, rounds: int, step: float = 2.0**-12) -> None:
        for _ in range(rounds):
            task = next(self.tasks)
            self.seen.append(self.model["w"].copy())
            self.model["w"] += np.float32(step)
            task.submit(examples=1)
            until(lambda task=task: task.outcome)


def test_of_the_next_model_only_what_changed_is_fetched(coordinator, tmp_path):
    submit(coordinator)
    device = Device(coordinator, tmp_path)
    with device.session:
        device.work(4)
    whole, *changes = device.fetched
    assert whole > SIZE * 4
    assert len(changes) == 3
    assert max(changes) < 0.7 * whole
    for number, seen in enumerate(device.seen):
        assert np.allclose(seen, FIRST + number * 2.0**-12, atol=1e-6)
    kept = list((tmp_path / device.session._outbox.models).iterdir())
    assert [path.name for path in kept] == [device.session._shelf.held]


def test_a_device_that_comes_back_fetches_only_what_it_has_not(coordinator, tmp_path):
    submit(coordinator)
    first = Device(coordinator, tmp_path)
    with first.session:
        first.work(1)
    second = Device(coordinator, tmp_path)
    with second.session:
        second.work(1)
    assert len(first.fetched) == 1
    assert second.fetched[0] < 0.7 * first.fetched[0]


def test_a_model_that_was_damaged_on_the_device_is_fetched_again(coordinator, tmp_path):
    submit(coordinator)
    first = Device(coordinator, tmp_path)
    with first.session:
        first.work(1)
        (path,) = first.session._outbox.models.iterdir()
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    second = Device(coordinator, tmp_path)
    with second.session:
        second.work(1)
    assert len(second.fetched) == 2, "what changed, which comes to another model; then the whole"
    assert second.fetched[0] < second.fetched[1]
    assert second.seen[0].tobytes() == (FIRST + np.float32(2.0**-12)).tobytes()


@pytest.mark.parametrize("how", ["snapshot", "no memory"])
def test_without_differences_the_whole_model_is_fetched_each_time(coordinator, tmp_path, how):
    submit(coordinator, downlink="snapshot" if how == "snapshot" else "delta", rounds=3)
    device = Device(coordinator, tmp_path, name="a" if how == "snapshot" else None)
    with device.session:
        device.work(3)
    assert len(device.fetched) == 3
    assert min(device.fetched) > SIZE * 4


def test_a_model_that_is_another_than_the_terms_say_is_not_trained(coordinator, tmp_path):
    submit(coordinator, rounds=1)
    device = Device(coordinator, tmp_path)
    other = Tensors({"w": FIRST + 1, "n": np.array(0)})

    def another(content, into):
        into.write_bytes(codec.encode(other, device.session.spec.model, "raw"))

    device.session._shelf._fetch = another
    with pytest.raises(BadBlob, match="other weights than its terms name"), device.session:
        device.work(1)
    assert device.seen == []
    until(lambda: [i.code for i in Operator(coordinator.address).get("r").incidents] == ["REFUSED"])
