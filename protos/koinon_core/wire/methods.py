"""Every remote call as one row of a table: its path, its shape, and its two messages.

Stubs and handlers are made from these rows by whoever has a channel or a server, so the core needs no gRPC.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from google.protobuf.message import Message

from koinon_core.wire.v1 import blobs_pb2, fleet_pb2, runs_pb2

__all__ = ["BLOBS", "ERROR_KEY", "FLEET", "RUNS", "TOKEN_KEY", "Method", "Shape"]

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
