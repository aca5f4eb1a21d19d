"""What each call costs on each back end, beside the bare py-lmdb calls that it is made of.

Owns the figures that are the same question to every back end; an application's view, one client, no shipping.
Amounts (ms, bytes) stand where rates do elsewhere: their names say so.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

from perdure.recovery import repair
from perdure.store import SessionStore
from perdure.store.backends import BACKENDS
from perdure.store.fold import HASH_BYTES
from perdure.store.opening import OpenOptions, open_store

from .measure import REPORTED, Figure, Slice, compare
from .naive import NaiveStore
from .store_figures import METADATA
from .workloads import SMALL_BYTES, sessions_of

HOUR_MS = 3_600_000
PASS_MS_MAX = 10.0
REOPEN_S_MAX = 1.0
NO_LIMIT = (5.0, REPORTED)
MEMORY_BYTES_MAX = 500.0
"""What the system that this one replaces allowed for a session; the memory back end is said apart."""

Measure = Callable[[str, Path, int], Iterator[Figure]]

_CHILD = """
import os, sys, time
from perdure.store import SessionStore
what, path, backend, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
def private_bytes():
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
if what == "fill":
    with SessionStore.open(path, backend=backend) as store:
        before = private_bytes()
        for _ in range(count // 100):
            with store.batch() as batch:
                for number in range(100):
                    batch.create({"user_id": number, "name": "a person of some name", "csrf": "0" * 32})
        store.fold()
        print(private_bytes() - before)
else:
    started = time.perf_counter()
    with SessionStore.open(path) as store:
        assert store.peek("0" * 32) is None
        print(time.perf_counter() - started)
"""


class AheadClock:
    """The machine's clock, and so much later as asked."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


def measure_all(only: str, quick: bool, directory: str | None) -> Iterator[Figure]:
    """All figures whose name holds `only`, one back end after the other."""
    size = 5 if quick else 1
    for backend in BACKENDS:
        for what, figure in _FIGURES.items():
            name = f"{backend}: {what}"
            if only in name:
                with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=directory) as folder:
                    yield from figure(name, Path(folder), size)


def _backend_of(name: str) -> str:
    return name.partition(":")[0]


def _beside_bare_calls(
    ours: Callable[[SessionStore, list[str]], Slice],
    bare: Callable[[NaiveStore, list[str]], Slice],
    count: int,
) -> Measure:
    """A call on sessions that are there, beside the bare calls on as many."""

    def measure(name: str, folder: Path, size: int) -> Iterator[Figure]:
        with ExitStack() as stack:
            store = stack.enter_context(SessionStore.open(folder / "ours", backend=_backend_of(name)))
            peer = NaiveStore(folder / "bare")
            stack.callback(peer.close)
            ids = [store.create(METADATA) for _ in range(count // size)]
            peers = [peer.create(METADATA) for _ in range(count // size)]
            store.fold()
            yield compare(name, ours(store, ids), "bare py-lmdb calls", bare(peer, peers), slices=5)

    return measure


def _each(call: Callable[[str], object], ids: list[str]) -> Slice:
    def work() -> int:
        for id in ids:
            call(id)
        return len(ids)

    return work


def _deletes(delete: Callable[[str], object], create: Callable[[], str], count: int) -> Slice:
    """Deletes sessions that it creates first; creating them is measured with it, on both sides."""

    def work() -> int:
        for id in [create() for _ in range(count)]:
            delete(id)
        return count

    return work


def _batches(store: SessionStore, count: int) -> Slice:
    def work() -> int:
        for _ in range(count // 100):
            with store.batch() as batch:
                for _ in range(100):
                    batch.create(METADATA)
        return count

    return work


def _bare_batches(peer: NaiveStore, count: int) -> Slice:
    many = [METADATA] * 100

    def work() -> int:
        for _ in range(count // 100):
            peer.batch(many)
        return count

    return work


def _cleanup(name: str, folder: Path, size: int) -> Iterator[Figure]:
    """A pass over live sessions, the removal of a tenth of them, and what a reader notices of it."""
    live, expired = 100_000 // size, 10_000 // size
    clock = AheadClock()
    options = OpenOptions(backend=_backend_of(name), clock=clock)
    with SessionStore(open_store(folder / "ours", options), options, None) as store:
        ids = [id for _ in range(live // 100) for id in _created(store, 100, 100 * HOUR_MS)]
        store.fold()
        times = sorted(_ms(store.cleanup_expired) for _ in range(5))
        yield _amount(f"{name}, a pass over {live:,} live sessions, ms", times[2], PASS_MS_MAX, "10 ms")
        rates: list[float] = []
        slowest: list[float] = []
        for round in range(1, 4):
            for _ in range(expired // 100):
                _created(store, 100, HOUR_MS)
            store.fold()
            clock.ahead_ms = 2 * HOUR_MS * round
            stop = threading.Event()
            reads: list[float] = []
            reader = threading.Thread(target=_read_on, args=(store, ids, stop, reads))
            reader.start()
            took_ms = _ms(lambda: store.cleanup_expired(expired))
            stop.set()
            reader.join()
            rates.append(expired / took_ms * 1000)
            slowest.append(max(reads))
        rates.sort()
        yield Figure(
            f"{name}, {expired:,} expired of {live + expired:,}",
            rates[1],
            rates[-1],
            "none",
            rates[1],
            1.0,
            1.0,
            1.0,
            REPORTED,
            True,
        )
        yield _amount(f"{name}, slowest get beside it, ms", sorted(slowest)[1], 100.0, "100 ms")


def _created(store: SessionStore, count: int, timeout_ms: int) -> list[str]:
    with store.batch() as batch:
        return [batch.create(METADATA, timeout_ms=timeout_ms) for _ in range(count)]


def _read_on(store: SessionStore, ids: list[str], stop: threading.Event, times: list[float]) -> None:
    while True:
        for id in ids:
            times.append(_ms(lambda id=id: store.peek(id)))  # type: ignore[misc]
            if stop.is_set():
                return


def _footprint(name: str, folder: Path, size: int) -> Iterator[Figure]:
    """Memory and disk of a session, and the time to open what is there."""
    count = 100_000 // size
    backend, path = _backend_of(name), folder / "ours"
    anonymous = float(_child("fill", path, backend, count)) / count
    limit = MEMORY_BYTES_MAX if backend != "memory" else 10 * MEMORY_BYTES_MAX
    yield _amount(f"{name}, anonymous bytes a session", anonymous, limit, f"{limit:.0f} B")
    for part in ("log", "state"):
        used = _disk_bytes(path / part) / count
        yield _amount(f"{name}, bytes of {part} a session", used, 5000.0, REPORTED)
    times = sorted(float(_child("open", path, backend, count)) for _ in range(3))
    yield _amount(f"{name}, open with {count:,} sessions, s", times[1], REOPEN_S_MAX, "1 s")


def _compacted(name: str, folder: Path, size: int) -> Iterator[Figure]:
    """The state on disk, after random creates and after it was made anew, beside ids and stored sessions."""
    backend, path = _backend_of(name), folder / "ours"
    if backend == "memory":
        return
    count = 100_000 // size
    fields = sessions_of(SMALL_BYTES, 1)
    with SessionStore.open(path, backend=backend) as store:
        for _ in range(count // 100):
            with store.batch() as batch:
                for metadata in islice(fields, 100):
                    batch.create(metadata)
        store.fold()
        state = store._view.backend
        state.refresh()
        with closing(state.scan()) as scan:
            payload = sum(len(key) + len(record) - HASH_BYTES for key, record in scan)
    grown = _disk_bytes(path / "state") / payload
    yield _amount(f"{name}, state beside its payload, as it grew", grown, *NO_LIMIT)
    repair(path, unchecked=True)
    anew, limit = _disk_bytes(path / "state") / payload, (1.5, "1.5") if backend == "lmdb" else NO_LIMIT
    yield _amount(f"{name}, state beside its payload, made anew", anew, *limit)


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def _child(what: str, path: Path, backend: str, count: int) -> str:
    return subprocess.run(
        [sys.executable, "-c", _CHILD, what, str(path), backend, str(count)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def _ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def _amount(name: str, value: float, limit: float, aim: str) -> Figure:
    ratio = value / limit
    words = REPORTED if aim == REPORTED else f"at most {aim}"
    return Figure(
        name, value, value, aim, limit, ratio, ratio, ratio, words, value <= limit, is_less_better=True
    )


_FIGURES: dict[str, Measure] = {
    "create": _beside_bare_calls(
        lambda store, ids: _each(lambda _: store.create(METADATA), ids),
        lambda peer, ids: _each(lambda _: peer.create(METADATA), ids),
        10_000,
    ),
    "get": _beside_bare_calls(
        lambda store, ids: _each(lambda id: store[id].metadata, ids),
        lambda peer, ids: _each(peer.get, ids),
        20_000,
    ),
    "peek": _beside_bare_calls(
        lambda store, ids: _each(store.peek, ids), lambda peer, ids: _each(peer.get, ids), 20_000
    ),
    "update": _beside_bare_calls(
        lambda store, ids: _each(lambda id: store.patch(id, {"n": 1}), ids),
        lambda peer, ids: _each(lambda id: peer.update(id, {"n": 1}), ids),
        10_000,
    ),
    "touch": _beside_bare_calls(
        lambda store, ids: _each(store.touch, ids), lambda peer, ids: _each(peer.touch, ids), 10_000
    ),
    "create and delete": _beside_bare_calls(
        lambda store, ids: _deletes(store.delete, lambda: store.create(METADATA), len(ids)),
        lambda peer, ids: _deletes(peer.delete, lambda: peer.create(METADATA), len(ids)),
        5_000,
    ),
    "batch of 100": _beside_bare_calls(
        lambda store, ids: _batches(store, len(ids)), lambda peer, ids: _bare_batches(peer, len(ids)), 20_000
    ),
    "list of ids": _beside_bare_calls(
        lambda store, _: lambda: sum(1 for _ in store.ids()),
        lambda peer, _: lambda: sum(1 for _ in peer.ids()),
        50_000,
    ),
    "cleanup": _cleanup,
    "footprint": _footprint,
    "disk": _compacted,
}
