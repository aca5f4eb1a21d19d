"""Wall clocks that jump: while a store is open, across a new process, across a boot. Nothing expires for
it, and nothing is kept for ever.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.store.sessions import SessionStore
from tests.support.machine import HOUR_MS, Machine

MINUTE_MS = 60_000
TIMEOUT_MS = 30 * MINUTE_MS
WINDOW_MS = MINUTE_MS
JUMPS_MS = pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
SLOWEST, FASTEST = 8 / 7, 8 / 9
"""Real time that one ms of session time takes at the most and at the least."""


def fill(store: SessionStore) -> list[str]:
    """A hundred sessions that are idle for up to a minute, some with a largest lifetime."""
    return [
        store.create({"n": n}, timeout_ms=TIMEOUT_MS, max_lifetime_ms=2 * TIMEOUT_MS if n % 2 else None)
        for n in range(100)
    ]


def alive(store: SessionStore, ids: list[str]) -> int:
    return sum(store.peek(id) is not None for id in ids)


def check_expiry(machine: Machine, store: SessionStore, ids: list[str]) -> None:
    """All of `ids`, which fill() made, live as long as they should and no longer."""
    first = store.peek(ids[0])
    assert first is not None
    left_ms = TIMEOUT_MS + WINDOW_MS - (store._now_ms() - first.last_accessed)
    machine.live_ms(store, int(left_ms * FASTEST) - 3000)
    store.cleanup_expired()
    assert alive(store, ids) == len(ids), "expired too early"
    machine.live_ms(store, int(left_ms * (SLOWEST - FASTEST)) + 6000)
    assert alive(store, ids) == 0, "kept too long"
    assert store.cleanup_expired() == len(ids)
    assert store.count() == 0


@JUMPS_MS
def test_a_jump_while_the_store_is_open_expires_nothing_and_keeps_nothing(
    tmp_path: Path, jump_ms: int
) -> None:
    machine = Machine()
    with machine.open(tmp_path / "s") as store:
        ids = fill(store)
        machine.wall += jump_ms
        machine.live_ms(store, MINUTE_MS)
        assert store.cleanup_expired() == 0
        assert alive(store, ids) == 100
        assert all(store.get(id) for id in ids)
        check_expiry(machine, store, ids)


@JUMPS_MS
def test_a_session_that_is_used_outlives_a_jump_up_to_its_largest_lifetime(
    tmp_path: Path, jump_ms: int
) -> None:
    machine = Machine()
    with machine.open(tmp_path / "s") as store:
        used = store.create({}, timeout_ms=TIMEOUT_MS)
        capped = store.create({}, timeout_ms=TIMEOUT_MS, max_lifetime_ms=2 * TIMEOUT_MS)
        machine.wall += jump_ms
        lived_ms = 0
        while store.get(capped) is not None:
            assert store.get(used) is not None
            store._flush_touches()
            machine.live_ms(store, 10 * MINUTE_MS)
            lived_ms += 10 * MINUTE_MS
        assert 2 * TIMEOUT_MS * FASTEST <= lived_ms <= 2 * TIMEOUT_MS * SLOWEST + 10 * MINUTE_MS
        assert store.get(used) is not None


@JUMPS_MS
def test_a_jump_between_two_processes_of_one_boot_expires_nothing_and_keeps_nothing(
    tmp_path: Path, jump_ms: int
) -> None:
    machine = Machine()
    with machine.open(tmp_path / "s") as store:
        ids = fill(store)
    machine.pass_ms(5 * MINUTE_MS)
    machine.wall += jump_ms
    with machine.open(tmp_path / "s") as store:
        assert store.cleanup_expired() == 0
        assert alive(store, ids) == 100
        check_expiry(machine, store, ids)


@JUMPS_MS
def test_a_jump_across_a_boot_expires_nothing_and_keeps_nothing(tmp_path: Path, jump_ms: int) -> None:
    machine = Machine()
    with machine.open(tmp_path / "s") as store:
        ids = fill(store)
        written_ms = store._now_ms()
    machine.reboot(5 * MINUTE_MS)
    machine.wall += jump_ms
    with machine.open(tmp_path / "s") as store:
        assert 0 <= store._now_ms() - written_ms <= 5 * MINUTE_MS
        assert store.cleanup_expired() == 0
        assert alive(store, ids) == 100
        check_expiry(machine, store, ids)


def test_a_short_boot_counts_as_it_was(tmp_path: Path) -> None:
    machine = Machine()
    with machine.open(tmp_path / "s") as store:
        ids = fill(store)
    machine.reboot(10 * MINUTE_MS)
    with machine.open(tmp_path / "s") as store:
        assert store._now_ms() == machine.wall
        check_expiry(machine, store, ids)


def test_a_night_without_the_machine_ends_sessions_however_wrong_its_clock_came_back(
    tmp_path: Path,
) -> None:
    for jump_ms in (HOUR_MS, 0, -HOUR_MS):
        machine = Machine()
        path = tmp_path / str(jump_ms)
        with machine.open(path) as store:
            ids = fill(store)
        machine.reboot(9 * HOUR_MS)
        machine.wall += jump_ms
        with machine.open(path) as store:
            assert alive(store, ids) == 0
            assert store.cleanup_expired() == 100
            fresh = store.create({}, timeout_ms=TIMEOUT_MS)
            machine.live_ms(store, int((TIMEOUT_MS + WINDOW_MS) * FASTEST) - 3000)
            assert store.peek(fresh) is not None


def test_time_in_which_the_machine_slept_counts(tmp_path: Path) -> None:
    machine = Machine()
    with machine.open(tmp_path / "s") as store:
        ids = fill(store)
        machine.pass_ms(8 * HOUR_MS)
        assert alive(store, ids) == 0


def test_processes_of_one_node_agree_on_the_time(tmp_path: Path) -> None:
    machine = Machine()
    with machine.open(tmp_path / "s") as first:
        machine.wall += HOUR_MS
        machine.live_ms(first, 10 * MINUTE_MS)
        with machine.open(tmp_path / "s") as second:
            assert second._now_ms() == first._now_ms() != machine.wall
            id = first.create({}, timeout_ms=TIMEOUT_MS)
            session = second.peek(id)
            assert session is not None
            assert session.created_at == second._now_ms()


def test_frames_are_dated_by_session_time(tmp_path: Path) -> None:
    machine = Machine()
    with machine.open(tmp_path / "s") as store:
        machine.wall -= HOUR_MS
        machine.pass_ms(1000)
        store.put("mine", {}, None)
        assert store._log.cursor.time_ms == store._now_ms() == machine.wall + HOUR_MS


def test_a_store_whose_page_is_of_an_older_version_takes_its_time_from_the_log(tmp_path: Path) -> None:
    from perdure.store.page import Word

    machine = Machine()
    with machine.open(tmp_path / "s") as store:
        ids = fill(store)
        store.fold()
        written_ms = store._now_ms()
        store._log.words[Word.SESSION_OFFSET_MS] = 0
    machine.wall += HOUR_MS
    with machine.open(tmp_path / "s") as store:
        assert store._now_ms() == written_ms
        assert alive(store, ids) == 100
