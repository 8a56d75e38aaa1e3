"""The demo's processes: a coordinator, ten devices, and a referee that has the test images.

Devices and referee are forked from a server that has torch and the images loaded already; ten imports of torch
would take longer than the federation. What they report comes back through pipes, as tuples that begin with what
they are about.

It is a federation as any other: it has a CA of its own, the referee is its admin and makes a token for every device,
and each device enrols with it and speaks mutual TLS from then on.
"""

import multiprocessing
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from koinon_core.errors import KoinonError, Unavailable
from koinon_core.identity import Token

__all__ = ["FEDERATION", "RUN", "Team", "coordinator", "preload"]

RUN = "demo"
FEDERATION = "federation"
"""The folder of the federation's keys, in the demo's."""
_ALPHA = 0.5
_START_WAIT = 30.0
_TOKEN_LIFE = 300
Report = tuple[Any, ...]


@contextmanager
def coordinator(folder: Path) -> Iterator[str]:
    """A coordinator with its database and its federation's keys in `folder`; gives its address, and stops it
    afterwards."""
    program, log = [sys.executable, "-m", "koinon_coordinator"], folder / "coordinator.log"
    federation = ["--dir", str(folder / FEDERATION)]
    listen = ["--db", f"sqlite:///{folder / 'koinon.db'}", "--listen", "127.0.0.1:0"]
    with log.open("wb") as said:
        if subprocess.call([*program, "init", *federation], stdout=said, stderr=said):
            raise Unavailable(f"the federation's keys could not be made; {log} says why")
        process = subprocess.Popen(
            [*program, "serve", *federation, *listen], stdout=subprocess.PIPE, stderr=said, text=True
        )
    try:
        assert process.stdout is not None
        ready = re.search(r"listens on ([^\s,]+)", process.stdout.readline())
        if ready is None:
            raise Unavailable(f"the coordinator did not start; {log} says why")
        yield ready[1]
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def preload() -> ForkServerContext:
    """Start the forkserver, which loads torch while the coordinator starts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["koinon.demo.warm"])
    context.Process(target=_nothing).start()
    return context


def _nothing() -> None:
    """The first process makes the forkserver start."""


class Team:
    """The devices and the referee; use as a context manager. What devices remember is in `folder`."""

    def __init__(
        self, context: ForkServerContext, address: str, folder: Path, clients: int, rounds: int, seed: int
    ):
        self._processes: dict[Connection, ForkServerProcess] = {}
        self._created = created = context.Event()  # kept: it goes when nobody here holds it
        tokens = [
            context.Pipe(duplex=False) for _ in range(clients)
        ]  # as one hands them over, and never in argv
        admin, memory = folder / FEDERATION / "admin", folder / "devices"
        give = [there for _, there in tokens]
        jobs: list[tuple[Any, tuple[Any, ...]]] = [
            (_referee, (address, admin, give, created, clients, rounds, seed))
        ]
        for i, (token, _) in enumerate(tokens):
            jobs.append((_device, (address, memory, token, created, clients, seed, i)))
        for target, arguments in jobs:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_reporting, args=(theirs, target, *arguments), daemon=True)
            process.start()
            theirs.close()
            self._processes[ours] = process
        for pair in tokens:
            for end in pair:
                end.close()

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()

    def reports(self) -> Iterator[Report]:
        """What they report, as it comes, until all have ended. KoinonError if one of them fails."""
        open_ends = set(self._processes)
        while open_ends:
            for end in wait(open_ends):
                assert isinstance(end, Connection)
                try:
                    report = end.recv()
                except EOFError:
                    raise KoinonError(
                        f"{self._processes[end].name} of the demo died without a word"
                    ) from None
                if report[0] == "failed":
                    raise KoinonError(report[1])
                if report[0] == "done":
                    open_ends.discard(end)
                yield report


def _reporting(pipe: Connection, target: Any, *arguments: Any) -> None:
    try:
        target(pipe, *arguments)
        pipe.send(("done",))
    except KoinonError as error:
        pipe.send(("failed", str(error)))
    except KeyboardInterrupt:
        return
    except Exception as error:
        pipe.send(("failed", f"a process of the demo failed: {type(error).__name__}: {error}"))
    finally:
        pipe.close()


def _device(
    pipe: Connection, address: str, memory: Path, token: Connection, created: Event, clients: int, seed: int,
    index: int,
) -> None:  # fmt: skip
    """A device: enrols, takes part, and then tells what it could have learned alone."""
    import koinon
    import koinon.link  # gRPC, loaded while the run is being submitted
    from koinon.demo import digits
    from koinon.identity import device_folder
    from koinon.identity.enrolment import enrol

    train, test = digits.load()
    mine = train.take(digits.split(train.labels.numpy(), clients, _ALPHA, seed)[index])
    name = f"client-{index}"
    own = device_folder(name, memory) / "identity"
    enrol(Token.parse(_received(token)), name, own)
    if not created.wait(_START_WAIT):
        raise Unavailable(f"the run was not submitted within {_START_WAIT} s")
    with koinon.join(
        address, run=RUN, name=name, timeout=_START_WAIT, state=memory, credentials=own
    ) as session:
        digits.client(session, mine)
        rounds = session.spec.rounds
    model = digits.make_model(seed)
    digits.train(model, mine, rounds * digits.LOCAL_EPOCHS, seed)
    pipe.send(("alone", index, digits.evaluate(model, test)["accuracy"], len(mine)))


def _received(token: Connection) -> str:
    try:
        if token.poll(_START_WAIT):
            return str(token.recv())
    except EOFError:
        pass
    raise Unavailable(f"there was no token within {_START_WAIT} s")


def _referee(
    pipe: Connection, address: str, admin: Path, give: list[Connection], created: Event, clients: int, rounds: int,
    seed: int,
) -> None:  # fmt: skip
    """Makes the tokens, submits the run, tests every round's model on images that no device has, and trains one
    centrally."""
    import koinon
    from koinon.adapt import adapt
    from koinon.demo import digits
    from koinon.operator import Operator

    with Operator(address, admin) as operator:
        for device in give:
            device.send(operator.create_token(_TOKEN_LIFE).token)
    train, test = digits.load()
    model = digits.make_model(seed)
    run = koinon.Run(  # secure, as every run is that does not say otherwise
        RUN, model=model, strategy=koinon.FedAvg(), rounds=rounds, min_clients=clients, clients=clients,
        max_examples=4096, seed=seed, config={"epochs": digits.LOCAL_EPOCHS},
    )  # fmt: skip
    handle = run.create(address, credentials=admin)
    created.set()
    seen = 0
    with Operator(address, admin) as operator:
        for update in operator.watch(handle.id):
            for r in update.rounds:
                if r.kind == "train" and r.status == "closed" and r.number > seen:
                    seen = r.number
                    adapt(model).load(operator.model(handle.id, r.number)[1])
                    tested = digits.evaluate(model, test)
                    counted = sum(p.status == "counted" for p in r.participants)
                    pipe.send(
                        ("round", r.number, tested["accuracy"], tested["loss"], counted, r.bytes_up, r.bits,
                         r.bytes_down, r.closed_at - r.opened_at)
                    )  # fmt: skip
            pipe.send(("run", update.run.status, update.run.reason, update.run.waiting_for))
    central = digits.make_model(seed)
    digits.train(central, train, rounds * digits.LOCAL_EPOCHS, seed)
    pipe.send(("central", digits.evaluate(central, test)["accuracy"]))
