"""What every call to a coordinator has in common: how a channel is set up and secured, how a row of the table becomes a
callable, what a failed call means, and how long to wait before the next attempt."""

import os

# With gRPC's fork handlers on (or unset), a DataLoader's worker processes crash beside a live stream. They must be
# off before gRPC is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # not every goodbye on the terminal

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from koinon_core.errors import Denied, KoinonError, StoreError, Unavailable, from_code
from koinon_core.wire.methods import ERROR_KEY, Method
from koinon_core.wire.pieces import FLOW
from koinon_core.wire.sizes import MESSAGE_LIMIT

if TYPE_CHECKING:
    from koinon.identity import Credentials

__all__ = [
    "CHANNEL_OPTIONS",
    "Pauses",
    "closed_at_once",
    "error_of",
    "mistrusted",
    "passing",
    "secure",
    "secured",
    "stub",
]

_FIRST_PAUSE = 0.1
_PROMPT, _PROMPT_CAP, _PATIENT_CAP = 120.0, 2.0, 60.0

CHANNEL_OPTIONS = [
    *FLOW,
    ("grpc.max_receive_message_length", 2 * MESSAGE_LIMIT),
    ("grpc.max_send_message_length", 2 * MESSAGE_LIMIT),
    # A peer that vanished without a word is noticed within 50 s, before the coordinator gives the device up (a lease
    # is 60 s, if the run says nothing else). Not sooner: on a slow link a ping waits behind the upload that fills it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.http2.ping_timeout_ms", 30_000),  # what counts: a minute if not set, whatever the line above says
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # how long one attempt to connect may take
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def secure(ca: bytes, key: bytes | None = None, chain: bytes | None = None) -> grpc.ChannelCredentials:
    """TLS to a coordinator that `ca` vouches for, all in PEM. With a key and its certificate it is mutual; only
    enrolment does without."""
    return grpc.ssl_channel_credentials(ca, key, chain)


def secured(credentials: "Credentials") -> grpc.ChannelCredentials:
    """Mutual TLS with what is in the credentials' folder now. UsageError if that is not valid any more."""
    credentials.reload()
    credentials.check(time.time())
    return secure(credentials.ca, credentials.tls_key, credentials.chain)


def stub(
    channel: grpc.aio.Channel, method: Method[Any, Any], read: Callable[[bytes], Any] | None = None
) -> Any:
    """A callable for one row of the table; a request may be bytes already. `read` is what makes something of a
    response, if not its class."""
    make = getattr(channel, method.shape)
    return make(
        method.path,
        request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        response_deserializer=read or method.response.FromString,
    )


def error_of(error: Any, address: str) -> KoinonError:
    """What a failed call (a grpc.RpcError, synchronous or not) means, in our terms."""
    # Not dict(...): older gRPC's metadata looks like a mapping, but yields pairs.
    metadata: dict[str, Any] = {key: value for key, value in error.trailing_metadata() or ()}  # noqa: C416 - see above
    if ERROR_KEY in metadata:
        return from_code(str(metadata[ERROR_KEY]), error.details() or "")
    details = error.details() or error.code().name.lower()
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        if reason := mistrusted(details):
            return Denied(f"whoever answers at {address} {reason}")
        hint = f"; {closed_at_once(details)}" if closed_at_once(details) else ""
        return Unavailable(f"no coordinator answers at {address} ({details}){hint}")
    return KoinonError(f"the coordinator at {address} failed: {details}")


def mistrusted(details: str) -> str:
    """Why we did not go on with a TLS handshake, if that is what happened; gRPC says it in words alone."""
    if "Hostname Verification" in details:
        return (
            "is of this federation, but its certificate does not have that name; use one that it has, or start the "
            "coordinator with --name HOST"
        )
    if "handshake failed" not in details:
        return ""
    if "WRONG_VERSION_NUMBER" in details:
        return "does not speak TLS; is it a coordinator that was started with --insecure, or another port's service?"
    if "has expired" in details or "not yet valid" in details:
        return "shows a certificate that is not valid now; compare the clocks of both machines"
    return (
        "is not vouched for by this federation's CA; check the address, and where the credentials come from"
    )


def closed_at_once(details: str) -> str:
    """What it may mean that a connection was closed as soon as it was there; "" if that is not what happened."""
    if "failed to connect" not in details or "Socket closed" not in details:
        return ""
    return (
        "it closes the connection at once, as one does that wants TLS (then leave --insecure out) or that does not "
        "accept this certificate"
    )


def passing(error: KoinonError) -> bool:
    """Whether trying again may help."""
    return isinstance(error, Unavailable | StoreError)


class Pauses:
    """How long to wait before the next attempt, at most: 0.1 s, twice that, ..., 2 s; and 60 s once the outage has
    lasted for two minutes, when nobody waits for this device any more and the coordinator may be busy coming back.

    Drawn from all of that (full jitter): a fleet that lost its coordinator must not come back in step. An outage is
    over when a stream works; one that breaks at once, again and again, does not start again from 0.1 s.
    """

    def __init__(self, now: float, dice: Callable[[float, float], float] = random.uniform):
        self._since, self._failures, self._dice = now, 0, dice

    def next(self, now: float, worked: float) -> float:
        """The pause, at `now`, after a stream that worked for `worked` seconds; 0 if there was none."""
        if worked:
            self._since = now
        self._failures = 1 if worked > _PROMPT_CAP else self._failures + 1
        cap = _PROMPT_CAP if now - self._since < _PROMPT else _PATIENT_CAP
        return self._dice(0.0, min(cap, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 16)))
