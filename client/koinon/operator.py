"""The operator's calls, synchronous: create, list, get, watch, control, export."""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # see koinon.link

from collections.abc import Iterator
from typing import Any, Self

import grpc

from koinon.link import CHANNEL_OPTIONS, error_of
from koinon_core import codec
from koinon_core.audit import Entry
from koinon_core.errors import BadBlob
from koinon_core.spec import RunSpec
from koinon_core.tensors import Tensors
from koinon_core.wire.methods import RUNS, Method
from koinon_core.wire.v1 import runs_pb2 as pb

__all__ = ["Operator"]

_PIECE = 1 << 20
_TIMEOUT = 60.0


class Operator:
    """Calls on the runs of one coordinator; a context manager. Raises our errors, Unavailable included."""

    def __init__(self, address: str):
        self.address = address
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def _stub(self, method: Method[Any, Any]) -> Any:
        make = getattr(self._channel, method.shape)
        return make(
            method.path,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=method.response.FromString,
        )

    def _call(self, method: Method[Any, Any], request: Any, timeout: float | None = _TIMEOUT) -> Any:
        try:
            return self._stub(method)(request, timeout=timeout)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def _stream(self, method: Method[Any, Any], request: Any) -> Iterator[Any]:
        try:
            yield from self._stub(method)(request)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def create(self, spec: RunSpec, model: Tensors) -> pb.RunInfo:
        """Submit a run with its first model."""
        blob = codec.encode(model, spec.model, spec.snapshots)

        def parts() -> Iterator[pb.CreateRequest]:
            yield pb.CreateRequest(spec=spec.encoded)
            for at in range(0, len(blob), _PIECE):
                yield pb.CreateRequest(model=blob[at : at + _PIECE])

        response: pb.CreateResponse = self._call(
            RUNS.CREATE, parts(), timeout=None
        )  # as long as the model takes
        return response.run

    def runs(self) -> list[pb.RunInfo]:
        """All runs, oldest first."""
        return list(self._call(RUNS.LIST, pb.ListRequest()).runs)

    def get(self, run: str) -> pb.GetResponse:
        """Everything about one run, by name or id."""
        response: pb.GetResponse = self._call(RUNS.GET, pb.GetRequest(run=run))
        return response

    def watch(self, run: str) -> Iterator[pb.WatchResponse]:
        """The run as it changes, until it is over."""
        yield from self._stream(RUNS.WATCH, pb.WatchRequest(run=run))

    def control(self, run: str, verb: str, reason: str = "", beyond: int = 0) -> pb.RunInfo:
        """Pause, resume, cancel or recover."""
        request = pb.ControlRequest(run=run, verb=verb, reason=reason, beyond=beyond)
        response: pb.ControlResponse = self._call(RUNS.CONTROL, request)
        return response.run

    def audit(self, run: str) -> Iterator[Entry]:
        """The run's audit log, oldest entry first."""
        for part in self._stream(RUNS.AUDIT, pb.AuditRequest(run=run)):
            yield from (Entry(e.number, e.entry, e.hash) for e in part.entries)

    def replay(self, run: str, round_: int | None = None) -> Iterator[pb.ReplayResponse]:
        """Sums taken again at the coordinator: of one round, or of all that closed."""
        yield from self._stream(RUNS.REPLAY, pb.ReplayRequest(run=run, round=round_))

    def updates(
        self, run: str, round_: int | None = None, client: str | None = None
    ) -> Iterator[pb.UpdateInfo]:
        """What is known of the updates of a run, by round and device: of one round and one device, or of all."""
        for part in self._stream(RUNS.UPDATES, pb.UpdatesRequest(run=run, round=round_, client=client)):
            yield from part.updates

    def model(self, run: str, round_: int | None = None) -> tuple[int, Tensors]:
        """(round, model): the newest, or the one that `round_` made (0: the first)."""
        spec = RunSpec.decode(self.get(run).spec)
        data, number = bytearray(), 0
        for part in self._stream(RUNS.EXPORT, pb.ExportRequest(run=run, round=round_)):
            data += part.data
            number = part.round
            if len(data) > codec.size_limit(spec.model):
                raise BadBlob("the coordinator sent more bytes than the run's model can have")
        return number, codec.decode(bytes(data), spec.model, "the exported model")
