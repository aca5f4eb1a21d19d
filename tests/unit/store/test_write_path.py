"""Where the write path, the view and the keeper meet: deaths, interruptions, crowds, roles that change."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.store import names
from perdure.store.commit import GROUP_OPERATIONS_MAX, Durability, Operation
from perdure.store.control import Config
from perdure.store.cursor import list_segments
from perdure.store.errors import (
    BusyError,
    ForkedError,
    Indeterminate,
    LockTimeoutError,
    MetadataError,
    StorageError,
    StoreClosedError,
    UsageError,
    VersionConflictError,
)
from perdure.store.event import Reason
from perdure.store.ids import Position
from perdure.store.lock import FileLock
from perdure.store.opening import OpenOptions, begin_cluster, init_store, open_store
from perdure.store.page import Word
from perdure.store.session import encode_session
from perdure.store.sessions import SessionStore
from perdure.store.stage import Stage
from tests.support.machine import stop_background

Open = Callable[..., SessionStore]


@dataclass
class Clock:
    ms: int = 1_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class Silent:
    """A gate behind which nobody confirms anything."""

    def poke(self, lsn: int) -> None:
        return

    def wait(self, position: Position, timeout_ms: int) -> bool:
        return False

    def confirm(self, timeout_ms: int) -> bool:
        return True

    def confirmed_age_ms(self) -> int | None:
        return None

    def close(self) -> None:
        return


@pytest.fixture
def open_one(tmp_path: Path) -> Iterator[Open]:
    """Opens handles of one store, without their background thread unless `background`."""
    opened: list[SessionStore] = []

    def open_it(gate: Any = None, background: bool = False, **options: Any) -> SessionStore:
        chosen = OpenOptions(**options)
        store = SessionStore(open_store(tmp_path / "store", chosen), chosen, gate)
        if not background:
            stop_background(store)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        store.close()


def behind_the_lock(path: Path, store: SessionStore, calls: list[Callable[[], Any]]) -> list[Any]:
    """What calls of as many threads answer or raise that are committed in one group, but for the first."""
    held = FileLock(path / names.WRITE_LOCK)
    held.acquire(1000)
    found: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            found[number] = calls[number]()
        except PerdureErrors as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda number=number: len(store._writer._queue) > number)  # type: ignore[misc]
    held.close()
    for thread in threads:
        thread.join()
    return found


def putting(store: SessionStore, key: str) -> Callable[[], Any]:
    return lambda: store.put(key, {}, None).version


def setting(key: bytes, value: bytes) -> Operation:
    return Operation(lambda stage: stage.put(key, value, Reason.CREATED, bytes(16)))


PerdureErrors = (UsageError, MetadataError, StorageError)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# -- sync_replicas ---------------------------------------------------------------------------------


def begin_pair(path: Path, store: SessionStore) -> None:
    store._log.lock_any()
    try:
        begin_cluster(store._log, Config(("n1", "n2"), 1))
    finally:
        store._log.unlock()
    store._log.words[Word.VOTERS_CONNECTED] = 1


def test_frames_that_are_not_committed_stay_pending_when_the_store_is_opened(
    open_one: Open, tmp_path: Path
) -> None:
    init_store(tmp_path / "store", node="n1", now_ms=1)
    first = open_one(Silent(), write_timeout_ms=50)
    begin_pair(tmp_path, first)
    with pytest.raises(Indeterminate):
        first.put("mine", {"n": 1}, None)
    first.close()
    again = open_one(Silent(), write_timeout_ms=50)
    assert again.peek("mine") is None
    assert again.fold() == 0
    assert again.count() == 0
    again._log.words[Word.COMMITTED] = again._log.words[Word.APPENDED]
    assert again.peek("mine") is not None


@pytest.mark.parametrize("call", ["create", "update", "put"])
def test_a_handle_from_before_sync_replicas_waits_for_replicas(
    open_one: Open, tmp_path: Path, call: str
) -> None:
    init_store(tmp_path / "store", node="n1", now_ms=1)
    first, early = open_one(Silent(), write_timeout_ms=50), open_one(Silent(), write_timeout_ms=50)
    begin_pair(tmp_path, first)
    if call == "update":
        with pytest.raises(Indeterminate):
            first.put("mine", {"n": 1}, None)
    calls: dict[str, Callable[[], Any]] = {
        "create": lambda: early.create({"n": 1}),
        "put": lambda: early.put("mine", {"n": 1}, None),
        "update": lambda: early.update("mine", lambda session: session.merge({"n": 2})),
    }
    with pytest.raises(Indeterminate):
        calls[call]()
    assert early.fold() == 0


def test_a_handle_follows_an_epoch_that_another_handle_of_the_node_began(
    open_one: Open, tmp_path: Path
) -> None:
    init_store(tmp_path / "store", node="n1", now_ms=1)
    first, early = open_one(), open_one()
    first._log.lock_any()
    begin_cluster(first._log, Config(("n1",), 0))
    first._log.unlock()
    early.put("mine", {"n": 1}, None)
    assert first.peek("mine") is not None


def test_a_conflict_with_what_is_not_committed_is_not_known_to_be_one(open_one: Open, tmp_path: Path) -> None:
    init_store(tmp_path / "store", node="n1", now_ms=1)
    store = open_one(Silent(), write_timeout_ms=50)
    begin_pair(tmp_path, store)
    with pytest.raises(Indeterminate):
        store.put("mine", {"n": 1}, None)
    with pytest.raises(Indeterminate):
        store.put("mine", {"n": 2}, None, if_version=0)
    store._log.words[Word.COMMITTED] = store._log.words[Word.APPENDED]
    store._view.advance()
    with pytest.raises(VersionConflictError):
        store.put("mine", {"n": 2}, None, if_version=0)


# -- groups ----------------------------------------------------------------------------------------


def test_a_call_behind_a_whole_group_is_committed_before_it_answers(open_one: Open) -> None:
    store = open_one()
    value = encode_session(1, 1, 1, 0, 0, {})
    for number in range(GROUP_OPERATIONS_MAX):
        store._writer._queue.append(setting(b"%d" % number, value))
    id = store.create({"n": 1})
    assert store.peek(id) is not None
    assert store.count() == GROUP_OPERATIONS_MAX + 1


def test_a_batch_that_fits_only_alone_does_not_fail_the_calls_beside_it(
    open_one: Open, tmp_path: Path
) -> None:
    store = open_one(write_timeout_ms=20_000)

    def large() -> str:
        with store.batch() as batch:
            for number in range(65_536):
                batch.create({"n": number})
        return "stored"

    calls = [putting(store, key) for key in ("a", "b", "c")]
    assert behind_the_lock(tmp_path / "store", store, [*calls, large]) == [1, 1, 1, "stored"]
    assert store.count() == 65_539


def test_a_batch_that_fails_half_way_fails_alone(open_one: Open, tmp_path: Path) -> None:
    store = open_one(write_timeout_ms=20_000)

    def refuse(_stage: Stage) -> None:
        raise MetadataError("refused")

    def bad() -> None:
        with store.batch() as batch:
            batch.put("x", {}, None)
            batch._add(refuse)

    calls = [putting(store, key) for key in ("a", "b")]
    found = behind_the_lock(tmp_path / "store", store, [*calls, bad, putting(store, "c")])
    assert isinstance(found.pop(2), MetadataError)
    assert found == [1, 1, 1]
    assert list(store.ids()) == ["a", "b", "c"]


# -- interruptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_read", [True, False])
def test_frames_whose_taking_broke_off_are_taken_again(
    open_one: Open, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    one, two = open_one(), open_one()
    one.put("mine", {"n": 1}, None)
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(two._log, "take_plain", None if is_read else interrupted)
        patch.setattr(two._view, "_entries", interrupted)
        with pytest.raises(KeyboardInterrupt):
            two.peek("mine")
    assert two.peek("mine") is not None
    two.put("other", {"n": 2}, None)
    two.fold()
    assert sorted(two.ids()) == ["mine", "other"]


def test_a_frame_that_was_appended_and_not_taken_is_taken_by_the_next_look(
    open_one: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_one()
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(store._view, "took", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put("mine", {"n": 1}, None)
    assert store.peek("mine") is not None


def test_a_fold_that_fails_behind_a_write_does_not_fail_the_write(
    open_one: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_one()
    monkeypatch.setattr("perdure.store.commit.FOLD_ENTRIES", 0)
    store._keeper._fold_at = 0
    held = FileLock(tmp_path / "store" / names.FOLD_LOCK)
    held.acquire(100)

    def refused() -> None:
        raise StorageError("no more readers")

    with monkeypatch.context() as patch:
        patch.setattr(store._view.backend, "refresh", refused)
        id = store.create({"n": 1})
        assert isinstance(store._keeper.last_error, StorageError)
    held.close()
    assert store.peek(id) is not None


@pytest.mark.parametrize(("left", "folds"), [(3, False), (30, True)])
def test_what_another_process_has_just_folded_is_not_folded_again_for_the_little_behind_it(
    open_one: Open, monkeypatch: pytest.MonkeyPatch, left: int, folds: bool
) -> None:
    monkeypatch.setattr("perdure.store.keeper.FOLD_ENTRIES", 40)
    store, other = open_one(), open_one()
    for number in range(100):
        store.create({"n": number})
    other.count()  # both have them in their tail maps
    folded_lsn = store._keeper.fold_now()
    for number in range(left):
        store.create({"n": number})
    other._keeper._fold_at = 1
    other.create({"n": 0})
    other._keeper.after_append()
    assert len(other._view.tail) == (0 if folds else left + 1)
    assert store._log.words[Word.FOLDED] == folded_lsn + (left + 1 if folds else 0)


@pytest.mark.parametrize("call", ["create", "put", "update"])
def test_a_wrong_durability_is_refused_before_anything_is_written(open_one: Open, call: str) -> None:
    store = open_one()
    store.put("mine", {"n": 1}, None)
    before = store.position()
    calls: dict[str, Callable[[], Any]] = {
        "create": lambda: store.create({}, durability="dsik"),
        "put": lambda: store.put("mine", {"n": 2}, None, durability="dsik"),
        "update": lambda: store.update("mine", lambda session: session.merge({"n": 2}), durability="dsik"),
    }
    with pytest.raises(UsageError):
        calls[call]()
    assert store.position() == before


# -- segments --------------------------------------------------------------------------------------


def die_behind_begin_segment(store: SessionStore) -> None:
    log = store._log
    log.lock()
    header = log.cursor.header
    assert header is not None
    log.begin_segment(header.epoch, header.primary, log.now_ms())
    log.unlock()


def test_a_tail_without_a_frame_is_gone_on_with_by_all_who_have_it_open(open_one: Open) -> None:
    first = open_one()
    first.put("mine", {"n": 1}, None)
    die_behind_begin_segment(first)
    first._opened.close()
    first._is_closed = True
    one, two = open_one(), open_one()
    one.put("mine", {"n": 2}, None)
    found = two.peek("mine")
    assert found is not None
    assert found.metadata == {"n": 2}


@pytest.mark.parametrize("boot", ["same", "other"])
def test_a_writer_goes_on_in_the_tail_that_another_one_left_without_a_frame(
    open_one: Open, tmp_path: Path, boot: str
) -> None:
    options: dict[str, Any] = {"boot_id": lambda: "same"}
    first, second = open_one(**options), open_one(**options)
    first.put("mine", {"n": 1}, None)
    assert second.peek("mine") is not None
    die_behind_begin_segment(first)
    id = second.create({"n": 2})
    second.flush()
    for store in (first, second):
        store._opened.close()
        store._is_closed = True
    shutil.rmtree(tmp_path / "store" / names.STATE)
    again = open_one(boot_id=lambda: boot)
    assert again.peek(id) is not None
    assert again.count() == 2


def test_a_flush_covers_segments_that_this_process_never_read(
    open_one: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_one(segment_bytes=2000)
    for number in range(30):
        first.put(f"k{number}", {"n": number}, None)
    first.fold()
    second = open_one(segment_bytes=2000)
    second.put("mine", {"n": 1}, None)
    flushed = second._log.words[Word.FLUSHED]
    files = list_segments(tmp_path / "store" / names.LOG)
    wanted = {
        os.stat(file.path).st_ino
        for file, following in zip(files, [*files[1:], None], strict=True)
        if following is None or following.first_lsn > flushed + 1
    }
    assert len(wanted) > 2
    synced: set[int] = set()
    real = os.fdatasync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", note)
    second._log.flush(second._log.cursor.at.lsn)
    assert wanted <= synced


def test_segments_that_were_passed_are_closed_once_another_process_synced_them(open_one: Open) -> None:
    writer, reader = open_one(segment_bytes=2000), open_one()
    for number in range(30):
        writer.put(f"k{number}", {"n": number}, None)
    assert reader.peek("k29") is not None
    assert len(reader._log.cursor.retired) >= 2
    writer.flush()
    reader._keeper._tick(1)
    assert reader._log.cursor.retired == []


# -- background work -------------------------------------------------------------------------------


def test_a_session_that_comes_anew_behind_a_sweep_expires_again(open_one: Open) -> None:
    clock = Clock()
    store = open_one(clock=clock)
    store.put("mine", {"n": 1}, 1000)
    store.fold()
    clock.ms += 5000
    assert store.cleanup_expired() == 1
    store.put("mine", {"n": 2}, 1000)
    store.fold()
    clock.ms += 5000
    assert store.cleanup_expired() == 1
    assert store.count() == 0


def test_refreshes_that_met_a_busy_lock_are_written_later(open_one: Open, tmp_path: Path) -> None:
    clock = Clock()
    store = open_one(clock=clock, write_timeout_ms=20)
    store.put("mine", {"n": 1}, 100_000, sliding=True)
    clock.ms += 90_000
    assert store.get("mine") is not None
    held = FileLock(tmp_path / "store" / names.WRITE_LOCK)
    held.acquire(100)
    with pytest.raises(LockTimeoutError):
        store._flush_touches()
    held.close()
    store._flush_touches()
    clock.ms += 90_000
    assert store.peek("mine") is not None


def test_a_flush_at_an_interval_that_failed_is_tried_again(
    open_one: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.store.commit import Durability

    store = open_one(durability=Durability.INTERVAL, interval_ms=1)
    store.put("mine", {"n": 1}, None)
    with monkeypatch.context() as patch:

        def busy(_lsn: int) -> None:
            raise LockTimeoutError("busy")

        patch.setattr(store._log, "flush", busy)
        with pytest.raises(BusyError):
            store._keeper._tick(1)
    store._keeper._tick(1)
    assert store._log.words[Word.FLUSHED] == store._log.words[Word.APPENDED]


def test_background_work_goes_on_after_an_error_of_any_kind(
    open_one: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_one(background=True)

    def broken(_tick: int) -> None:
        raise OSError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(store._keeper, "_tick", broken)
        wait_until(lambda: isinstance(store._keeper.last_error, OSError))
    wait_until(lambda: store._keeper.last_error is None)


class _JoinedInTheMiddle(deque[Operation]):
    """A queue that another thread joins while it is looked through for the first time."""

    def __init__(self, joining: Operation) -> None:
        super().__init__()
        self._joining: list[Operation] = [joining]

    def __iter__(self) -> Iterator[Operation]:
        looking = super().__iter__()
        if self._joining:
            self.append(self._joining.pop())
        return looking


def test_a_thread_that_joins_the_queue_while_a_group_is_taken_breaks_no_call(open_one: Open) -> None:
    store = open_one()
    joining = Operation(lambda stage: len(stage.parts), bytes(16))
    store._writer._queue = _JoinedInTheMiddle(joining)
    assert store.put("mine", {"n": 1}).version == 1
    assert store.peek("mine") is not None
    assert (joining.is_done, joining.result, joining.error) == (True, 1, None)


# -- fork ------------------------------------------------------------------------------------------


def test_a_child_that_closes_the_handle_leaves_the_parents_locks_alone(
    open_one: Open, tmp_path: Path
) -> None:
    store = open_one()
    store.put("mine", {"n": 1}, None)
    store._keeper._fold_lock.acquire(100)
    with store._view.mutex:  # another thread could hold it at the fork
        child = os.fork()
        if child == 0:
            code = 1
            try:
                try:
                    store.peek("mine")
                except ForkedError:
                    store.close()
                    code = 0
            finally:
                os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    other = FileLock(tmp_path / "store" / names.FOLD_LOCK)
    assert not other.try_acquire()
    store._keeper._fold_lock.release()
    assert other.try_acquire()
    other.close()


@pytest.mark.parametrize("call", ["fold", "cleanup_expired"])
def test_a_call_that_waits_for_a_fold_while_the_store_is_closed_says_so(open_one: Open, call: str) -> None:
    store = open_one()
    store.put("a", {}, None)
    found: list[BaseException] = []

    def run() -> None:
        try:
            getattr(store, call)()
        except BaseException as error:  # noqa: BLE001 - it is looked at below
            found.append(error)

    waiting = threading.Thread(target=run)
    with store._keeper._fold_threads:
        waiting.start()
        time.sleep(0.05)  # it is at the lock, or will find the store closed before it
        store._keeper._fold_lock.close()
    waiting.join()
    assert [type(error) for error in found] == [StoreClosedError]


def test_a_write_that_would_fold_while_the_store_is_closed_is_no_failure(open_one: Open) -> None:
    store = open_one()
    store._keeper._fold_lock.close()
    store._keeper._fold_at = 1
    assert store.put("a", {}, None).version == 1


def test_a_frame_is_not_acknowledged_once_the_log_is_of_another_epoch_though_the_role_was_looked_at(
    tmp_path: Path,
) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        store.create({})
        writer = store._writer
        at = writer.log.cursor.at
        assert writer.log.words[Word.GENERATION] == writer.log.generation  # another thread has looked
        writer.finish(at, Durability.OS, None)
        earlier = at._replace(epoch=at.epoch - 1)  # its frame was cut, and this epoch's stand in its place
        with pytest.raises(Indeterminate):
            writer.finish(earlier, Durability.OS, None)


@pytest.mark.parametrize("has_gate", [True, False])
def test_a_primary_that_was_left_alone_acknowledges_what_is_on_its_disk(
    tmp_path: Path, has_gate: bool
) -> None:
    """Its disk stands for those of the replicas, which durability `os` relies on with sync_replicas."""
    init_store(tmp_path, node="n1", now_ms=1)
    with SessionStore.open(tmp_path, gate=Silent() if has_gate else None) as store:
        store._log.lock_any()
        begin_cluster(store._log, Config(("n1", "n2", "w"), witnesses=("w",), policy="available"))
        store._log.unlock()
        words = store._log.words
        store.create({"n": 0})
        assert words[Word.FLUSHED] < words[Word.APPENDED]
        store._log.lock()
        alone = msgspec.structs.replace(store._log.config, degraded_from=1)
        store._log.change_config(alone)
        store._log.unlock()
        id = store.create({"n": 1})
        for change in (
            lambda: store.update(id, lambda session: session.merge({"n": 2})),
            lambda: store.touch(id),
            lambda: store.put("other", {"n": 3}),
            lambda: store.delete(id),
        ):
            assert words[Word.FLUSHED] == words[Word.APPENDED]
            change()
        assert words[Word.FLUSHED] == words[Word.APPENDED]
        with store.batch() as batch:
            batch.put("more", {"n": 4})
        assert words[Word.FLUSHED] == words[Word.APPENDED]
