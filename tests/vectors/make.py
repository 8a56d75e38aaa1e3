"""Write the published vectors of secure aggregation: `python tests/vectors/make.py`, from the repository's root.

A vector's `inputs` are all that it takes to play the session again: config, long-term keys, everything that was drawn,
lanes, and who was lost when. `transcript` plays it and tells every message, and what lies between.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koinon_core.secagg import Config, Lane, Masker, form, statements
from koinon_core.secagg.hazmat import agree, graph, merkle, shamir, sign
from koinon_core.secagg.pads import own_seed, pair_seed
from koinon_core.secagg.sealing import point_of
from sessions import Device, Stream, World, config, lanes_of, trust

HERE = Path(__file__).parent
STEPS = ("deal", "mask", "agree", "open")
LANES = tuple(
    Lane(bits, count)
    for bits, count in ((1, 11), (7, 10), (8, 5), (12, 7), (16, 3), (20, 5), (33, 3), (64, 2))
)
SESSIONS: dict[str, tuple[int, Mapping[str, list[str]]]] = {
    "secagg-3": (3, {}),
    "secagg-5": (5, {}),
    "secagg-5-dropouts": (5, {"mask": ["d3"]}),
    "secagg-16": (16, {}),
    "secagg-16-dropouts": (16, {"deal": ["d1"], "mask": ["d2", "d11"], "agree": ["d4"], "open": ["d15"]}),
}
"""Each by its number of devices, and those that are lost before they take a step."""


class Recorded:
    """Randomness as it was drawn."""

    def __init__(self, drawn: list[str]):
        self._drawn = iter(drawn)

    def __call__(self, size: int) -> bytes:
        data = bytes.fromhex(next(self._drawn))
        assert len(data) == size
        return data

    def rest(self) -> list[str]:
        return list(self._drawn)


class Player(World):
    """A world whose lanes are given."""

    lanes: dict[str, list[np.ndarray]]

    def lanes_of(self, name: str) -> list[np.ndarray]:
        return self.lanes[name]


def inputs(devices: int, lost: Mapping[str, list[str]]) -> dict[str, Any]:
    """A session's inputs, drawn from its name; `draws` are found by playing it."""
    settings = config(terms=hashlib.sha256(b"koinon vectors").hexdigest(), lanes=LANES, attempt=1)
    people = [Device(f"d{i}", seed=devices) for i in range(devices)]
    given: dict[str, Any] = {
        "config": settings.encoded.decode(),
        "devices": [
            {
                "id": person.id,
                "entry": person.entry.hex(),
                "private": person.private.hex(),
                "draws": [],
                "lanes": [part.tobytes().hex() for part in lanes_of(person.id, settings, devices)],
            }
            for person in people
        ],
        "lost": {step: lost.get(step, []) for step in STEPS},
    }
    streams = {person.id: Stream(f"vector {person.id} of {devices}") for person in people}
    _play(given, streams)
    for device in given["devices"]:
        device["draws"] = [data.hex() for data in streams[device["id"]].drawn]
    return given


def transcript(given: Mapping[str, Any]) -> dict[str, Any]:
    """Play a session from its inputs; all bytes in hex."""
    entropy = {device["id"]: Recorded(device["draws"]) for device in given["devices"]}
    one = _play(given, entropy)
    assert not any(recorded.rest() for recorded in entropy.values())
    session, u2, u3 = one.session, one.shares, one.masked
    assert session is not None
    leaves = sorted(statements.advert_leaf(advert) for advert in one.adverts.values())
    root = merkle.root(leaves)
    return {
        "config_digest": one.settings.digest.hex(),
        "adverts": _hex(one.adverts),
        "leaves": [leaf.hex() for leaf in leaves],
        "root": root.hex(),
        "order": list(one.cohort.order),
        "k": one.cohort.k,
        "t": one.cohort.t,
        "session": session.sid.hex(),
        "roster": session.roster_for("d0").hex(),  # the same for all: the graph is complete
        "plain_shares": {name: _plain_shares(given, one, name) for name in u2},
        "shares": _hex(u2),
        "inboxes": {name: session.inbox_for(name, u2).hex() for name in u3},
        "own_seeds": {name: own_seed(session.sid, name, _draws(given, name)[2]).hex() for name in u3},
        "pair_seeds": dict(_pair_seeds(given, session.sid, list(u2))),
        "masked_bytes": _hex(one.uploads),
        "masked": _hex(u3),
        "survivors": session.survivors(u2, u3).hex(),
        "consents": _hex(one.consents),
        "quorums": {name: session.quorum_for(name, one.consents).hex() for name in one.reveals},
        "reveals": _hex(one.reveals),
        "sum": [part.tobytes().hex() for part in one.sum()],
    }


def graphs() -> list[dict[str, Any]]:
    """Places in larger rounds, whose leaves are the SHA-256 of the decimals 0, 1, ..."""
    found = []
    for devices, groups, hardened in (
        (9, 1, False),
        (70, 1, False),
        (70, 1, True),
        (200, 3, False),
        (500, 1, False),
    ):
        leaves = {str(i): hashlib.sha256(b"%d" % i).hexdigest() for i in range(devices)}
        rules = {"least": 3, "gamma": 0.1, "delta": 0.1, "sigma": 40, "eta": 30, "hardened": hardened}
        cohorts = form(leaves, groups=groups, **rules)
        found.append(
            {
                "devices": devices,
                "groups": groups,
                **rules,
                "root": merkle.root(sorted(bytes.fromhex(leaf) for leaf in leaves.values())).hex(),
                "cohorts": [
                    {
                        "order": [int(i) for i in cohort.order],
                        "k": cohort.k,
                        "t": cohort.t,
                        "neighbours_of_position_1": list(graph.neighbours(1, len(cohort.order), cohort.k)),
                    }
                    for cohort in cohorts
                ],
            }
        )
    return found


def _play(given: Mapping[str, Any], entropy: Mapping[str, Any]) -> World:
    settings = Config.decode(given["config"].encode())
    people = {}
    for told in given["devices"]:
        person = people[told["id"]] = Device(told["id"])
        person.private, person.entry = bytes.fromhex(told["private"]), bytes.fromhex(told["entry"])
        person.public = sign.public_of(person.private)
    maskers = {name: Masker(settings, person, trust, entropy[name]) for name, person in people.items()}
    one = Player(settings, maskers, people)
    one.lanes = {
        told["id"]: [
            np.frombuffer(bytes.fromhex(part), lane.dtype)
            for part, lane in zip(told["lanes"], settings.lanes, strict=True)
        ]
        for told in given["devices"]
    }
    one.advertise()
    one.seat()
    gone: set[str] = set()
    for step in STEPS:
        gone.update(given["lost"][step])
        getattr(one, step)([name for name in maskers if name not in gone])
    one.check()
    return one


def _draws(given: Mapping[str, Any], name: str) -> list[bytes]:
    """Sealing key, masking key, seed, and what the polynomials are made of."""
    return next([bytes.fromhex(d) for d in told["draws"]] for told in given["devices"] if told["id"] == name)


def _plain_shares(given: Mapping[str, Any], one: World, name: str) -> dict[str, str]:
    _, masking, seed, tail = _draws(given, name)
    order = one.cohort.order
    points = [point_of(p) for p in range(len(order))]
    shares = shamir.split(seed + masking, one.cohort.t, points, lambda _: tail)
    return {reader: share.hex() for reader, share in zip(order, shares, strict=True)}


def _pair_seeds(given: Mapping[str, Any], sid: bytes, names: list[str]) -> Iterator[tuple[str, str]]:
    keys = {name: _draws(given, name)[1] for name in names}
    public = {name: agree.public_of(private) for name, private in keys.items()}
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            yield f"{one} {other}", pair_seed(sid, keys[one], public[one], public[other]).hex()


def _hex(messages: Mapping[str, bytes]) -> dict[str, str]:
    return {name: message.hex() for name, message in messages.items()}


def main() -> None:
    for name, (devices, lost) in SESSIONS.items():
        given = inputs(devices, lost)
        _write(name, {"version": "koinon.secagg/1", "inputs": given, "transcript": transcript(given)})
    _write("secagg-graphs", {"version": "koinon.secagg/1", "rounds": graphs()})


def _write(name: str, value: Mapping[str, Any]) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
