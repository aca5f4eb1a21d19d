"""Running many schedules, each in a process of its own.

Owns how a schedule is kept apart from all others: it replaces parts of the modules of perdure, and leaves
dead threads behind, so that it runs in a child that is forked for it and then thrown away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict

from .schedule import Outcome, run_schedule

TIMEOUT_S = 60
"""Real time that one schedule may take."""


def replay_command(seed: int, bug: str = "") -> str:
    """What runs one schedule again, with its trace."""
    return f"python -m tests.simulation --seed {seed}{' --bug ' + bug if bug else ''}"


def run_alone(seed: int, bug: str = "") -> Outcome:
    """Run one schedule in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            line = json.dumps(asdict(run_schedule(seed, bug=bug, timeout_s=TIMEOUT_S))).encode()
            while line:
                line = line[os.write(writer, line) :]
        except BaseException:  # noqa: BLE001 - said here; the parent misses the line
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    data = b""
    while more := os.read(reader, 65_536):
        data += more
    os.close(reader)
    os.waitpid(child, 0)
    if not data:
        return Outcome(seed, "the simulator works", f"the schedule of seed {seed} broke off")
    return Outcome(**json.loads(data))


def run_many(first: int, count: int, *, bug: str = "", stop: bool = False) -> Iterator[Outcome]:
    """Run schedules in a Python of their own, whose hashes are the same every time."""
    command = [sys.executable, "-m", "tests.simulation", "--json", "--from", str(first)]
    command += ["--count", str(count), *(["--bug", bug] if bug else []), *(["--stop"] if stop else [])]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            yield Outcome(**json.loads(line))
