"""Processes that do sessions' work beside the test's own: `python -m tests.parity.workers WHAT STORE N SEED`.

Owns what such a process does and prints: one JSON object at its end. Waits for a line on stdin before it
begins, so that several begin together.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import perdure
from perdure.store import SessionStore
from tests.support.faults.zygote import ROOT, import_path

THREADS = 4


def create_in_threads(path: str, count: int, seed: int) -> dict[str, Any]:
    """Ids of `count` sessions, created by several threads."""
    with SessionStore.open(path) as store, ThreadPoolExecutor(THREADS) as threads:
        _begin_together()
        return {"ids": list(threads.map(lambda n: store.create({"n": n, "by": seed}), range(count)))}


def create_in_tasks(path: str, count: int, seed: int) -> dict[str, Any]:
    """Ids of `count` sessions, created by as many tasks."""

    async def main() -> list[str]:
        async with await perdure.open_async(path) as store:
            _begin_together()
            return await asyncio.gather(*(store.create({"n": n, "by": seed}) for n in range(count)))

    return {"ids": asyncio.run(main())}


def mix(path: str, count: int, seed: int) -> dict[str, Any]:
    """Reads, updates, creations and deletions of its own, by several threads beside whoever else."""
    rng = random.Random(seed)
    with SessionStore.open(path) as store, ThreadPoolExecutor(THREADS) as threads:
        shared = sorted(store.ids(prefix="load-"))
        plans = [
            [(rng.random(), rng.choice(shared)) for _ in range(count // THREADS)] for _ in range(THREADS)
        ]
        _begin_together()
        parts = list(threads.map(lambda plan: _mix(store, plan, seed), plans))
    return {
        "created": [id for part in parts for id in part["created"]],
        "updates": [id for part in parts for id in part["updates"]],
        "times_us": [time_us for part in parts for time_us in part["times_us"]],
    }


def _mix(store: SessionStore, plan: Sequence[tuple[float, str]], seed: int) -> dict[str, list[Any]]:
    created: list[str] = []
    updates: list[str] = []
    times_us: list[int] = []
    for kind, id in plan:
        began = time.perf_counter()
        if kind < 0.5:
            assert store.get(id) is not None
        elif kind < 0.75:
            store.update(id, lambda session: session.merge({"hits": session.metadata["hits"] + 1}))
            updates.append(id)
        elif kind < 0.9 or not created:
            created.append(store.create({"by": seed}))
        else:
            assert store.delete(created.pop())
        times_us.append(round((time.perf_counter() - began) * 1e6))
    return {"created": created, "updates": updates, "times_us": times_us}


def follow(path: str, count: int, seed: int) -> dict[str, Any]:
    """What another process sees of session `seen`, at each of `count` lines on stdin; the test asks."""
    with SessionStore.open(path) as store:
        for _ in range(count):
            _begin_together()
            session = store.peek("seen")
            print(json.dumps(None if session is None else session.metadata), flush=True)
    return {}


def size(path: str, count: int, seed: int) -> dict[str, Any]:
    """Bytes of memory that a process holds more for it, once it has looked at every session."""
    with SessionStore.open(path) as store:
        _begin_together()
        before = _resident_bytes()
        seen = sum(1 for _ in store.sessions())
        return {"sessions": seen, "bytes": max(0, _resident_bytes() - before)}


def _resident_bytes() -> int:
    """Anonymous memory: pages of the state's map are the file's, and shared."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no RssAnon")


def _begin_together() -> None:
    assert sys.stdin.readline()


WORK: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
    "threads": create_in_threads,
    "tasks": create_in_tasks,
    "mix": mix,
    "follow": follow,
    "size": size,
}


def start(what: str, path: Path, count: int, seed: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.parity.workers", what, str(path), str(count), str(seed)],
        cwd=ROOT,
        env={"PYTHONPATH": import_path(), "PATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_all(what: str, path: Path, count: int, processes: int, timeout_s: float) -> list[dict[str, Any]]:
    """Processes that do the same at once; answers what each of them said."""
    running = [start(what, path, count, number) for number in range(processes)]
    try:
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=timeout_s)[0] for process in running]
        assert [process.returncode for process in running] == [0] * processes
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def main() -> int:
    what, path, count, seed = sys.argv[1:]
    print(json.dumps(WORK[what](path, int(count), int(seed))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
