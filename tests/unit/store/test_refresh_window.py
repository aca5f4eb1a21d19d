"""The refresh window: how it is stored, what it leaves unwritten, and that no refresh is lost or too late."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from perdure.store import names
from perdure.store.backend_sqlite import row_of
from perdure.store.errors import UsageError
from perdure.store.fold import HASH_BYTES, plan_deadlines, record_of
from perdure.store.lock import FileLock
from perdure.store.opening import init_store
from perdure.store.reading import COALESCED_MS
from perdure.store.session import (
    NEVER_MS,
    REFRESH_WINDOW_MS_MAX,
    TIMEOUT_MS_MAX,
    Session,
    encode_session,
    expiry_at,
    expiry_of,
    split_lifetime,
    with_window,
)
from perdure.store.sessions import SessionStore
from tests.support.fuzz import SEED, fuzz
from tests.support.machine import Clock, open_quietly

TIMEOUTS = st.one_of(st.integers(1, 2_000_000), st.integers(1, TIMEOUT_MS_MAX))
WINDOWS = st.one_of(st.none(), st.integers(0, REFRESH_WINDOW_MS_MAX))
WEEK_MS = 7 * 86_400_000
Open = Callable[..., SessionStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_one(tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """Opens handles of one store without background work."""
    opened: list[SessionStore] = []

    def open_it(**options: Any) -> SessionStore:
        store = open_quietly(tmp_path / "store", clock=clock, **options)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        store.close()


def is_written_by(store: SessionStore, id: str) -> bool:
    """Does a get append anything?"""
    before = store.position()
    assert store.get(id) is not None
    return store.position() != before


# -- as it is stored -------------------------------------------------------------------------------


@fuzz(200, timeout=TIMEOUTS, window=WINDOWS)
def test_a_lifetime_word_when_it_is_split_gives_timeout_and_window(timeout: int, window: int | None) -> None:
    expected = min(timeout // 10, 60_000) if window is None else window
    assert split_lifetime(with_window(timeout, window)) == (timeout, expected)
    assert with_window(timeout, None) == timeout, "what has no window of its own is stored as ever"
    assert with_window(0, window) == 0


@fuzz(300, accessed=st.integers(0, 1 << 45), timeout=TIMEOUTS, window=WINDOWS, cap=st.integers(0, 1 << 46))
def test_expiry_when_computed_anywhere_is_deadline_plus_window_and_at_most_the_cap(
    accessed: int, timeout: int, window: int | None, cap: int
) -> None:
    word = with_window(timeout, window)
    value = encode_session(1, 0, accessed, word, cap, {})
    deadline = accessed + timeout
    expiry = deadline + split_lifetime(word)[1]
    if cap:
        deadline, expiry = min(deadline, cap), min(expiry, cap)
    assert expiry_at(accessed, word, cap) == expiry_of(value) == expiry
    record = record_of(b"key", value)
    assert list(plan_deadlines([(b"key", record)], {})) == [(expiry, b"key")]
    session = Session("key", value)
    assert (session.timeout_ms, session.expires_at) == (timeout, deadline)
    assert session.refresh_window_ms == split_lifetime(word)[1]
    assert row_of(b"key", record)[4:6] == (timeout, deadline)


@pytest.mark.parametrize("high", [1, 500, 0xFFFF])
def test_a_window_without_a_timeout_means_nothing(high: int) -> None:
    word = high << 48
    assert expiry_at(1000, word, 0) == NEVER_MS
    assert expiry_at(1000, word, 5000) == 5000
    session = Session("key", encode_session(1, 0, 1000, word, 0, {}))
    assert session.timeout_ms is session.expires_at is session.refresh_window_ms is None
    record = record_of(b"key", encode_session(1, 0, 1000, word, 0, {}))
    assert list(plan_deadlines([(b"key", record)], {})) == []


def test_a_session_that_is_read_with_a_window_and_no_timeout_never_expires(
    open_one: Open, clock: Clock
) -> None:
    store = open_one()
    value = encode_session(1, clock.ms, clock.ms, 5 << 48, 0, {"n": 1})
    store._writer.create(b"strange", value, bytes(16), clock.ms, NEVER_MS)
    clock.ms += WEEK_MS
    assert not is_written_by(store, "strange")


def test_changes_keep_the_window_that_a_session_was_given(open_one: Open) -> None:
    store = open_one(refresh_window_ms=2000)
    other = open_one()
    id = store.create({}, timeout_ms=50_000)
    assert other.patch(id, {"n": 1}).refresh_window_ms == 2000
    assert other.update(id, lambda session: session.merge({"n": 2})).refresh_window_ms == 2000
    changed = other.update(id, lambda session: session.replace(timeout_ms=100_000))
    assert (changed.timeout_ms, changed.refresh_window_ms) == (100_000, 2000)
    other.touch(id)
    assert other[other.regenerate_id(id)].refresh_window_ms == 2000
    assert other.put("put", {}, 50_000, sliding=True).refresh_window_ms == 5000
    assert store.put("put", {}, 50_000, sliding=True).refresh_window_ms == 2000
    absolute = store.put("put", {}, 50_000)
    assert (absolute.timeout_ms, absolute.refresh_window_ms) == (None, None)


def test_a_session_when_its_window_is_replaced_has_another(open_one: Open) -> None:
    store = open_one()
    id = store.create({}, timeout_ms=50_000)

    def with_replaced(**changes: Any) -> Session:
        return store.update(id, lambda session: session.replace(**changes))

    assert with_replaced(refresh_window_ms=0).refresh_window_ms == 0
    assert with_replaced(group="g").refresh_window_ms == 0
    assert with_replaced(refresh_window_ms=None).refresh_window_ms == 5000
    assert with_replaced(timeout_ms=None, refresh_window_ms=7).refresh_window_ms is None
    for wrong in (-1, REFRESH_WINDOW_MS_MAX + 1, 1.5, "1"):
        with pytest.raises(UsageError, match="refresh_window_ms"):
            with_replaced(refresh_window_ms=wrong)


def test_a_batch_gives_the_window_of_its_store(open_one: Open) -> None:
    store = open_one(refresh_window_ms=0)
    with store.batch() as batch:
        created = batch.create({})
        batch.put("sliding", {}, 50_000, sliding=True)
        batch.put("absolute", {}, 50_000)
    found = [store[id].refresh_window_ms for id in (created, "sliding", "absolute")]
    assert found == [0, 0, None]


@pytest.mark.parametrize("wrong", [-1, 60_001, 1.5, "none"])
def test_a_window_that_cannot_be_stored_is_refused_before_anything_is_made(
    tmp_path: Path, wrong: Any
) -> None:
    with pytest.raises(UsageError, match="refresh_window_ms"):
        SessionStore.open(tmp_path / "store", refresh_window_ms=wrong)
    assert not (tmp_path / "store").exists()


# -- what it leaves unwritten ----------------------------------------------------------------------


@pytest.mark.parametrize("timeout_ms", [1000, 3_600_000])
def test_with_a_window_of_0_every_use_is_written_at_once_and_expiry_is_exact(
    open_one: Open, clock: Clock, timeout_ms: int
) -> None:
    store, other = open_one(refresh_window_ms=0), open_one()
    id = store.create({}, timeout_ms=timeout_ms)
    assert not is_written_by(store, id), "nothing has changed in this millisecond"
    for _ in range(3):
        clock.ms += timeout_ms
        assert is_written_by(store, id)
        seen = other.peek(id)
        assert seen is not None
        assert seen.last_accessed == clock.ms
    clock.ms += timeout_ms
    assert store.peek(id) is not None
    clock.ms += 1
    assert store.get(id) is other.get(id) is None
    assert store.cleanup_expired() == 1


def test_within_the_window_nothing_is_written_and_behind_it_the_refresh_waits_for_others(
    open_one: Open, clock: Clock
) -> None:
    store = open_one(refresh_window_ms=5000)
    id = store.create({}, timeout_ms=3_600_000)
    clock.ms += 5000
    assert store.get(id) is not None
    assert not store._touches
    clock.ms += 1
    before = store.position()
    assert store.get(id) is not None
    assert store.position() == before
    store._flush_touches()
    assert store[id].last_accessed == clock.ms


def test_a_use_shortly_before_the_end_is_written_at_once(open_one: Open, clock: Clock) -> None:
    store = open_one()
    id = store.create({}, timeout_ms=100_000)
    clock.ms += 110_000 - COALESCED_MS
    assert not is_written_by(store, id)
    store._touches.clear()
    clock.ms += 1
    assert is_written_by(store, id)
    store._touches.clear()
    clock.ms += 100_000
    assert store.peek(id) is not None


def test_a_refresh_leaves_the_armed_deadline_where_it_is(open_one: Open, clock: Clock) -> None:
    store = open_one(refresh_window_ms=0)
    id = store.create({}, timeout_ms=10_000)
    store.fold()
    armed = store._opened.backend.due(1 << 62, 10)
    for _ in range(5):
        clock.ms += 2000
        assert store.get(id) is not None
        store.fold()
        assert store._opened.backend.due(1 << 62, 10) == armed
    clock.ms += 5000
    assert store.cleanup_expired() == 0
    assert [at for at, _ in store._opened.backend.due(1 << 62, 10)] == [clock.ms + 5000]


def test_a_refresh_revives_no_session_that_had_expired_before_the_use(open_one: Open, clock: Clock) -> None:
    store = open_one()
    store.put("mine", {}, 100_000, sliding=True)
    clock.ms += 50_000
    assert store.get("mine") is not None
    store.put("mine", {}, 10_000, sliding=True)  # waits no longer: it was replaced since
    clock.ms += 60_000
    store._touches[b"mine"] = clock.ms  # as from a clock that was ahead
    store._flush_touches()
    assert store.peek("mine") is None
    assert store.cleanup_expired() == 1


def test_a_use_inside_an_update_function_is_refreshed_afterwards(open_one: Open, clock: Clock) -> None:
    store = open_one(refresh_window_ms=0)
    store.put("mine", {}, 1000, sliding=True)
    store.put("other", {}, 1000, sliding=True)
    clock.ms += 900

    def change(session: Session) -> Session:
        assert store.get("other") is not None
        return session.merge({"n": 1})

    store.update("mine", change)
    store._flush_touches()
    clock.ms += 900
    assert store.peek("other") is not None


def test_a_use_that_cannot_be_written_is_no_failure_of_the_reader(
    open_one: Open, clock: Clock, tmp_path: Path
) -> None:
    store = open_one(refresh_window_ms=0, write_timeout_ms=20)
    store.put("mine", {}, 1000, sliding=True)
    clock.ms += 900
    held = FileLock(tmp_path / "store" / names.WRITE_LOCK)
    held.acquire(100)
    assert store.get("mine") is not None
    held.close()
    store._flush_touches()
    clock.ms += 900
    assert store.peek("mine") is not None
    assert store.stats()["refreshes_dropped"] == 0


@pytest.mark.parametrize("window_ms", [0, 5000])
def test_on_a_node_that_is_not_primary_a_refresh_is_counted_and_not_raised(
    tmp_path: Path, clock: Clock, window_ms: int
) -> None:
    from perdure.store.control import Config
    from perdure.store.opening import begin_cluster
    from perdure.store.promise import Promise

    init_store(tmp_path / "store", node="n1", now_ms=1)
    with open_quietly(tmp_path / "store", clock=clock, refresh_window_ms=window_ms) as store:
        store._log.lock_any()
        begin_cluster(store._log, Config(("n1", "n2"), 0))
        store._log.unlock()
        store.put("mine", {}, 60_000, sliding=True)
        store._log.lock_any()
        store._log.give_promise(Promise(2, "n2"))
        store._log.unlock()
        clock.ms += 30_000
        assert store.get("mine") is not None
        store._flush_touches()
        assert store.stats()["refreshes_dropped"] == 1
        assert not store._touches


@pytest.mark.parametrize("seed", [1, 2, 3, 0])
def test_sessions_that_processes_use_in_time_are_never_lost_while_others_sweep(
    tmp_path: Path, seed: int
) -> None:
    seed = seed or SEED
    print(f"PERDURE_SEED={seed}")
    source = random.Random(seed)
    clock = Clock()
    windows = [None, 0, 700, 20_000]
    handles = [open_quietly(tmp_path / "store", clock=clock, refresh_window_ms=window) for window in windows]
    sessions: dict[str, tuple[int, int, int]] = {}
    try:
        for _ in range(40):
            timeout_ms = source.choice([700, 3_000, 40_000, 700_000])
            id = source.choice(handles).create({}, timeout_ms=timeout_ms)
            session = handles[0].peek(id)
            assert session is not None
            assert session.refresh_window_ms is not None
            sessions[id] = (timeout_ms, session.refresh_window_ms, clock.ms)
        for step in range(1500):
            clock.ms += source.choice([1, 20, 100, 400])
            for id, (timeout_ms, window_ms, used_ms) in list(sessions.items()):
                idle_ms = clock.ms - used_ms
                if source.random() < 0.05 or idle_ms > timeout_ms - 400:
                    found = source.choice(handles).get(id)
                    if idle_ms <= timeout_ms:
                        assert found is not None, (step, id)
                    elif idle_ms > timeout_ms + window_ms:
                        assert found is None, (step, id)
                    if found is None:
                        del sessions[id]
                    else:
                        sessions[id] = (timeout_ms, window_ms, clock.ms)
            if step % 2:
                for handle in handles:
                    handle._flush_touches()
            if step % 20 == 0:
                source.choice(handles).cleanup_expired()
        assert sessions, "some were used in time all along"
    finally:
        for handle in handles:
            handle.close()


def test_a_record_keeps_its_hash_in_front_of_the_word() -> None:
    value = encode_session(1, 0, 1000, with_window(5000, 0), 0, {})
    assert expiry_of(record_of(b"key", value), HASH_BYTES) == 6000
