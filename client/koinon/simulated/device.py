"""A device in memory: the owner's client function on a thread that runs only when the simulation lets it."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from koinon.session import Session
from koinon.simulated.coordinator import House
from koinon_core.blob import Blob
from koinon_core.errors import NotFound
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Client", "Device"]

T = TypeVar("T")
Client = Callable[[Session], Any]


class _Stop(BaseException):
    """Ends a device's thread when the simulation is over before the device is."""


class MemoryLink:
    """A session's link to the simulated coordinator. The device's thread runs from one `wait` to the next."""

    def __init__(self, house: House, client: str):
        self._house, self.client = house, client
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.idle = threading.Semaphore(0)
        self.receiver: Session | None = None
        self.ended = False

    def start(self, receiver: Session) -> None:
        self.receiver = receiver
        receiver.connected()

    def send(self, message: pb.DeviceMessage) -> None:
        self._house.hear(self, message, b"")

    def answer(self, answer: pb.Answer | pb.Voice, blob: Blob) -> None:
        if isinstance(answer, pb.Voice):
            self._house.hear(self, pb.DeviceMessage(voice=answer), blob.bytes())
        else:
            self._house.hear(self, pb.DeviceMessage(answer=answer), blob.bytes())

    def fetch(self, content: pb.Content, into: Path | None = None) -> Blob:
        if content.digest not in self._house.contents:
            raise NotFound(f"the model of a round that is over ({content.digest[:12]}) is gone")
        return Blob.of(self._house.contents[content.digest])

    def wait(self, take: Callable[[float], T]) -> T:
        while True:
            try:
                return take(0.0)
            except TimeoutError:
                self.idle.release()
                if not self._wake.get():
                    raise _Stop from None

    def drain(self, settled: Callable[[], bool]) -> None:
        """Nothing is on its way: messages in memory have arrived."""

    def close(self) -> None:
        self._house.leave(self)

    def deliver(self, message: pb.CoordinatorMessage) -> None:
        """Called by the coordinator, in virtual time."""
        assert self.receiver is not None
        self.receiver.heard(message)
        self.resume()

    def reconnect(self) -> None:
        """The stream was cut, and there is a new one. Called by the coordinator, in virtual time."""
        if not self.ended:
            assert self.receiver is not None
            self.receiver.connected()
            self.resume()

    def resume(self, go_on: bool = True) -> None:
        """Let the device's thread run until it waits again, or ends."""
        if not self.ended:
            self._wake.put(go_on)
            self.idle.acquire()

    def stop(self) -> None:
        """End the device's thread, wherever it waits."""
        while not self.ended:
            self.resume(go_on=False)


class Device(threading.Thread):
    """A simulated device: its client function on a thread that runs only when the simulation lets it."""

    def __init__(self, house: House, client: Client, name: str):
        super().__init__(name=f"koinon-{name}", daemon=True)
        self.link = MemoryLink(house, name)
        # What takes a while is done at once: no time passes, and nothing else happens meanwhile.
        self.session = Session(
            self.link, house.spec.name, name, soon=lambda work: work(), clock=lambda: house.world.now
        )
        self._function = client
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.session:
                self.link.start(self.session)
                self.link.wait(self._joined)
                self._function(self.session)
        except _Stop:
            self.error = None
        except BaseException as error:
            self.error = error
        finally:
            self.link.ended = True
            self.link.idle.release()

    def _joined(self, _timeout: float) -> bool:
        if self.session.joined_or_raise():
            return True
        raise TimeoutError
