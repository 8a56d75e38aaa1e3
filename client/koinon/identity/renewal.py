"""How credentials stay good: a certificate is renewed at two thirds of its life, over a connection that stands anyway.

The new certificate is used from the next connection on; the one that stands is not cut. A device asks for its newest
line in the roster by the same call, soon after it connected and every hour: its federation's owner may have signed it.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from koinon.calls import error_of, stub
from koinon.identity import keys
from koinon.identity.folder import Credentials
from koinon_core.errors import KoinonError
from koinon_core.identity import prove
from koinon_core.wire.methods import IDENTITY
from koinon_core.wire.v1 import enrolment_pb2 as pb

__all__ = ["TIMEOUT", "asking", "is_due", "kept_fresh"]

TIMEOUT = 30.0
_HOUR = 3600.0
_SOON = 10.0
_AGAIN = 60.0
_log = logging.getLogger("koinon")


def is_due(credentials: Credentials, now: float) -> bool:
    """Whether it is time for another certificate, and ours to ask for it."""
    return not credentials.identity.outside and now >= credentials.certificate.due


def asking(credentials: Credentials, now: float) -> pb.RenewRequest:
    """What to ask at `now`: for the newest entry, and for a certificate if that is due. The TLS key stays, so that one
    file replaced is a certificate renewed."""
    request = pb.RenewRequest()
    if is_due(credentials, now):
        request.csr, _ = keys.request(credentials.tls_key, credentials.id)
    if credentials.identity.kind == "device":
        private = credentials.signing_key
        request.key = keys.public_signing_key(private)
        request.proof = prove(private, "", credentials.certificate.spki, credentials.id)
    return request


@asynccontextmanager
async def kept_fresh(credentials: Credentials | None, channel: grpc.aio.Channel) -> AsyncIterator[None]:
    """While `channel` is in use, what is due of `credentials` is renewed over it."""
    if credentials is None:
        yield
        return
    task = asyncio.create_task(_keep(credentials, channel), name="koinon-renewal")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep(credentials: Credentials, channel: grpc.aio.Channel) -> None:
    failures = 0
    # Not at once, but where it is due: a fleet that comes back has something better to do first.
    pause = 0.0 if is_due(credentials, time.time()) else random.uniform(0, _SOON)  # noqa: S311 - jitter, not a secret
    while True:
        await asyncio.sleep(pause)
        try:
            await _renew(credentials, channel)
            failures, pause = 0, _until_next(credentials, time.time())
        except KoinonError as error:
            # No reason to stop working: there is a third of its life left, and the stream says it if this is the end.
            failures += 1
            pause = random.uniform(0.5, 1) * min(_HOUR, _AGAIN * 2.0 ** min(failures - 1, 10))  # noqa: S311 - as above
            _log.warning(
                "the certificate of %s is not renewed yet, and tried again in %.0f s: %s",
                credentials.id,
                pause,
                error,
            )


async def _renew(credentials: Credentials, channel: grpc.aio.Channel) -> None:
    request = asking(credentials, time.time())
    try:
        got: pb.RenewResponse = await stub(channel, IDENTITY.RENEW)(
            request, timeout=TIMEOUT, wait_for_ready=True
        )
    except grpc.aio.AioRpcError as error:
        raise error_of(error, credentials.address) from None
    credentials.renewed(got.certificate, got.ca, got.entry)
    if got.certificate:
        _log.info("the certificate of %s is renewed", credentials.id)


def _until_next(credentials: Credentials, now: float) -> float:
    """Seconds until it is time to ask again: an hour, or less if the certificate is due or ends before."""
    said = credentials.certificate
    soon = said.due - now if now < said.due else (said.end - now) / 3
    return max(1.0, min(_HOUR, soon))
