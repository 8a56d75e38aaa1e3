"""Plants bugs and lives through worlds with them: `python plant.py ROOT WORKERS`, with the bugs on standard input.

Each bug gets a copy of the source trees in ROOT and a process of its own, forked from this one, which has imported what
is not ours: numpy, SQLAlchemy and gRPC take longer to import than most bugs take to be caught. A line comes back for
each: its name, the seed of the world that caught it (null if none did), and what the law said.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import Any

TREES = ("protos", "client", "coordinator", "edge")
_OURS = ("koinon", "koinon_core", "koinon_coordinator", "koinon_edge", "faults")
_THEIRS = (
    "alembic.command", "alembic.config", "google.protobuf.internal.builder", "grpc.aio", "numpy", "sqlalchemy.orm",
    "structlog", "zstandard",
)  # fmt: skip
_REAL_SECONDS = 60  # a world that takes longer hangs, and not in virtual time
_memory = Path("/dev/shm")
_root = _memory if _memory.is_dir() else None


def warm() -> None:
    """Import everything that is not ours."""
    for name in _THEIRS:
        import_module(name)
    assert not any(name.partition(".")[0] in _OURS for name in sys.modules)


def plant(bug: dict[str, Any], source: Path, folder: Path) -> None:
    """Copy the source trees, with this bug in them."""
    for tree in TREES:
        shutil.copytree(source / tree, folder / tree)
    path = folder / bug["file"]
    text = path.read_text()
    there = text.count(bug["old"])
    assert there == 1, (
        f"the text that {bug['name']} replaces is {there} times in {bug['file']}: plant it anew"
    )
    path.write_text(text.replace(bug["old"], bug["new"]))


def catch(bug: dict[str, Any], source: Path, folder: Path) -> dict[str, Any]:
    """Live through worlds of the bug's seeds until a law breaks."""
    plant(bug, source, folder)
    sys.path[:0] = [str(folder / tree) for tree in TREES]
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

    import koinon_core
    from faults.world import run_world

    assert Path(koinon_core.__file__).is_relative_to(folder), "this is not the code with the bug in it"
    signal.signal(signal.SIGALRM, _hangs)
    for seed in bug["seeds"]:
        signal.alarm(_REAL_SECONDS)
        try:
            run_world(seed, rule=bug["rule"])
        except BaseException as error:
            return {"name": bug["name"], "seed": seed, "law": _law(error)}
        finally:
            signal.alarm(0)
    return {"name": bug["name"], "seed": None, "law": ""}


def _hangs(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"a world takes more than {_REAL_SECONDS} s")


def _law(error: BaseException) -> str:
    """Where in the simulation it was noticed, and what was said."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "/faults/" in f.filename]
    said = " ".join(str(error).split())
    return f"{ours[-1].name if ours else '?'}: {type(error).__name__}: {said[:200]}"


def _forked(bug: dict[str, Any], source: Path) -> str:
    """The line about one bug, from a child of this process."""
    with tempfile.TemporaryDirectory(prefix="koinon-planted-", dir=_root) as folder:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                found = catch(bug, source, Path(folder))
            except BaseException as error:
                found = {"name": bug["name"], "seed": None, "law": repr(error)}
            with os.fdopen(writing, "w") as out:
                out.write(json.dumps(found))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as heard:
            line = heard.read()
        os.waitpid(child, 0)
    return line or json.dumps({"name": bug["name"], "seed": None, "law": "its process died"})


def main() -> None:
    source, workers = Path(sys.argv[1]), int(sys.argv[2])
    bugs = json.load(sys.stdin)
    warm()
    saying = Lock()

    def one(bug: dict[str, Any]) -> None:
        line = _forked(bug, source)
        with saying:
            print(line, flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, bugs))


if __name__ == "__main__":
    main()
