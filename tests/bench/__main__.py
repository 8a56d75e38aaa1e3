"""`make bench`: every bench, each in a process of its own; tables to the terminal, JSON to bench-results/."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES: dict[str, tuple[str, ...]] = {
    "round": ("round",), "round_secure": ("round", "--secure", "1"), "cold": ("cold",), "durability": ("durability",),
    "codec": ("codec",), "transfer": ("transfer",), "memory": ("memory",), "ring": ("ring",), "secagg": ("secagg",),
    "server_step": ("server_step",), "robust": ("robust",), "secure_encoding": ("secure_encoding",),
    "accuracy": ("accuracy",), "edge": ("edge",),
}  # fmt: skip
"""By the name of its results: the file, and what it is told."""


def main() -> None:
    results = Path("bench-results")
    results.mkdir(exist_ok=True)
    for name, (file, *told) in BENCHES.items():
        command = [sys.executable, HERE / f"{file}.py", *told, "--json", results / f"{name}.json"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
