from koinon_core.wire.v1 import fleet_pb2 as _fleet_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("token_id", "secret", "id", "csr", "key", "proof")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    secret: str
    id: str
    csr: bytes
    key: bytes
    proof: bytes
    def __init__(self, token_id: _Optional[str] = ..., secret: _Optional[str] = ..., id: _Optional[str] = ..., csr: _Optional[bytes] = ..., key: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class EnrolResponse(_message.Message):
    __slots__ = ("certificate", "ca", "entry", "address")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    ca: bytes
    entry: bytes
    address: str
    def __init__(self, certificate: _Optional[bytes] = ..., ca: _Optional[bytes] = ..., entry: _Optional[bytes] = ..., address: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr", "key", "proof")
    CSR_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    key: bytes
    proof: bytes
    def __init__(self, csr: _Optional[bytes] = ..., key: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificate", "ca", "entry")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    ca: bytes
    entry: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., ca: _Optional[bytes] = ..., entry: _Optional[bytes] = ...) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("ttl", "uses", "label")
    TTL_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ttl: int
    uses: int
    label: str
    def __init__(self, ttl: _Optional[int] = ..., uses: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class CreateTokenResponse(_message.Message):
    __slots__ = ("token", "expires_at")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    token: str
    expires_at: float
    def __init__(self, token: _Optional[str] = ..., expires_at: _Optional[float] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[DeviceInfo]
    def __init__(self, devices: _Optional[_Iterable[_Union[DeviceInfo, _Mapping]]] = ...) -> None: ...

class DeviceInfo(_message.Message):
    __slots__ = ("id", "label", "status", "attached", "enrolled_at", "last_seen", "expires_at", "revoked_at", "revoked_by", "reason", "key", "version", "software", "able", "condition", "condition_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    ENROLLED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    ABLE_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    CONDITION_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    label: str
    status: str
    attached: bool
    enrolled_at: float
    last_seen: float
    expires_at: float
    revoked_at: float
    revoked_by: str
    reason: str
    key: bytes
    version: int
    software: str
    able: _fleet_pb2.Able
    condition: _fleet_pb2.Condition
    condition_at: float
    def __init__(self, id: _Optional[str] = ..., label: _Optional[str] = ..., status: _Optional[str] = ..., attached: bool = ..., enrolled_at: _Optional[float] = ..., last_seen: _Optional[float] = ..., expires_at: _Optional[float] = ..., revoked_at: _Optional[float] = ..., revoked_by: _Optional[str] = ..., reason: _Optional[str] = ..., key: _Optional[bytes] = ..., version: _Optional[int] = ..., software: _Optional[str] = ..., able: _Optional[_Union[_fleet_pb2.Able, _Mapping]] = ..., condition: _Optional[_Union[_fleet_pb2.Condition, _Mapping]] = ..., condition_at: _Optional[float] = ...) -> None: ...

class RevokeDeviceRequest(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RevokeDeviceResponse(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: DeviceInfo
    def __init__(self, device: _Optional[_Union[DeviceInfo, _Mapping]] = ...) -> None: ...

class LabelDeviceRequest(_message.Message):
    __slots__ = ("id", "label")
    ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    id: str
    label: str
    def __init__(self, id: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class LabelDeviceResponse(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: DeviceInfo
    def __init__(self, device: _Optional[_Union[DeviceInfo, _Mapping]] = ...) -> None: ...

class ListOperatorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOperatorsResponse(_message.Message):
    __slots__ = ("operators",)
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    operators: _containers.RepeatedCompositeFieldContainer[OperatorInfo]
    def __init__(self, operators: _Optional[_Iterable[_Union[OperatorInfo, _Mapping]]] = ...) -> None: ...

class OperatorInfo(_message.Message):
    __slots__ = ("name", "role", "status", "created_at", "created_by", "expires_at", "revoked_at", "revoked_by")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_BY_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    status: str
    created_at: float
    created_by: str
    expires_at: float
    revoked_at: float
    revoked_by: str
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., status: _Optional[str] = ..., created_at: _Optional[float] = ..., created_by: _Optional[str] = ..., expires_at: _Optional[float] = ..., revoked_at: _Optional[float] = ..., revoked_by: _Optional[str] = ...) -> None: ...

class CreateOperatorRequest(_message.Message):
    __slots__ = ("name", "role", "csr")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    csr: bytes
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., csr: _Optional[bytes] = ...) -> None: ...

class CreateOperatorResponse(_message.Message):
    __slots__ = ("operator", "certificate", "ca")
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    operator: OperatorInfo
    certificate: bytes
    ca: bytes
    def __init__(self, operator: _Optional[_Union[OperatorInfo, _Mapping]] = ..., certificate: _Optional[bytes] = ..., ca: _Optional[bytes] = ...) -> None: ...

class RevokeOperatorRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RevokeOperatorResponse(_message.Message):
    __slots__ = ("operator",)
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    operator: OperatorInfo
    def __init__(self, operator: _Optional[_Union[OperatorInfo, _Mapping]] = ...) -> None: ...

class ExportRosterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportRosterResponse(_message.Message):
    __slots__ = ("entries", "version")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    version: int
    def __init__(self, entries: _Optional[_Iterable[bytes]] = ..., version: _Optional[int] = ...) -> None: ...

class ImportRosterRequest(_message.Message):
    __slots__ = ("entries", "key")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    key: bytes
    def __init__(self, entries: _Optional[_Iterable[bytes]] = ..., key: _Optional[bytes] = ...) -> None: ...

class ImportRosterResponse(_message.Message):
    __slots__ = ("entries", "version")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    entries: int
    version: int
    def __init__(self, entries: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...
