"""`make bench`: every bench, each in a process of its own; tables to the terminal, JSON to bench-results/."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = ("round", "cold", "durability", "codec", "transfer", "memory", "ring", "accuracy")


def main() -> None:
    results = Path("bench-results")
    results.mkdir(exist_ok=True)
    for name in BENCHES:
        subprocess.run([sys.executable, HERE / f"{name}.py", "--json", results / f"{name}.json"], check=True)


if __name__ == "__main__":
    main()
