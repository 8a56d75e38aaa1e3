"""Every byte string that a session hashes, signs or derives a key for: this file is their definition.

Each is a label and then its parts: `koinon.secagg/1 WHAT`, and each part behind its length in four bytes,
little-endian. A text is its UTF-8, a number its eight bytes, little-endian. No label is the beginning of another, so no
two statements are ever the same bytes. (The config's digest has one part, and no length before it.)

Signatures are over statements, not over messages: how a message is laid out may change, what was said may not.
"""

from hashlib import sha256

__all__ = [
    "LABELS", "Part", "advert", "advert_leaf", "agreement", "commitment", "config_digest", "consent", "dealt",
    "dealt_digest", "lane", "masked", "opened", "opened_digest", "own_mask", "pair_mask", "sealed_share", "sealing_key",
    "seed_of_order", "session", "statement",
]  # fmt: skip

LABELS = (
    "cfg", "advert", "order", "session", "sealing key", "sealed share", "commitment", "dealt", "shares", "own mask",
    "pair mask", "lane", "tile", "masked", "survivors", "consent", "opened", "reveal", "permutation",
)  # fmt: skip
"""All of them; `tile` and `permutation` are used in hazmat."""

Part = bytes | str | int


def statement(what: str, *parts: Part) -> bytes:
    """The label and the parts."""
    assert what in LABELS, what
    out = [_label(what)]
    for part in parts:
        data = _encoded(part)
        out += (len(data).to_bytes(4, "little"), data)
    return b"".join(out)


def config_digest(encoded: bytes) -> bytes:
    """What devices agree to: the SHA-256 of the label and the config's canonical JSON."""
    return sha256(_label("cfg") + encoded).digest()


def advert(config: bytes, client: str, entry: bytes, sealing: bytes, masking: bytes) -> bytes:
    """Signed by a device: these keys are mine in this attempt. Of the roster entry the SHA-256 is part."""
    return statement("advert", config, client, sha256(entry).digest(), sealing, masking)


def advert_leaf(data: bytes) -> bytes:
    """The leaf of a device: the SHA-256 of its advertisement as it came."""
    return sha256(data).digest()


def seed_of_order(root: bytes) -> bytes:
    """What the order of all devices is drawn from, given the Merkle root over all leaves, sorted."""
    return sha256(statement("order", root)).digest()


def session(config: bytes, root: bytes, devices: int, group: int) -> bytes:
    """The name of a session: its config, all devices of the round (of all groups), and the group's number."""
    return sha256(statement("session", config, root, devices, group)).digest()


def sealing_key(dealer: str, reader: str) -> bytes:
    """HKDF info of the key, of one direction, under which `dealer` seals for `reader`; the salt is the session."""
    return statement("sealing key", dealer, reader)


def sealed_share(sid: bytes, dealer: str, reader: str, point: int) -> bytes:
    """Authenticated with a sealed share, which lies at the reader's `point`."""
    return statement("sealed share", sid, dealer, reader, point)


def commitment(sid: bytes, client: str, seed: bytes) -> bytes:
    """What binds a device to the seed of its own mask."""
    return sha256(statement("commitment", sid, client, seed)).digest()


def dealt_digest(sealed: bytes) -> bytes:
    """The digest of all that a device sealed."""
    return sha256(statement("dealt", sealed)).digest()


def dealt(sid: bytes, client: str, digest: bytes, committed: bytes) -> bytes:
    """Signed by a device: I have dealt these shares, of a seed that I am bound to."""
    return statement("shares", sid, client, digest, committed)


def own_mask(client: str) -> bytes:
    """HKDF info that makes a mask's seed of the seed that is shared; the salt is the session."""
    return statement("own mask", client)


def pair_mask(one: bytes, other: bytes) -> bytes:
    """HKDF info for the mask of two devices, by their masking keys; the same for both."""
    return statement("pair mask", *sorted((one, other)))


def lane(section: int) -> bytes:
    """HKDF-Expand info that makes a section's seed of a mask's."""
    return statement("lane", section)


def masked(sid: bytes, client: str, size: int, digest: bytes, unreadable: bytes) -> bytes:
    """Signed by a device: these are my masked lanes, and these dealers' shares (a bitmap) I could not open."""
    return statement("masked", sid, client, size, digest, unreadable)


def agreement(survivors: bytes) -> bytes:
    """The digest of who is in the sum (a bitmap)."""
    return sha256(statement("survivors", survivors)).digest()


def consent(sid: bytes, count: int, digest: bytes) -> bytes:
    """Signed by a device: `count` devices are in the sum, and they are these."""
    return statement("consent", sid, count, digest)


def opened_digest(owners: bytes, shares: bytes) -> bytes:
    """The digest of the shares that a device gives back: whose (a bitmap), and them."""
    return sha256(statement("opened", owners, shares)).digest()


def opened(sid: bytes, client: str, survivors: bytes, digest: bytes) -> bytes:
    """Signed by a device: I give back these shares, and no others, because `survivors` (the digest) are in the sum."""
    return statement("reveal", sid, client, survivors, digest)


def _label(what: str) -> bytes:
    return b"koinon.secagg/1 " + what.encode()


def _encoded(part: Part) -> bytes:
    if isinstance(part, int):
        return part.to_bytes(8, "little")
    return part.encode() if isinstance(part, str) else part
