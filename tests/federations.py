"""A federation with identities, served in this process: its coordinator, and whoever calls it, with their own keys."""

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.calls import error_of
from koinon_coordinator.federation import Federation
from koinon_coordinator.identity import Home, Security, pki
from koinon_coordinator.service import serve
from koinon_coordinator.store import Store
from koinon_core.identity import Token, prove
from koinon_core.wire import convert
from koinon_core.wire.methods import DIRECTORY, ENROLMENT, FLEET, IDENTITY, Method
from koinon_core.wire.v1 import enrolment_pb2 as pb
from koinon_core.wire.v1 import fleet_pb2

__all__ = ["DOMAIN", "Attending", "House", "Keys", "Person", "call", "csr_of", "pem_of"]

DOMAIN = "x.example"


def pem_of(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


def csr_of(key: Any, name: str = "") -> bytes:
    """A CSR in DER; its name is for nobody."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else [])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


class Keys:
    """A device's two keys."""

    def __init__(self) -> None:
        self.tls = ec.generate_private_key(ec.SECP256R1())
        self.private = Ed25519PrivateKey.generate().private_bytes_raw()

    @property
    def public(self) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.private).public_key().public_bytes_raw()

    @property
    def spki(self) -> bytes:
        return pki.spki(self.tls.public_key())

    def request(self, token: Token, name: str, **changes: Any) -> pb.EnrolRequest:
        """What a device says to be let in; `changes` are what a liar says instead."""
        said = {
            "token_id": token.id, "secret": token.secret, "id": name, "csr": csr_of(self.tls), "key": self.public,
            "proof": prove(self.private, token.id, self.spki, name),
        }  # fmt: skip
        return pb.EnrolRequest(**{**said, **changes})


def call(channel: grpc.Channel, method: Method[Any, Any], request: Any, **more: Any) -> Any:
    """The answer, or the error of ours that was meant. The answer of a stream is the list of what came."""
    stub = getattr(channel, method.shape)(
        method.path,
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=method.response.FromString,
    )
    argument = iter([request]) if method.shape.startswith("stream") else request
    try:
        answer = stub(argument, timeout=20, **more)
        return list(answer) if method.shape.endswith("_stream") else answer
    except grpc.RpcError as error:
        raise error_of(error, "there") from None


@dataclass
class Person:
    """Somebody with a certificate, and a connection of their own."""

    name: str
    channel: grpc.Channel
    keys: Keys | None = None
    certificate: bytes = b""

    def __call__(self, method: Method[Any, Any], request: Any, **more: Any) -> Any:
        return call(self.channel, method, request, **more)

    def renew(self, keys: Keys | None = None, **changes: Any) -> pb.RenewResponse:
        keys = keys or self.keys or Keys()
        said = {
            "csr": csr_of(keys.tls),
            "key": keys.public,
            "proof": prove(keys.private, "", keys.spki, self.name),
        }
        return self(IDENTITY.RENEW, pb.RenewRequest(**{**said, **changes}))


class Attending:
    """A device's stream: what came is in `heard`, and once it ended, `code` says how and `ended` when."""

    def __init__(self, channel: grpc.Channel, name: str):
        self._say: queue.Queue[Any] = queue.Queue()
        hello = fleet_pb2.DeviceMessage(hello=convert.hello(name, "i"))
        self._say.put(fleet_pb2.AttendRequest(messages=[hello]))
        stub = channel.stream_stream(
            FLEET.ATTEND.path, request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=FLEET.ATTEND.response.FromString,
        )  # fmt: skip
        self.heard: queue.Queue[Any] = queue.Queue()
        self.code, self.ended = "", 0.0
        self._call = stub(iter(self._say.get, None))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                for message in response.messages:
                    self.heard.put(message)
            self.code = "OK"
        except grpc.RpcError as error:
            self.code = type(error_of(error, "there")).__name__
        self.ended = time.monotonic()

    def welcome(self) -> fleet_pb2.Welcome:
        return self.heard.get(timeout=10).welcome

    def say(self, **message: Any) -> None:
        self._say.put(fleet_pb2.AttendRequest(messages=[fleet_pb2.DeviceMessage(**message)]))

    def wait(self, timeout: float = 10.0) -> str:
        """How it ended."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the stream is still open"
        self._say.put(None)
        return self.code

    def close(self) -> None:
        self._say.put(None)
        self._call.cancel()
        self._thread.join(10)


class House:
    """A coordinator of federation DOMAIN in this process. `home` is the federation's folder, made if there is none."""

    def __init__(
        self, folder: Path, *, url: str = "", home: Path | None = None, outside: Any = None, **settings: Any
    ):
        folder.mkdir(parents=True, exist_ok=True)
        where = home or folder / "federation"
        self.home = Home(where) if where.exists() else Home.init(where, DOMAIN, time.time())
        if outside is None:
            settings = {"enrol_listen": "127.0.0.1:0", **settings}
        self.security = Security(self.home, ("127.0.0.1",), outside=outside, **settings)
        self.store = Store(url or f"sqlite:///{folder / 'koinon.db'}", folder / "blobs")
        self.federation = Federation(self.store)
        self.folder = folder
        self._ready, self._channels = threading.Event(), []
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(20)
        if self._failed:
            raise self._failed[0]

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(
                serve(
                    self.federation,
                    "127.0.0.1:0",
                    self._stop,
                    lambda _: self._ready.set(),
                    security=self.security,
                )
            )
        except BaseException as error:
            self._failed.append(error)
            self._ready.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._loop.close()
        self.store.close()

    # -- who calls --------------------------------------------------------------------------------------------

    def channel(
        self, key: bytes | None = None, chain: bytes | None = None, address: str = ""
    ) -> grpc.Channel:
        """A connection of its own: credentials are not shared between channels."""
        credentials = grpc.ssl_channel_credentials(self.security.ca, key, chain)
        made = grpc.secure_channel(
            address or self.security.address, credentials, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._channels.append(made)
        return made

    @property
    def admin(self) -> Person:
        folder = self.home.folder / "admin"
        channel = self.channel((folder / "tls.key").read_bytes(), (folder / "tls.pem").read_bytes())
        return Person("admin", channel)

    def person(self, name: str, certificate: bytes, keys: Keys) -> Person:
        return Person(name, self.channel(pki.key_pem(keys.tls), certificate), keys, certificate)

    def operator(self, name: str, role: str) -> Person:
        keys = Keys()
        request = pb.CreateOperatorRequest(name=name, role=role, csr=csr_of(keys.tls))
        return self.person(name, self.admin(DIRECTORY.CREATE_OPERATOR, request).certificate, keys)

    def token(self, uses: int = 1, ttl: int = 3600, label: str = "") -> Token:
        request = pb.CreateTokenRequest(ttl=ttl, uses=uses, label=label)
        return Token.parse(self.admin(DIRECTORY.CREATE_TOKEN, request).token)

    def newcomer(self) -> grpc.Channel:
        """A connection to the enrolment listener."""
        return self.channel(address=self.security.enrol_address)

    def enrol(self, name: str, token: Token | None = None, keys: Keys | None = None, **changes: Any) -> Any:
        """What the coordinator answers to a newcomer."""
        token, keys = token or self.token(), keys or Keys()
        return call(self.newcomer(), ENROLMENT.ENROL, keys.request(token, name, **changes))

    def device(self, name: str) -> Person:
        """An enrolled device."""
        keys = Keys()
        return self.person(name, self.enrol(name, keys=keys).certificate, keys)

    def issued(self, kind: str, name: str, *, authority: Any = None, domain: str = DOMAIN, now: float | None = None,
               life: float = 3600.0) -> Person:  # fmt: skip
        """Somebody with a certificate that nobody asked the coordinator for."""
        keys = Keys()
        authority = authority or self.security.authority
        made = authority.peer(domain, kind, name, keys.tls.public_key(), now or time.time(), life)
        return self.person(name, made.pem, keys)

    @contextmanager
    def attending(self, device: Person) -> Iterator[Attending]:
        stream = Attending(device.channel, device.name)
        try:
            stream.welcome()
            yield stream
        finally:
            stream.close()
