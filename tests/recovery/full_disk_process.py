"""A migration that meets a full disk: `python -m tests.recovery.full_disk_process DIR BACKEND OTHER`.

It ends with 0 if the disk being full at any point of the building left the store as it was and nothing else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from perdure.recovery import drop_previous, migrate
from perdure.store import SessionStore, names
from perdure.store.errors import StorageFullError
from tests.recovery.stores import contents

STEP_BYTES = 1 << 20
FILLER = "filler"


def leave_free(place: Path, size_bytes: int) -> None:
    """Fill the file system but for so many bytes."""
    filler = place / FILLER
    filler.unlink(missing_ok=True)
    status = os.statvfs(place)
    take = status.f_bavail * status.f_frsize - size_bytes
    with filler.open("wb") as file:
        while take > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, take)
                return
            except OSError:
                take -= STEP_BYTES // 16  # the file system needs some of it for itself


def run(path: Path, backend: str, other: str) -> int:
    """Migrate with ever more room; answers how often the disk was full."""
    refused = 0
    with SessionStore.open(path, backend=backend) as store:
        for number in range(3000):
            store.create({"n": number, "pad": "x" * 300}, group=f"g{number % 9}")
        store.fold()
        expected = contents(store)
        there = {entry.name for entry in path.iterdir()}
        free = 0
        while True:
            leave_free(path.parent, free)
            try:
                migrate(path, to_backend=other)
                break
            except StorageFullError:
                refused += 1
            assert {entry.name for entry in path.iterdir()} - {names.MIGRATION_LOCK} == there
            assert contents(store) == expected
            free += STEP_BYTES
            (path.parent / FILLER).unlink()
            expected[store.create({"n": -refused})] = {"n": -refused}
        assert contents(store) == expected
        assert store.stats()["backend"] == other
        (path.parent / FILLER).unlink()
        drop_previous(path)
        expected[store.create({"n": 0})] = {"n": 0}
        assert contents(store) == expected
    return refused


if __name__ == "__main__":
    # The estimate would refuse at once what is to be tried here.
    vars(sys.modules[migrate.__module__])["ROOM_BYTES_MIN"] = -1 << 40
    assert run(Path(sys.argv[1]), sys.argv[2], sys.argv[3]) > 1
