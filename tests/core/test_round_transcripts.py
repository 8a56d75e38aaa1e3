"""Golden transcripts: readable conversations with the round machine, in tests/scenarios/*.txt.

A block is a command, `----`, and what came of it: the effects, then the round's state. Rewrite them with
REWRITE_SCENARIOS=1 only when you understand every line of the diff.
"""

import os
from pathlib import Path

import pytest

import toy
from koinon_core.canonical import sha256
from koinon_core.round import effects, events
from koinon_core.round.machine import Round, rebuild, step
from koinon_core.round.taken import Taken

SECURE = {
    "keys": "ready", "gamma": 0.05, "delta": 0.1, "sigma": 40, "eta": 30, "hardened": False, "phase": 10.0,
}  # fmt: skip
SCENARIOS = sorted((Path(__file__).parent.parent / "scenarios").glob("*.txt"))


def event_of(command: str, terms: dict[str, float]) -> events.Event:
    """`at=SECONDS kind words...`"""
    at, kind, *words = command.split()
    when = float(at.removeprefix("at="))
    match kind:
        case "open":
            values = {
                k: float(v) if "." in v else int(v) for k, v in (w.split("=") for w in words if "=" in w)
            }
            if "secure" in words:
                agreed = {**SECURE, "attempts": values.pop("attempts", 2)}
                apart = {"apart": values.pop("apart")} if "apart" in values else {}
                values |= {"aggregation": "secure", "secure": {**agreed, **apart}}
            return events.Opened(when, toy.terms(int(values.pop("round", 1)), **{**terms, **values}))
        case "joined":
            return events.Heard(when, words[0], "joined")
        case "update":
            return events.Heard(when, words[0], "update", words[1])
        case "carried":  # who, the round that gave it the work, and how many models there were by then
            clients, round_, version = words
            work = (Taken(c, int(round_), int(version), "t", "m", "", when) for c in clients.split(","))
            return events.Carried(when, tuple(work))
        case "heard":
            return events.Heard(when, words[0], words[1], words[2])
        case "voice":  # who, collection, attempt, and whose shares could not be read
            client, collection, attempt, *missing = words
            digest = sha256(f"{client}/{collection}/{attempt}".encode())
            return events.Voiced(when, client, collection, int(attempt), digest, tuple(missing))
        case "spoiled":
            return events.Spoiled(when, " ".join(words))
        case "left":
            return events.Left(when, words[0], words[1], " ".join(words[2:]))
        case "taken":
            return events.TakenUp(when, float(words[0]))
        case "tick":
            return events.Tick(when)
        case "folded":
            return events.Folded(when, words[0])
        case "unfoldable":
            return events.Unfoldable(when, " ".join(words))
        case "cancel":
            return events.Cancelled(when, " ".join(words))
    raise ValueError(command)


def told(effect: effects.Effect, r: Round) -> str:
    match effect:
        case effects.Ask(client, collection):
            return f"ask {client} {collection}"
        case effects.Receipt(client, number, verdict, reason):
            of = f" of round {number}" if number != r.terms.round else ""
            return f"tell {client} {verdict}{of}" + (f": {reason}" if reason else "")
        case effects.Cancel(client, number, reason):
            of = f" of round {number}" if number != r.terms.round else ""
            return f"cancel {client}{of}: {reason}"
        case effects.Fold(accepted):
            return f"fold {' '.join(accepted)}"
        case effects.Close(_, counted, reason):
            return ("close" if counted else "close without a model") + (f": {reason}" if reason else "")


def state(r: Round) -> str:
    who = r.joined if r.stage == "joined" else r.collecting or r.update
    heard = ",".join(sorted(who.heard)) or "-"
    gone = who.left if r.stage == "joined" else r.update.left
    left = "".join(f" left={c}" for c in sorted(gone))
    due = f" due={r.wakes_at:g}" if r.wakes_at is not None else ""
    ready = f" ready={','.join(r.ready)}" if r.ready else ""
    return f"= {r.stage} heard={heard}{ready}{left}{due}"


def play(text: str) -> str:
    out: list[str] = []
    r: Round | None = None
    stored: list[events.Event] = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        comments = [line for line in lines if line.startswith("#")]
        commands = [line for line in lines if line.startswith("at=")]
        out += comments
        if commands:
            event = event_of(commands[0], {"deadline": 60.0, "join_wait": 5.0})
            after, did = step(r, event)
            if after is not r:
                stored.append(event)
            r = after
            assert rebuild(stored) == r, "folding the stored events must rebuild the round"
            out += [commands[0], "----", *(told(one, r) for one in did), state(r)]
        out.append("")
    return "\n".join(out)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
def test_the_machine_still_says_what_the_transcript_says(path):
    written = path.read_text()
    played = play(written)
    if os.environ.get("REWRITE_SCENARIOS"):
        path.write_text(played)
        return
    assert played == written


def test_there_are_transcripts():
    assert len(SCENARIOS) >= 8
