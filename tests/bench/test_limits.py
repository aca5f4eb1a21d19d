"""The bare calls by themselves, as rows."""

from __future__ import annotations

from pathlib import Path

from bench.comparison import Plan
from bench.limit_rows import LIMIT_NAMES, limit_rows

PLAN = Plan(rounds=2, slice_s=0.001, open_s=0.1)
LATE = "a call that does nothing, at 1,000/s"


def test_each_limit_is_a_row_and_only_calls_at_a_rate_have_latencies(tmp_path: Path) -> None:
    rows = {row.case: row for row in limit_rows(tmp_path, PLAN)}
    assert tuple(rows) == LIMIT_NAMES
    assert all(row.ops_per_s and row.rounds == 2 for row in rows.values())
    assert [case for case, row in rows.items() if row.p99_us is not None] == [LATE]


def test_calls_that_do_nothing_come_at_their_rate_and_each_is_counted_from_when_it_was_due(
    tmp_path: Path,
) -> None:
    row = next(row for row in limit_rows(tmp_path, PLAN) if row.case == LATE)
    assert row.ops_per_s is not None
    assert 0 < row.ops_per_s < 2_000  # of the schedule; how far a busy machine falls behind it says nothing
    latencies = (row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us)
    known = [latency for latency in latencies if latency is not None]
    assert len(known) == len(latencies)
    assert known[0] > 0
    assert known == sorted(known)
