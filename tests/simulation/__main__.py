"""Run schedules: `python -m tests.simulation --seed 7`, or `--from 0 --count 1000`.

Exit code 1 if an invariant was broken.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of text depends on it
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])

os.register_at_fork = lambda **_: None  # perdure's handlers are for its own processes, which fork never here

from tests.simulation.runner import replay_command, run_all, run_here  # noqa: E402
from tests.simulation.shapes import seeds_about  # noqa: E402


def end_output() -> None:
    """Nobody reads what is printed any more: print it to nobody."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until this process ends
    os.dup2(sys.stdout.fileno(), 1)  # what waits in the old one's buffer goes there, too


def say(line: str, *, flush: bool = False) -> None:
    """Print a line of a trace. A schedule goes on without its reader: it has a directory to remove."""
    try:
        print(line, flush=flush)
    except BrokenPipeError:
        end_output()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this schedule, and print its trace")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed of many")
    parser.add_argument("--count", type=int, default=100, help="how many schedules, one a seed")
    parser.add_argument("--flavour", default="", help="only schedules about this, the first --count of them")
    parser.add_argument("--bug", default="", help="put this bug into the code before")
    parser.add_argument("--stop", action="store_true", help="stop at the first that fails")
    parser.add_argument("--json", action="store_true", help="one line of JSON a schedule")
    parser.add_argument("--log", action="store_true", help="print what the code logs, too")
    given = parser.parse_args()
    logging.raiseExceptions = False  # a log that nobody reads
    logging.basicConfig(
        level=logging.INFO if given.log else logging.CRITICAL + 1,
        stream=sys.stdout,
        format="             %(name)s: %(message)s",
    )
    if given.seed is not None:
        outcome = run_here(given.seed, given.bug, say)
        say(json.dumps(asdict(outcome)), flush=True)
        os._exit(1 if outcome.rule else 0)  # nothing of what was simulated is to be unwound
    failed, elapsed_ms = 0, 0.0
    counts: Counter[str] = Counter()
    first: int = given.first
    seeds: Sequence[int] = range(first, first + given.count)
    if given.flavour:
        seeds = seeds_about(given.flavour, given.count)
    for outcome in run_all(seeds, given.bug, stop=given.stop):
        elapsed_ms += outcome.elapsed_ms
        counts.update(outcome.counts)
        failed += bool(outcome.rule)
        if given.json:
            print(json.dumps(asdict(outcome)), flush=True)
        elif outcome.rule:
            print(
                f"seed {outcome.seed}: {outcome.text}\n    {replay_command(outcome.seed, given.bug)}",
                flush=True,
            )
    if not given.json:
        print(f"{given.count} schedules, {failed} failed, {elapsed_ms / given.count:.0f} ms each")
        print(" ".join(f"{name}={count}" for name, count in counts.items()))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        end_output()
        code = 128 + signal.SIGPIPE
    sys.exit(code)
