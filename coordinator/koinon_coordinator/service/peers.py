"""Who calls, and what they may: every call passes here first, and every open one can be cut.

Who somebody is, their certificate says; the connection has verified it. What they are now is in the database, because a
certificate outlives a revocation: it is asked at every call (and remembered for less than a second, so that a device's
many small calls are not as many reads), and twice a second for everybody with an open call, so that a revocation that
another coordinator wrote cuts them too.

    DEVICES       enrolled devices
    VIEWERS       operators of any role: they read
    OPERATORS     operators and admins: they create runs, and control their own
    ADMINS        admins: everybody's runs, and who is let in
    EVERYBODY     whoever has a certificate of this federation
    NEWCOMERS     whoever reaches the enrolment listener, which is all that it serves
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc
import structlog

from koinon_coordinator.identity import Security
from koinon_coordinator.store import People
from koinon_core.errors import BadBlob, Denied, StoreError
from koinon_core.wire.methods import BLOBS, DIRECTORY, ENROLMENT, FLEET, IDENTITY, RUNS, Method

__all__ = ["RULES", "Guard", "Peer", "Visit"]

DEVICES, VIEWERS, OPERATORS, ADMINS, EVERYBODY, NEWCOMERS = (
    "a device", "an operator", "an operator who is more than a viewer", "an admin", "a certificate", "nothing",
)  # fmt: skip

RULES: dict[Method[Any, Any], str] = {
    FLEET.ATTEND: DEVICES, BLOBS.DOWNLOAD: DEVICES, BLOBS.UPLOAD: DEVICES, BLOBS.STAT: DEVICES,
    RUNS.LIST: VIEWERS, RUNS.GET: VIEWERS, RUNS.WATCH: VIEWERS, RUNS.EXPORT: VIEWERS, RUNS.AUDIT: VIEWERS,
    RUNS.REPLAY: VIEWERS, RUNS.UPDATES: VIEWERS,
    RUNS.CREATE: OPERATORS, RUNS.CONTROL: OPERATORS, RUNS.MEASURE: OPERATORS,
    IDENTITY.RENEW: EVERYBODY, ENROLMENT.ENROL: NEWCOMERS,
    DIRECTORY.LIST_DEVICES: VIEWERS, DIRECTORY.CREATE_TOKEN: ADMINS, DIRECTORY.REVOKE_DEVICE: ADMINS,
    DIRECTORY.LABEL_DEVICE: ADMINS, DIRECTORY.LIST_OPERATORS: ADMINS, DIRECTORY.CREATE_OPERATOR: ADMINS,
    DIRECTORY.REVOKE_OPERATOR: ADMINS, DIRECTORY.EXPORT_ROSTER: ADMINS, DIRECTORY.IMPORT_ROSTER: ADMINS,
}  # fmt: skip
"""Who may make each call. A method without a rule is not served."""

_ROLES = {VIEWERS: ("viewer", "operator", "admin"), OPERATORS: ("operator", "admin"), ADMINS: ("admin",)}
_FRESH = 0.8
_BEAT = 0.4
_REVOKED = "{} {!r} was revoked, or is not enrolled in this federation; an operator can say which"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who makes a call. `kind` is device or operator; "" for anybody of a federation without identities. `role` is
    viewer, operator or admin; "" for a device, and for a device that an outside CA names and that is not known yet."""

    kind: str
    name: str
    role: str = ""
    known: bool = True
    certificate: bytes = b""

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    def may_control(self, operator: str) -> bool:
        """Whether a run that is that operator's is theirs to control."""
        return self.role == "admin" or (self.role == "operator" and self.name == operator)


ANYBODY = Peer("", "", "admin")
"""Whoever calls a coordinator in plain text: on this machine, everybody may everything."""


class Visit:
    """One call while it is open. It is cut where it waits, or as soon as what it was sending is sent."""

    def __init__(self, peer: Peer):
        self.peer, self.cut, self.sending = peer, False, False
        self._task = asyncio.current_task()

    def end(self) -> None:
        """Cut it."""
        self.cut = True
        if not self.sending and self._task is not None:
            self._task.cancel()

    def check(self) -> None:
        if self.cut:
            raise self.denied

    @property
    def denied(self) -> Denied:
        return Denied(_REVOKED.format(self.peer.kind, self.peer.name))


class Guard:
    """Lets calls in. Without `security` everybody is let in, to everything. `told` is called with each device that
    is cut."""

    def __init__(
        self, people: People, security: Security | None, told: Callable[[str], None] = lambda _: None
    ):
        self._people, self._security, self._told = people, security, told
        self._visits: defaultdict[tuple[str, str], set[Visit]] = defaultdict(set)
        self._standing: dict[tuple[str, str], tuple[float, str | None]] = {}
        self._cuts = 0
        # Its own threads: a revocation never waits behind a large sum.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="koinon-people")
        self._who = lru_cache(4096)(security.peer) if security is not None else None
        self._log = structlog.get_logger("koinon.service")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    # -- letting in -------------------------------------------------------------------------------------------

    async def admit(self, method: Method[Any, Any], call: grpc.aio.ServicerContext[Any, Any]) -> Peer:
        """Who makes this call. Denied if they may not."""
        rule = RULES[method]
        if self._security is None:
            return ANYBODY
        if rule == NEWCOMERS:
            return Peer("", "", known=False)
        certificate = self._certificate(call)
        kind, name = self._name(certificate)
        role = await self._role(kind, name)
        # Whom an outside CA vouches for becomes known by registering a key.
        newcomer = role is None and kind == "device" and not self._security.enrols and rule == EVERYBODY
        if role is None and not newcomer:
            raise Denied(_REVOKED.format(kind, name))
        if rule == DEVICES and kind != "device":
            raise Denied(f"{kind} {name!r} may not call {method.service}.{method.name}: that is for devices")
        if rule in _ROLES and (kind != "operator" or role not in _ROLES[rule]):
            raise Denied(
                f"{kind} {name!r} may not call {method.service}.{method.name}: that takes {rule}; ask an admin to do it"
            )
        return Peer(kind, name, role or "", role is not None, certificate)

    @contextmanager
    def visit(self, peer: Peer) -> Iterator[Visit]:
        """While a call is open."""
        visit = Visit(peer)
        self._visits[peer.key].add(visit)
        try:
            yield visit
        finally:
            self._visits[peer.key].discard(visit)
            if not self._visits[peer.key]:
                del self._visits[peer.key]

    def _certificate(self, call: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        found = call.auth_context().get("x509_pem_cert", ())
        for certificate in found:
            return bytes(certificate)
        raise Denied("this call came without a certificate; enrol first (`koinon enrol`)")

    def _name(self, certificate: bytes) -> tuple[str, str]:
        assert self._who is not None
        try:
            return self._who(certificate)
        except BadBlob as error:
            raise Denied(str(error)) from None

    async def _role(self, kind: str, name: str) -> str | None:
        """An operator's role, "" for a device; None for who is not enrolled or was revoked."""
        at, role = self._standing.get((kind, name), (0.0, None))
        if role is not None and time.monotonic() - at < _FRESH:
            return role  # that somebody was not known is not remembered: they may have enrolled since
        await self._ask({(kind, name)})
        return self._standing[kind, name][1]

    # -- cutting ----------------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Look again and again at everybody who has an open call, and cut those who were revoked."""
        if self._security is None:
            return
        failing = False
        while True:
            await asyncio.sleep(_BEAT)
            here = {key for key, visits in self._visits.items() if any(v.peer.known for v in visits)}
            self._standing = {key: value for key, value in self._standing.items() if key in here}
            try:
                await self._ask(here)
                failing = False
            except StoreError as error:
                if not failing:
                    self._log.warning(
                        "revocations cannot be read; open calls go on meanwhile", reason=str(error)
                    )
                failing = True
                continue
            for key in here:
                visits = self._visits.get(key, set())
                if any(visit.peer.role != self._standing[key][1] for visit in visits if visit.peer.known):
                    self.cut(*key)

    async def _ask(self, keys: set[tuple[str, str]]) -> None:
        if not keys:
            return
        devices = {name for kind, name in keys if kind == "device"}
        operators = {name for kind, name in keys if kind == "operator"}
        loop, cuts = asyncio.get_running_loop(), -1
        while cuts != self._cuts:  # who was cut meanwhile may have been read before
            cuts, at = self._cuts, time.monotonic()  # before the question: the answer is at least as new
            good, roles = await loop.run_in_executor(self._pool, self._people.standing, devices, operators)
        for kind, name in keys:
            role = roles.get(name) if kind == "operator" else "" if name in good else None
            self._standing[kind, name] = at, role

    def cut(self, kind: str, name: str) -> None:
        """End all open calls of somebody, and ask the database again at their next one."""
        self._cuts += 1
        self._standing.pop((kind, name), None)
        visits = list(self._visits.get((kind, name), ()))
        for visit in visits:
            visit.end()
        if kind == "device":
            self._told(name)
        if visits:
            self._log.warning("open calls were cut", kind=kind, name=name, calls=len(visits))
