"""The measuring loop: prepared calls, one after the other, for a limited time.

Owns how calls are timed, the same way for all systems. Their arguments are prepared beforehand, and the
loop runs in C (`starmap`); `overhead_ns` measures what it and a call of a Python function take here.
Every so many calls one is timed by itself: latencies and throughput are of the same calls under the same
load.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, starmap
from typing import Any, Final, NamedTuple

import msgspec

from .latency import Histogram


class Calls(NamedTuple):
    """What is called, and the arguments of each call; `operator.call` where the function is one of them."""

    function: Callable[..., object]
    arguments: Sequence[tuple[Any, ...]]


TIMING_NS: Final = 25_000
"""One call in so much time is timed: two looks at the clock are then some half percent of it."""
STRIDE_MAX: Final = 61
_CALIBRATION_CALLS: Final = 20


class Slice(msgspec.Struct, frozen=True, tag=True):
    """What one client did in one slice."""

    units: int
    """Calls that were answered, or sessions where one call is for many."""
    elapsed_ns: int
    """From the common beginning, where there is one, to the last answer."""
    counts: dict[int, int]
    """The latencies' histogram."""
    max_ns: int

    @property
    def rate_per_s(self) -> float:
        return self.units * 1e9 / max(1, self.elapsed_ns)


def slice_of(units: int, elapsed_ns: int, latencies: Histogram) -> Slice:
    return Slice(units, elapsed_ns, dict(latencies.counts), latencies.max_ns)


def run_calls(calls: Calls, seconds: float, *, units: int = 1, stride: int = 0, at_ns: int = 0) -> Slice:
    """Run the calls from the first one on until the time is over or there are none left.

    `units` is what each counts for; `stride` how many calls there are to each that is timed by itself (0:
    as many as suits their speed); the first one begins at `at_ns` of the monotonic clock.
    """
    function, clock, consume = calls.function, time.perf_counter_ns, deque[Any](maxlen=0).extend
    waiting = iter(calls.arguments)
    count, at = len(calls.arguments), 0
    took_ns: list[int] = []
    _settle(at_ns)
    now = clock()
    began = at_ns or now  # a client that waits for a processor is late, and ends with the others
    end = began + int(seconds * 1e9)
    if not stride:
        took_ns, now = _calibrate(function, islice(waiting, _CALIBRATION_CALLS), end)
        at, stride = len(took_ns), _stride_for(took_ns)
    while now < end and at < count:
        first = next(waiting)
        started = clock()
        function(*first)
        now = clock()
        took_ns.append(now - started)
        if stride > 1:
            consume(starmap(function, islice(waiting, stride - 1)))
            now = clock()
        at += stride
    ended = clock()
    latencies = Histogram()
    latencies.record(took_ns)
    return slice_of(min(at, count) * units, ended - began, latencies)


def run_passes(call: Callable[[], int], seconds: float, *, before: Callable[[], object], at_ns: int) -> Slice:
    """Passes over many sessions until the time is over, at least one; each answers how many it met.

    What `before` does is not timed, but counts against the time three times as long as that of the passes.
    """
    latencies, units, elapsed_ns = Histogram(), 0, 0
    began = time.perf_counter_ns()
    budget_ns = int(seconds * 1e9)
    while not units or (elapsed_ns < budget_ns and time.perf_counter_ns() - began < 3 * budget_ns):
        before()
        _settle(at_ns)
        started = time.perf_counter_ns()
        met = call()
        took = time.perf_counter_ns() - started
        if not met:
            raise AssertionError("a pass met no session at all")
        units += met
        elapsed_ns += took
        latencies.record([took])
    return slice_of(units, elapsed_ns, latencies)


def _calibrate(
    function: Callable[..., object], first: Iterator[tuple[Any, ...]], end_ns: int
) -> tuple[list[int], int]:
    """Time the first calls one by one: their latencies, and the time afterwards."""
    clock = time.perf_counter_ns
    took_ns: list[int] = []
    now = clock()
    for arguments in first:
        started = clock()
        function(*arguments)
        now = clock()
        took_ns.append(now - started)
        if now >= end_ns:
            break
    return took_ns, now


def _stride_for(took_ns: list[int]) -> int:
    typical = sorted(took_ns)[len(took_ns) // 2] if took_ns else TIMING_NS
    return min(STRIDE_MAX, max(1, TIMING_NS // max(1, typical))) | 1  # odd: not in step with anything


def _settle(at_ns: int) -> None:
    """Leave what was prepared out of garbage collections from here on, and wait for the common start."""
    gc.collect()
    gc.freeze()
    while (left_ns := at_ns - time.perf_counter_ns()) > 0:
        if left_ns > 1_000_000:
            time.sleep((left_ns - 500_000) / 1e9)


def overhead_ns() -> float:
    """What the loop and a call that does nothing take, in ns a call; the least of some runs."""
    calls = Calls(_nothing, [("id",)] * 50_000)
    return min(1e9 / run_calls(calls, 1.0, stride=STRIDE_MAX).rate_per_s for _ in range(5))


def _nothing(_: str) -> None:
    return None
