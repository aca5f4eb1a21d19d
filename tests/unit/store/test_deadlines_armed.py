"""That every session keeps an armed deadline at or before its expiry, whatever changes and whoever folds."""

from __future__ import annotations

import random
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.store.committing import RandomIds
from perdure.store.fold import HASH_BYTES
from perdure.store.opening import OpenOptions, open_store
from perdure.store.session import NEVER_MS, expiry_of
from perdure.store.sessions import SessionStore
from perdure.store.tail_map import KEPT_MS, NEW_MS, UNKNOWN_MS, arm_after
from tests.support.machine import stop_background

FOR_EVER_MS = 1 << 62


@dataclass
class Clock:
    ms: int = 1_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


def open_quietly(path: Path, clock: Clock) -> SessionStore:
    """A handle without background work, so that the test alone decides when it folds."""
    options = OpenOptions(clock=clock)
    store = SessionStore(open_store(path, options), options, None)
    stop_background(store)
    return store


def armed_by_key(store: SessionStore) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = defaultdict(list)
    for deadline_ms, key in store._opened.backend.due(FOR_EVER_MS, 1_000_000):
        found[key].append(deadline_ms)
    return found


def check_armed(store: SessionStore) -> None:
    store.fold()
    armed = armed_by_key(store)
    scan = store._opened.backend.scan()
    try:
        for key, record in scan:
            expiry_ms = expiry_of(record, HASH_BYTES)
            if expiry_ms != NEVER_MS:
                assert min(armed[key], default=FOR_EVER_MS) <= expiry_ms, key
    finally:
        scan.close()


def change_at_random(source: random.Random, store: SessionStore, ids: list[str]) -> None:
    timeout_ms = source.choice([None, 1000, 60_000, 3_600_000])
    known = [id for id in ids if store.peek(id) is not None]
    what = source.randrange(8)
    if what <= 1 or not known:
        ids.append(store.create({"n": 1}, timeout_ms=timeout_ms))
    elif what == 2:
        store.put(source.choice(ids), {"n": 2}, timeout_ms, sliding=source.random() < 0.5)
    elif what == 3:
        store.update(source.choice(known), lambda session: session.merge({"n": 3}))
    elif what == 4:
        store.update(source.choice(known), lambda session: session.replace(timeout_ms=timeout_ms))
    elif what == 5:
        store.touch(source.choice(known))
    elif what == 6:
        store.delete(source.choice(known))
    else:
        with store.batch() as batch:
            batch.delete(source.choice(known))
            ids.append(batch.create({"n": 4}, timeout_ms=timeout_ms or 5000))
            batch.put(source.choice(ids), {"n": 5}, timeout_ms)


def test_sessions_that_change_at_random_keep_a_deadline_before_their_expiry(
    tmp_path: Path, seed: int
) -> None:
    source = random.Random(seed)
    clock = Clock()
    with open_quietly(tmp_path / "store", clock) as one, open_quietly(tmp_path / "store", clock) as other:
        ids: list[str] = []
        for _ in range(400):
            change_at_random(source, source.choice([one, other]), ids)
            clock.ms += source.choice([0, 1, 700, -5000, 30_000])
            if source.random() < 0.05:
                source.choice([one, other]).fold()
            if source.random() < 0.02:
                check_armed(source.choice([one, other]))
        check_armed(one)


def test_updates_that_only_extend_a_session_arm_no_further_deadline(tmp_path: Path) -> None:
    clock = Clock()
    with open_quietly(tmp_path / "store", clock) as store:
        id = store.create({})
        for number in range(20):
            clock.ms += 1000
            store.update(id, lambda session, n=number: session.merge({"n": n}))  # type: ignore[misc]
            if number % 3 == 0:
                store.fold()
        store.fold()
        assert len(armed_by_key(store)[id.encode()]) == 1


@pytest.mark.parametrize("asked", [KEPT_MS, NEW_MS, UNKNOWN_MS, 77])
@pytest.mark.parametrize("before", [None, KEPT_MS, NEW_MS, UNKNOWN_MS, 55])
def test_what_is_left_to_arm_never_loses_what_was_to_be_armed(before: int | None, asked: int) -> None:
    left = arm_after(None if before is None else (1, b"", before), asked)
    if before is None:
        assert left == asked
    elif before in (NEW_MS, 55):
        assert left in (NEW_MS, 55)
    elif before == UNKNOWN_MS:
        assert left != KEPT_MS
    else:
        assert left == asked


def test_ids_that_threads_take_at_once_are_all_different() -> None:
    ids = RandomIds()
    taken: list[list[bytes]] = [[] for _ in range(8)]

    def take(mine: list[bytes]) -> None:
        mine.extend(ids.take() for _ in range(5000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    everything = [id for mine in taken for id in mine]
    assert {len(id) for id in everything} == {16}
    assert len(set(everything)) == len(everything)


def test_a_batch_tells_the_fold_what_to_arm_for_sessions_of_the_default_lifetime(tmp_path: Path) -> None:
    store = open_quietly(tmp_path, Clock())
    with store.batch() as batch:
        plain = batch.create({})
        others = [
            batch.create({}, timeout_ms=5_000),
            batch.create({}, timeout_ms=5_000, max_lifetime_ms=2_000),
            batch.create({}, timeout_ms=None, max_lifetime_ms=9_000),
            batch.create({}, max_lifetime_ms=1_000),
        ]
        batch.create({}, timeout_ms=None)
    tail = store._opened.view.tail
    _, record, arm_ms = tail[plain.encode()]
    assert record is not None
    assert arm_ms == expiry_of(record, HASH_BYTES) != NEVER_MS
    assert all(tail[id.encode()][2] == NEW_MS for id in others)
    check_armed(store)
    assert set(armed_by_key(store)) == {id.encode() for id in (plain, *others)}
    store.close()


def test_sessions_of_a_batch_that_never_expire_by_default_arm_nothing(tmp_path: Path) -> None:
    options = OpenOptions(clock=Clock(), default_timeout_ms=None)
    store = SessionStore(open_store(tmp_path, options), options, None)
    stop_background(store)
    with store.batch() as batch:
        lasting = batch.create({})
        capped = batch.create({}, max_lifetime_ms=1_000)
    assert store._opened.view.tail[lasting.encode()][2] == NEW_MS
    check_armed(store)
    assert set(armed_by_key(store)) == {capped.encode()}
    store.close()
