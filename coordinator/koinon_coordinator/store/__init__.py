"""The run database and the files beside it. Only this package speaks SQL.

`Store` is the face. `models` says what the tables are, `changes` writes, `queries` reads, `owners` says who may write;
`folder`, `blobs`, `uploads` and `incoming` keep what is too large for a row; `tx` runs transactions, `schema` migrates.
"""

from koinon_coordinator.store.changes import (
    Change,
    Incident,
    ModelVersion,
    Scrub,
    Superseded,
    UpdateRow,
)
from koinon_coordinator.store.drafts import Content, Draft, Drafts
from koinon_coordinator.store.face import Store
from koinon_coordinator.store.owners import BEAT, Held
from koinon_coordinator.store.queries import RoundRow, RunRow
from koinon_coordinator.store.tx import RefusedWrite
from koinon_coordinator.store.uploads import Part

__all__ = [
    "BEAT", "Change", "Content", "Draft", "Drafts", "Held", "Incident", "ModelVersion", "Part", "RefusedWrite",
    "RoundRow", "RunRow", "Scrub", "Store", "Superseded", "UpdateRow",
]  # fmt: skip
