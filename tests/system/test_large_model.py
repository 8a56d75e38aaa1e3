"""A model larger than the memory of those who handle it: the coordinator, and a device that only changes it in place.

Both processes get an address space that has less room left than the model alone would take. A process that maps files,
or holds a model, an update or a sum whole, cannot live in it.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import koinon
from koinon_core.tiles import TILE

PARAMETERS = 40 * TILE + 3  # 168 MB
ROOM = 140 << 20
_RUN = """
import resource, runpy, sys
from pathlib import Path
module, room, *sys.argv[1:] = sys.argv[1:]
import {imports}
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(room),) * 2)
{start}
"""
COORDINATOR = _RUN.format(
    imports="koinon_coordinator.cli, koinon_coordinator.service, grpc.aio",
    start="sys.argv[0] = module; runpy.run_module(module, run_name='__main__')",
)
DEVICE = _RUN.format(
    imports="koinon.link, koinon.session",
    start="runpy.run_path(module, run_name='__main__')",
)


@contextmanager
def process(code: str, *arguments: object, **how: object) -> Iterator[subprocess.Popen[str]]:
    """A process in a bounded address space, of which glibc would reserve 8 MiB for each thread's stack and 64 MiB for
    each thread's arena, used or not."""
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [
        "sh",
        "-c",
        'ulimit -s 1024; exec "$@"',
        "sh",
        sys.executable,
        "-c",
        code,
        *map(str, arguments),
    ]
    one = subprocess.Popen(command, text=True, env=env, **how)  # type: ignore[call-overload]
    try:
        yield one
    finally:
        one.kill()
        one.wait()


@pytest.mark.timeout(240)
def test_a_model_larger_than_memory_is_federated(tmp_path):
    db = f"sqlite:///{tmp_path / 'koinon.db'}"
    senders = Path(__file__).parent.parent / "bench" / "senders.py"
    serve = ("koinon_coordinator", ROOM, "serve", "--insecure", "--db", db, "--listen", "127.0.0.1:0")
    with process(COORDINATOR, *serve, stdout=subprocess.PIPE) as coordinator:
        line = coordinator.stdout.readline()
        address = "127.0.0.1:" + line.rsplit(":", 1)[1].strip()
        handle = koinon.Run(
            "large", model={"w": np.zeros(PARAMETERS, np.float32)}, strategy=koinon.FedAvgM(), rounds=2,
            aggregation="open",
            min_clients=2, clients=2, max_examples=16, evaluate=False,
        ).create(address)  # fmt: skip
        first, second = (process(DEVICE, senders, ROOM, address, "large", 1, PARAMETERS, i) for i in range(2))
        with first as one, second as other:
            assert [one.wait(100), other.wait(100)] == [0, 0]
        assert handle.wait() == "2 rounds closed"
        assert coordinator.poll() is None


def test_the_limit_is_one_that_holds(tmp_path):
    """Whoever took the model into memory would not live."""
    holds = tmp_path / "holds.py"
    holds.write_text(
        textwrap.dedent(f"""
        import numpy
        numpy.ones({PARAMETERS}, numpy.float32)
    """)
    )
    with process(DEVICE, holds, ROOM, stderr=subprocess.PIPE) as one:
        assert "MemoryError" in one.stderr.read()
