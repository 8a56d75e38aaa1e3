"""How long it takes until a run goes on after its coordinator was killed.

    python -m tests.soak.resume [TIMES]

From the start of the new process (exec): until a device hears the first message of it, and until the round that was
interrupted is over. The devices are threads of this process and find their coordinator again by themselves, with the
pauses that any device makes.
"""

import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["KOINON_INSECURE"] = "1"  # its coordinators and devices talk in plain text

import postgres as servers
from koinon_core import failpoints
from system.killing import KINDS, Kill, Ran, federate

AT = {"small": 10, "large": 16}
"""A commit in the second of three rounds."""


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    heard: list[float] = []
    failpoints.arm("link.heard", lambda about: heard.append(time.time()))
    with servers.Postgres(durable=True) as server:
        for database in ("sqlite", "postgresql"):
            for kind in KINDS:
                first, closed = [], []
                for _ in range(times):
                    heard.clear()
                    ran = _one(kind, server if database == "postgresql" else None)
                    if len(ran.started) < 2:
                        continue  # what arrived together shared a commit, and the run had fewer
                    again = ran.started[1]
                    first.append(min(at for at in heard if at > again) - again)
                    closed.append(min(at for at in ran.ended_at.values() if at > again) - again)
                print(
                    f"{database:10} {kind:5} of {len(first)}: heard {_shown(first)}, round over {_shown(closed)}"
                )


def _one(kind: str, server: servers.Postgres | None) -> Ran:
    kill = Kill("store.committed", AT[kind])
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.nullcontext(None) if server is None else server.database() as url,
    ):
        return federate(Path(folder), kind, kill, url=url)


def _shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s (at most {max(seconds):.2f})" if seconds else "never"


if __name__ == "__main__":
    main()
