"""Whether a device and its coordinator find and believe each other: real sockets, certificates, servers, proxies."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from koinon.identity import keys
from koinon.identity.folder import Identity, write
from koinon_coordinator.identity import pki
from koinon_edge.doctor import Finding, Patient, Ran, examine, network, standing, worst
from koinon_edge.doctor.network import proxy_of
from sysfs import Tree

NOW = time.time()
DAY = 86400.0


def only(found: list[Finding], topic: str) -> Finding:
    (one,) = [f for f in found if f.topic == topic]
    return one


class Federation:
    """A CA, and the credentials of one device in `folder`."""

    def __init__(self, folder: Path, life: float = 7 * DAY, age: float = 0.0):
        self.ca = pki.Authority.make("example", NOW - age)
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True)
        key = keys.new_tls_key()
        peer = self.ca.peer("example", "device", "line-4", _public(key), NOW - age, life)
        identity = Identity(id="line-4", kind="device", domain="example", address="coordinator.example:8440")
        for name, content in (
            ("tls.key", key), ("tls.pem", peer.pem), ("ca.pem", self.ca.pem), ("identity.json", identity.encoded),
        ):  # fmt: skip
            write(folder / name, content)

    @contextmanager
    def coordinator(self, names=("127.0.0.1",), age=0.0, life=DAY, clients=None):
        """Its port. It lets in whom `clients` (a CA's certificate; this one's own) has vouched for."""
        key = pki.new_key()
        chain = self.ca.server(names, key.public_key(), NOW - age, life).pem
        credentials = grpc.ssl_server_credentials([(pki.key_pem(key), chain)], clients or self.ca.pem, True)
        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


def _public(pem: bytes) -> ec.EllipticCurvePublicKey:
    return keys._private(pem, "the key").public_key()


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path / "identity")


def reached(federation: Federation, port: int, host: str = "127.0.0.1", **more) -> list[Finding]:
    patient = Patient(credentials=federation.folder, environment={}, **more)
    return network.network(patient, f"{host}:{port}", NOW)


def test_a_coordinator_and_a_device_of_one_federation_believe_each_other(federation):
    with federation.coordinator() as port:
        found = reached(federation, port)
    assert [(f.topic, f.verdict) for f in found] == [("network", "ok"), ("TLS", "ok")]
    with federation.coordinator(names=("localhost",)) as port:
        assert [f.verdict for f in reached(federation, port, "localhost")] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("server", "said", "advice"),
    [
        ({"age": 10 * DAY}, "not valid any more at this machine's clock", "clock is off"),
        ({"age": -10 * DAY}, "not valid yet at this machine's clock", "clock is off"),
        ({"names": ("other.example",)}, "not for the name 127.0.0.1", "address"),
    ],
)
def test_a_certificate_that_is_not_believed_says_why(federation, server, said, advice):
    with federation.coordinator(**server) as port:
        found = only(reached(federation, port), "TLS")
    assert found.verdict == "bad"
    assert said in found.found
    assert advice in found.advice


def test_another_federations_coordinator_is_told_and_tells(federation, tmp_path):
    other = Federation(tmp_path / "other")
    with other.coordinator() as port:
        assert "another CA vouches" in only(reached(federation, port), "TLS").found
    with federation.coordinator(clients=other.ca.pem) as port:
        assert "when it sees this device's certificate" in only(reached(federation, port), "TLS").found


def test_what_answers_in_another_language_or_not_at_all_is_no_coordinator(federation, monkeypatch):
    monkeypatch.setattr(network, "LONGEST", 0.3)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert only(reached(federation, port), "TLS").verdict == "bad"
    server.stop(None).wait()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        found = reached(federation, port)
    assert "does not go on with the handshake" in only(found, "TLS").found
    (refused,) = reached(federation, port)
    assert (refused.verdict, "refuses connections" in refused.found) == ("bad", True)


@pytest.mark.parametrize(
    ("address", "verdict", "said"),
    [
        ("", "unknown", "nothing says where"), ("coordinator", "bad", "no HOST:PORT"),
        ("a..b:1", "bad", "not found by its name"),
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_said(address, verdict, said):
    (found,) = network.network(Patient(environment={}), address, NOW)
    assert (found.verdict, said in found.found) == (verdict, True)


@contextmanager
def proxy(status: str, asked: list[bytes]):
    """An HTTP proxy that answers so to CONNECT, and goes on with what was asked where that is 200."""

    def serve() -> None:
        with suppress(OSError), listening.accept()[0] as near:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += near.recv(4096)
            asked.append(head)
            near.sendall(f"HTTP/1.1 {status}\r\nVia: test\r\n\r\n".encode())
            if not status.startswith("200"):
                return
            host, _, port = head.split()[1].decode().rpartition(":")
            with socket.create_connection((host, int(port))) as far:
                back = threading.Thread(target=pump, args=(far, near))
                back.start()
                pump(near, far)
                far.shutdown(socket.SHUT_RDWR)
                back.join()

    def pump(source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                to.sendall(piece)
            to.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(5)


def test_a_proxy_leads_to_the_coordinator(federation):
    asked: list[bytes] = []
    with federation.coordinator() as port, proxy("200 Connection established", asked) as by:
        found = reached(federation, port, proxy=f"http://alice:s%20cret@127.0.0.1:{by}")
    assert [f.verdict for f in found] == ["ok", "ok"]
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic YWxpY2U6cyBjcmV0\r\n" in asked[0]
    assert "s%20cret" not in str(found)


@pytest.mark.parametrize(
    ("status", "said", "advice"),
    [
        ("403 Forbidden", "refuses with 403", "must allow CONNECT"),
        ("407 Who are you", "refuses with 407", "NAME:PASSWORD"),
        ("nonsense", "something that is no HTTP", ""),
    ],
)
def test_a_proxy_that_refuses_is_not_the_coordinators_fault(federation, status, said, advice):
    with proxy(status, []) as by:
        (found,) = reached(federation, 8440, host="coordinator.example", proxy=f"127.0.0.1:{by}")
    assert (found.verdict, advice in found.advice) == ("bad", True)
    assert said in found.found


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"https_proxy": "http://a:1", "http_proxy": "http://b:1"}, "http://a:1"),
        ({"grpc_proxy": "http://c:1", "https_proxy": "http://a:1"}, "http://c:1"),
        ({"https_proxy": "http://a:1", "no_proxy": "other, .example"}, ""),
        ({"https_proxy": "http://a:1", "no_proxy": "example", "no_grpc_proxy": "other"}, "http://a:1"),
        ({"HTTPS_PROXY": "http://a:1"}, ""),
    ],
)
def test_the_proxy_is_the_one_that_grpc_would_take(environment, found):
    assert proxy_of(Patient(environment=environment), "coordinator.example") == found
    named = Patient(environment=environment, proxy="http://mine:1")
    assert proxy_of(named, "coordinator.example") == "http://mine:1"


# -- credentials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("life", "age", "verdict", "said"),
    [
        (7 * DAY, 0.0, "ok", "7.0 days from now"),
        (9 * DAY, 6.2 * DAY, "ok", "to be renewed from"),
        (9 * DAY, 8 * DAY, "warn", "should have been renewed"),
        (7 * DAY, 8 * DAY, "bad", "ended on"),
        (7 * DAY, -8 * DAY, "bad", "is valid from"),
    ],
)
def test_credentials_are_valid_and_renewed_in_time(tmp_path, life, age, verdict, said):
    federation = Federation(tmp_path / "identity", life, age)
    found, finding = standing.credentials(federation.folder, NOW)
    assert (finding.verdict, said in finding.found) == (verdict, True), finding
    assert found is not None
    assert found.address == "coordinator.example:8440"


def test_credentials_that_others_may_read_are_missing_or_not_whole_are_said(federation, tmp_path):
    (federation.folder / "tls.key").chmod(0o644)
    assert "may read tls.key" in standing.credentials(federation.folder, NOW)[1].found
    assert standing.credentials(None, NOW)[1].verdict == "bad"
    assert "no credentials in" in standing.credentials(tmp_path / "none", NOW)[1].found
    write(federation.folder / "tls.key", keys.new_tls_key())
    assert "do not belong together" in standing.credentials(federation.folder, NOW)[1].found


# -- all of it ------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    one = Tree(tmp_path / "root")
    one.root.mkdir()
    yield one
    one.close()


def test_a_device_is_examined_as_a_whole(tree, federation, tmp_path):
    tree.orin_nano().write({"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"})
    kernel = {
        "stage": "done",
        "torch": "2.8.0",
        "cuda": "12.6",
        "off": 1e-4,
        "gpu": "Orin",
        "capability": "sm_87",
    }
    with federation.coordinator() as port:
        found = examine(
            Patient(
                root=tree.root, state=tmp_path, credentials=federation.folder, address=f"127.0.0.1:{port}",
                settings=dict, disk_min=1, environment={"NOTIFY_SOCKET": "@x"},
            ),
            clock=lambda: NOW, runner=lambda *_: Ran(0, json.dumps(kernel)),
        )  # fmt: skip
    assert {f.topic: f.verdict for f in found} == {
        "machine": "ok", "heat": "ok", "power": "ok", "python": "ok", "memory": "ok", "torch": "ok", "disk": "ok",
        "disk speed": "ok", "clock": "unknown", "credentials": "ok", "network": "ok", "TLS": "ok", "edge.toml": "ok",
        "systemd": "warn",
    }  # fmt: skip
    assert worst(found) == "warn"
