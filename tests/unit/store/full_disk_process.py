"""A process that meets a full disk: `python -m tests.unit.store.full_disk_process DO WAY PLACE`.

It ends with 0 if the back end did what it must, and by SIGBUS if it wrote through a map without blocks.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from perdure.store.blocks import Work
from perdure.store.engine_lmdb import Environment, Txn
from perdure.store.errors import StorageFullError
from perdure.store.ids import NOWHERE
from perdure.store.ports import Backend, Change
from tests.contract.children import at, open_way

BALLAST_BYTES = 6 << 20
FOLDS_MAX = 1000


def changes(count: int) -> list[Change]:
    return sorted((secrets.token_hex(16).encode(), secrets.token_bytes(250)) for _ in range(count))


def fill(directory: Path) -> None:
    """Take every last free block."""
    descriptor = os.open(directory / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (1 << 20, 1 << 16, 1 << 12, 1):
        try:
            while True:
                os.write(descriptor, b"f" * size)
        except OSError:
            continue
    os.fsync(descriptor)
    os.close(descriptor)


def fold_until_full(backend: Backend, lsn: int, count: int) -> int:
    """Fold until the disk is full, single sessions only a while; answers the last position folded."""
    for _ in range(FOLDS_MAX):
        chunk = changes(count)
        armed = [(1000 + lsn, key) for key, _ in chunk]
        try:
            backend.fold(chunk, armed, [], at(lsn + 1))
        except StorageFullError:
            return lsn
        lsn += 1
    assert count == 1, "the disk never got full"
    return lsn


def run(way: str, place: Path) -> None:
    ballast = place.parent / "ballast"
    ballast.write_bytes(b"b" * BALLAST_BYTES)
    backend = open_way(way, place)
    backend.refresh()
    lsn = fold_until_full(backend, 0, 2000)
    fill(place.parent)
    for count in (2000, 50, 1, 700):
        lsn = fold_until_full(backend, lsn, count)
        assert backend.refresh() == (at(lsn) if lsn else NOWHERE)
        scan = backend.scan()
        rows = list(scan)
        assert scan.position == (at(lsn) if lsn else NOWHERE)
        scan.close()
        assert all(backend.get(key) == record for key, record in rows[:50])
        backend.due(1 << 40, 100)
        backend.release()
    assert lsn > 0, "nothing was folded before the disk was full"
    backend.close()
    backend = open_way(way, place)
    assert backend.refresh() == at(lsn)
    ballast.unlink()
    (place.parent / "filler").unlink()
    backend.fold(changes(500), [], [], at(lsn + 1))
    assert backend.refresh() == at(lsn + 1)
    backend.close()


def open_on_full(way: str, place: Path) -> None:
    fill(place.parent)
    try:
        open_way(way, place).close()
    except StorageFullError:
        pass
    else:
        backend = open_way(way, place)
        fold_until_full(backend, 0, 1000)
        backend.close()
    (place.parent / "filler").unlink()
    backend = open_way(way, place)
    backend.fold(changes(100), [], [], at(1))
    backend.close()


def run_without_blocks(way: str, place: Path) -> None:
    """The same with the reservation taken out: shows that the others are not fine by chance."""

    def reserve_nothing(environment: Environment, txn: Txn, work: Work) -> None:
        del environment, txn, work

    Environment._reserve = reserve_nothing  # type: ignore[method-assign, assignment]
    run(way, place)


if __name__ == "__main__":
    do, way_name, directory = sys.argv[1:]
    {"run": run, "open": open_on_full, "unreserved": run_without_blocks}[do](way_name, Path(directory))
