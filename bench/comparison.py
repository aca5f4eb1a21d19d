"""Measuring several systems in turn, and what can be said of them: medians, spread, ratios round by round.

Owns the order of slices. Invariant: in each round every system is measured once, in an order shuffled anew,
so that a machine whose speed drifts treats all alike, and none has always the same one before it; the order
is the same in every run, whichever systems take part. A ratio is one of the same round.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

import msgspec

from .contestants import Contestant, is_limit, is_ours, takes
from .latency import Histogram
from .rows import OF_P99, Row, ratio_of, spread_of, with_limit, with_ours
from .workloads import SMALL_BYTES, Case


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    rounds: int = 5
    """After one round of warm-up."""
    slice_s: float = 0.1
    """Of one system in one round."""
    open_s: float = 0.5
    """The same where calls arrive at a rate."""
    sessions: int = 100_000
    large_sessions: int = 100_000
    """Of 1 KB."""
    reopened: tuple[int, ...] = (100_000, 1_000_000)
    """Sessions with which a start is timed."""
    fill_s: float = 20.0
    """A system is filled for so long at most; one that is slower has fewer sessions, and its rows say so."""
    reopen_fill_s: float = 150.0
    """The same before a start is timed; one that is slower is left out."""
    slow_s: float = 8.0
    """A system whose warm-up took longer is measured in that round only."""
    take_overs: int = 5
    is_quick: bool = False
    """Leaves out the cases that are no part of a quick run."""


class Measured:
    """What the rounds of one contestant gave."""

    def __init__(self) -> None:
        self.speeds: dict[int, float] = {}
        """By round: what is compared. Units a second, or at a given rate the inverse of the p99 latency."""
        self.rates: list[float] = []
        self.latencies = Histogram()
        self.error = ""
        self.warm_up = 0.0
        """As a speed, of the round that otherwise does not count."""
        self.is_slow = False

    def take(self, number: int, speed: float, rate: float, latencies: Histogram) -> None:
        self.speeds[number] = speed
        self.rates.append(rate)
        self.latencies.add(latencies)


def measure(case: Case, contestants: Sequence[Contestant], plan: Plan) -> dict[str, Measured]:
    """Run the rounds of a case: what each contestant that takes it gave. One that fails is asked no
    further."""
    taking = [one for one in contestants if not takes(one, case)]
    measured = {one.name: Measured() for one in taking}
    seconds = plan.open_s if case.rate_per_s else plan.slice_s
    for one in taking:
        try:
            one.make_ready(case)
        except Exception as error:  # noqa: BLE001  what a system can't do is part of the result
            measured[one.name].error = f"{type(error).__name__}: {error}"
    by_name = {one.name: one for one in taking}
    for number in range(plan.rounds + 1):
        for one in map(by_name.__getitem__, order_of(case, number, list(by_name))):
            its = measured[one.name]
            if its.error or its.is_slow:
                continue
            started = time.monotonic()
            try:
                rate, latencies = one.slice(case, number, seconds)
            except Exception as error:  # noqa: BLE001  as above
                its.error = f"{type(error).__name__}: {error}"
                continue
            p99_us = latencies.percentile_us(0.99) if case.rate_per_s else None
            speed = 1 / max(p99_us, 0.001) if p99_us is not None else rate
            its.is_slow = number == 0 and time.monotonic() - started > plan.slow_s
            if number == 0:
                its.warm_up = speed
            if number or its.is_slow:
                its.take(number, speed, rate, latencies)
    return measured


def order_of(case: Case, number: int, names: Sequence[str]) -> list[str]:
    """Names of systems as they are measured in a round. A place depends on no other system, so that what is
    left out of a run moves nobody before or behind another."""
    return sorted(names, key=lambda name: random.Random(f"{case.group}/{case.name}/{number}/{name}").random())


def rows_of(
    case: Case, contestants: Sequence[Contestant], measured: dict[str, Measured], plan: Plan
) -> list[Row]:
    """A row for each contestant that took the case, the limit's last."""
    by_name = {one.name: one for one in contestants if one.name in measured}
    limit = next((one.name for one in by_name.values() if is_limit(one.name)), "")
    ours = next((one.name for one in by_name.values() if is_ours(one.name)), "")
    rows: list[Row] = []
    for name, one in by_name.items():
        row = _row(case, one, measured[name], plan)
        if name != limit:
            row = _compared(row, measured, limit, with_limit, is_inverse=False)
        if name not in (limit, ours):
            row = _compared(row, measured, ours, with_ours, is_inverse=True)
        rows.append(row)
    return sorted(rows, key=lambda row: row.system == limit)


def _compared(
    row: Row, measured: dict[str, Measured], other: str, add: Callable[..., Row], *, is_inverse: bool
) -> Row:
    """The row with its ratio to another contestant's of the same rounds."""
    if not other or measured[other].error or measured[row.system].error:
        return row
    mine, its = measured[row.system], measured[other]
    if mine.is_slow or its.is_slow:
        pairs = [(mine.warm_up, its.warm_up)]
    else:
        pairs = [(mine.speeds[n], its.speeds[n]) for n in sorted(mine.speeds.keys() & its.speeds.keys())]
    values = [b / a if is_inverse else a / b for a, b in pairs if a > 0 and b > 0]
    return add(row, other, ratio_of(values)) if values else row


def _row(case: Case, one: Contestant, its: Measured, plan: Plan) -> Row:
    latencies = Histogram() if its.error else its.latencies
    rates, latency = [] if its.error else its.rates, latencies.percentile_us
    return Row(
        group=case.group,
        case=case.name,
        system=one.name,
        durability=one.durability.value,
        clients=case.clients,
        value_bytes=case.value_bytes,
        sessions=one.sessions(case.value_bytes),
        ops_per_s=statistics.median(rates) if rates else None,
        ops_per_s_low=min(rates, default=None),
        ops_per_s_high=max(rates, default=None),
        spread=spread_of(rates) if rates else None,
        p50_us=latency(0.5),
        p90_us=latency(0.9),
        p99_us=latency(0.99),
        p999_us=latency(0.999),
        max_us=latencies.max_ns / 1000 if latencies.total else None,
        rounds=len(rates),
        setting=one.setting,
        version=one.version,
        note=its.error or _note(case, one, its, plan),
    )


def _note(case: Case, one: Contestant, its: Measured, plan: Plan) -> str:
    parts = [OF_P99] if case.rate_per_s else []
    if its.is_slow:
        parts.append("one round, it takes too long for more")
    sessions = one.sessions(case.value_bytes)
    if sessions < (plan.sessions if case.value_bytes == SMALL_BYTES else plan.large_sessions):
        parts.append(f"with {sessions:,} sessions")
    return "; ".join(parts)
