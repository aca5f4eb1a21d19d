"""The limits by themselves: what each bare call reaches here, what the bench's own loop takes, and how late a
call under a rate begins."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .comparison import Plan
from .latency import Histogram
from .limits import Limit, bare_calls, shared_sync
from .loop import Calls, Slice, overhead_ns, run_calls
from .open_loop import MonotonicClock, arrivals_ns, run_open
from .rows import Row, spread_of
from .sharing import THREADS
from .workloads import SMALL_BYTES

LIMITS: Final = "limits"
_LOOP: Final = "a call that does nothing, in the loop of the bench"
_LATE_PER_S: Final = 1_000
_LATE: Final = f"a call that does nothing, at {_LATE_PER_S:,}/s"
_SHARED: Final = f"{THREADS} threads that share each fdatasync, and do nothing else"
_UNITS: Final = {"write of 8 + one fdatasync": 8, "write of 32 + one fdatasync": 32}
LIMIT_NAMES: Final = (
    _LOOP,
    _LATE,
    "raw LMDB get",
    "raw LMDB get + decode",
    "LMDB commit of one put, no sync",
    "MessagePack decode",
    "MessagePack encode",
    "raw append write",
    "raw write + fdatasync",
    "raw write in place + fdatasync",
    *_UNITS,
    _SHARED,
)


def limit_rows(folder: Path, plan: Plan) -> Iterator[Row]:
    """One after the other, in turn: each round measures all of them."""
    calls, shared = bare_calls(folder), shared_sync(folder)
    rates: dict[str, list[float]] = {name: [] for name in LIMIT_NAMES}
    late = Histogram()
    for number in range(plan.rounds + 1):
        for name, its in rates.items():
            if name == _LOOP:
                rate = 1e9 / overhead_ns()
            elif name == _LATE:
                slice = _late(plan.open_s, number)
                rate = slice.rate_per_s
                if number:
                    late.add(Histogram(slice.counts, slice.max_ns))
            elif name == _SHARED:
                rate = shared.rate_per_s(plan.slice_s)
            else:
                repeated = Calls(calls[name], [()] * 200_000)
                rate = run_calls(repeated, plan.slice_s, units=_UNITS.get(name, 1)).rate_per_s
            if number:
                its.append(rate)
    for name, its in rates.items():
        latency = (late if name == _LATE else Histogram()).percentile_us
        yield Row(
            group=LIMITS,
            case=name,
            system=Limit.name,
            durability=class_of_limit(name),
            value_bytes=SMALL_BYTES,
            ops_per_s=statistics.median(its),
            ops_per_s_low=min(its),
            ops_per_s_high=max(its),
            spread=spread_of(its),
            p50_us=latency(0.5),
            p90_us=latency(0.9),
            p99_us=latency(0.99),
            p999_us=latency(0.999),
            max_us=late.max_ns / 1000 if name == _LATE else None,
            rounds=plan.rounds,
            version=Limit().version(),
        )


def _late(seconds: float, seed: int) -> Slice:
    """Calls that do nothing, when they are due: their latency is what this process wakes too late."""
    due_ns = arrivals_ns(_LATE_PER_S, seconds, seed)
    return run_open(Calls(lambda: None, [()] * len(due_ns)), due_ns, MonotonicClock())


def class_of_limit(name: str) -> str:
    return "disk" if "fdatasync" in name else "os"
