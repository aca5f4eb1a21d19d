"""The capacity limit: the least recently used session makes room, as a logged event."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.store import SessionStore, UsageError
from perdure.store.backends import BACKENDS
from perdure.store.cursor import LogCursor
from perdure.store.errors import BacklogError
from perdure.store.event import Kind, Reason
from tests.support.machine import stop_background
from tests.unit.store.test_labels import SteppingClock, opened


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock()


@pytest.fixture
def store(tmp_path: Path, backend: str, clock: SteppingClock) -> Iterator[SessionStore]:
    with opened(tmp_path / "store", backend, clock, sessions_max=10) as store:
        yield store


def test_a_new_session_takes_the_place_of_the_least_recently_used(
    store: SessionStore, clock: SteppingClock
) -> None:
    used: OrderedDict[str, None] = OrderedDict()
    for number in range(200):
        clock.ms += 60_001
        if number % 3 == 2:
            for id in list(used)[1:3]:
                store.touch(id)
                used.move_to_end(id)
                clock.ms += 1
        id = store.create({"n": number}, timeout_ms=None)
        used[id] = None
        if len(used) > 10:
            used.popitem(last=False)
        assert set(store.ids()) == set(used)
        if number % 17 == 0:
            store.fold()


@pytest.mark.parametrize("is_under_way", [False, True])
def test_refreshes_by_get_count_as_use(
    store: SessionStore, clock: SteppingClock, monkeypatch: pytest.MonkeyPatch, is_under_way: bool
) -> None:
    """Also those that another thread is writing at this moment."""
    stop_background(store)
    ids = []
    for _ in range(10):
        ids.append(store.create(timeout_ms=3_600_000))
        clock.ms += 1000
    clock.ms += 400_000
    for id in ids[:5]:
        assert store.get(id)
    clock.ms += 1000
    commit, has_begun, goes_on = store._writer.commit, threading.Event(), threading.Event()

    def commit_late(*arguments: Any, **named: Any) -> Any:
        if threading.current_thread() is flushing:
            has_begun.set()
            assert goes_on.wait(20)
        return commit(*arguments, **named)

    flushing = threading.Thread(target=store.flush)
    if is_under_way:
        monkeypatch.setattr(store._writer, "commit", commit_late)
        flushing.start()
        assert has_begun.wait(20)
    new = [store.create(timeout_ms=3_600_000) for _ in range(5)]
    goes_on.set()
    if is_under_way:
        flushing.join()
    assert set(store.ids()) == {*ids[:5], *new}


def test_an_eviction_is_an_event_in_the_frame_of_the_creation(
    store: SessionStore, clock: SteppingClock
) -> None:
    first = store.put("first", {}, None)
    clock.ms += 1
    for number in range(9):
        store.put(str(number), {}, None)
    with store.batch() as batch:
        batch.put("x", {}, None)
    assert first.id not in store
    kinds = [
        (kind, reason, key)
        for kind, reason, operation, key, _ in events_of(store)
        if operation.hex() == batch.operation_id
    ]
    assert kinds == [(Kind.PUT, Reason.REPLACED, b"x"), (Kind.DELETE, Reason.EVICTED, b"first")]


def test_replacing_a_session_evicts_none(store: SessionStore) -> None:
    for number in range(10):
        store.put(str(number), {}, None)
    for number in range(10):
        store.put(str(number), {"again": True}, None)
    assert store.count() == 10


def test_a_batch_beyond_the_limit_is_refused_and_changes_nothing(store: SessionStore) -> None:
    store.put("a", {}, None)
    batch = store.batch()
    for number in range(11):
        batch.put(str(number), {}, None)
    with pytest.raises(BacklogError, match="holds its 10 sessions"), batch:
        pass
    assert list(store.ids()) == ["a"]
    with store.batch() as batch:
        for number in range(10):
            batch.put(str(number), {}, None)
    assert list(store.ids()) == [str(number) for number in range(10)]


@pytest.mark.parametrize("added", [25, 60, 100])
def test_a_large_batch_takes_the_place_of_as_many_sessions(
    tmp_path: Path, backend: str, clock: SteppingClock, monkeypatch: pytest.MonkeyPatch, added: int
) -> None:
    monkeypatch.setattr("perdure.store.capacity.EVICT_AT_ONCE", 20)
    monkeypatch.setattr("perdure.store.capacity.LOOK_AT", 10)
    monkeypatch.setattr("perdure.store.capacity.FIND_AT_ONCE", 10)
    with opened(tmp_path / "store", backend, clock, sessions_max=100) as store:
        ids = []
        for number in range(100):
            clock.ms += 1
            ids.append(store.put(f"{(number * 37) % 100:02d}", {}, None).id)
        clock.ms += 1
        with store.batch() as batch:
            ids += [batch.create(timeout_ms=None) for _ in range(added)]
        assert set(store.ids()) == set(ids[-100:])


def test_a_store_that_holds_more_shrinks_to_its_limit(
    tmp_path: Path, backend: str, clock: SteppingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.capacity.EVICT_AT_ONCE", 30)
    monkeypatch.setattr("perdure.store.capacity.BUILD_AT_ONCE", 37)
    with opened(tmp_path / "store", backend, clock) as store:
        ids = []
        for number in range(100):
            clock.ms += 1
            ids.append(store.put(f"{(number * 37) % 100:02d}", {}, None).id)
    with opened(tmp_path / "store", None, clock, sessions_max=20) as store:
        for number in range(5):
            clock.ms += 1
            ids.append(store.put(f"new{number}", {}, None).id)
        assert set(store.ids()) == set(ids[-20:])


def test_threads_and_handles_that_evict_at_once_keep_the_limit(
    tmp_path: Path, backend: str, clock: SteppingClock
) -> None:
    stores = [opened(tmp_path / "store", backend, clock, sessions_max=50) for _ in range(2)]
    failed: list[BaseException] = []

    def create(store: SessionStore) -> None:
        try:
            for _ in range(150):
                clock.ms += 1
                store.create(timeout_ms=None)
                assert store.count() <= 50
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            failed.append(error)

    threads = [threading.Thread(target=create, args=(store,)) for store in stores for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert not failed, failed
        assert stores[0].count() == stores[1].count() == 50
    finally:
        for store in stores:
            store.close()


def test_a_limit_that_is_none_is_refused(tmp_path: Path) -> None:
    for wrong in (0, -1, 1.5, "10"):
        with pytest.raises(UsageError, match="max_sessions"):
            SessionStore.open(tmp_path / "store", max_sessions=wrong)  # type: ignore[arg-type]


def events_of(store: SessionStore) -> list[tuple[int, int, bytes, bytes, Any]]:
    log = store._log
    cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key, log.identity.shard)
    try:
        cursor.seek(0)
        found = []
        while run := cursor.read():
            for offset, frame in run.frames:
                found += run.events(offset, frame)
        return found
    finally:
        cursor.close()
