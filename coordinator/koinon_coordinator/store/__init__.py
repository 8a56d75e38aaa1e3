"""The run database and the blobs beside it. Only this package speaks SQL.

`Store` is the face. `models` says what the tables are, `changes` writes, `queries` reads, `blobs` keeps what is
too large for a row, `tx` runs transactions, `schema` migrates.
"""

from koinon_coordinator.store.changes import Change, Incident, ModelVersion, UpdateRow
from koinon_coordinator.store.face import Store
from koinon_coordinator.store.queries import RoundRow, RunRow

__all__ = ["Change", "Incident", "ModelVersion", "RoundRow", "RunRow", "Store", "UpdateRow"]
