"""What a run of the bench says: rows, each of one system in one case at one durability.

Owns the row and the ratio; how rows come about stands in `comparison.py`, how they look in `report.py`.
Invariant: a row has one durability class, and a ratio in it is to a measurement of the same class and run.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

OF_P99 = "ratios are of the p99 latency"
"""The note of rows of calls that arrive at a rate."""
SIGMA_OF_MAD = 1.4826


class Ratio(msgspec.Struct, frozen=True):
    """The median of ratios that were taken round by round, and how far they lie apart."""

    median: float
    low: float
    high: float
    spread: float
    """Median absolute deviation as a share of the median, scaled to a standard deviation."""


def ratio_of(values: Sequence[float]) -> Ratio:
    """Raises ValueError if there are none."""
    if not values:
        raise ValueError("a ratio needs at least one round")
    return Ratio(statistics.median(values), min(values), max(values), spread_of(values))


def spread_of(values: Sequence[float]) -> float:
    """How far values lie from their median, as a share of it: robust against single outliers."""
    middle = statistics.median(values)
    if middle == 0:
        return 0.0
    return SIGMA_OF_MAD * statistics.median(abs(value - middle) for value in values) / abs(middle)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One system in one case at one durability."""

    group: str
    case: str
    system: str
    durability: str
    clients: int = 1
    value_bytes: int = 0
    sessions: int = 0
    ops_per_s: float | None = None
    """Median over the rounds; of passes over many sessions: sessions a second."""
    ops_per_s_low: float | None = None
    ops_per_s_high: float | None = None
    spread: float | None = None
    p50_us: float | None = None
    p90_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    max_us: float | None = None
    amount: float | None = None
    """Where it is no rate: bytes, s or ms, as `unit` says; less is better."""
    unit: str = "ops/s"
    limit: str = ""
    ratio_to_limit: float | None = None
    """Above 1 is faster than the limit, or more than it where less is better."""
    ratio_to_limit_low: float | None = None
    ratio_to_limit_high: float | None = None
    ratio_to_limit_spread: float | None = None
    ours: str = ""
    """The system of ours that the next ones compare with this row's."""
    ours_ratio: float | None = None
    """Above 1: ours is ahead of this row's system by so much."""
    ours_ratio_low: float | None = None
    ours_ratio_high: float | None = None
    ours_ratio_spread: float | None = None
    is_less_better: bool = False
    """Of perdure's own figures: the lower ratio to the limit is the better one."""
    rounds: int = 0
    setting: str = ""
    version: str = ""
    note: str = ""

    @property
    def key(self) -> str:
        """Names the row in texts, and from run to run."""
        return f"{self.group}: " + ", ".join(filter(None, (self.case, self.durability, self.system)))

    @property
    def figure(self) -> float | None:
        """What it measured."""
        return self.ops_per_s if self.amount is None else self.amount


def with_limit(row: Row, limit: str, ratio: Ratio) -> Row:
    return msgspec.structs.replace(
        row,
        limit=limit,
        ratio_to_limit=ratio.median,
        ratio_to_limit_low=ratio.low,
        ratio_to_limit_high=ratio.high,
        ratio_to_limit_spread=ratio.spread,
    )


def with_ours(row: Row, ours: str, ratio: Ratio) -> Row:
    return msgspec.structs.replace(
        row,
        ours=ours,
        ours_ratio=ratio.median,
        ours_ratio_low=ratio.low,
        ours_ratio_high=ratio.high,
        ours_ratio_spread=ratio.spread,
    )
