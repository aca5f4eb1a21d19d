"""Latency under a rate: calls arrive when they are due, whether or not the system has answered earlier ones.

Owns the schedule and the run. A latency counts from the time at which the call was due, not from when a
client that was still waiting got round to it: otherwise a stall of one second would be counted once instead
of for each call that fell into it (coordinated omission). Arrivals are those of a Poisson process with a
printed seed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Final, Protocol

from .latency import Histogram
from .loop import Calls, Slice, slice_of

SPIN_NS: Final = 200_000
"""The last part of a wait is spun through: a sleep ends up to so much too late."""


class Clock(Protocol):
    """Time in ns, and waiting in it."""

    def now_ns(self) -> int: ...

    def wait_until(self, at_ns: int) -> None: ...


class MonotonicClock:
    """The machine's."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def wait_until(self, at_ns: int) -> None:
        left_ns = at_ns - time.perf_counter_ns()
        if left_ns > SPIN_NS:
            time.sleep((left_ns - SPIN_NS) / 1e9)
        while time.perf_counter_ns() < at_ns:
            pass


def arrivals_ns(rate_per_s: float, seconds: float, seed: int) -> list[int]:
    """When calls are due, in ns after the beginning."""
    gap = random.Random(seed).expovariate
    due: list[int] = []
    at = gap(rate_per_s)
    while at < seconds:
        due.append(int(at * 1e9))
        at += gap(rate_per_s)
    return due


def run_open(calls: Calls, due_ns: Sequence[int], clock: Clock, *, at_ns: int = 0) -> Slice:
    """Make each call when it is due, or as soon as the one before it is answered.

    The slice's time is that until the last answer: a system that can't keep up shows a lower rate than was
    asked for, and latencies that grow with the length of the slice. A system that has fallen behind by as
    much as the whole schedule is not asked further.
    """
    began = max(clock.now_ns(), at_ns)
    give_up = began + 2 * (due_ns[-1] if due_ns else 0)
    took_ns: list[int] = []
    for arguments, after_ns in zip(calls.arguments, due_ns, strict=False):
        due = began + after_ns
        clock.wait_until(due)
        calls.function(*arguments)
        answered = clock.now_ns()
        took_ns.append(answered - due)
        if answered > give_up:
            break
    latencies = Histogram()
    latencies.record(took_ns)
    return slice_of(len(took_ns), max(1, clock.now_ns() - began), latencies)
