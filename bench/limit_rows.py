"""The limits by themselves: what each bare call reaches here, and what the bench's own loop takes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .comparison import Plan
from .limits import Limit, bare_calls
from .loop import Calls, overhead_ns, run_calls
from .rows import Row, spread_of
from .workloads import SMALL_BYTES

LIMITS: Final = "limits"
_LOOP: Final = "a call that does nothing, in the loop of the bench"
_UNITS: Final = {"write of 8 + one fdatasync": 8, "write of 32 + one fdatasync": 32}
LIMIT_NAMES: Final = (
    _LOOP,
    "raw LMDB get",
    "raw LMDB get + decode",
    "LMDB commit of one put, no sync",
    "MessagePack decode",
    "MessagePack encode",
    "raw append write",
    "raw write + fdatasync",
    "raw write in place + fdatasync",
    *_UNITS,
)


def limit_rows(folder: Path, plan: Plan) -> Iterator[Row]:
    """One after the other, in turn: each round measures all of them."""
    calls = bare_calls(folder)
    rates: dict[str, list[float]] = {name: [] for name in LIMIT_NAMES}
    for number in range(plan.rounds + 1):
        for name, its in rates.items():
            if name == _LOOP:
                rate = 1e9 / overhead_ns()
            else:
                repeated = Calls(calls[name], [()] * 200_000)
                rate = run_calls(repeated, plan.slice_s, units=_UNITS.get(name, 1)).rate_per_s
            if number:
                its.append(rate)
    for name, its in rates.items():
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
            rounds=plan.rounds,
            version=Limit().version(),
        )


def class_of_limit(name: str) -> str:
    return "disk" if "fdatasync" in name else "os"
