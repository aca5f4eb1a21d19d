"""Readers of the LMDB state that die: their slots come back by themselves, and they pin no pages for long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perdure.store import SessionStore, StorageError
from perdure.store import engine_lmdb as engine
from perdure.store.backend_lmdb import LmdbBackend
from perdure.store.engine_lmdb import READER_CHECK_S, Environment
from perdure.store.keeper import RENEW_TICKS, TICK_S
from perdure.store.ports import Backend, Scan

READERS = 50
BACK_S = READER_CHECK_S + RENEW_TICKS * TICK_S + 10.0
"""A slot is back after this: a check is due, the keeper renews its view; and a little for a busy machine."""
STARTED_S = 60.0


def environment_of(store: SessionStore) -> Environment:
    backend = store._opened.backend
    assert isinstance(backend, LmdbBackend)
    return backend._shared


def readers_of(store: SessionStore) -> set[int]:
    """The processes that have a slot."""
    lines = environment_of(store).env.readers().splitlines()[1:]
    return {int(line.split()[0]) for line in lines}


def until(is_true: Callable[[], object], what: str, timeout_s: float) -> float:
    began = time.monotonic()
    while not is_true():
        if time.monotonic() - began > timeout_s:
            pytest.fail(f"not within {timeout_s:.1f} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - began


def hold_a_view(path: Path, ready: int) -> None:
    """What a child does: begin a scan of the state, and sit on it."""
    with SessionStore.open(path) as store:
        rows = iter(store._opened.backend.scan())
        next(rows)
        os.write(ready, b"r")
        signal.pause()


@contextmanager
def holding_views(path: Path, count: int) -> Iterator[list[int]]:
    """Forked children, each with a view of the state; those that are left are killed at the end."""
    read, write = os.pipe()
    pids: list[int] = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                try:
                    hold_a_view(path, write)
                finally:
                    os._exit(1)
            pids.append(pid)
        os.close(write)
        left = count
        while left:
            said = os.read(read, left)
            assert said, "a child ended before it had its view"
            left -= len(said)
        yield pids
    finally:
        os.close(read)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def fold_some(store: SessionStore, folds: int) -> int:
    """Replace the same sessions over and over; answers the last page in use."""
    for turn in range(folds):
        with store.batch() as batch:
            for number in range(50):
                batch.put(f"s{number}", {"turn": turn, "pad": "x" * 500}, None)
        store.fold()
    return int(environment_of(store).env.info()["last_pgno"])


def take_slots(backend: Backend, held: list[Scan]) -> None:
    """Begin scans until there is no slot for one more."""
    while len(held) < 1000:
        held.append(backend.scan())


@pytest.mark.timeout(120)
def test_slots_of_readers_that_were_killed_come_back_while_nobody_folds(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, backend="lmdb") as store:
        fold_some(store, 1)
        folds = environment_of(store)._folds
        with holding_views(path, READERS) as pids:
            assert set(pids) <= readers_of(store)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            took_s = until(lambda: not readers_of(store).intersection(pids), "slots are back", BACK_S)
            print(f"{READERS} slots were back after {took_s:.2f} s")
            assert environment_of(store)._folds == folds


@pytest.mark.timeout(120)
def test_a_reader_that_was_killed_pins_no_pages_once_its_slot_is_back(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, backend="lmdb") as store:
        fold_some(store, 10)
        with holding_views(path, 1) as pids:
            before = fold_some(store, 1)
            pinned = fold_some(store, 30)
            assert pinned > before + 100  # the view keeps every page that it may still read
            os.kill(pids[0], signal.SIGKILL)
            until(lambda: not readers_of(store).intersection(pids), "its slot is back", BACK_S)
            fold_some(store, 3)
            assert fold_some(store, 30) <= pinned + 20


def test_when_all_slots_are_taken_a_reader_is_told_so_and_goes_on_once_one_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOCK_FILE_BYTES", 4096)
    monkeypatch.setattr(engine, "READERS_MAX", 8)
    with SessionStore.open(tmp_path / "store", backend="lmdb") as store:
        id = store.create({"n": 1})
        store.fold()
        backend = store._opened.backend
        scans: list[Scan] = []
        with pytest.raises(StorageError, match="all reader slots") as caught:
            take_slots(backend, scans)
        assert "Close some" in caught.value.hint
        assert len(scans) >= 8
        scans.pop().close()
        assert store.peek(id) is not None
        for scan in scans:
            scan.close()
        assert list(store.ids()) == [id]


@pytest.mark.timeout(120)
def test_when_dead_readers_have_all_slots_the_next_one_takes_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOCK_FILE_BYTES", 4096)
    monkeypatch.setattr(engine, "READERS_MAX", 8)
    monkeypatch.setattr(engine, "READER_CHECK_S", 3600.0)  # the exhaustion itself has to look
    path = tmp_path / "store"
    with SessionStore.open(path, backend="lmdb") as store:
        id = store.create({"n": 1})
        store.fold()
        held: list[Scan] = []
        with holding_views(path, 10) as pids:
            with pytest.raises(StorageError):
                take_slots(store._opened.backend, held)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            # The store's own view may have been given back meanwhile: a free slot or two.
            held += [store._opened.backend.scan() for _ in range(3)]
            assert not readers_of(store).intersection(pids)
            assert store.peek(id) is not None
        for scan in held:
            scan.close()
