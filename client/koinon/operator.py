"""The operator's calls, synchronous: on runs, and on who may do what."""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # see koinon.link

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from koinon.calls import CHANNEL_OPTIONS, error_of, secured
from koinon.identity import Credentials, operator_access
from koinon.identity.renewal import asking, is_due
from koinon_core import codec
from koinon_core.audit import Entry
from koinon_core.errors import BadBlob, KoinonError
from koinon_core.spec import RunSpec
from koinon_core.tensors import Tensors
from koinon_core.wire.methods import DIRECTORY, IDENTITY, RUNS, Method
from koinon_core.wire.v1 import enrolment_pb2 as people
from koinon_core.wire.v1 import runs_pb2 as pb

__all__ = ["Operator"]

_PIECE = 1 << 20
_TIMEOUT = 60.0
_log = logging.getLogger("koinon")


class Operator:
    """Calls on one coordinator; a context manager. Raises our errors, Unavailable included.

    `credentials` is a folder (default: KOINON_OPERATOR, ./koinon-federation/admin, ~/.config/koinon/operator), and with
    `insecure` (KOINON_INSECURE=1) there are none, on this machine alone. `address` is HOST:PORT (KOINON_ADDRESS, what
    the credentials say, 127.0.0.1:8440).
    """

    def __init__(
        self, address: str | None = None, credentials: Path | None = None, *, insecure: bool | None = None
    ):
        access = operator_access(address, credentials=credentials, insecure=insecure)
        self.address, self._credentials = access.address, access.credentials
        self._channel = (
            grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS)
            if access.credentials is None
            else grpc.secure_channel(self.address, secured(access.credentials), options=CHANNEL_OPTIONS)
        )

    def __enter__(self) -> Self:
        if self._credentials is not None and is_due(self._credentials, time.time()):
            try:
                self._renew(self._credentials)
            except KoinonError as error:  # there is a third of its life left, for other tries
                _log.warning("the certificate of %s is not renewed yet: %s", self._credentials.id, error)
        return self

    def _renew(self, credentials: Credentials) -> None:
        got = self._call(IDENTITY.RENEW, asking(credentials, time.time()))
        credentials.renewed(got.certificate, got.ca, got.entry)

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

    def get(self, run: str, *, costs: bool = False, round_: int | None = None) -> pb.GetResponse:
        """Everything about one run, by name or id; with `costs` what each device's part has cost too, in all rounds or
        in `round_`."""
        request = pb.GetRequest(run=run, costs=costs, round=round_)
        response: pb.GetResponse = self._call(RUNS.GET, request)
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

    def measure(self, run: str, round_: int, metrics: Mapping[str, float]) -> pb.RunInfo:
        """Keep what you measured of the model that a round made, as its metrics central.NAME."""
        request = pb.MeasureRequest(run=run, round=round_, metrics=metrics)
        response: pb.MeasureResponse = self._call(RUNS.MEASURE, request)
        return response.run

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

    # -- who may do what --------------------------------------------------------------------------------------

    def create_token(self, ttl: int, uses: int = 1, label: str = "") -> people.CreateTokenResponse:
        """What lets `uses` devices in for `ttl` seconds; they get the label. It is told this once."""
        request = people.CreateTokenRequest(ttl=ttl, uses=uses, label=label)
        response: people.CreateTokenResponse = self._call(DIRECTORY.CREATE_TOKEN, request)
        return response

    def devices(self) -> list[people.DeviceInfo]:
        """All devices that ever enrolled or were seen."""
        return list(self._call(DIRECTORY.LIST_DEVICES, people.ListDevicesRequest()).devices)

    def revoke_device(self, device: str, reason: str = "") -> people.DeviceInfo:
        """It is cut now, and let in no more."""
        request = people.RevokeDeviceRequest(id=device, reason=reason)
        response: people.RevokeDeviceResponse = self._call(DIRECTORY.REVOKE_DEVICE, request)
        return response.device

    def label_device(self, device: str, label: str) -> people.DeviceInfo:
        """Words for people; "" for none."""
        request = people.LabelDeviceRequest(id=device, label=label)
        response: people.LabelDeviceResponse = self._call(DIRECTORY.LABEL_DEVICE, request)
        return response.device

    def operators(self) -> list[people.OperatorInfo]:
        """All operators that there ever were."""
        return list(self._call(DIRECTORY.LIST_OPERATORS, people.ListOperatorsRequest()).operators)

    def create_operator(self, name: str, role: str, csr: bytes) -> people.CreateOperatorResponse:
        """An operator with a role, and the certificate for the key that signed `csr` (DER)."""
        request = people.CreateOperatorRequest(name=name, role=role, csr=csr)
        response: people.CreateOperatorResponse = self._call(DIRECTORY.CREATE_OPERATOR, request)
        return response

    def revoke_operator(self, name: str) -> people.OperatorInfo:
        """It may do nothing from now on."""
        response: people.RevokeOperatorResponse = self._call(
            DIRECTORY.REVOKE_OPERATOR, people.RevokeOperatorRequest(name=name)
        )
        return response.operator

    def export_roster(self) -> people.ExportRosterResponse:
        """The roster's next version, for its owner to sign."""
        response: people.ExportRosterResponse = self._call(
            DIRECTORY.EXPORT_ROSTER, people.ExportRosterRequest()
        )
        return response

    def import_roster(self, entries: Sequence[bytes], key: bytes) -> people.ImportRosterResponse:
        """Entries that the owner of `key` (the public one, 32 bytes) signed."""
        request = people.ImportRosterRequest(entries=entries, key=key)
        response: people.ImportRosterResponse = self._call(DIRECTORY.IMPORT_ROSTER, request)
        return response
