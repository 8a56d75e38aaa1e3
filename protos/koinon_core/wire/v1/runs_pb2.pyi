from koinon_core.wire.v1 import fleet_pb2 as _fleet_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateRequest(_message.Message):
    __slots__ = ("spec", "model")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    model: bytes
    def __init__(self, spec: _Optional[bytes] = ..., model: _Optional[bytes] = ...) -> None: ...

class CreateResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ...) -> None: ...

class RunInfo(_message.Message):
    __slots__ = ("id", "name", "status", "reason", "rounds_closed", "rounds", "created_at", "ended_at", "strategy", "devices", "waiting_for", "aggregation")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_CLOSED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    status: str
    reason: str
    rounds_closed: int
    rounds: int
    created_at: float
    ended_at: float
    strategy: str
    devices: int
    waiting_for: str
    aggregation: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., rounds_closed: _Optional[int] = ..., rounds: _Optional[int] = ..., created_at: _Optional[float] = ..., ended_at: _Optional[float] = ..., strategy: _Optional[str] = ..., devices: _Optional[int] = ..., waiting_for: _Optional[str] = ..., aggregation: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunInfo]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunInfo, _Mapping]]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("run", "costs", "round")
    RUN_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run: str
    costs: bool
    round: int
    def __init__(self, run: _Optional[str] = ..., costs: bool = ..., round: _Optional[int] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("run", "spec", "rounds", "incidents", "attached", "model_digest", "head", "audit_number", "audit_hash")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    INCIDENTS_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    AUDIT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HASH_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    spec: bytes
    rounds: _containers.RepeatedCompositeFieldContainer[RoundInfo]
    incidents: _containers.RepeatedCompositeFieldContainer[Incident]
    attached: _containers.RepeatedScalarFieldContainer[str]
    model_digest: str
    head: str
    audit_number: int
    audit_hash: str
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ..., spec: _Optional[bytes] = ..., rounds: _Optional[_Iterable[_Union[RoundInfo, _Mapping]]] = ..., incidents: _Optional[_Iterable[_Union[Incident, _Mapping]]] = ..., attached: _Optional[_Iterable[str]] = ..., model_digest: _Optional[str] = ..., head: _Optional[str] = ..., audit_number: _Optional[int] = ..., audit_hash: _Optional[str] = ...) -> None: ...

class RoundInfo(_message.Message):
    __slots__ = ("number", "kind", "status", "reason", "opened_at", "asked_at", "folding_at", "closed_at", "participants", "metrics", "bytes_up", "bytes_down", "model_digest", "head", "bits", "nmse", "upload_s", "fold_s", "secure", "attempt", "awaited", "joules", "metered")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_FIELD_NUMBER: _ClassVar[int]
    ASKED_AT_FIELD_NUMBER: _ClassVar[int]
    FOLDING_AT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_AT_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    NMSE_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_S_FIELD_NUMBER: _ClassVar[int]
    FOLD_S_FIELD_NUMBER: _ClassVar[int]
    SECURE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    AWAITED_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    METERED_FIELD_NUMBER: _ClassVar[int]
    number: int
    kind: str
    status: str
    reason: str
    opened_at: float
    asked_at: float
    folding_at: float
    closed_at: float
    participants: _containers.RepeatedCompositeFieldContainer[ParticipantInfo]
    metrics: _containers.ScalarMap[str, float]
    bytes_up: int
    bytes_down: int
    model_digest: str
    head: str
    bits: float
    nmse: float
    upload_s: float
    fold_s: float
    secure: bool
    attempt: int
    awaited: _containers.RepeatedScalarFieldContainer[str]
    joules: float
    metered: int
    def __init__(self, number: _Optional[int] = ..., kind: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., opened_at: _Optional[float] = ..., asked_at: _Optional[float] = ..., folding_at: _Optional[float] = ..., closed_at: _Optional[float] = ..., participants: _Optional[_Iterable[_Union[ParticipantInfo, _Mapping]]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ..., model_digest: _Optional[str] = ..., head: _Optional[str] = ..., bits: _Optional[float] = ..., nmse: _Optional[float] = ..., upload_s: _Optional[float] = ..., fold_s: _Optional[float] = ..., secure: bool = ..., attempt: _Optional[int] = ..., awaited: _Optional[_Iterable[str]] = ..., joules: _Optional[float] = ..., metered: _Optional[int] = ...) -> None: ...

class ParticipantInfo(_message.Message):
    __slots__ = ("client", "status", "reason", "answered_at", "bytes_up", "examples", "partial", "spent")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_AT_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    client: str
    status: str
    reason: str
    answered_at: float
    bytes_up: int
    examples: int
    partial: bool
    spent: _fleet_pb2.Spent
    def __init__(self, client: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., answered_at: _Optional[float] = ..., bytes_up: _Optional[int] = ..., examples: _Optional[int] = ..., partial: bool = ..., spent: _Optional[_Union[_fleet_pb2.Spent, _Mapping]] = ...) -> None: ...

class Incident(_message.Message):
    __slots__ = ("at", "client", "round", "code", "message")
    AT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    at: float
    client: str
    round: int
    code: str
    message: str
    def __init__(self, at: _Optional[float] = ..., client: _Optional[str] = ..., round: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("run", "rounds")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    rounds: _containers.RepeatedCompositeFieldContainer[RoundInfo]
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ..., rounds: _Optional[_Iterable[_Union[RoundInfo, _Mapping]]] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("run", "verb", "reason", "beyond")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BEYOND_FIELD_NUMBER: _ClassVar[int]
    run: str
    verb: str
    reason: str
    beyond: int
    def __init__(self, run: _Optional[str] = ..., verb: _Optional[str] = ..., reason: _Optional[str] = ..., beyond: _Optional[int] = ...) -> None: ...

class ControlResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("run", "round")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("data", "round", "size")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    round: int
    size: int
    def __init__(self, data: _Optional[bytes] = ..., round: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class AuditResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("number", "entry", "hash")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    number: int
    entry: bytes
    hash: str
    def __init__(self, number: _Optional[int] = ..., entry: _Optional[bytes] = ..., hash: _Optional[str] = ...) -> None: ...

class ReplayRequest(_message.Message):
    __slots__ = ("run", "round")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class ReplayResponse(_message.Message):
    __slots__ = ("round", "verdict", "detail")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    round: int
    verdict: str
    detail: str
    def __init__(self, round: _Optional[int] = ..., verdict: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class UpdatesRequest(_message.Message):
    __slots__ = ("run", "round", "client")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    client: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., client: _Optional[str] = ...) -> None: ...

class UpdatesResponse(_message.Message):
    __slots__ = ("updates",)
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    updates: _containers.RepeatedCompositeFieldContainer[UpdateInfo]
    def __init__(self, updates: _Optional[_Iterable[_Union[UpdateInfo, _Mapping]]] = ...) -> None: ...

class UpdateInfo(_message.Message):
    __slots__ = ("round", "client", "digest", "codec", "bytes", "at", "status", "reason", "kept", "upload_s", "head", "stats", "secure")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_S_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    SECURE_FIELD_NUMBER: _ClassVar[int]
    round: int
    client: str
    digest: str
    codec: str
    bytes: int
    at: float
    status: str
    reason: str
    kept: bool
    upload_s: float
    head: _fleet_pb2.Head
    stats: _fleet_pb2.Stats
    secure: bool
    def __init__(self, round: _Optional[int] = ..., client: _Optional[str] = ..., digest: _Optional[str] = ..., codec: _Optional[str] = ..., bytes: _Optional[int] = ..., at: _Optional[float] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., kept: bool = ..., upload_s: _Optional[float] = ..., head: _Optional[_Union[_fleet_pb2.Head, _Mapping]] = ..., stats: _Optional[_Union[_fleet_pb2.Stats, _Mapping]] = ..., secure: bool = ...) -> None: ...

class MeasureRequest(_message.Message):
    __slots__ = ("run", "round", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class MeasureResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ...) -> None: ...
