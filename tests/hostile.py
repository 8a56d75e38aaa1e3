"""A device by hand: it speaks the stream message by message, so that it can say anything."""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import grpc
import numpy as np

from koinon.link import CHANNEL_OPTIONS, error_of
from koinon.operator import Operator
from koinon_core import codec
from koinon_core.canonical import sha256
from koinon_core.schema import schema_of
from koinon_core.tensors import Tensors
from koinon_core.wire import convert
from koinon_core.wire.methods import BLOBS, FLEET, TOKEN_KEY, Method
from koinon_core.wire.v1 import blobs_pb2 as blobs
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Device", "container", "over", "until"]


def container(codec_name: str = "lossless", **sections: Any) -> bytes:
    """Arrays as the bytes of an update; `x` is the section "delta/x"."""
    tensors = Tensors({f"delta/{name}": np.asarray(array) for name, array in sections.items()})
    return codec.encode(tensors, schema_of(tensors), codec_name)


class Device:
    """One stream to the coordinator. `hear` gives the next message of a kind, and raises what ended the stream."""

    def __init__(self, address: str, name: str = "mallory", **hello: Any):
        self.name, self.address, self.token = name, address, ""
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._out: queue.SimpleQueue[pb.AttendRequest | None] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = self._stub(FLEET.ATTEND)(iter(self._out.get, None))
        threading.Thread(target=self._listen, daemon=True).start()
        greeting = convert.hello(name, uuid.uuid4().hex)
        greeting.MergeFrom(pb.Hello(**hello))
        self.say(hello=greeting)

    def __enter__(self) -> Self:
        self.token = self.hear("welcome").token
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Hang up without a word."""
        self._out.put(None)
        self._call.cancel()
        self._channel.close()

    def _stub(self, method: Method[Any, Any]) -> Any:
        return getattr(self._channel, method.shape)(
            method.path,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=method.response.FromString,
        )

    def _listen(self) -> None:
        try:
            for response in self._call:
                for message in response.messages:
                    self._heard.put(message)
        except grpc.RpcError as error:
            self._heard.put(error_of(error, self.address))
        self._heard.put(EOFError("the coordinator hung up"))

    # -- the stream -------------------------------------------------------------------------------------------

    def say(self, **message: Any) -> None:
        self._out.put(pb.AttendRequest(messages=[pb.DeviceMessage(**message)]))

    def hear(self, kind: str, timeout: float = 10.0) -> Any:
        """The next message of that kind; what comes before it is passed over."""
        until = time.monotonic() + timeout
        while True:
            message = self._heard.get(timeout=max(0.01, until - time.monotonic()))
            if isinstance(message, Exception):
                raise message
            if message.HasField(kind):
                return getattr(message, kind)

    def join(self, run: str) -> str:
        """Join a run; its id."""
        self.say(join=pb.Join(run=run))
        return str(self.hear("joined").run)

    def enter(self, run: str) -> pb.Ask:
        """Join a run and take its next round."""
        self.offer(self.join(run))
        return self.asked()

    def offer(self, run: str) -> None:
        self.say(offer=pb.Offer(run=run))

    def asked(self) -> pb.Ask:
        ask: pb.Ask = self.hear("ask")
        return ask

    def answer(
        self, ask: pb.Ask, blob: bytes, *, examples: int = 10, inline: bool = True,
        head: Mapping[str, Any] | None = None, content: Mapping[str, Any] | None = None, **values: Any,
    ) -> None:  # fmt: skip
        """Say that `blob` is the update that was asked for; any part of that may be said otherwise."""
        said = {
            "digest": sha256(blob),
            "size": len(blob),
            "inline": blob if inline else b"",
            **(content or {}),
        }
        answer = {
            "run": ask.run, "round": ask.round, "terms_digest": sha256(ask.terms), "update": pb.Content(**said),
            "head": pb.Head(**{"examples": examples, **(head or {})}), **values,
        }  # fmt: skip
        self.say(answer=pb.Answer(**answer))

    # -- blobs ------------------------------------------------------------------------------------------------

    def _blob_call(self, method: Method[Any, Any], request: Any, token: str | None) -> Any:
        metadata = () if token == "" else ((TOKEN_KEY, token or self.token),)
        return self._stub(method)(request, metadata=metadata, timeout=10)

    def stat(self, ask: pb.Ask, digest: str, token: str | None = None) -> int:
        request = blobs.StatRequest(digest=digest, run=ask.run, round=ask.round)
        try:
            return int(self._blob_call(BLOBS.STAT, request, token).offset)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def download(self, digest: str, offset: int = 0, token: str | None = None) -> bytes:
        request = blobs.DownloadRequest(digest=digest, offset=offset)
        try:
            return b"".join(part.data for part in self._blob_call(BLOBS.DOWNLOAD, request, token))
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def upload(
        self, ask: pb.Ask, pieces: Iterable[bytes], token: str | None = None, **start: Any
    ) -> blobs.UploadResponse:
        """Upload `pieces` for the round of `ask`."""

        def parts() -> Iterator[blobs.UploadRequest]:
            begin = {"run": ask.run, "round": ask.round, **start}
            yield blobs.UploadRequest(start=blobs.UploadStart(**begin))
            for piece in pieces:
                yield blobs.UploadRequest(data=piece)

        try:
            response: blobs.UploadResponse = self._blob_call(BLOBS.UPLOAD, parts(), token)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None
        return response


def until(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """What `condition` gives once that is true."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"{condition} is still not true after {timeout} s"
        time.sleep(0.02)
    return value


def over(address: str, run: str, timeout: float = 20.0) -> Any:
    """The run (koinon.v1.GetResponse) once it is over."""
    with Operator(address) as operator:
        until(lambda: operator.get(run).run.status in ("finished", "failed", "cancelled"), timeout)
        return operator.get(run)
