"""Session time: what it starts with, how it moves, and that it is read the same in every way."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from perdure.store import clock as clock_module
from perdure.store.clock import (
    DOWNTIME_MS_MAX,
    LATE_MS_MAX,
    SLEW_DIVISOR,
    SLEW_EVERY_MS,
    SLEWED_MS_MAX,
    WRONG_MS_MAX,
    SessionClock,
    followed,
    read_boottime_ms,
    slewed,
    time_after_boot,
)
from perdure.store.page import ControlPage, Word
from tests.support.fuzz import fuzz
from tests.support.machine import HOUR_MS, Machine

LOG_MS = 1_700_000_000_000
MINUTE_MS = 60_000
MS = st.integers(0, 1 << 45)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[ControlPage]:
    page = ControlPage(tmp_path / "control", "a boot")
    page.reset()
    page.adopt()
    try:
        yield page
    finally:
        page.close()


def clock_of(page: ControlPage, machine: Machine) -> SessionClock:
    return SessionClock(page, lambda: machine.wall, lambda: machine.boottime)


@pytest.mark.parametrize(
    ("log_ms", "wall_ms", "begins_ms"),
    [
        (0, LOG_MS, LOG_MS),  # an empty log
        (0, 5, 5),
        (LOG_MS, LOG_MS, LOG_MS),
        (LOG_MS, LOG_MS + 1, LOG_MS + 1),
        (LOG_MS, LOG_MS + DOWNTIME_MS_MAX, LOG_MS + DOWNTIME_MS_MAX),
        (LOG_MS, LOG_MS + DOWNTIME_MS_MAX + 1, LOG_MS),
        (LOG_MS, LOG_MS + HOUR_MS, LOG_MS),  # a jump, or a downtime: no session expires for it
        (LOG_MS, LOG_MS + HOUR_MS + MINUTE_MS, LOG_MS + MINUTE_MS),  # so much has passed in any case
        (LOG_MS, LOG_MS + 9 * HOUR_MS, LOG_MS + 8 * HOUR_MS),
        (LOG_MS, LOG_MS - 1, LOG_MS),
        (LOG_MS, LOG_MS - HOUR_MS, LOG_MS),
        (LOG_MS, 0, LOG_MS),  # a clock that was lost with its battery
    ],
)
def test_session_time_after_a_boot(log_ms: int, wall_ms: int, begins_ms: int) -> None:
    assert time_after_boot(log_ms, wall_ms) == begins_ms


@fuzz(300, log_ms=st.integers(1, 1 << 45), down_ms=st.integers(0, 1 << 40), wrong_ms=MS)
def test_a_boot_counts_no_more_than_what_passed_however_wrong_the_wall_clock_is_up_to_an_hour(
    log_ms: int, down_ms: int, wrong_ms: int
) -> None:
    wrong_ms = wrong_ms % (2 * WRONG_MS_MAX + 1) - WRONG_MS_MAX
    begins_ms = time_after_boot(log_ms, log_ms + down_ms + wrong_ms)
    assert log_ms <= begins_ms <= log_ms + max(down_ms, DOWNTIME_MS_MAX)
    assert begins_ms >= log_ms + down_ms - 2 * WRONG_MS_MAX, "nor does it keep what is long over"


@pytest.mark.parametrize(
    ("session_ms", "wall_ms", "elapsed_ms", "then_ms"),
    [
        (1000, 1000, 800, 1000),
        (1000, 1010, 800, 1010),
        (1000, 990, 800, 990),
        (1000, 9000, 800, 1100),
        (1000, 0, 800, 900),
        (1000, 9000, 7, 1000),
        (1000, 9000, 0, 1000),
        (1000, 9000, -50, 1000),
        (1_000_000, 9_000_000, 1 << 40, 1_000_000 + SLEWED_MS_MAX // SLEW_DIVISOR),
        (1_000_000, 0, 1 << 40, 1_000_000 - SLEWED_MS_MAX // SLEW_DIVISOR),
    ],
)
def test_session_time_when_it_is_slewed(session_ms: int, wall_ms: int, elapsed_ms: int, then_ms: int) -> None:
    assert slewed(session_ms, wall_ms, elapsed_ms) == then_ms


@fuzz(300, session_ms=MS, wall_ms=MS, elapsed_ms=st.integers(-1000, 1 << 40))
def test_a_slew_comes_nearer_and_is_no_larger_than_an_eighth_of_the_time(
    session_ms: int, wall_ms: int, elapsed_ms: int
) -> None:
    then_ms = slewed(session_ms, wall_ms, elapsed_ms)
    assert abs(wall_ms - then_ms) <= abs(wall_ms - session_ms)
    assert abs(then_ms - session_ms) * SLEW_DIVISOR <= min(max(elapsed_ms, 0), SLEWED_MS_MAX)


@pytest.mark.parametrize(
    ("session_ms", "primary_ms", "then_ms"),
    [
        (50_000, 50_000, 50_000),
        (50_000, 50_001, 50_001),
        (50_000, 50_000 + HOUR_MS, 50_000 + HOUR_MS),
        (50_000, 49_990, 49_990),
        (50_000, 49_000, 49_900),  # a heartbeat that was late, or a primary that is slower
        (50_000, 50_000 - LATE_MS_MAX, 49_900),
        (50_000, 49_999 - LATE_MS_MAX, 49_999 - LATE_MS_MAX),
    ],
)
def test_a_replica_when_it_hears_its_primary_is_not_behind_and_goes_back_slowly(
    session_ms: int, primary_ms: int, then_ms: int
) -> None:
    assert followed(session_ms, primary_ms, 800) == then_ms


def test_session_time_within_a_boot_is_moved_by_no_jump(page: ControlPage) -> None:
    machine = Machine()
    clock = clock_of(page, machine)
    clock.begin(0)
    began_ms = clock.now_ms()
    assert began_ms == machine.wall
    for jump_ms in (HOUR_MS, -2 * HOUR_MS, 10 * 365 * 24 * HOUR_MS):
        machine.wall += jump_ms
        assert clock.now_ms() == began_ms
    machine.pass_ms(5000)
    assert clock.now_ms() == began_ms + 5000


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
def test_session_time_after_a_jump_reaches_the_wall_clock_in_eight_times_as_long(
    page: ControlPage, jump_ms: int
) -> None:
    machine = Machine()
    clock = clock_of(page, machine)
    clock.begin(0)
    machine.wall += jump_ms
    before_ms = clock.now_ms()
    for _ in range(SLEW_DIVISOR * HOUR_MS // 1000):
        machine.pass_ms(1000)
        clock.tick(is_primary=True)
        now_ms = clock.now_ms()
        assert 875 <= now_ms - before_ms <= 1125
        before_ms = now_ms
    assert clock.now_ms() == machine.wall


def test_many_processes_that_look_at_the_clock_slew_no_faster_than_one(page: ControlPage) -> None:
    machine = Machine()
    clocks = [clock_of(page, machine) for _ in range(8)]
    for clock in clocks:
        clock.begin(0)
    began_ms = clocks[0].now_ms()
    machine.wall += HOUR_MS
    for _ in range(1000):
        machine.pass_ms(10)
        for clock in clocks:
            clock.tick(is_primary=True)
    assert 10_000 < clocks[0].now_ms() - began_ms <= 11_250
    assert len({clock.now_ms() for clock in clocks}) == 1


def test_who_looks_at_the_clock_after_hours_steps_by_no_more_than_an_eighth_of_a_second(
    page: ControlPage,
) -> None:
    machine = Machine()
    clock = clock_of(page, machine)
    clock.begin(0)
    machine.wall -= HOUR_MS
    machine.pass_ms(5 * HOUR_MS)
    before_ms = clock.now_ms()
    clock.tick(is_primary=True)
    assert before_ms - clock.now_ms() == SLEWED_MS_MAX // SLEW_DIVISOR


def test_clocks_that_differ_by_the_cut_to_whole_milliseconds_move_no_session_time(page: ControlPage) -> None:
    machine = Machine()
    clock = clock_of(page, machine)
    clock.begin(0)
    behind = clock.exact_ms() - machine.boottime
    for number in range(100):
        machine.wall += SLEW_EVERY_MS
        machine.boottime += SLEW_EVERY_MS
        cut = number % 3 - 1  # a clock is read just before, or just behind, the other one's next millisecond
        machine.wall += cut
        clock.tick(is_primary=True)
        machine.wall -= cut
        assert clock.exact_ms() - machine.boottime == behind


def test_a_replica_is_not_slewed_by_its_own_wall_clock(page: ControlPage) -> None:
    machine = Machine()
    clock = clock_of(page, machine)
    clock.begin(0)
    began_ms = clock.now_ms()
    machine.wall += HOUR_MS
    for _ in range(100):
        machine.pass_ms(1000)
        clock.tick(is_primary=False)
    assert clock.now_ms() == began_ms + 100_000


def test_a_replica_goes_on_with_its_primarys_time(page: ControlPage) -> None:
    machine = Machine()
    clock = clock_of(page, machine)
    clock.begin(0)
    for primary_ms in (machine.wall + HOUR_MS, machine.wall - HOUR_MS):
        clock.follow(primary_ms)
        assert clock.now_ms() == primary_ms
        machine.pass_ms(500)
        assert clock.now_ms() == primary_ms + 500


def test_session_time_is_never_before_a_frame_of_the_log(page: ControlPage) -> None:
    machine = Machine()
    clock = clock_of(page, machine)
    clock.begin(machine.wall + HOUR_MS)
    assert clock.now_ms() == machine.wall + HOUR_MS
    clock.not_before(machine.wall + 2 * HOUR_MS)
    assert clock.now_ms() == machine.wall + 2 * HOUR_MS
    clock.not_before(machine.wall)
    assert clock.now_ms() == machine.wall + 2 * HOUR_MS


def test_a_page_that_is_made_anew_within_a_boot_keeps_session_time_and_no_other_does(
    page: ControlPage,
) -> None:
    machine = Machine()
    clock = clock_of(page, machine)
    clock.begin(0)
    machine.wall += HOUR_MS
    began_ms = clock.now_ms()
    page.reset()
    assert clock.now_ms() == began_ms
    assert page.words[Word.SESSION_OFFSET_MS] and not page.words[Word.APPENDED]
    page.reset()  # nobody's, as after another boot
    assert not page.words[Word.SESSION_OFFSET_MS]


def test_session_time_that_equals_the_time_since_boot_has_begun(page: ControlPage) -> None:
    machine = Machine(wall=5_000_000, boottime=5_000_000)
    clock = clock_of(page, machine)
    clock.begin(0)
    assert page.words[Word.SESSION_OFFSET_MS] != 0
    assert abs(clock.now_ms() - machine.wall) <= 1


def test_a_wall_clock_that_is_behind_the_time_since_boot_works(page: ControlPage) -> None:
    machine = Machine(wall=1_000, boottime=90_000_000)
    clock = clock_of(page, machine)
    clock.begin(0)
    assert clock.now_ms() == 1_000


def test_the_fast_way_to_read_session_time_agrees_with_the_exact_one(page: ControlPage) -> None:
    clock = SessionClock(page)
    clock.begin(0)
    assert clock.now_ms != clock.exact_ms
    for shift_ms in (0, HOUR_MS, -HOUR_MS):
        page.signed_words[Word.SESSION_OFFSET_MS] += shift_ms
        clock.tick(is_primary=False)
        deadline = time.monotonic() + 10
        while not -1 <= clock.exact_ms() - clock.now_ms() <= 1:  # this thread may be held up
            assert time.monotonic() < deadline
    assert abs(clock.exact_ms() - (read_boottime_ms() + page.signed_words[Word.SESSION_OFFSET_MS])) < 1000


def test_the_fast_way_to_read_session_time_never_goes_back_while_it_is_renewed(page: ControlPage) -> None:
    clock = SessionClock(page)
    clock.begin(0)
    stopping = threading.Event()

    def renew() -> None:
        while not stopping.is_set():
            clock.tick(is_primary=False)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        before_ms = clock.now_ms()
        for _ in range(50_000):
            now_ms = clock.now_ms()
            assert now_ms >= before_ms
            before_ms = now_ms
    finally:
        stopping.set()
        thread.join()


def test_the_limits_on_the_page_about_time_are_those_of_the_code() -> None:
    page = Path(__file__).parents[3] / "docs" / "time.md"
    rows = re.findall(r"\| (\d+) \| `(\w+)` \|", page.read_text(encoding="utf-8"))
    assert len(rows) == 6
    assert {name: int(value) for value, name in rows} == {name: vars(clock_module)[name] for _, name in rows}


def test_slews_are_as_far_apart_as_the_limit_says(page: ControlPage) -> None:
    machine = Machine()
    clock = clock_of(page, machine)
    clock.begin(0)
    machine.wall += HOUR_MS
    machine.pass_ms(SLEW_EVERY_MS - 1)
    clock.tick(is_primary=True)
    assert clock.now_ms() == machine.wall - HOUR_MS
    machine.pass_ms(1)
    clock.tick(is_primary=True)
    assert clock.now_ms() == machine.wall - HOUR_MS + SLEW_EVERY_MS // SLEW_DIVISOR


def test_a_look_that_was_held_up_is_no_suspension(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 5
    held_up_ns = iter([400_000_000, 0])

    def boottime_ns(_clock: int) -> int:
        nonlocal now_ns
        found = now_ns + 7
        now_ns += next(held_up_ns)
        return found

    monkeypatch.setattr(clock_module, "monotonic_ns", lambda: now_ns)
    monkeypatch.setattr(clock_module, "clock_gettime_ns", boottime_ns)
    assert clock_module._suspended_ns() == 7
    held_up_ns = iter([300_000_000, 900_000_000, 1_000])
    assert abs(clock_module._suspended_ns() - 7) < 1_000
