"""Running many schedules, each in a process of its own.

Owns how schedules are kept apart: one replaces parts of the modules of perdure, and leaves dead threads
behind, so that it runs in a child that is forked for it and then thrown away. Schedules of one shape in a
row are forked from a process in which their cluster was set up.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby

from .checks import Violation
from .cluster import Cluster
from .schedule import Outcome, run_schedule
from .shapes import BLOCK, Shape, shape_of
from .stage import branch, new_directory, set_up

TIMEOUT_S = 60
"""Real time that one schedule may take."""


def replay_command(seed: int, bug: str = "") -> str:
    """What runs one schedule again, with its trace."""
    return f"python -m tests.simulation --seed {seed}{' --bug ' + bug if bug else ''}"


def run_here(seed: int, bug: str, trace: Callable[[str], object]) -> Outcome:
    """Run one schedule in this process, which can do nothing else afterwards."""
    with new_directory() as directory:
        shape = shape_of(seed)
        try:
            cluster = set_up(shape, directory, bug=bug, trace=trace)
        except Violation as violation:
            return Outcome(seed, violation.rule, str(violation))
        return run_schedule(cluster, shape, seed)


def run_all(seeds: Sequence[int], bug: str = "", *, stop: bool = False) -> Iterator[Outcome]:
    """Run schedules in children of this process. With `stop` none after the first that fails."""
    logging.disable(logging.CRITICAL)
    for _, block in groupby(seeds, key=lambda seed: seed // BLOCK):
        for outcome in _outcomes_of(partial(_stage, list(block), bug, stop)):
            yield outcome
            if outcome.rule and stop:
                return


def _stage(seeds: Sequence[int], bug: str, stop: bool, told: int) -> None:
    """Set up a cluster, and run each schedule of these seeds, which share a shape, in a branch of it."""
    with new_directory() as directory:
        began_s = time.process_time()
        shape = shape_of(seeds[0])
        gc.disable()  # what is dead must not be unwound, and pages that nobody touches stay shared
        try:
            cluster = set_up(shape, directory, bug=bug)
        except Violation as violation:
            _tell(told, Outcome(seeds[0], violation.rule, str(violation)))
            return
        gc.freeze()
        set_up_s = (time.process_time() - began_s) / len(seeds)
        for seed in seeds:
            outcome = _branched(cluster, shape, seed, set_up_s)
            _tell(told, outcome)
            if outcome.rule and stop:
                return


def _branched(cluster: Cluster, shape: Shape, seed: int, set_up_s: float) -> Outcome:
    with new_directory() as directory:

        def run(told: int) -> None:
            began_s = time.process_time() - set_up_s
            branch(cluster, directory)
            _tell(told, run_schedule(cluster, shape, seed, timeout_s=TIMEOUT_S, began_s=began_s))

        for outcome in list(_outcomes_of(run)):
            return outcome
    return Outcome(seed, "the simulator works", f"the schedule of seed {seed} broke off")


def _tell(told: int, outcome: Outcome) -> None:
    line = json.dumps(asdict(outcome)).encode() + b"\n"
    while line:
        line = line[os.write(told, line) :]


def _outcomes_of(run: Callable[[int], None]) -> Iterator[Outcome]:
    """What a child says that is forked for it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            run(writer)
        except BrokenPipeError:
            pass  # who asked has seen enough
        except BaseException:  # noqa: BLE001 - said here; the parent misses the line
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as lines:
        for line in lines:
            yield Outcome(**json.loads(line))
    os.waitpid(child, 0)


def run_many(
    first: int, count: int, *, bug: str = "", flavour: str = "", stop: bool = False
) -> Iterator[Outcome]:
    """Run schedules in a Python of their own, whose hashes are the same every time: as the command does."""
    command = [sys.executable, "-m", "tests.simulation", "--json", f"--from={first}", f"--count={count}"]
    command += [f"--bug={bug}", f"--flavour={flavour}", *(["--stop"] if stop else [])]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            yield Outcome(**json.loads(line))
