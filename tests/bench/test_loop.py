"""The measuring loops: each call is made once, time ends them, a stall counts for all who waited."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from bench.latency import Histogram
from bench.loop import Calls, Slice, overhead_ns, run_calls, run_passes
from bench.open_loop import arrivals_ns, run_open


def latencies_of(slice: Slice) -> Histogram:
    return Histogram(slice.counts, slice.max_ns)


@pytest.mark.parametrize("stride", [0, 1, 7, 61])
def test_every_prepared_call_is_made_once_and_in_order_when_there_is_time(stride: int) -> None:
    made: list[int] = []
    slice = run_calls(Calls(made.append, [(n,) for n in range(1000)]), 10.0, stride=stride, units=3)
    assert made == list(range(1000))
    assert slice.units == 3000


def test_one_call_in_a_stride_is_timed_by_itself() -> None:
    slice = run_calls(Calls(bool, [(0,)] * 610), 10.0, stride=61)
    assert latencies_of(slice).total == 10


def test_slow_calls_are_all_timed_and_stop_when_the_time_is_over() -> None:
    slice = run_calls(Calls(time.sleep, [(0.005,)] * 1000), 0.4)
    assert 1 <= slice.units <= 80
    assert latencies_of(slice).total == slice.units
    p50_us = latencies_of(slice).percentile_us(0.5)
    assert p50_us is not None and p50_us >= 5000


def test_what_comes_before_a_pass_is_not_timed() -> None:
    slice = run_passes(lambda: 7, 0.0, before=lambda: time.sleep(2.0), at_ns=0)
    assert slice.units == 7
    assert slice.elapsed_ns < 1_900_000_000


def test_a_pass_that_meets_nobody_is_no_measurement() -> None:
    with pytest.raises(AssertionError, match="no session"):
        run_passes(lambda: 0, 0.0, before=lambda: None, at_ns=0)


def test_clients_begin_at_the_common_moment() -> None:
    at_ns = time.perf_counter_ns() + 20_000_000
    began: list[int] = []
    run_calls(Calls(lambda: began.append(time.perf_counter_ns()), [()]), 1.0, at_ns=at_ns)
    assert began[0] >= at_ns


def test_the_loop_takes_a_small_part_of_the_fastest_calls() -> None:
    assert overhead_ns() < 1000  # some 50 on an idle machine; what it is compared with takes 2,000 and more


class SteppedClock:
    """Time passes only where a test says so."""

    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns

    def wait_until(self, at_ns: int) -> None:
        self.ns = max(self.ns, at_ns)

    def pass_ns(self, ns: int) -> None:
        self.ns += ns


def test_a_stall_counts_for_each_call_that_was_due_meanwhile() -> None:
    clock = SteppedClock()
    took = [(1_000_000_000,)] + [(0,)] * 9
    slice = run_open(Calls(clock.pass_ns, took), [n * 100_000_000 for n in range(10)], clock)
    waited_ms = [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    expected = Histogram()
    expected.record(ms * 1_000_000 for ms in waited_ms)
    assert slice.counts == dict(expected.counts)


def test_a_call_that_finds_nobody_waiting_counts_its_own_time_only() -> None:
    clock = SteppedClock()
    slice = run_open(Calls(clock.pass_ns, [(5_000,)] * 10), [n * 100_000 for n in range(10)], clock)
    assert slice.units == 10
    assert slice.max_ns == 5_000


def test_a_system_that_can_not_keep_up_is_given_up_and_shows_a_lower_rate() -> None:
    clock = SteppedClock()
    due = [n * 1_000_000 for n in range(1, 101)]
    slice = run_open(Calls(clock.pass_ns, [(10_000_000,)] * 100), due, clock)
    assert 19 <= slice.units <= 21
    assert slice.rate_per_s == pytest.approx(100, rel=0.02)


def test_arrivals_come_at_the_rate_and_not_evenly(seed: int) -> None:
    due = arrivals_ns(1000, 10.0, seed)
    assert 9_500 < len(due) < 10_500
    assert due == sorted(due)
    gaps = [after - before for before, after in pairwise(due)]
    assert min(gaps) < 100_000
    assert max(gaps) > 3_000_000
