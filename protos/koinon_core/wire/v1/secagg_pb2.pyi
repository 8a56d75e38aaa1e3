from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Advert(_message.Message):
    __slots__ = ("id", "entry", "sealing", "masking", "signature")
    ID_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    SEALING_FIELD_NUMBER: _ClassVar[int]
    MASKING_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    id: str
    entry: bytes
    sealing: bytes
    masking: bytes
    signature: bytes
    def __init__(self, id: _Optional[str] = ..., entry: _Optional[bytes] = ..., sealing: _Optional[bytes] = ..., masking: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("config", "leaves", "adverts")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    ADVERTS_FIELD_NUMBER: _ClassVar[int]
    config: bytes
    leaves: bytes
    adverts: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, config: _Optional[bytes] = ..., leaves: _Optional[bytes] = ..., adverts: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Shares(_message.Message):
    __slots__ = ("session", "id", "sealed", "commitment", "signature")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    id: str
    sealed: bytes
    commitment: bytes
    signature: bytes
    def __init__(self, session: _Optional[bytes] = ..., id: _Optional[str] = ..., sealed: _Optional[bytes] = ..., commitment: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Inbox(_message.Message):
    __slots__ = ("session", "dealers", "sealed", "dealt", "commitments", "signatures")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DEALERS_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    DEALT_FIELD_NUMBER: _ClassVar[int]
    COMMITMENTS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    dealers: bytes
    sealed: bytes
    dealt: bytes
    commitments: bytes
    signatures: bytes
    def __init__(self, session: _Optional[bytes] = ..., dealers: _Optional[bytes] = ..., sealed: _Optional[bytes] = ..., dealt: _Optional[bytes] = ..., commitments: _Optional[bytes] = ..., signatures: _Optional[bytes] = ...) -> None: ...

class Masked(_message.Message):
    __slots__ = ("session", "id", "size", "sha256", "unreadable", "signature")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    id: str
    size: int
    sha256: bytes
    unreadable: bytes
    signature: bytes
    def __init__(self, session: _Optional[bytes] = ..., id: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ..., unreadable: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Survivors(_message.Message):
    __slots__ = ("session", "survivors")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    survivors: bytes
    def __init__(self, session: _Optional[bytes] = ..., survivors: _Optional[bytes] = ...) -> None: ...

class Consent(_message.Message):
    __slots__ = ("session", "id", "signature")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    id: str
    signature: bytes
    def __init__(self, session: _Optional[bytes] = ..., id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Quorum(_message.Message):
    __slots__ = ("session", "signers", "signatures")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    signers: bytes
    signatures: bytes
    def __init__(self, session: _Optional[bytes] = ..., signers: _Optional[bytes] = ..., signatures: _Optional[bytes] = ...) -> None: ...

class Reveal(_message.Message):
    __slots__ = ("session", "id", "owners", "shares", "signature")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    id: str
    owners: bytes
    shares: bytes
    signature: bytes
    def __init__(self, session: _Optional[bytes] = ..., id: _Optional[str] = ..., owners: _Optional[bytes] = ..., shares: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Memory(_message.Message):
    __slots__ = ("version", "config", "id", "phase", "sealing_secret", "masking_secret", "seed", "kept", "place", "dealers", "unreadable", "survivors", "exchanges")
    class ExchangesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Exchange
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Exchange, _Mapping]] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SEALING_SECRET_FIELD_NUMBER: _ClassVar[int]
    MASKING_SECRET_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    DEALERS_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    EXCHANGES_FIELD_NUMBER: _ClassVar[int]
    version: int
    config: bytes
    id: str
    phase: str
    sealing_secret: bytes
    masking_secret: bytes
    seed: bytes
    kept: bytes
    place: Place
    dealers: bytes
    unreadable: bytes
    survivors: bytes
    exchanges: _containers.MessageMap[str, Exchange]
    def __init__(self, version: _Optional[int] = ..., config: _Optional[bytes] = ..., id: _Optional[str] = ..., phase: _Optional[str] = ..., sealing_secret: _Optional[bytes] = ..., masking_secret: _Optional[bytes] = ..., seed: _Optional[bytes] = ..., kept: _Optional[bytes] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., dealers: _Optional[bytes] = ..., unreadable: _Optional[bytes] = ..., survivors: _Optional[bytes] = ..., exchanges: _Optional[_Mapping[str, Exchange]] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("session", "group", "position", "size", "degree", "threshold", "peers")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DEGREE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    group: int
    position: int
    size: int
    degree: int
    threshold: int
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    def __init__(self, session: _Optional[bytes] = ..., group: _Optional[int] = ..., position: _Optional[int] = ..., size: _Optional[int] = ..., degree: _Optional[int] = ..., threshold: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("position", "id", "key", "sealing", "masking", "sealed")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SEALING_FIELD_NUMBER: _ClassVar[int]
    MASKING_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    position: int
    id: str
    key: bytes
    sealing: bytes
    masking: bytes
    sealed: bytes
    def __init__(self, position: _Optional[int] = ..., id: _Optional[str] = ..., key: _Optional[bytes] = ..., sealing: _Optional[bytes] = ..., masking: _Optional[bytes] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class Exchange(_message.Message):
    __slots__ = ("heard", "said")
    HEARD_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    heard: bytes
    said: bytes
    def __init__(self, heard: _Optional[bytes] = ..., said: _Optional[bytes] = ...) -> None: ...
