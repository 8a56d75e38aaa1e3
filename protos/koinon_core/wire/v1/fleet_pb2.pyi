from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_STAGED: _ClassVar[Verdict]
    VERDICT_COUNTED: _ClassVar[Verdict]
    VERDICT_NOT_COUNTED: _ClassVar[Verdict]
VERDICT_UNSPECIFIED: Verdict
VERDICT_STAGED: Verdict
VERDICT_COUNTED: Verdict
VERDICT_NOT_COUNTED: Verdict

class AttendRequest(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[DeviceMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[DeviceMessage, _Mapping]]] = ...) -> None: ...

class AttendResponse(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[CoordinatorMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[CoordinatorMessage, _Mapping]]] = ...) -> None: ...

class DeviceMessage(_message.Message):
    __slots__ = ("hello", "join", "offer", "answer", "leave", "progress", "recall", "ahead", "voice", "condition", "spent")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    VOICE_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    join: Join
    offer: Offer
    answer: Answer
    leave: Leave
    progress: Progress
    recall: Recall
    ahead: Ahead
    voice: Voice
    condition: Condition
    spent: Spent
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., join: _Optional[_Union[Join, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., recall: _Optional[_Union[Recall, _Mapping]] = ..., ahead: _Optional[_Union[Ahead, _Mapping]] = ..., voice: _Optional[_Union[Voice, _Mapping]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ..., spent: _Optional[_Union[Spent, _Mapping]] = ...) -> None: ...

class CoordinatorMessage(_message.Message):
    __slots__ = ("welcome", "joined", "ask", "receipt", "cancel", "ended", "trouble", "standing", "call", "pace")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    joined: Joined
    ask: Ask
    receipt: Receipt
    cancel: Cancel
    ended: Ended
    trouble: Trouble
    standing: Standing
    call: Call
    pace: Pace
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., joined: _Optional[_Union[Joined, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., trouble: _Optional[_Union[Trouble, _Mapping]] = ..., standing: _Optional[_Union[Standing, _Mapping]] = ..., call: _Optional[_Union[Call, _Mapping]] = ..., pace: _Optional[_Union[Pace, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "client", "instance", "version", "boot", "able", "condition")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    ABLE_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    client: str
    instance: str
    version: str
    boot: int
    able: Able
    condition: Condition
    def __init__(self, protocol: _Optional[int] = ..., client: _Optional[str] = ..., instance: _Optional[str] = ..., version: _Optional[str] = ..., boot: _Optional[int] = ..., able: _Optional[_Union[Able, _Mapping]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ...) -> None: ...

class Able(_message.Message):
    __slots__ = ("memory_mb", "cores", "gpu")
    MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    memory_mb: int
    cores: int
    gpu: int
    def __init__(self, memory_mb: _Optional[int] = ..., cores: _Optional[int] = ..., gpu: _Optional[int] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("heat", "disk_free_mb", "battery", "state", "power_mode", "board")
    HEAT_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_MB_FIELD_NUMBER: _ClassVar[int]
    BATTERY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    POWER_MODE_FIELD_NUMBER: _ClassVar[int]
    BOARD_FIELD_NUMBER: _ClassVar[int]
    heat: float
    disk_free_mb: float
    battery: float
    state: str
    power_mode: str
    board: str
    def __init__(self, heat: _Optional[float] = ..., disk_free_mb: _Optional[float] = ..., battery: _Optional[float] = ..., state: _Optional[str] = ..., power_mode: _Optional[str] = ..., board: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "version", "token", "notes")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    token: str
    notes: bool
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., token: _Optional[str] = ..., notes: bool = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("run", "wait")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    run: str
    wait: bool
    def __init__(self, run: _Optional[str] = ..., wait: bool = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("run", "pinned", "settled", "owes")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    OWES_FIELD_NUMBER: _ClassVar[int]
    run: str
    pinned: int
    settled: int
    owes: int
    def __init__(self, run: _Optional[str] = ..., pinned: _Optional[int] = ..., settled: _Optional[int] = ..., owes: _Optional[int] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("run", "round", "head", "recovery", "links")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    head: str
    recovery: int
    links: _containers.RepeatedCompositeFieldContainer[Link]
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., head: _Optional[str] = ..., recovery: _Optional[int] = ..., links: _Optional[_Iterable[_Union[Link, _Mapping]]] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("round", "digest")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    round: int
    digest: bytes
    def __init__(self, round: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ("run", "spec")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    run: str
    spec: bytes
    def __init__(self, run: _Optional[str] = ..., spec: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("run", "evaluates", "engaged", "held", "visit")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EVALUATES_FIELD_NUMBER: _ClassVar[int]
    ENGAGED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    VISIT_FIELD_NUMBER: _ClassVar[int]
    run: str
    evaluates: bool
    engaged: int
    held: str
    visit: bool
    def __init__(self, run: _Optional[str] = ..., evaluates: bool = ..., engaged: _Optional[int] = ..., held: _Optional[str] = ..., visit: bool = ...) -> None: ...

class Pace(_message.Message):
    __slots__ = ("run", "after_s", "jitter_s", "stay_s")
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_S_FIELD_NUMBER: _ClassVar[int]
    JITTER_S_FIELD_NUMBER: _ClassVar[int]
    STAY_S_FIELD_NUMBER: _ClassVar[int]
    run: str
    after_s: float
    jitter_s: float
    stay_s: float
    def __init__(self, run: _Optional[str] = ..., after_s: _Optional[float] = ..., jitter_s: _Optional[float] = ..., stay_s: _Optional[float] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("run", "round", "terms", "model", "down", "epoch", "links", "delta", "delta_base", "elapsed")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    DELTA_BASE_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    terms: bytes
    model: Content
    down: Content
    epoch: int
    links: _containers.RepeatedCompositeFieldContainer[Link]
    delta: Content
    delta_base: str
    elapsed: float
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., terms: _Optional[bytes] = ..., model: _Optional[_Union[Content, _Mapping]] = ..., down: _Optional[_Union[Content, _Mapping]] = ..., epoch: _Optional[int] = ..., links: _Optional[_Iterable[_Union[Link, _Mapping]]] = ..., delta: _Optional[_Union[Content, _Mapping]] = ..., delta_base: _Optional[str] = ..., elapsed: _Optional[float] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("digest", "size", "inline")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size: int
    inline: bytes
    def __init__(self, digest: _Optional[str] = ..., size: _Optional[int] = ..., inline: _Optional[bytes] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("run", "round", "terms_digest", "update", "head", "stats")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TERMS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    terms_digest: str
    update: Content
    head: Head
    stats: Stats
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., terms_digest: _Optional[str] = ..., update: _Optional[_Union[Content, _Mapping]] = ..., head: _Optional[_Union[Head, _Mapping]] = ..., stats: _Optional[_Union[Stats, _Mapping]] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("examples", "totals", "training", "evaluation", "evaluation_examples", "steps", "partial")
    class TotalsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TrainingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class EvaluationEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    examples: int
    totals: _containers.ScalarMap[str, float]
    training: _containers.ScalarMap[str, float]
    evaluation: _containers.ScalarMap[str, float]
    evaluation_examples: int
    steps: int
    partial: bool
    def __init__(self, examples: _Optional[int] = ..., totals: _Optional[_Mapping[str, float]] = ..., training: _Optional[_Mapping[str, float]] = ..., evaluation: _Optional[_Mapping[str, float]] = ..., evaluation_examples: _Optional[int] = ..., steps: _Optional[int] = ..., partial: bool = ...) -> None: ...

class Stats(_message.Message):
    __slots__ = ("parameters", "nmse", "norm", "encode_s")
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    NMSE_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    ENCODE_S_FIELD_NUMBER: _ClassVar[int]
    parameters: int
    nmse: float
    norm: float
    encode_s: float
    def __init__(self, parameters: _Optional[int] = ..., nmse: _Optional[float] = ..., norm: _Optional[float] = ..., encode_s: _Optional[float] = ...) -> None: ...

class Spent(_message.Message):
    __slots__ = ("run", "round", "phases", "scope", "source", "bytes_up", "bytes_down")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    phases: _containers.RepeatedCompositeFieldContainer[Phase]
    scope: str
    source: str
    bytes_up: int
    bytes_down: int
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., phases: _Optional[_Iterable[_Union[Phase, _Mapping]]] = ..., scope: _Optional[str] = ..., source: _Optional[str] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ...) -> None: ...

class Phase(_message.Message):
    __slots__ = ("name", "joules", "above_idle", "seconds", "missing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    ABOVE_IDLE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    name: str
    joules: float
    above_idle: float
    seconds: float
    missing: float
    def __init__(self, name: _Optional[str] = ..., joules: _Optional[float] = ..., above_idle: _Optional[float] = ..., seconds: _Optional[float] = ..., missing: _Optional[float] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("run", "round", "code", "detail")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    code: str
    detail: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Ahead(_message.Message):
    __slots__ = ("run", "round", "reason")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    reason: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("run", "round", "steps")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    steps: int
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("run", "round", "verdict", "reason")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    verdict: Verdict
    reason: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("run", "round", "reason")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    reason: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("run", "status", "reason")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run: str
    status: str
    reason: str
    def __init__(self, run: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Trouble(_message.Message):
    __slots__ = ("run", "code", "message")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    run: str
    code: str
    message: str
    def __init__(self, run: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("run", "round", "attempt", "collection", "payload", "epoch")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    attempt: int
    collection: str
    payload: bytes
    epoch: int
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., collection: _Optional[str] = ..., payload: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class Voice(_message.Message):
    __slots__ = ("run", "round", "attempt", "collection", "terms_digest", "payload", "update")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TERMS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    attempt: int
    collection: str
    terms_digest: str
    payload: bytes
    update: Content
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., collection: _Optional[str] = ..., terms_digest: _Optional[str] = ..., payload: _Optional[bytes] = ..., update: _Optional[_Union[Content, _Mapping]] = ...) -> None: ...
