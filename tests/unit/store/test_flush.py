"""The flusher: threads that share a sync, what a failed one does to all of them, and the mark behind it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.shipping import replacing
from perdure.shipping.replacing import lock_log, renew_page
from perdure.store import SessionStore, flush, names
from perdure.store.errors import Indeterminate, LockTimeoutError, PoisonedError, StorageError
from perdure.store.flush import Flusher
from perdure.store.lock import FileLock
from perdure.store.mark import read_marks
from perdure.store.page import ControlPage, Word
from perdure.store.smallfile import publish_small
from tests.support.machine import stop_background
from tests.unit.store.test_backend_memory import replace_log

DEADLINE_S = 10.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "store", durability="os") as opened:
        yield opened


def flusher_of(store: SessionStore) -> Flusher:
    return store._log.flusher


def sync_no_mark(store: SessionStore) -> None:
    """For an hour no mark is synced for its second being over."""
    store._log.words[Word.MARK_SYNCED_MS] = time.monotonic_ns() // 1_000_000 + 3_600_000


def append(store: SessionStore) -> int:
    """Append a frame that nobody has synced; answers its LSN."""
    store.create({"n": 1})
    return store._log.cursor.at.lsn


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Disk:
    """Stands in the way of fdatasync: counts the calls, and lets none through until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.is_broken = False
        self._open = threading.Event()
        self._real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _sync(self, descriptor: int) -> None:
        self.calls += 1
        assert self._open.wait(DEADLINE_S)
        if self.is_broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._real(descriptor)

    def open(self) -> None:
        self._open.set()


class Caller(threading.Thread):
    """A thread that flushes up to an LSN, and what it was told."""

    def __init__(self, flusher: Flusher, lsn: int) -> None:
        super().__init__()
        self.lsn = lsn
        self.error: Exception | None = None
        self.flushed = 0
        self._flusher = flusher
        self.start()

    def run(self) -> None:
        try:
            self._flusher.flush(self.lsn)
            self.flushed = self._flusher.words[Word.FLUSHED]
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def ended(self) -> bool:
        self.join(DEADLINE_S)
        return not self.is_alive()


def sleeping(flusher: Flusher) -> int:
    return len(flusher._waiting)


def behind_a_leader(store: SessionStore, disk: Disk, followers: int) -> list[Caller]:
    """One thread that is inside its sync, then so many that wait, each for a frame of its own."""
    flusher = flusher_of(store)
    callers = [Caller(flusher, append(store))]
    until(lambda: disk.calls == 1)
    callers += [Caller(flusher, append(store)) for _ in range(followers)]
    until(lambda: sleeping(flusher) == followers)
    return callers


def test_threads_that_come_during_a_sync_when_it_ends_share_the_next_one(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_no_mark(store)
    disk = Disk(monkeypatch)
    callers = behind_a_leader(store, disk, 7)
    disk.open()
    assert all(caller.ended() for caller in callers)
    assert [caller.error for caller in callers] == [None] * 8
    assert all(caller.flushed >= caller.lsn for caller in callers)
    assert disk.calls <= 2  # one for the leader, one for the seven
    assert flusher_of(store).leader == 0
    assert sleeping(flusher_of(store)) == 0


def test_every_waiting_thread_when_the_sync_fails_hears_of_it(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    callers = behind_a_leader(store, disk, 5)
    disk.is_broken = True
    disk.open()
    assert all(caller.ended() for caller in callers)
    assert all(isinstance(caller.error, PoisonedError) for caller in callers)
    assert disk.calls == 1  # a second one could succeed, and would say nothing
    assert flusher_of(store).words[Word.FLUSHED] < callers[0].lsn


def test_thread_whose_lsn_was_covered_when_the_store_was_poisoned_meanwhile_is_not_acknowledged(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lsn = append(store)
    flusher = flusher_of(store)
    flusher.flush(lsn)
    flusher.poison("a test")
    with pytest.raises(PoisonedError):
        flusher.flush(lsn)


def test_thread_that_waits_when_the_leader_went_without_waking_it_leads_itself(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flusher = flusher_of(store)
    lsn = append(store)
    with flusher.threads:
        flusher.leader = -1  # a leader that will wake nobody
    caller = Caller(flusher, lsn)
    until(lambda: sleeping(flusher) == 1)
    with flusher.threads:
        flusher.leader = 0
    assert caller.ended()
    assert caller.error is None
    assert caller.flushed >= lsn


def test_flush_when_another_process_covers_the_lsn_returns_without_the_sync_lock(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flusher = flusher_of(store)
    lsn = append(store)
    disk = Disk(monkeypatch)
    other = FileLock(tmp_path / "store" / names.SYNC_LOCK)
    try:
        other.acquire(0)
        caller = Caller(flusher, lsn)
        until(lambda: flusher.leader != 0)
        flusher.words[Word.FLUSHED] = lsn  # what the other process says after its sync
        assert caller.ended()
        assert caller.error is None
        assert disk.calls == 0
    finally:
        disk.open()
        other.close()


def test_flush_when_another_process_has_synced_is_woken_by_it(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush, "SYNC_LOOK_S", 10 * DEADLINE_S)
    disk = Disk(monkeypatch)
    with SessionStore.open(tmp_path / "store") as other:
        leader = Caller(flusher_of(other), append(other))
        until(lambda: disk.calls == 1)
        waiting = Caller(flusher_of(store), append(store))
        until(lambda: store._log.words[Word.SYNC_WANTED] == 1)
        disk.open()
        assert leader.ended()
        assert waiting.ended()
    assert leader.error is waiting.error is None
    assert waiting.flushed >= waiting.lsn


def test_flush_when_the_process_that_synced_has_died_goes_on(store: SessionStore, tmp_path: Path) -> None:
    lsn = append(store)
    dead = FileLock(tmp_path / "store" / names.SYNC_LOCK)
    dead.acquire(0)
    waiting = Caller(flusher_of(store), lsn)
    until(lambda: store._log.words[Word.SYNC_WANTED] == 1)
    dead.close()  # as the kernel does, which rings nothing
    assert waiting.ended()
    assert waiting.error is None
    assert waiting.flushed >= lsn


def test_flush_when_nobody_waits_rings_nothing(store: SessionStore) -> None:
    rung = store._log.words[Word.SYNC_BELL]
    flusher_of(store).flush(append(store))
    assert store._log.words[Word.SYNC_BELL] == rung


def test_flush_when_another_process_keeps_the_sync_lock_times_out(
    store: SessionStore, tmp_path: Path
) -> None:
    flusher = flusher_of(store)
    flusher.timeout_ms = 30
    lsn = append(store)
    other = FileLock(tmp_path / "store" / names.SYNC_LOCK)
    try:
        other.acquire(0)
        with pytest.raises(LockTimeoutError, match="30 ms"):
            flusher.flush(lsn)
    finally:
        other.close()
    flusher.flush(lsn)
    assert flusher.words[Word.FLUSHED] >= lsn


def test_create_when_the_sync_lock_is_kept_is_indeterminate(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store", durability="disk") as store:
        flusher_of(store).timeout_ms = 30
        other = FileLock(tmp_path / "store" / names.SYNC_LOCK)
        try:
            other.acquire(0)
            with pytest.raises(Indeterminate):
                store.create({"n": 1})
        finally:
            other.close()


def test_mark_when_two_handles_sync_in_turn_is_always_the_newest(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store") as one, SessionStore.open(tmp_path / "store") as two:
        for store in (one, two, two, one, one, two):
            lsn = append(store)
            flusher_of(store).flush(lsn)
            mark, _ = read_marks(tmp_path / "store" / "log" / names.MARK, store._log.key)
            assert mark is not None
            assert (mark.position.lsn, mark.sequence) == (lsn, store._log.words[Word.MARK_SEQUENCE])


def test_mark_when_its_writers_died_before_they_said_so_is_read_from_the_file(tmp_path: Path) -> None:
    """Two marks that no page word tells of: a number remembered would hide the third behind them."""
    with SessionStore.open(tmp_path / "store") as store:
        flusher = flusher_of(store)
        flusher.flush(append(store))
        flusher.mark.write(store._log.cursor.at.position, 0)
        sequence = flusher.mark.write(store._log.cursor.at.position, 0)
        flusher.words[Word.MARK_SEQUENCE] = 0
        lsn = append(store)
        flusher.flush(lsn)
        mark, _ = read_marks(tmp_path / "store" / "log" / names.MARK, store._log.key)
        assert mark is not None
        assert (mark.position.lsn, mark.sequence) == (lsn, sequence + 1)


def test_mark_when_its_write_fails_leaves_no_number_to_rely_on(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flusher = flusher_of(store)
    flusher.flush(append(store))
    lsn = append(store)
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if descriptor == flusher.mark._descriptor:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(Exception, match="mark"):
            flusher.flush(lsn)
    assert flusher.words[Word.FLUSHED] < lsn
    assert flusher.words[Word.MARK_SEQUENCE] == 0
    flusher.flush(lsn)
    assert flusher.words[Word.FLUSHED] == lsn


def test_mark_of_the_last_flush_before_a_quiet_spell_is_synced_in_the_background(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_background(store)
    words, flusher = store._log.words, flusher_of(store)
    sync_no_mark(store)
    for _ in range(2):
        flusher.flush(append(store))
    assert words[Word.MARK_SYNCED_SEQUENCE] < words[Word.MARK_SEQUENCE]
    synced: list[int] = []
    real = os.fdatasync

    def note(descriptor: int) -> None:
        synced.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", note)
    store._keeper._tick(1)
    assert synced == []
    words[Word.MARK_SYNCED_MS] = time.monotonic_ns() // 1_000_000 - 1000
    store._keeper._tick(2)
    assert synced == [flusher.mark._descriptor]
    assert words[Word.MARK_SYNCED_SEQUENCE] == words[Word.MARK_SEQUENCE]
    words[Word.MARK_SYNCED_MS] = time.monotonic_ns() // 1_000_000 - 1000
    store._keeper._tick(3)
    assert len(synced) == 1


def test_mark_when_the_store_is_closed_is_synced(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store") as other:
        with SessionStore.open(tmp_path / "store") as store:
            for _ in range(2):
                flusher_of(store).flush(append(store))
        words = other._log.words
        assert words[Word.MARK_SYNCED_SEQUENCE] == words[Word.MARK_SEQUENCE] > 0


def test_mark_when_its_sync_fails_poisons_the_store(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_background(store)
    flusher = flusher_of(store)
    sync_no_mark(store)
    for _ in range(2):
        flusher.flush(append(store))
    disk = Disk(monkeypatch)
    disk.is_broken = True
    disk.open()
    with pytest.raises(PoisonedError):
        flusher.sync_mark(at_once=True)
    with pytest.raises(PoisonedError):
        store.create({"n": 1})


def test_bytes_that_a_process_left_behind_at_an_interval_are_flushed_by_another(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, durability="interval", interval_ms=100_000) as dead:
        stop_background(dead)
        with SessionStore.open(path, durability="interval", interval_ms=1) as other:
            dead.create({"n": 1})
            words = other._log.words
            until(lambda: words[Word.FLUSHED] == words[Word.APPENDED])


def test_who_asks_hears_of_the_sync_before_the_mark_says_so(store: SessionStore) -> None:
    flusher, lsn = flusher_of(store), append(store)
    marks = flusher.mark.path
    seen: list[tuple[int, bool]] = []

    def look() -> None:
        mark = read_marks(marks, flusher._cursor.key)[0]
        seen.append((flusher.words[Word.FLUSHED], mark is not None and mark.position.lsn >= lsn))

    flusher.flush(lsn, look)
    assert len(seen) == 1
    assert seen[0][0] < lsn
    assert not seen[0][1]
    mark = read_marks(marks, flusher._cursor.key)[0]
    assert mark is not None
    assert mark.position.lsn == lsn
    flusher.flush(lsn, look)
    assert len(seen) == 1, "it was on disk before: nobody had to sync it"


def test_who_asks_does_not_hear_of_a_sync_that_failed(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, heard = Disk(monkeypatch), list[int]()
    disk.is_broken = True
    disk.open()
    with pytest.raises(PoisonedError):
        flusher_of(store).flush(append(store), lambda: heard.append(1))
    assert not heard


def test_whoever_has_not_followed_a_replaced_log_says_nothing_of_what_is_on_disk(tmp_path: Path) -> None:
    path, other = tmp_path / "s", tmp_path / "o"
    with SessionStore.open(path, durability="os") as store:
        common = store.create({})
        store.flush()
        shutil.copytree(path, other)
        lsn = [append(store) for _ in range(50)][-1]
        replace_log(path, other)
        with pytest.raises(StorageError, match="not in this log any more"):
            flusher_of(store).flush(lsn)
        assert store._log.words[Word.FLUSHED] < lsn
    with SessionStore.open(path) as anew:
        assert list(anew.ids()) == [common]


def test_a_log_is_not_changed_while_somebody_syncs_it(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "LOCK_TIMEOUT_MS", 20)
    path = tmp_path / "store"
    syncing = FileLock(path / names.SYNC_LOCK)
    assert syncing.try_acquire()
    with pytest.raises(LockTimeoutError):
        lock_log(path)
    append(store)  # the write lock was given back
    syncing.close()
    lock_log(path).close()
    flusher_of(store).flush(append(store))


def test_a_poisoned_store_stays_one_when_its_log_is_changed(store: SessionStore, tmp_path: Path) -> None:
    flusher_of(store).poison("a sync failed")
    renew_page(tmp_path / "store", committed_lsn=0, keep_folded=True)
    with pytest.raises(PoisonedError):
        append(store)


def test_a_sync_that_fails_while_the_log_is_changed_stops_the_store(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flusher, real = flusher_of(store), ControlPage.reset

    def reset(page: ControlPage) -> None:
        real(page)
        flusher.words[Word.POISON] = 1  # a mark's, for which nobody holds the sync lock

    monkeypatch.setattr(ControlPage, "reset", reset)
    renew_page(tmp_path / "store", committed_lsn=0, keep_folded=True)
    with pytest.raises(PoisonedError):
        append(store)


def test_a_store_whose_page_is_made_anew_while_a_failed_sync_is_written_down_is_stopped(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = flusher_of(store).words

    def publish(*arguments: Any) -> None:
        words[Word.POISON] = 0  # as a page that was made anew, by who had looked before
        publish_small(*arguments)

    monkeypatch.setattr(flush, "publish_small", publish)
    flusher_of(store).poison("a sync failed")
    with pytest.raises(PoisonedError):
        append(store)
