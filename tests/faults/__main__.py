"""python -m tests.faults [--seed N | --rounds N] [--first SEED] [--rule RULE]"""

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults.world import run_world


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--seed", type=int, help="one world, with its story")
    parser.add_argument("--rounds", type=int, default=10_000, help="as many worlds as these take")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--rule", default="", help="rounds are drawn (weighted, examples, poisson, latest), or are cohorts"
    )
    given = parser.parse_args()
    if given.seed is not None:
        try:
            world = run_world(given.seed, rule=given.rule)
        except BaseException as error:
            print("".join(traceback.format_exception(error))[-20_000:])
            return 1
        print("\n".join(world.story))
        print(f"seed {given.seed}: {world.laws.rounds_seen} rounds, every law holds")
        return 0
    seed, rounds, began = given.first, 0, time.monotonic()
    while rounds < given.rounds:
        rounds += run_world(seed, rule=given.rule).laws.rounds_seen
        seed += 1
        if seed % 50 == 0:
            took = time.monotonic() - began
            print(
                f"{seed - given.first} worlds, {rounds} rounds, {rounds / took:.0f} rounds/s", file=sys.stderr
            )
    print(f"{rounds} rounds in {seed - given.first} worlds, {time.monotonic() - began:.1f} s, no law broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
