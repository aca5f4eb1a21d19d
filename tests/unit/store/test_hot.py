"""Hot sessions: what is read often is kept, and never served once the store holds something else."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.store.backends import BACKENDS
from perdure.store.errors import UsageError
from perdure.store.hot import ENTRY_BYTES, HotSessions
from perdure.store.sessions import SessionStore
from tests.support.machine import Clock, open_quietly

HOUR_MS = 3_600_000
Open = Callable[..., SessionStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=BACKENDS)
def open_one(tmp_path: Path, clock: Clock, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens handles of one store, on each back end, without background work."""
    opened: list[SessionStore] = []

    def open_it(**options: Any) -> SessionStore:
        store = open_quietly(tmp_path / "store", clock=clock, backend=request.param, **options)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        store.close()


def kept(store: SessionStore) -> set[str]:
    hot = store._view.hot
    return {key.decode() for key in (*hot.young, *hot.old)}


def heat(store: SessionStore, id: str) -> None:
    """Have it folded and kept."""
    store.fold()
    for _ in range(3):
        assert store.peek(id) is not None
    assert id in kept(store)


def number(store: SessionStore, id: str) -> Any:
    found = store.peek(id)
    return None if found is None else found.metadata["n"]


def test_what_is_read_again_is_kept_and_read_as_it_is_stored(open_one: Open) -> None:
    store = open_one()
    store.put("s", {"n": 1}, group="g", tags=["t"])
    first = store.peek("s")
    heat(store, "s")
    assert first is not None
    again = store.get("s")
    assert again is not None and again.to_dict() == first.to_dict()
    again.metadata["n"] = 2
    assert number(store, "s") == 1


def test_one_look_keeps_nothing(open_one: Open) -> None:
    store = open_one()
    ids = [store.create({"n": n}) for n in range(300)]
    store.fold()
    for id in ids:
        store.peek(id)
    assert len(kept(store)) < 10


@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("by_another", [False, True])
def test_a_change_is_seen_at_once_and_behind_the_fold(
    open_one: Open, is_folded: bool, by_another: bool
) -> None:
    store = open_one()
    writer = open_one() if by_another else store
    changes: list[Callable[[], object]] = [
        lambda: writer.patch("s", {"n": 7}),
        lambda: writer.update("s", lambda session: session.merge({"n": 7})),
        lambda: writer.put("s", {"n": 7}),
    ]
    for n, change in enumerate(changes):
        store.put("s", {"n": n})
        heat(store, "s")
        change()
        if is_folded:
            writer.fold()
        assert number(store, "s") == 7
        assert number(store, "s") == 7
    heat(store, "s")
    writer.delete("s")
    if is_folded:
        writer.fold()
    assert store.peek("s") is None and not store.exists("s")


def test_a_kept_session_expires(open_one: Open, clock: Clock) -> None:
    store = open_one()
    store.put("idle", {"n": 1}, HOUR_MS)
    capped = store.create({"n": 2}, timeout_ms=None, max_lifetime_ms=HOUR_MS)
    heat(store, "idle")
    heat(store, capped)
    clock.ms += HOUR_MS - 1
    assert number(store, "idle") == 1 and number(store, capped) == 2
    clock.ms += 2
    assert store.peek(capped) is None
    clock.ms += HOUR_MS
    assert store.peek("idle") is None and store.get("idle") is None


def test_a_get_of_a_kept_session_refreshes_it(open_one: Open, clock: Clock) -> None:
    store = open_one()
    store.put("s", {"n": 1}, HOUR_MS, sliding=True)
    heat(store, "s")
    for _ in range(5):
        clock.ms += HOUR_MS // 2
        assert store.get("s") is not None
        store._flush_touches()
        heat(store, "s")


def test_sessions_of_another_state_are_not_served(open_one: Open) -> None:
    """Frames that this handle has not followed are in the state already: all that was kept is forgotten."""
    store, writer = open_one(), open_one()
    store.put("s", {"n": 1})
    heat(store, "s")
    for _ in range(200):
        writer.patch("s", {"n": 2})
    writer.fold()
    store._view.release()
    assert [number(store, "s") for _ in range(3)] == [2, 2, 2]


def test_nothing_is_kept_with_a_budget_of_none(open_one: Open) -> None:
    store = open_one(hot_bytes=0)
    store.put("s", {"n": 1})
    store.fold()
    for _ in range(5):
        assert number(store, "s") == 1
    assert not kept(store)
    with pytest.raises(UsageError, match="hot_bytes"):
        open_one(hot_bytes=-1)


def test_what_is_kept_stays_within_the_budget_and_what_is_read_again_stays() -> None:
    hot = HotSessions(100 * (ENTRY_BYTES + 100))
    entry = (bytes(100), 48, 0, 0, 0, 0)
    hot.keep(b"often", entry)
    for n in range(1000):
        hot.keep(b"%d" % n, entry)
        if b"often" in hot.old:
            hot.keep(b"often", entry)
        assert len(hot.young) + len(hot.old) <= 100
    assert b"often" in hot.young or b"often" in hot.old
    hot.keep(b"large", (bytes(100 * ENTRY_BYTES), 48, 0, 0, 0, 0))
    assert b"large" not in hot.young
    hot.forget([b"often", b"nobody"])
    assert b"often" not in hot.young and b"often" not in hot.old


def test_reads_beside_random_changes_by_two_handles_and_folds_are_never_stale(
    open_one: Open, seed: int
) -> None:
    chance = random.Random(seed)
    handles = [open_one(), open_one()]
    model: dict[str, int] = {}
    ids = [f"s{n}" for n in range(12)]
    hits = 0
    for step in range(3000):
        store, id = chance.choice(handles), chance.choice(ids)
        what = chance.random()
        if what < 0.72:
            hits += id in kept(store)
            assert number(store, id) == model.get(id), f"seed {seed}, step {step}"
        elif what < 0.82:
            store.put(id, {"n": step})
            model[id] = step
        elif what < 0.88 and id in model:
            store.patch(id, {"n": step})
            model[id] = step
        elif what < 0.92:
            store.delete(id)
            model.pop(id, None)
        elif what < 0.95 and id in model:
            new = store.regenerate_id(id)
            moved = model.pop(id)
            assert number(store, new) == moved and store.peek(id) is None
            store.delete(new)
        else:
            store.fold()
    assert hits > 100


def test_threads_that_read_beside_a_writer_never_see_a_session_go_back(open_one: Open) -> None:
    store = open_one()
    store.put("s", {"n": 0})
    heat(store, "s")
    stop, wrong = threading.Event(), []

    def read() -> None:
        last = 0
        while not stop.is_set():
            found = number(store, "s")
            if found is None or found < last:
                wrong.append((last, found))
            last = found

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for n in range(1, 600):
            store.patch("s", {"n": n})
            if n % 7 == 0:
                store.fold()
            assert number(store, "s") == n
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
