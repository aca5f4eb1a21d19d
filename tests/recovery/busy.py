"""Processes that read and write one store while something is done to it, and the reckoning at the end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perdure.store import SessionStore
from tests.recovery.busy_process import COUNTER

END_S = 60


class Crew:
    """The processes of one test."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.processes: list[subprocess.Popen[str]] = []
        self.results: list[dict[str, Any]] = []

    def end(self) -> None:
        """End them in order, and take their ledgers."""
        for process in self.processes:
            out, _ = process.communicate(timeout=END_S)
            assert process.returncode == 0, f"a process ended with {process.returncode}"
            self.results.append(json.loads(out.splitlines()[-1]))

    def reckon(self, path: Path, known: set[str]) -> float:
        """Nothing failed, nothing is lost, nothing came from nowhere; answers the longest pause, in ms."""
        for result in self.results:
            assert not result["failures"], f"seed {self.seed}: {result['failures'][:3]}"
            assert result["background_error"] is None, f"seed {self.seed}: {result['background_error']}"
        expected = {id: n for result in self.results for id, n in result["ledger"].items()}
        with SessionStore.open(path, create=False) as store:
            found = {session.id: session.metadata["n"] for session in store.sessions()}
        count = found.pop(COUNTER)
        assert found.keys() - expected.keys() == known, f"seed {self.seed}: sessions that nobody made"
        assert {id: found.get(id) for id in expected} == expected, f"seed {self.seed}"
        assert count == sum(result["increments"] for result in self.results), f"seed {self.seed}"
        return float(max(result["longest_ms"] for result in self.results))


@contextlib.contextmanager
def busy(path: Path, count: int, seed: int) -> Iterator[Crew]:
    """So many processes at work on a store, which end with the block whatever happens."""
    crew = Crew(seed)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    try:
        for number in range(count):
            words = [sys.executable, "-m", "tests.recovery.busy_process", str(path), f"w{number}"]
            process = subprocess.Popen(
                [*words, str(seed + number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            crew.processes.append(process)
        for process in crew.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield crew
        crew.end()
    finally:
        for process in crew.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
