"""The bell: how an idle device hears that there is work, with as little as that takes.

It joins the runs of the device's tasks, says that it is ready, and waits. The rest of a conversation (what was pinned,
what is owed) is the worker's, who joins anew once the bell has rung, and is asked again. A device that does not stay
attached is told when to come back (pace steering, Bonawitz et al. 2019, arXiv 1902.01046, section 2.3).

Nothing here needs numpy: it is most of what an idle daemon has in memory.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # see koinon.calls
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import grpc

from koinon.calls import CHANNEL_OPTIONS, error_of, secured, stub
from koinon.identity.folder import Credentials
from koinon.identity.renewal import kept_fresh
from koinon.outbox import files
from koinon_core import PROTOCOL, __version__
from koinon_core.errors import KoinonError, RemoteProtocolError, Unavailable, from_code
from koinon_core.wire.methods import FLEET
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Back", "Bell", "Ended", "Rung", "memory_of"]

_ANSWER = 30.0  # seconds within which a coordinator says something
_LATER = 300.0


@dataclass(frozen=True, slots=True)
class Rung:
    """There is work in this run."""

    run: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Every run of this device is over, or refuses it; `why` says of each why."""

    why: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Back:
    """There is none now: come back in so many seconds."""

    after: float


def memory_of(folder: Path) -> tuple[str, int]:
    """Which memory a device has (its instance) and how often it was started, as its worker will say it again. A device
    that never had one is given it by its first worker, and rings under the name that this one will have."""
    path = folder / "device"
    if not path.exists():
        return "", 0
    with files.whole(path):
        header, _ = files.read(path, "device", "")
        return str(header["instance"]), int(header["boot"])


@dataclass(slots=True)
class Bell:
    """Of the device `client`, whose memory is in `folder`. `runs` are the names of the runs that it takes part in, each
    with whether it evaluates models there; `keepalive` is in seconds. `able` and `condition` are what the device says
    of itself. With `visits` it does not stay attached."""

    address: str
    client: str
    folder: Path
    credentials: Credentials | None
    runs: Mapping[str, bool]
    keepalive: float = 240.0
    visits: bool = False
    able: Mapping[str, int] | None = None
    condition: Callable[[], Mapping[str, Any]] | None = None
    _names: dict[str, str] = field(default_factory=dict)
    _over: dict[str, str] = field(default_factory=dict)
    _back: Back | None = None

    async def listen(self) -> Rung | Ended | Back:
        """Until it rings. Unavailable or whatever the coordinator refuses this device with; try again later."""
        options = [
            *(o for o in CHANNEL_OPTIONS if not o[0].startswith("grpc.keepalive_time")),
            ("grpc.keepalive_time_ms", int(self.keepalive * 1000)),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._names, self._over, self._back = {}, {}, None
        try:
            async with self._channel(options) as channel, kept_fresh(self.credentials, channel):
                return await self._attend(channel)
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self.address) from None

    def _channel(self, options: Any) -> grpc.aio.Channel:
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        return grpc.aio.secure_channel(self.address, secured(self.credentials), options=options)

    async def _attend(self, channel: grpc.aio.Channel) -> Rung | Ended | Back:
        call = stub(channel, FLEET.ATTEND)()
        try:
            await call.write(pb.AttendRequest(messages=[await self._hello()]))
            async with asyncio.timeout(_ANSWER):
                if await call.read() is grpc.aio.EOF:
                    raise await _end_of(call)
            joins = [pb.DeviceMessage(join=pb.Join(run=run, wait=True)) for run in self.runs]
            await call.write(pb.AttendRequest(messages=joins))
            # Whoever visits is told soon how long to stay; who stays attached waits for as long as it takes.
            async with asyncio.timeout(_ANSWER if self.visits else None) as patience:
                while (response := await call.read()) is not grpc.aio.EOF:
                    for message in response.messages:
                        heard = await self._heard(call, message, patience)
                        if heard is not None:
                            return heard
                raise await _end_of(call)
        except asyncio.InvalidStateError:  # the stream was over before that could be said
            raise await _end_of(call) from None
        except TimeoutError:
            if self._back is not None:
                return self._back
            if self._names or self.visits:  # it is in, and none of its runs is there yet
                return Back(random.uniform(0.5, 1.0) * _LATER)  # noqa: S311 - jitter, not a secret
            raise Unavailable(f"the coordinator at {self.address} says nothing") from None
        finally:
            call.cancel()

    async def _hello(self) -> pb.DeviceMessage:
        instance, boot = memory_of(self.folder)
        said = pb.Hello(
            protocol=PROTOCOL, client=self.client, instance=instance or "new", version=__version__, boot=boot,
            able=pb.Able(**self.able) if self.able else None,
        )  # fmt: skip
        if self.condition is not None:
            said.condition.CopyFrom(pb.Condition(**await asyncio.to_thread(self.condition)))
        return pb.DeviceMessage(hello=said)

    async def _heard(
        self, call: Any, message: pb.CoordinatorMessage, patience: asyncio.Timeout
    ) -> Rung | Ended | None:
        kind = message.WhichOneof("says") or ""
        said: Any = getattr(message, kind) if kind else None
        match kind:
            case "joined":
                name = _name_in(said.spec)
                self._names[said.run] = name
                offer = pb.Offer(run=said.run, evaluates=self._evaluates(name), visit=self.visits)
                await call.write(pb.AttendRequest(messages=[pb.DeviceMessage(offer=offer)]))
            case "ask" | "call":
                return Rung(self._names.get(said.run, said.run))
            case "ended":
                name = self._names.get(said.run, said.run)
                again = [run for run in self.runs if run != name and fnmatchcase(name, run)]
                if again:  # the next run of that kind is waited for
                    joins = [pb.DeviceMessage(join=pb.Join(run=run, wait=True)) for run in again]
                    await call.write(pb.AttendRequest(messages=joins))
                    return None
                return self._lost(said.run, f"it is {said.status}: {said.reason}")
            case "trouble":
                return self._lost(said.run, str(from_code(said.code, said.message)))
            case "pace":
                self._back = Back(said.after_s + random.uniform(0, said.jitter_s))  # noqa: S311 - jitter, not a secret
                patience.reschedule(asyncio.get_running_loop().time() + said.stay_s)
        return None

    def _evaluates(self, run: str) -> bool:
        return any(evaluates for wanted, evaluates in self.runs.items() if fnmatchcase(run, wanted))

    def _lost(self, run: str, why: str) -> Ended | None:
        """One of the runs takes no part of this device's; once none does, there is nothing to wait for."""
        self._over[self._names.get(run, run)] = why
        return Ended(dict(self._over)) if len(self._over) >= len(self.runs) else None


def _name_in(spec: bytes) -> str:
    """The run's name, of its spec's canonical JSON. RemoteProtocolError if there is none."""
    try:
        name = json.loads(spec)["name"]
    except (ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str):
        raise RemoteProtocolError("the coordinator described a run without a name")
    return name


async def _end_of(call: Any) -> KoinonError:
    """Why a stream ended that somebody still listened to."""
    code = await call.code()
    if code == grpc.StatusCode.OK:
        return Unavailable("the coordinator ended the stream; it may be starting anew")
    failed = grpc.aio.AioRpcError(
        code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
    return error_of(failed, "its address")
