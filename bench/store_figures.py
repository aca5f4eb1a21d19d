"""The store's figures: each call beside the bare calls of the naive way, in the same run."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lmdb

from perdure.store import SessionStore
from perdure.store.backends import open_backend
from perdure.store.cursor import LogCursor
from perdure.store.ids import NOWHERE
from perdure.store.rebuild import replay

from .measure import Figure, Slice, compare
from .naive import NaiveStore

METADATA: dict[str, Any] = {
    "user_id": 12345,
    "name": "a person of some name",
    "roles": ["reader", "writer"],
    "csrf": "0123456789abcdef0123456789abcdef",
}
RECORD_BYTES = 300
THREADS = 8


def measure_all(only: str, quick: bool, directory: str | None) -> Iterator[Figure]:
    """All figures whose name holds `only`, one after the other."""
    size = 5 if quick else 1
    for name, figure in _FIGURES.items():
        if only in name:
            with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=directory) as folder:
                yield figure(name, Path(folder), size)


def _repeat(times: int, call: Callable[[], object]) -> Slice:
    def work() -> int:
        for _ in range(times):
            call()
        return times

    return work


def _against_naive(
    name: str, folder: Path, ours: Callable[[SessionStore], Slice], naive: Callable[[NaiveStore], Slice]
) -> Figure:
    with ExitStack() as stack:
        store = stack.enter_context(SessionStore.open(folder / "ours"))
        peer = NaiveStore(folder / "naive")
        stack.callback(peer.close)
        return compare(name, ours(store), "naive: log write + LMDB transaction", naive(peer))


def _create_os(name: str, folder: Path, size: int) -> Figure:
    count = 20_000 // size
    return _against_naive(
        name,
        folder,
        lambda store: _repeat(count, lambda: store.create(METADATA)),
        lambda peer: _repeat(count, lambda: peer.create(METADATA)),
    )


def _batch(name: str, folder: Path, size: int) -> Figure:
    count = 200 // size
    many = [METADATA] * 100

    def ours(store: SessionStore) -> Slice:
        def work() -> int:
            for _ in range(count):
                with store.batch() as batch:
                    for metadata in many:
                        batch.create(metadata)
            return count * 100

        return work

    def naive(peer: NaiveStore) -> Slice:
        def work() -> int:
            for _ in range(count):
                peer.batch(many)
            return count * 100

        return work

    return _against_naive(name, folder, ours, naive)


def _reading(call: str) -> Callable[[str, Path, int], Figure]:
    def figure(name: str, folder: Path, size: int) -> Figure:
        count = 20_000 // size

        def ours(store: SessionStore) -> Slice:
            ids = [store.create(METADATA) for _ in range(count)]
            store.fold()
            read = getattr(store, call)

            def work() -> int:
                for id in ids:
                    assert read(id).metadata
                return len(ids)

            return work

        def naive(peer: NaiveStore) -> Slice:
            ids = [peer.create(METADATA) for _ in range(count)]

            def work() -> int:
                for id in ids:
                    assert peer.get(id)
                return len(ids)

            return work

        return _against_naive(name, folder, ours, naive)

    return figure


def _update(name: str, folder: Path, size: int) -> Figure:
    count = 10_000 // size

    def ours(store: SessionStore) -> Slice:
        ids = [store.create(METADATA) for _ in range(count)]
        numbers = iter(range(1 << 60))

        def work() -> int:
            for id in ids:
                number = next(numbers)
                store.update(id, lambda session, n=number: session.merge({"n": n}))  # type: ignore[misc]
            return len(ids)

        return work

    def naive(peer: NaiveStore) -> Slice:
        ids = [peer.create(METADATA) for _ in range(count)]
        numbers = iter(range(1 << 60))

        def work() -> int:
            for id in ids:
                peer.update(id, {"n": next(numbers)})
            return len(ids)

        return work

    return _against_naive(name, folder, ours, naive)


def raw_sync(folder: Path, count: int, *, together: int = 1) -> Slice:
    """A write of 300 bytes and an fdatasync, again and again: what the device allows one caller.

    With `together` records in each write: what it allows so many callers who share every sync.
    """
    descriptor = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    data = os.urandom(RECORD_BYTES) * together

    def work() -> int:
        for _ in range(count):
            os.write(descriptor, data)
            os.fdatasync(descriptor)
        return count * together

    return work


def _create_disk(name: str, folder: Path, size: int) -> Figure:
    count = 500 // size
    with SessionStore.open(folder / "ours", durability="disk") as store:
        ours = _repeat(count, lambda: store.create(METADATA))
        return compare(name, ours, "raw write + fdatasync", raw_sync(folder, count), ratio_aim=1 / 1.3)


def _threads_disk(together: int, peer_name: str, aim: float) -> Callable[[str, Path, int], Figure]:
    def figure(name: str, folder: Path, size: int) -> Figure:
        count = 400 // size
        with SessionStore.open(folder / "ours", durability="disk") as store:

            def work() -> int:
                threads = [
                    threading.Thread(target=_repeat(count, lambda: store.create(METADATA)))
                    for _ in range(THREADS)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                return THREADS * count

            return compare(name, work, peer_name, raw_sync(folder, count, together=together), ratio_aim=aim)

    return figure


def _replay(per_frame: int) -> Callable[[str, Path, int], Figure]:
    def figure(name: str, folder: Path, size: int) -> Figure:
        events = 200_000 // size
        with SessionStore.open(folder / "ours") as store:
            if per_frame == 1:
                _repeat(events, lambda: store.create(METADATA))()
            else:
                for _ in range(events // per_frame):
                    with store.batch() as batch:
                        _repeat(per_frame, lambda batch=batch: batch.create(METADATA))()  # type: ignore[misc]
            log = store._log
            numbers = iter(range(1000))

            def work() -> int:
                backend = open_backend("lmdb", folder / f"replayed-{next(numbers)}")
                cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key)
                try:
                    return replay(backend, cursor, NOWHERE).events
                finally:
                    cursor.close()
                    backend.close()

            peer = _raw_load(folder, events)
            return compare(name, work, "LMDB append of as many sorted records", peer, slices=3, ratio_aim=0.1)

    return figure


def _raw_load(folder: Path, count: int) -> Slice:
    numbers = iter(range(1000))

    def work() -> int:
        environment = lmdb.open(str(folder / f"raw-{next(numbers)}"), map_size=1 << 34, sync=False)
        items = [(f"{number:032x}".encode(), bytes(RECORD_BYTES)) for number in range(count)]
        with environment.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti(items, append=True)
        environment.close()
        return count

    return work


_FIGURES: dict[str, Callable[[str, Path, int], Figure]] = {
    "create, os": _create_os,
    "get, decoded": _reading("get"),
    "peek, decoded": _reading("peek"),
    "update, os": _update,
    "batch of 100, os": _batch,
    "create, disk": _create_disk,
    "create, disk, 8 threads": _threads_disk(1, "raw write + fdatasync, one thread", 1.0),
    "create, disk, 8 threads, group limit": _threads_disk(
        THREADS, "raw write of 8 records + one fdatasync", 0.6
    ),
    "replay, events": _replay(100),
    "replay, events in frames of one": _replay(1),
}
