"""The published vectors are what this code says, byte for byte, and what their README says without this code."""

import hashlib
import json
from itertools import combinations
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from vectors import make

FOLDER = Path(__file__).resolve().parents[2] / "vectors"


def vector(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_every_vector_that_is_published_is_checked():
    assert {path.stem for path in FOLDER.glob("*.json")} == {*make.SESSIONS, "secagg-graphs"}


@pytest.mark.parametrize("name", make.SESSIONS)
def test_a_session_played_again_says_the_same_bytes(name):
    told = vector(name)
    assert told["version"] == "koinon.secagg/1"
    again = make.transcript(told["inputs"])
    for what, expected in told["transcript"].items():
        assert again[what] == expected, what
    assert again.keys() == told["transcript"].keys()


def test_the_sessions_are_those_that_the_script_makes():
    devices, lost = make.SESSIONS["secagg-5-dropouts"]
    assert make.inputs(devices, lost) == vector("secagg-5-dropouts")["inputs"]


def test_larger_rounds_have_the_same_order_and_graph():
    assert make.graphs() == vector("secagg-graphs")["rounds"]


# -- by the README alone --------------------------------------------------------------------------------------------


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def say(what: str, *parts: bytes | str | int) -> bytes:
    out = b"koinon.secagg/1 " + what.encode()
    for part in parts:
        data = (
            part.to_bytes(8, "little")
            if isinstance(part, int)
            else part.encode()
            if isinstance(part, str)
            else part
        )
        out += len(data).to_bytes(4, "little") + data
    return out


def fields(message: bytes) -> dict[int, list]:
    """A protobuf message's fields, by number."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (message[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if message[at - 1] < 0x80:
                return value, at

    found: dict[int, list] = {}
    at = 0
    while at < len(message):
        tag, at = varint(at)
        value, at = varint(at)
        if tag & 7 == 2:
            value, at = message[at : at + value], at + value
        found.setdefault(tag >> 3, []).append(value)
    return found


def merkle(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return sha(b"\0", leaves[0])
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return sha(b"\1", merkle(leaves[:half]), merkle(leaves[half:]))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def expand(key: bytes, info: bytes) -> bytes:
    return HKDFExpand(SHA256(), 32, info).derive(key)


def agreed(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def pack(lanes: list[int], bits: int) -> bytes:
    out, shift = b"", 0
    for width in (64, 32, 16, 8, 4, 2, 1):
        if not bits & width:
            continue
        plane = [lane >> shift & (1 << width) - 1 for lane in lanes]
        if width >= 8:
            out += b"".join(x.to_bytes(width // 8, "little") for x in plane)
        else:
            size = -(-len(plane) * width // 8)
            row = [0] * size
            for i, x in enumerate(plane):
                row[i % size] |= x << i // size * width
            out += bytes(row)
        shift += width
    return out


class Told:
    """One vector, as somebody reads it who has only the README."""

    def __init__(self, name: str):
        told = vector(name)
        self.given, self.said = told["inputs"], told["transcript"]
        self.config = json.loads(self.given["config"])
        self.devices = {device["id"]: device for device in self.given["devices"]}
        self.sid = bytes.fromhex(self.said["session"])
        self.order = self.said["order"]

    def sent(self, what: str, name: str) -> bytes:
        return bytes.fromhex(self.said[what][name])

    def draws(self, name: str) -> list[bytes]:
        return [bytes.fromhex(data) for data in self.devices[name]["draws"]]

    def public(self, name: str, which: int) -> bytes:
        return X25519PrivateKey.from_private_bytes(self.draws(name)[which]).public_key().public_bytes_raw()

    def signed(self, name: str, signature: bytes, message: bytes) -> None:
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.devices[name]["private"]))
        key.public_key().verify(signature, message)

    def bitmap(self, names) -> bytes:
        bits = sum(1 << self.order.index(name) for name in names)
        return bits.to_bytes(-(-len(self.order) // 8), "little")


@pytest.fixture(params=["secagg-3", "secagg-5-dropouts", "secagg-16-dropouts"])
def told(request) -> Told:
    return Told(request.param)


def test_the_session_follows_from_the_advertisements(told):
    config = sha(b"koinon.secagg/1 cfg", told.given["config"].encode())
    assert config.hex() == told.said["config_digest"]
    leaves = []
    for name, advert in told.said["adverts"].items():
        (id_,), (entry,), (sealing,), (masking,), (signature,) = fields(bytes.fromhex(advert)).values()
        assert (id_.decode(), entry.hex()) == (name, told.devices[name]["entry"])
        assert (sealing, masking) == (told.public(name, 0), told.public(name, 1))
        told.signed(name, signature, say("advert", config, name, sha(entry), sealing, masking))
        leaves.append(sha(bytes.fromhex(advert)))
    leaves.sort()
    assert [leaf.hex() for leaf in leaves] == told.said["leaves"]
    root = merkle(leaves)
    assert root.hex() == told.said["root"]
    seed = sha(say("order", root))
    assert [sha(bytes.fromhex(told.said["adverts"][name])) for name in told.order] == shuffled(leaves, seed)
    assert sha(say("session", config, root, len(leaves), 0)) == told.sid
    assert (told.said["k"], told.said["t"]) == (len(leaves), 2 * len(leaves) // 3 + 1)


def shuffled(leaves: list[bytes], seed: bytes) -> list[bytes]:
    key = expand(seed, b"koinon.secagg/1 permutation")
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    out = list(leaves)
    for i in range(len(out) - 1, 0, -1):
        while True:
            u = int.from_bytes(stream.update(bytes(4)), "little")
            if u < 2**32 - 2**32 % (i + 1):
                break
        j = u % (i + 1)
        out[i], out[j] = out[j], out[i]
    return out


def test_shares_are_sealed_for_their_readers(told):
    dealers = list(told.said["shares"])
    for dealer in dealers:
        (session,), (id_,), (sealed,), (commitment,), (signature,) = fields(
            told.sent("shares", dealer)
        ).values()
        assert (session, id_.decode()) == (told.sid, dealer)
        assert commitment == sha(say("commitment", told.sid, dealer, told.draws(dealer)[2]))
        told.signed(dealer, signature, say("shares", told.sid, dealer, sha(say("dealt", sealed)), commitment))
        readers = [name for name in told.order if name != dealer]
        for slot, reader in enumerate(readers):
            shared = agreed(told.draws(dealer)[0], told.public(reader, 0))
            key = hkdf(shared, told.sid, say("sealing key", dealer, reader))
            aad = say("sealed share", told.sid, dealer, reader, told.order.index(reader) + 1)
            plain = AESGCM(key).decrypt(bytes(12), sealed[80 * slot : 80 * slot + 80], aad)
            assert plain.hex() == told.said["plain_shares"][dealer][reader]


def test_shares_lie_on_polynomials_over_the_field(told):
    """Slowly: shift and reduce by x^16 + x^12 + x^3 + x + 1, Horner's rule."""

    def times(a: int, b: int) -> int:
        out = 0
        while b:
            out ^= a * (b & 1)
            a = a << 1 ^ 0x1100B * (a >> 15)
            b >>= 1
        return out

    dealer = next(iter(told.said["shares"]))
    _, masking, seed, tail = told.draws(dealer)
    data = seed + masking + tail
    rows = [
        [int.from_bytes(data[i : i + 2], "little") for i in range(r, r + 64, 2)]
        for r in range(0, len(data), 64)
    ]
    assert len(rows) == told.said["t"]
    for reader, share in told.said["plain_shares"][dealer].items():
        x = told.order.index(reader) + 1
        value = [0] * 32
        for row in reversed(rows):
            value = [times(v, x) ^ c for v, c in zip(value, row, strict=True)]
        assert b"".join(v.to_bytes(2, "little") for v in value).hex() == share


def test_lanes_are_masked_as_it_says(told):
    dealers, survivors = list(told.said["shares"]), list(told.said["masked"])
    own = {name: hkdf(told.draws(name)[2], told.sid, say("own mask", name)) for name in survivors}
    pairs = {}
    for one, other in combinations(dealers, 2):
        keys = sorted((told.public(one, 1), told.public(other, 1)))
        pairs[one, other] = hkdf(
            agreed(told.draws(one)[1], told.public(other, 1)), told.sid, say("pair mask", *keys)
        )
        assert pairs[one, other].hex() == told.said["pair_seeds"][f"{one} {other}"]
    assert {name: seed.hex() for name, seed in own.items()} == told.said["own_seeds"]

    totals = [[0] * count for _, count in told.config["lanes"]]
    for name in survivors:
        masks = [(own[name], 1)]
        for (one, other), seed in pairs.items():
            if name in (one, other):
                peer = other if name == one else one
                masks.append((seed, 1 if told.public(peer, 1) > told.public(name, 1) else -1))
        packed = b""
        for section, (bits, count) in enumerate(told.config["lanes"]):
            width = next(n for n in (1, 2, 4, 8) if 8 * n >= bits)
            plain = bytes.fromhex(told.devices[name]["lanes"][section])
            lanes = [int.from_bytes(plain[i : i + width], "little") for i in range(0, len(plain), width)]
            totals[section] = [(a + b) % 2**bits for a, b in zip(totals[section], lanes, strict=True)]
            for seed, sign in masks:
                tile = expand(expand(seed, say("lane", section)), b"koinon.secagg/1 tile" + bytes(8))
                stream = Cipher(AES256(tile), CTR(bytes(15) + b"\2")).encryptor().update(bytes(count * width))
                lanes = [
                    (lane + sign * int.from_bytes(stream[i * width : (i + 1) * width], "little")) % 2**bits
                    for i, lane in enumerate(lanes)
                ]
            packed += pack(lanes, bits)
        assert packed == told.sent("masked_bytes", name)
        (session,), (id_,), (size,), (digest,), (unreadable,), (signature,) = fields(
            told.sent("masked", name)
        ).values()
        assert (session, id_.decode(), size, digest) == (told.sid, name, len(packed), sha(packed))
        assert unreadable == told.bitmap([])
        told.signed(name, signature, say("masked", told.sid, name, size, digest, unreadable))
    for section, (bits, _) in enumerate(told.config["lanes"]):
        width = next(n for n in (1, 2, 4, 8) if 8 * n >= bits)
        assert (
            b"".join(x.to_bytes(width, "little") for x in totals[section]).hex() == told.said["sum"][section]
        )


def test_the_end_is_signed_and_gives_one_half_of_each_share(told):
    dealers, survivors = list(told.said["shares"]), list(told.said["masked"])
    bits = told.bitmap(survivors)
    assert fields(bytes.fromhex(told.said["survivors"])) == {1: [told.sid], 2: [bits]}
    agreed_to = say("consent", told.sid, len(survivors), sha(say("survivors", bits)))
    for name, message in told.said["consents"].items():
        (session,), (id_,), (signature,) = fields(bytes.fromhex(message)).values()
        assert (session, id_.decode()) == (told.sid, name)
        told.signed(name, signature, agreed_to)
    for name, message in told.said["reveals"].items():
        (session,), (id_,), (owners,), (shares,), (signature,) = fields(bytes.fromhex(message)).values()
        assert owners == told.bitmap(dealers)
        given = "".join(
            told.said["plain_shares"][owner][name][slice(64) if owner in survivors else slice(64, 128)]
            for owner in told.order
            if owner in dealers
        )
        assert shares.hex() == given
        digest = sha(say("opened", owners, shares))
        told.signed(name, signature, say("reveal", told.sid, name, sha(say("survivors", bits)), digest))
        (session,), (signers,), (signatures,) = fields(told.sent("quorums", name)).values()
        near = [n for p, n in enumerate(told.order) if signers[p // 8] >> p % 8 & 1]
        assert len(near) == told.said["t"] - 1
        assert name not in near
        for i, signer in enumerate(near):
            told.signed(signer, signatures[64 * i : 64 * i + 64], agreed_to)


def test_an_inbox_is_what_neighbours_sealed(told):
    dealers = set(told.said["shares"])
    for reader, message in told.said["inboxes"].items():
        near = [name for name in told.order if name in dealers and name != reader]
        parts = {name: fields(told.sent("shares", name)) for name in near}
        slots = {name: [n for n in told.order if n != name].index(reader) for name in near}
        assert fields(bytes.fromhex(message)) == {
            1: [told.sid],
            2: [told.bitmap(dealers)],
            3: [b"".join(parts[n][3][0][80 * slots[n] : 80 * slots[n] + 80] for n in near)],
            4: [b"".join(sha(say("dealt", parts[n][3][0])) for n in near)],
            5: [b"".join(parts[n][4][0] for n in near)],
            6: [b"".join(parts[n][5][0] for n in near)],
        }
