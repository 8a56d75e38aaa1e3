"""The run database and the files beside it. Only this package speaks SQL.

`Store` is the face. `models` says what the tables are, `changes` writes, `queries` reads, `owners` says who may write,
`people` who may come in;
`folder`, `blobs`, `uploads` and `incoming` keep what is too large for a row; `tx` runs transactions, `schema` migrates.
"""

from koinon_coordinator.store.changes import (
    Change,
    Incident,
    ModelVersion,
    PayloadRow,
    Scrub,
    Superseded,
    UpdateRow,
)
from koinon_coordinator.store.drafts import Content, Draft, Drafts
from koinon_coordinator.store.face import Store
from koinon_coordinator.store.owners import BEAT, Held
from koinon_coordinator.store.people import DeviceRow, OperatorRow, People, TokenRow
from koinon_coordinator.store.queries import EVALUATED, RoundRow, RunRow
from koinon_coordinator.store.tx import RefusedWrite
from koinon_coordinator.store.uploads import Part
from koinon_coordinator.store.vault import SessionGone

__all__ = [
    "BEAT", "EVALUATED", "Change", "Content", "DeviceRow", "Draft", "Drafts", "Held", "Incident", "ModelVersion",
    "OperatorRow", "Part", "PayloadRow", "People", "RefusedWrite", "RoundRow", "RunRow", "Scrub", "SessionGone",
    "Store", "Superseded", "TokenRow", "UpdateRow",
]  # fmt: skip
