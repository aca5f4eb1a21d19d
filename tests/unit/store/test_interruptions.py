"""Calls that are broken off, or closed under: nothing is left held, done later or lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.store import (
    Indeterminate,
    NoQuorumError,
    PoisonedError,
    ReentrantWriteError,
    SessionStore,
    StoreClosedError,
)
from perdure.store.commit import Operation
from perdure.store.control import Config
from perdure.store.event import Reason
from perdure.store.lock import FileLock
from perdure.store.opening import OpenOptions, begin_cluster, init_store, open_store
from perdure.store.page import Word
from perdure.store.session import encode_session
from perdure.store.stage import Stage
from perdure.store.view import View
from tests.recovery.stores import contents
from tests.support.machine import stop_background

DEADLINE_S = 20.0
VALUE = encode_session(1, 1, 1, 0, 0, {"n": 1})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "store", write_timeout_ms=5000) as opened:
        yield opened


def putting(key: bytes) -> Operation:
    return Operation(lambda stage: stage.put(key, VALUE, Reason.REPLACED, b"o" * 16), b"o" * 16)


def check_rebuilt(path: Path) -> None:
    """The state that the log gives is the state."""
    with SessionStore.open(path) as store:
        expected, digest = contents(store), store.stats()["digest"]
    for state in path.glob("state*"):
        state.rename(path / "gone")
    with SessionStore.open(path) as store:
        assert contents(store) == expected
        assert store.stats()["digest"] == digest


class Once:
    """Raises KeyboardInterrupt the first time, as a signal's handler would; then does what it stands for."""

    def __init__(self, real: Callable[..., Any], *, behind: bool = False) -> None:
        self.real, self.behind, self.left = real, behind, 1

    def __get__(self, owner: object, _kind: type) -> Callable[..., Any]:
        return lambda *arguments, **named: self(owner, *arguments, **named)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.left and not self.behind:
            self.left = 0
            raise KeyboardInterrupt
        result = self.real(*arguments, **named)
        if self.left:
            self.left = 0
            raise KeyboardInterrupt
        return result


def test_operations_of_a_group_when_its_leader_is_interrupted_are_committed_by_the_others(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store._writer
    theirs = putting(b"theirs")
    writer._queue.append(theirs)
    monkeypatch.setattr(type(writer), "_append_some", Once(type(writer)._append_some))
    with pytest.raises(KeyboardInterrupt):
        store.put("mine", {})
    assert list(writer._queue) == [theirs]
    store.put("other", {})
    assert theirs.is_done and theirs.error is None
    assert sorted(store.ids()) == ["other", "theirs"]


def test_operations_of_a_group_when_its_leader_is_interrupted_behind_the_append_are_not_done_twice(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    writer = store._writer
    theirs = putting(b"theirs")
    writer._queue.append(theirs)
    monkeypatch.setattr(View, "took", Once(View.took))
    with pytest.raises(KeyboardInterrupt):
        store.put("mine", {})
    assert theirs.is_done and isinstance(theirs.error, Indeterminate)
    assert theirs.error.operation_id == (b"o" * 16).hex()
    assert "was interrupted" in str(theirs.error)
    assert not writer._queue
    assert sorted(store.ids()) == ["mine", "theirs"]
    store.close()
    check_rebuilt(tmp_path / "store")


def test_a_change_when_it_was_interrupted_while_it_waited_is_not_done_later(
    store: SessionStore, tmp_path: Path
) -> None:
    store.put("mine", {"n": 0}, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store._log), "lock", Once(type(store._log).lock))
        with pytest.raises(KeyboardInterrupt):
            store.put("mine", {"n": "stale"}, None)
    store.update("mine", lambda session: session.merge({"n": 3}))
    store.create({})
    assert store["mine"].metadata == {"n": 3}


@pytest.mark.parametrize("call", ["create", "update", "put"])
@pytest.mark.parametrize("behind", [False, True])
def test_the_locks_when_a_write_is_interrupted_as_it_takes_them_are_free(
    store: SessionStore, tmp_path: Path, call: str, behind: bool
) -> None:
    store.put("mine", {"n": 0}, None)
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: store.create({}),
        "update": lambda: store.update("mine", lambda session: session.merge({"n": 1})),
        "put": lambda: store.put("mine", {"n": 1}, None),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store._log), "locked", Once(type(store._log).locked, behind=behind))
        patch.setattr(type(store._log), "lock", Once(type(store._log).lock, behind=behind))
        with pytest.raises(KeyboardInterrupt):
            calls[call]()
    held = FileLock(store._log.write_lock.path)
    assert held.try_acquire()
    held.close()
    assert not store._writer.threads.locked()
    assert store._view.mutex.acquire(timeout=DEADLINE_S)  # the store's own thread may have it for a moment
    store._view.mutex.release()
    calls[call]()


def test_a_stage_when_a_change_broke_off_half_way_is_made_anew(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit = Stage._emit
    broken = [True]

    def emit_once_not(self: Stage, *arguments: Any) -> None:
        if broken:
            broken.clear()
            raise ValueError("between the two")
        emit(self, *arguments)

    monkeypatch.setattr(Stage, "_emit", emit_once_not)
    writer = store._writer
    never, other = putting(b"never"), putting(b"other")
    writer._queue.extend([never, other])
    with writer.threads:
        writer._commit()
        writer._commit()
    assert isinstance(never.error, ValueError) and other.error is None
    assert list(store.ids()) == ["other"]
    store.close()
    check_rebuilt(tmp_path / "store")


def test_pending_frames_when_their_showing_is_interrupted_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(tmp_path / "store") as store, SessionStore.open(tmp_path / "store") as reader:
        stop_background(reader)
        store.put("mine", {"n": 1}, None)
        view = reader._view
        with view.mutex:
            view.needs_commit = True  # as while frames wait for replicas
            monkeypatch.setattr(view, "follow_config", lambda: None)
            reader._log.take_plain = None
            view.catch_up()
            assert len(view.pending_frames) == 1
            reader._log.words[Word.COMMITTED] = reader._log.cursor.at.lsn
            monkeypatch.setattr(View, "_show", Once(View._show))
            with pytest.raises(KeyboardInterrupt):
                view.advance()
            assert len(view.pending_frames) == 1
            view.advance()
            assert not view.pending_frames
            assert b"mine" in view.tail


def test_close_waits_for_writers_and_no_call_fails_falsely(tmp_path: Path) -> None:
    path = tmp_path / "store"
    acknowledged: list[str] = []
    failed: list[BaseException] = []
    store = SessionStore.open(path)

    def write(number: int) -> None:
        try:
            for step in range(100_000):
                id = f"{number}-{step}"
                store.put(id, {}, None)
                acknowledged.append(id)
        except (StoreClosedError, Indeterminate) as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + DEADLINE_S
    while len(acknowledged) < 50 and time.monotonic() < until:
        time.sleep(0.001)
    store.close()
    for thread in threads:
        thread.join()
    assert len(failed) == 4
    refused = sum(isinstance(error, StoreClosedError) for error in failed)
    with SessionStore.open(path) as again:
        there = set(again.ids())
    assert there >= set(acknowledged)
    assert len(there) <= len(acknowledged) + 4 - refused


def test_close_inside_an_update_function_is_refused(store: SessionStore) -> None:
    store.put("mine", {}, None)

    def close(session: Any) -> Any:
        store.close()
        return session

    with pytest.raises(ReentrantWriteError):
        store.update("mine", close)
    assert store.exists("mine")


def test_close_when_its_last_flush_fails_says_so_and_gives_all_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore.open(tmp_path / "store", durability="interval", interval_ms=60_000)
    store.create({})

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fdatasync", fail)
    with pytest.raises(PoisonedError):
        store.close()
    with pytest.raises(StoreClosedError):
        store.create({})
    store.close()


def test_a_sweep_when_the_tail_is_full_does_not_wait_for_itself(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("mine", {}, 1)
    store.fold()
    time.sleep(0.2)
    monkeypatch.setattr("perdure.store.commit.TAIL_ENTRIES_MAX", -1)
    began = time.monotonic()
    assert store.cleanup_expired() == 1
    assert time.monotonic() - began < 4  # its deadline is 5 s


def test_a_handle_without_a_way_to_replicas_refuses_before_it_appends(tmp_path: Path) -> None:
    path = tmp_path / "store"
    init_store(path, node="n1", now_ms=1_000)
    options = OpenOptions()
    with SessionStore(open_store(path, options), options, None) as store:
        store._log.lock_any()
        begin_cluster(store._log, Config(("n1", "n2"), 1))
        store._log.unlock()
        store._log.words[Word.VOTERS_CONNECTED] = 1
        before = store._log.cursor.at
        for call in (lambda: store.create({}), lambda: store.put("mine", {})):
            with pytest.raises(NoQuorumError, match="no way to them"):
                call()
        assert store._log.cursor.at == before
