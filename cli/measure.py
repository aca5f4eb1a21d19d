"""A quick measurement of a store on the user's own machine, each figure beside the bare calls that bound it.

Owns what `perdure bench` measures. The full measurement with its limits is the bench folder's; this one takes
a few seconds and needs nothing but a directory. Invariant: it works in a directory of its own, on the file
system that is asked about, and removes it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ..store import SessionStore

METADATA = {"user": "anna", "cart": ["7301", "22"], "locale": "de-CH", "csrf": "c0ffee" * 8}
BATCH_SESSIONS = 100
FRAME_BYTES = 256
CALLS_A_LOOK = 16
SESSIONS_READ = 10_000


class Figure(msgspec.Struct, frozen=True):
    """One measured rate. `p50_us` and `p99_us` are of single calls, `of_limit` is the rate over its
    limit's."""

    name: str
    per_s: float
    p50_us: float
    p99_us: float
    limit: str = ""
    limit_per_s: float | None = None

    @property
    def of_limit(self) -> float | None:
        """The rate as a part of its limit's, None where there is none."""
        return self.per_s / self.limit_per_s if self.limit_per_s else None


class Rate(msgspec.Struct, frozen=True):
    """How fast one kind of call went."""

    per_s: float
    p50_us: float
    p99_us: float


def measure(
    directory: Path | None, *, backend: str, seconds: float, told: Callable[[str], None] = lambda name: None
) -> Iterator[Figure]:
    """Measure on the file system of `directory` (the temporary one if None), `seconds` for each figure.

    `told` gets the name of each figure before it is measured. Raises StorageError or OSError.
    """
    with (
        tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=directory) as place,
        _raw(Path(place)) as raw,
    ):
        told("raw write")
        written = run(lambda: os.write(raw, bytes(FRAME_BYTES)), seconds)
        told("raw write + fdatasync")
        synced = run(lambda: _write_and_sync(raw), seconds)
        yield _figure(f"raw write of {FRAME_BYTES} bytes", written)
        yield _figure("raw write + fdatasync", synced)
        with SessionStore.open(Path(place) / "store", backend=backend) as store:
            told("create")
            yield _figure(
                "create, durability os", run(lambda: store.create(METADATA), seconds), "raw write", written
            )
            told("batch")
            batched = run(lambda: _batch(store), seconds)
            sessions = Rate(batched.per_s * BATCH_SESSIONS, batched.p50_us, batched.p99_us)
            yield _figure(f"sessions in batches of {BATCH_SESSIONS}", sessions)
            ids = _some_ids(store)
            next_id = _cycle(ids)
            told("get")
            yield _figure("get", run(lambda: store.get(next_id()), seconds))
            told("update")
            yield _figure(
                "update",
                run(lambda: store.update(next_id(), lambda session: session.merge({"seen": 1})), seconds),
                "raw write",
                written,
            )
            told("create on disk")
            on_disk = run(lambda: store.create(METADATA, durability="disk"), seconds)
            yield _figure("create, durability disk", on_disk, "raw write + fdatasync", synced)


def run(call: Callable[[], object], seconds: float) -> Rate:
    """Repeat a call for a time and say how fast it was; the first calls are not counted."""
    clock = time.perf_counter_ns
    for _ in range(CALLS_A_LOOK):
        call()
    taken: list[int] = []
    start = clock()
    end = start + int(seconds * 1e9)
    before = start
    while before < end:
        for _ in range(CALLS_A_LOOK):
            call()
            after = clock()
            taken.append(after - before)
            before = after
    taken.sort()
    return Rate(
        len(taken) / ((before - start) / 1e9),
        taken[len(taken) // 2] / 1000,
        taken[min(len(taken) - 1, len(taken) * 99 // 100)] / 1000,
    )


@contextmanager
def _raw(place: Path) -> Generator[int, None, None]:
    descriptor = os.open(place / "raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_and_sync(descriptor: int) -> None:
    os.write(descriptor, bytes(FRAME_BYTES))
    os.fdatasync(descriptor)


def _figure(name: str, rate: Rate, limit: str = "", bound: Rate | None = None) -> Figure:
    return Figure(name, rate.per_s, rate.p50_us, rate.p99_us, limit, bound.per_s if bound else None)


def _batch(store: SessionStore) -> None:
    with store.batch() as batch:
        for _ in range(BATCH_SESSIONS):
            batch.create(METADATA)


def _some_ids(store: SessionStore) -> list[str]:
    ids: list[str] = []
    for id in store.ids():
        ids.append(id)
        if len(ids) == SESSIONS_READ:
            break
    return ids


def _cycle(ids: list[str]) -> Callable[[], str]:
    """A function that gives the ids over and over, in an order that is not the keys' own."""
    at = 0
    step = 7919 if len(ids) % 7919 else 1

    def following() -> str:
        nonlocal at
        at = (at + step) % len(ids)
        return ids[at]

    return following
