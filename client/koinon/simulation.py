"""A federation without a network: the same run, the same client function, the same machines, a virtual clock.

    result = koinon.simulate(run, client, clients=10)

`client(session)` is the function that a device runs, deployed or here. Each simulated device has a thread, but
only one of them runs at a time, so a simulation is deterministic: everything between two devices goes through a
queue of (virtual time, message), and a seed decides what is late or lost.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from koinon.central import Central
from koinon.run import Run
from koinon.simulated.coordinator import House, RoundSummary, Traits
from koinon.simulated.device import Client, Device
from koinon.simulated.world import Faults, World
from koinon_core.errors import RunEnded, UsageError
from koinon_core.secure.rules import FEWEST
from koinon_core.selection.traits import CAPABILITIES, check_labels
from koinon_core.tensors import Tensors

__all__ = ["Faults", "RoundSummary", "Simulated", "World", "simulate"]

T = TypeVar("T")
Known = Mapping[str, Mapping[str, T]] | Callable[[str], Mapping[str, T]]


@dataclass(slots=True)
class Simulated:
    """How a simulated run ended. `metrics` are by the round whose model they are about."""

    status: str
    reason: str
    model: Tensors
    rounds: list[RoundSummary]
    metrics: dict[int, dict[str, float]]
    models: list[str] = field(default_factory=list)
    """Digests of the models, the first included."""


def simulate(
    run: Run,
    client: Client,
    *,
    clients: int | Iterable[str] = 10,
    faults: Faults | None = None,
    seed: int = 0,
    central: Central | None = None,
    labels: Known[object] | None = None,
    able: Known[float] | None = None,
) -> Simulated:
    """Run `run` with `clients` simulated devices (a number, or their names) that each call `client(session)`.

    The same names, seeds and client function give the same model as a deployed run, byte for byte, where the
    training itself is deterministic. Of a secure run too: devices draw real keys and mask their updates, and the sum
    does not depend on them. `labels` are those that an operator would have given the devices, `able` what they would
    say of themselves (memory_mb, cores, gpu): by name, or a function of the name. `central` measures each model as
    `handle.evaluate` does of a deployed run, as soon as there is one. Raises RunEnded if the run could not
    finish, and re-raises the first error of a client function that made it fail.
    """
    names = [f"client-{i}" for i in range(clients)] if isinstance(clients, int) else list(clients)
    spec = run.spec
    if len(names) < spec.quorum:
        out = f"; a secure run has {FEWEST} or more, one with aggregation = 'open' any" if spec.secure else ""
        raise UsageError(
            f"{len(names)} simulated clients can never be the run's min_clients = {spec.min_clients}"
            f"{f' in each of {spec.groups} groups' if spec.groups > 1 else ''}{out}"
        )
    world = World(seed)
    house = House(run, world, faults or Faults(), central, _traits(names, labels, able))
    devices = [Device(house, client, name) for name in names]
    for device in devices:
        device.start()
        device.link.idle.acquire()
    house.begin()
    try:
        while not house.machine.over and world.step():
            pass
        while world.step():  # let everyone hear the end
            pass
    finally:
        for device in devices:
            device.link.stop()
    return _result(house, devices)


def _traits(
    names: Sequence[str], labels: "Known[object] | None", able: "Known[float] | None"
) -> dict[str, Traits]:
    """What each device is known by. UsageError for labels that no operator could write, and for devices that are not
    there."""
    for what, given in (("labels", labels), ("able", able)):
        strange = sorted(given.keys() - set(names)) if isinstance(given, Mapping) else []
        if strange:
            raise UsageError(f"{what} are given for {strange[0]!r}, and there is no such simulated device")
    found = {}
    for name in names:
        says = _of(able, name)
        if unknown := sorted(says.keys() - set(CAPABILITIES)):
            raise UsageError(f"a device says nothing of {unknown[0]!r}; there are {', '.join(CAPABILITIES)}")
        found[name] = Traits(check_labels(name, _of(labels, name)), dict(says))
    return found


def _of(given: "Known[T] | None", name: str) -> Mapping[str, T]:
    if given is None:
        return {}
    return given.get(name, {}) if isinstance(given, Mapping) else given(name)


def _result(house: House, devices: Sequence[Device]) -> Simulated:
    machine = house.machine
    if machine.status != "finished":
        for device in devices:
            if device.error is not None:
                raise device.error
        raise RunEnded(
            f"the simulated run {machine.status}: {machine.reason or machine.waiting_for or 'every client left'}"
        )
    return Simulated(
        machine.status, machine.reason, house.model, house.rounds, house.metrics, list(house.models)
    )
