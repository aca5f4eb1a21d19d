"""What the contract's child processes do, and what they share with the tests.

Owns `content_at`, the content that belongs to a position in the tests with several processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perdure.store.backend_lmdb import LmdbBackend
from perdure.store.backends import open_backend
from perdure.store.ids import MASK64, StatePosition
from perdure.store.ports import Backend, Change, Record

KEYS = 60
KEYS_PER_FOLD = 9


def open_way(way: str, place: Path) -> Backend:
    if way.startswith("lmdb-"):
        return LmdbBackend(place, mapped=way == "lmdb-mapped")
    return open_backend(way, place)


def at(lsn: int, session_count: int = 0) -> StatePosition:
    """A position whose numbers use all their bits."""
    return StatePosition(3, lsn, MASK64 - lsn, (lsn * 0x9E3779B97F4A7C15) & MASK64, session_count)


def changes_of(lsn: int) -> list[Change]:
    """What the fold that leads to `lsn` changes: some keys get a record that names it, some are removed."""
    chosen = sorted({(lsn * 7 + step * 13) % KEYS for step in range(KEYS_PER_FOLD)})
    return [
        (key_of(number), None if (number + lsn) % 4 == 0 else b"%08d" % lsn + b"v" * (number * 9))
        for number in chosen
    ]


def key_of(number: int) -> bytes:
    return b"session-%03d" % number + b"x" * (600 if number % 10 == 0 else 0)


def content_at(lsn: int) -> dict[bytes, Record]:
    content: dict[bytes, Record] = {}
    for step in range(1, lsn + 1):
        advance(content, step)
    return content


def advance(content: dict[bytes, Record], lsn: int) -> None:
    """Take the content at `lsn` - 1 to that at `lsn`."""
    for key, record in changes_of(lsn):
        if record is None:
            content.pop(key, None)
        else:
            content[key] = record


@contextmanager
def child(do: str, way: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A child that does `do`; it is killed at the end if it still runs."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.contract.children", do, way, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def fold_on_demand(backend: Backend) -> None:
    """One fold for each line read, answered with its LSN."""
    lsn = 0
    for _ in sys.stdin:
        lsn += 1
        backend.fold(changes_of(lsn), [], [], at(lsn, len(content_at(lsn))))
        print(lsn, flush=True)


def fold_for_ever(backend: Backend) -> None:
    """Folds as fast as it can, until it is killed."""
    lsn = backend.refresh().lsn
    backend.release()
    while True:
        lsn += 1
        backend.fold(changes_of(lsn), [], [], at(lsn))
        print(lsn, flush=True)


def main() -> None:
    do, way, place = sys.argv[1:]
    {"demand": fold_on_demand, "ever": fold_for_ever}[do](open_way(way, Path(place)))


if __name__ == "__main__":
    main()
