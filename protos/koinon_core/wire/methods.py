"""Every remote call as one row of a table: its path, its shape, and its two messages.

Stubs and handlers are made from these rows by whoever has a channel or a server, so the core needs no gRPC.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from google.protobuf.message import Message

from koinon_core.wire.v1 import blobs_pb2, enrolment_pb2, fleet_pb2, runs_pb2

__all__ = [
    "BLOBS", "DIRECTORY", "ENROLMENT", "ERROR_KEY", "FLEET", "IDENTITY", "RUNS", "TOKEN_KEY", "Method", "Shape",
]  # fmt: skip

Shape = Literal["unary_unary", "unary_stream", "stream_unary", "stream_stream"]

TOKEN_KEY = "koinon-token"  # noqa: S105 - the name of a metadata key
"""Metadata: the token that authorises a device's blob calls."""
ERROR_KEY = "koinon-error"
"""Trailing metadata: the code (koinon_core.errors) of the error that ended a call."""


Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Res]):
    """One call. `request` and `response` are the message classes."""

    service: str
    name: str
    shape: Shape
    request: type[Req]
    response: type[Res]

    @property
    def path(self) -> str:
        return f"/koinon.v1.{self.service}/{self.name}"


class FLEET:
    """What devices call."""

    ATTEND = Method(
        "FleetService", "Attend", "stream_stream", fleet_pb2.AttendRequest, fleet_pb2.AttendResponse
    )


class BLOBS:
    """Bytes in both directions."""

    DOWNLOAD = Method(
        "BlobsService", "Download", "unary_stream", blobs_pb2.DownloadRequest, blobs_pb2.DownloadResponse
    )
    UPLOAD = Method(
        "BlobsService", "Upload", "stream_unary", blobs_pb2.UploadRequest, blobs_pb2.UploadResponse
    )
    STAT = Method("BlobsService", "Stat", "unary_unary", blobs_pb2.StatRequest, blobs_pb2.StatResponse)


class RUNS:
    """What operators call."""

    CREATE = Method("RunsService", "Create", "stream_unary", runs_pb2.CreateRequest, runs_pb2.CreateResponse)
    LIST = Method("RunsService", "List", "unary_unary", runs_pb2.ListRequest, runs_pb2.ListResponse)
    GET = Method("RunsService", "Get", "unary_unary", runs_pb2.GetRequest, runs_pb2.GetResponse)
    WATCH = Method("RunsService", "Watch", "unary_stream", runs_pb2.WatchRequest, runs_pb2.WatchResponse)
    CONTROL = Method(
        "RunsService", "Control", "unary_unary", runs_pb2.ControlRequest, runs_pb2.ControlResponse
    )
    EXPORT = Method("RunsService", "Export", "unary_stream", runs_pb2.ExportRequest, runs_pb2.ExportResponse)
    AUDIT = Method("RunsService", "Audit", "unary_stream", runs_pb2.AuditRequest, runs_pb2.AuditResponse)
    REPLAY = Method("RunsService", "Replay", "unary_stream", runs_pb2.ReplayRequest, runs_pb2.ReplayResponse)
    UPDATES = Method(
        "RunsService", "Updates", "unary_stream", runs_pb2.UpdatesRequest, runs_pb2.UpdatesResponse
    )
    MEASURE = Method(
        "RunsService", "Measure", "unary_unary", runs_pb2.MeasureRequest, runs_pb2.MeasureResponse
    )


class ENROLMENT:
    """What a device calls that has a token and no certificate yet, on a listener of its own."""

    ENROL = Method(
        "EnrolmentService", "Enrol", "unary_unary", enrolment_pb2.EnrolRequest, enrolment_pb2.EnrolResponse
    )


class IDENTITY:
    """What everybody calls about their own certificate."""

    RENEW = Method(
        "IdentityService", "Renew", "unary_unary", enrolment_pb2.RenewRequest, enrolment_pb2.RenewResponse
    )


def _directory(name: str, request: type[Req], response: type[Res]) -> Method[Req, Res]:
    return Method("DirectoryService", name, "unary_unary", request, response)


class DIRECTORY:
    """What operators call about devices, operators and the roster."""

    CREATE_TOKEN = _directory(
        "CreateToken", enrolment_pb2.CreateTokenRequest, enrolment_pb2.CreateTokenResponse
    )
    LIST_DEVICES = _directory(
        "ListDevices", enrolment_pb2.ListDevicesRequest, enrolment_pb2.ListDevicesResponse
    )
    REVOKE_DEVICE = _directory(
        "RevokeDevice", enrolment_pb2.RevokeDeviceRequest, enrolment_pb2.RevokeDeviceResponse
    )
    LABEL_DEVICE = _directory(
        "LabelDevice", enrolment_pb2.LabelDeviceRequest, enrolment_pb2.LabelDeviceResponse
    )
    LIST_OPERATORS = _directory(
        "ListOperators", enrolment_pb2.ListOperatorsRequest, enrolment_pb2.ListOperatorsResponse
    )
    CREATE_OPERATOR = _directory(
        "CreateOperator", enrolment_pb2.CreateOperatorRequest, enrolment_pb2.CreateOperatorResponse
    )
    REVOKE_OPERATOR = _directory(
        "RevokeOperator", enrolment_pb2.RevokeOperatorRequest, enrolment_pb2.RevokeOperatorResponse
    )
    EXPORT_ROSTER = _directory(
        "ExportRoster", enrolment_pb2.ExportRosterRequest, enrolment_pb2.ExportRosterResponse
    )
    IMPORT_ROSTER = _directory(
        "ImportRoster", enrolment_pb2.ImportRosterRequest, enrolment_pb2.ImportRosterResponse
    )
