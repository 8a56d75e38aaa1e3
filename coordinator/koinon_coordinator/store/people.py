"""Devices, tokens and operators: who may come in, and who may no longer.

Every method is one transaction. A device's row is made once and stays: its name belongs to its long-term key for ever,
and a revoked name is never given again, so that nobody else inherits what others believe of it.
"""

import hmac
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from koinon_coordinator.store import models
from koinon_coordinator.store.models import rows_of
from koinon_coordinator.store.tx import Database
from koinon_core.condition import Condition
from koinon_core.errors import Conflict, Denied, NotFound

__all__ = ["DeviceRow", "OperatorRow", "People", "TokenRow"]

T = TypeVar("T")
_MANY = 500  # names in one statement
_ROSTER_KEY, _ROSTER_VERSION = "roster_key", "roster_version"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """`key` is the public Ed25519 key in hex; None for a device that attended without an identity. Times are seconds
    since 1970; `expires_at` is its certificate's end, None where an outside CA made that. `condition` is how it was
    at `condition_at`, in its own words; empty if it never said so."""

    name: str
    version: str
    first_seen: float
    last_seen: float
    key: str | None
    entry: bytes | None
    entry_version: int
    label: str
    token: str
    enrolled_at: float | None
    expires_at: float | None
    revoked_at: float | None
    revoked_by: str
    reason: str
    condition: Mapping[str, Any] = field(default_factory=dict)
    condition_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRow:
    name: str
    role: str
    created_at: float
    created_by: str = ""
    expires_at: float | None = None
    revoked_at: float | None = None
    revoked_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """`hash` is the SHA-256 of the secret, in hex: the secret itself is nowhere. `uses` are those that are left."""

    id: str
    hash: str
    uses: int
    expires_at: float
    created_at: float
    created_by: str = ""
    label: str = ""


class People:
    """The tables of `database` that say who is who."""

    def __init__(self, database: Database):
        self._database = database

    def _write(self, name: str, function: Callable[[Connection], T]) -> T:
        return self._database.write(name, function)

    # -- tokens and enrolment ---------------------------------------------------------------------------------

    def add_token(self, token: TokenRow) -> None:
        self._write("add token", lambda tx: tx.execute(insert(rows_of(models.Token)), [asdict(token)]))

    def enrol(
        self, token: str, hash_: str, name: str, key: str, entry: bytes, now: float, expires_at: float
    ) -> DeviceRow:
        """Let a device in: use the token up and write the device, or neither. Denied if the token does not let it in,
        Conflict if the name or the key is another device's.

        The device that a token has let in may use it again until it expires, for a last use whose answer was lost."""

        def work(tx: Connection) -> DeviceRow:
            label = _use_token(tx, token, hash_, now, again=_let_in_by(tx, name, key) == token)
            _claim(tx, name, key, entry, now, expires_at)
            d = rows_of(models.Device)
            tx.execute(update(d).where(d.c.name == name).values(token=token))
            if label:
                tx.execute(update(d).where(d.c.name == name, d.c.label == "").values(label=label))
            return _device(tx, name)

        return self._write("enrol", work)

    def register(self, name: str, key: str, entry: bytes, now: float) -> DeviceRow:
        """Write a device that an outside CA vouches for. Denied if it was revoked, Conflict if the name or the key is
        another device's."""

        def work(tx: Connection) -> DeviceRow:
            _claim(tx, name, key, entry, now, None)
            return _device(tx, name)

        return self._write("register", work)

    def renew(self, name: str, key: str, expires_at: float | None) -> DeviceRow:
        """Note a device's new certificate. Denied unless it is enrolled with that key."""

        def work(tx: Connection) -> DeviceRow:
            d = rows_of(models.Device)
            mine = (d.c.name == name) & (d.c.key == key) & d.c.revoked_at.is_(None)
            values = {} if expires_at is None else {"expires_at": expires_at}
            if tx.execute(update(d).where(mine).values(name=name, **values)).rowcount != 1:
                raise Denied(f"no device {name!r} is enrolled with that Ed25519 key, or it was revoked")
            return _device(tx, name)

        return self._write("renew", work)

    # -- devices ----------------------------------------------------------------------------------------------

    def device(self, name: str) -> DeviceRow:
        """One device; NotFound if there is none of that name."""
        return self._database.read("device", lambda tx: _device(tx, name))

    def devices(self) -> list[DeviceRow]:
        """All devices, by name."""
        table = rows_of(models.Device)
        return self._database.read(
            "devices",
            lambda tx: [
                DeviceRow(**row._mapping) for row in tx.execute(select(table).order_by(table.c.name))
            ],
        )

    def revoke_device(self, name: str, by: str, reason: str, now: float) -> DeviceRow:
        """Revoke a device, once: the first who did it and why stay. NotFound if there is none of that name."""

        def work(tx: Connection) -> DeviceRow:
            d = rows_of(models.Device)
            values = {"revoked_at": now, "revoked_by": by, "reason": reason}
            tx.execute(update(d).where(d.c.name == name, d.c.revoked_at.is_(None)).values(**values))
            return _device(tx, name)

        return self._write("revoke device", work)

    def note_condition(self, name: str, condition: Condition, at: float) -> None:
        """Write how a device is, unless it has said more since."""
        d = rows_of(models.Device)
        values = {"condition": condition.to_json(), "condition_at": at}
        newer = (d.c.name == name) & (d.c.condition_at.is_(None) | (d.c.condition_at < at))
        self._write("note condition", lambda tx: tx.execute(update(d).where(newer).values(**values)))

    def label_device(self, name: str, label: str) -> DeviceRow:
        """Set a device's label. NotFound if there is none of that name."""

        def work(tx: Connection) -> DeviceRow:
            d = rows_of(models.Device)
            tx.execute(update(d).where(d.c.name == name).values(label=label))
            return _device(tx, name)

        return self._write("label device", work)

    # -- operators --------------------------------------------------------------------------------------------

    def operators(self) -> list[OperatorRow]:
        """All operators, by name."""
        table = rows_of(models.Operator)
        return self._database.read(
            "operators",
            lambda tx: [
                OperatorRow(**row._mapping) for row in tx.execute(select(table).order_by(table.c.name))
            ],
        )

    def add_operator(self, operator: OperatorRow, *, again: bool = False) -> OperatorRow:
        """A new operator. Conflict if the name is taken; with `again`, whoever has it is left as they are."""

        def work(tx: Connection) -> OperatorRow:
            made = _insert_new(tx, models.Operator, asdict(operator))
            if not made and not again:
                raise Conflict(
                    f"there is an operator named {operator.name!r} already, or was; choose another name"
                )
            return _operator(tx, operator.name)

        return self._write("add operator", work)

    def renew_operator(self, name: str, expires_at: float | None) -> OperatorRow:
        """Note an operator's new certificate. Denied if they were revoked."""

        def work(tx: Connection) -> OperatorRow:
            o = rows_of(models.Operator)
            mine = (o.c.name == name) & o.c.revoked_at.is_(None)
            if tx.execute(update(o).where(mine).values(expires_at=expires_at)).rowcount != 1:
                raise Denied(f"operator {name!r} is not known here, or was revoked")
            return _operator(tx, name)

        return self._write("renew operator", work)

    def revoke_operator(self, name: str, by: str, now: float) -> OperatorRow:
        """Revoke an operator, once. NotFound if there is none of that name, Conflict for the last admin."""

        def work(tx: Connection) -> OperatorRow:
            o = rows_of(models.Operator)
            mine = (o.c.name == name) & o.c.revoked_at.is_(None)
            tx.execute(update(o).where(mine).values(revoked_at=now, revoked_by=by))
            admins = select(o.c.name).where(o.c.role == "admin", o.c.revoked_at.is_(None))
            if tx.execute(admins).first() is None:
                raise Conflict(
                    f"{name!r} is the last admin, and nobody else could make another; make one first"
                )
            return _operator(tx, name)

        return self._write("revoke operator", work)

    # -- standing ---------------------------------------------------------------------------------------------

    def standing(
        self, devices: Collection[str], operators: Collection[str]
    ) -> tuple[set[str], dict[str, str]]:
        """(those of `devices` that are enrolled and not revoked, the role of each of `operators` that is not)."""

        def work(tx: Connection) -> tuple[set[str], dict[str, str]]:
            d, o = rows_of(models.Device).c, rows_of(models.Operator).c
            good: set[str] = set()
            for some in _pages(devices):
                standing = d.name.in_(some) & d.key.is_not(None) & d.revoked_at.is_(None)
                good |= set(tx.execute(select(d.name).where(standing)).scalars())
            roles: dict[str, str] = {}
            for some in _pages(operators):
                found = tx.execute(select(o.name, o.role).where(o.name.in_(some), o.revoked_at.is_(None)))
                roles |= {row.name: row.role for row in found}
            return good, roles

        return self._database.read("standing", work)

    # -- the roster -------------------------------------------------------------------------------------------

    def roster(self) -> tuple[str, int]:
        """(the owner's pinned public key in hex, the roster's version); "" and 1 where nobody has pinned it."""
        return self._database.read("roster", _roster)

    def set_roster(self, key: str, version: int, entries: Iterable[tuple[str, str, bytes]]) -> None:
        """Store a roster that its owner signed: (name, Ed25519 key in hex, encoded entry) of each device. Conflict if
        another key is pinned, if the version is not above the stored one, or if a device has another key by now."""
        rows = list(entries)

        def work(tx: Connection) -> None:
            # Written first, so that another import is over before the version is read.
            for name, value in ((_ROSTER_KEY, key), (_ROSTER_VERSION, "1")):
                _insert_new(tx, models.Setting, {"name": name, "value": value})
            s, d = rows_of(models.Setting), rows_of(models.Device)
            tx.execute(update(s).where(s.c.name == _ROSTER_KEY).values(value=s.c.value))
            pinned, now = _roster(tx)
            if pinned != key:
                raise Conflict("the roster is pinned to another owner's key; sign with that one")
            if version <= now:
                raise Conflict(
                    f"the roster is at version {now} by now, and this is {version}; export and sign it again"
                )
            for name, device_key, entry in rows:
                mine = (d.c.name == name) & (d.c.key == device_key) & d.c.revoked_at.is_(None)
                values = {"entry": entry, "entry_version": version}
                if tx.execute(update(d).where(mine).values(**values)).rowcount != 1:
                    raise Conflict(
                        f"{name!r} is not enrolled with the key that was signed, or was revoked; export and sign again"
                    )
            tx.execute(update(s).where(s.c.name == _ROSTER_VERSION).values(value=str(version)))

        self._write("set roster", work)


# -- pieces of transactions -----------------------------------------------------------------------------------


def _pages(names: Collection[str]) -> Iterable[list[str]]:
    every = sorted(names)
    return (every[at : at + _MANY] for at in range(0, len(every), _MANY))


def _insert_new(tx: Connection, table: Any, row: dict[str, Any]) -> bool:
    """Insert a row unless its key is there; whether it was not."""
    dialect: Any = postgresql if tx.dialect.name == "postgresql" else sqlite
    rows = rows_of(table)
    statement = dialect.insert(rows).values(**row).on_conflict_do_nothing().returning(*rows.primary_key)
    return tx.execute(statement).first() is not None


def _device(tx: Connection, name: str) -> DeviceRow:
    table = rows_of(models.Device)
    row = tx.execute(select(table).where(table.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no device {name[:80]!r}; `koinon device ls` shows those there are")
    return DeviceRow(**row._mapping)


def _operator(tx: Connection, name: str) -> OperatorRow:
    table = rows_of(models.Operator)
    row = tx.execute(select(table).where(table.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no operator {name[:80]!r}; `koinon operator ls` shows those there are")
    return OperatorRow(**row._mapping)


def _roster(tx: Connection) -> tuple[str, int]:
    s = rows_of(models.Setting).c
    names = (_ROSTER_KEY, _ROSTER_VERSION)
    found = {row.name: row.value for row in tx.execute(select(s.name, s.value).where(s.name.in_(names)))}
    return found.get(_ROSTER_KEY, ""), int(found.get(_ROSTER_VERSION, "1"))


def _let_in_by(tx: Connection, name: str, key: str) -> str:
    """The token that let this very device in; "" if it never was."""
    d = rows_of(models.Device).c
    return tx.execute(select(d.token).where(d.name == name, d.key == key)).scalar_one_or_none() or ""


def _use_token(tx: Connection, id_: str, hash_: str, now: float, *, again: bool) -> str:
    """Use a token once; its label. Denied in one sentence if it does not let anybody in; only to somebody who has the
    secret does that say why."""
    t = rows_of(models.Token)
    row = tx.execute(select(t.c.hash, t.c.label, t.c.expires_at).where(t.c.id == id_)).one_or_none()
    if row is None or not hmac.compare_digest(row.hash, hash_):
        raise Denied(
            "this token is not one of this federation's; have an operator make one (`koinon token create`)"
        )
    if now >= row.expires_at:
        raise Denied("this token has expired; have an operator make a new one (`koinon token create`)")
    # Where the uses are counted and whether any was left is one statement: two devices cannot have the last one.
    left = update(t).where(t.c.id == id_, t.c.uses > 0).values(uses=t.c.uses - 1)
    if not again and tx.execute(left).rowcount != 1:
        raise Denied("this token is used up; have an operator make a new one (`koinon token create`)")
    return str(row.label)


def _claim(tx: Connection, name: str, key: str, entry: bytes, now: float, expires_at: float | None) -> None:
    """Give a name to a key, or find that it has it. An entry that is there stays: an owner may have signed it."""
    d = rows_of(models.Device)
    _insert_new(
        tx,
        models.Device,
        {"name": name, "version": "", "first_seen": now, "last_seen": now, "entry_version": 0},
    )
    other = tx.execute(select(d.c.name).where(d.c.key == key, d.c.name != name)).scalar_one_or_none()
    if other is not None:
        raise Conflict(f"that Ed25519 key belongs to device {other!r} already; every device makes its own")
    free = (d.c.name == name) & d.c.revoked_at.is_(None) & (d.c.key.is_(None) | (d.c.key == key))
    values: dict[str, Any] = {"key": key, "expires_at": expires_at}
    if tx.execute(update(d).where(free).values(**values)).rowcount != 1:
        if _device(tx, name).revoked_at is not None:
            raise Denied(
                f"device {name!r} was revoked; it may come back under another name, with another token"
            )
        raise Conflict(
            f"a device named {name!r} is enrolled already, with another Ed25519 key; choose another name (a device "
            "that lost its key needs a new one, too)"
        )
    values = {"entry": entry, "entry_version": 1, "enrolled_at": now}
    tx.execute(update(d).where(d.c.name == name, d.c.entry.is_(None)).values(**values))
