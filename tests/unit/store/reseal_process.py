"""What the other processes do in the tests of resealing: write as an application does, or reseal.

Run as `python -m tests.unit.store.reseal_process DO STORE KEY_FILE`. A writer ends when its stdin is closed,
and says what it did; it ends with a traceback if any call fails.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perdure.store import SessionStore


@contextmanager
def child(do: str, store: Path, file: Path) -> Iterator[subprocess.Popen[str]]:
    """A child that does `do`; it is killed at the end if it still runs."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.store.reseal_process", do, str(store), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def write(path: Path, file: Path) -> None:
    """Creates, changes, moves, reads and deletes sessions until stdin is closed; says how many calls."""
    with SessionStore.open(path, keys=file) as store:
        print("ready", flush=True)
        mine = [store.create({"n": 0, "owner": os.getpid()}) for _ in range(20)]
        counts = dict.fromkeys(mine, 0)
        calls = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            place = calls % len(mine)
            id = mine[place]
            store.update(id, lambda session: session.merge({"n": session.metadata["n"] + 1}))
            counts[id] += 1
            session = store.get(id)
            assert session is not None and session.metadata["n"] == counts[id]
            if calls % 7 == 0:
                moved = mine[place] = store.regenerate_id(id)
                counts[moved] = counts.pop(id)
            if calls % 11 == 0:
                store.delete(store.create({"n": -1}))
            store.put(f"{os.getpid()}-{calls % 5}", {"n": calls})
            calls += 1
            time.sleep(0.002)
        for id, count in counts.items():
            assert store[id].metadata["n"] == count
        print(calls, flush=True)


def reseal(path: Path, file: Path) -> None:
    """Reseals, says so after each batch, and waits to be told to go on."""

    def tell(seen: int, total: int) -> None:
        print(seen, total, flush=True)
        sys.stdin.readline()

    with SessionStore.open(path, keys=file) as store:
        store.reseal(tell)


def main() -> None:
    do, path, file = sys.argv[1:]
    {"write": write, "reseal": reseal}[do](Path(path), Path(file))


if __name__ == "__main__":
    main()
