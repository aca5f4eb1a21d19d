"""Rounds in turn, and what is said of them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from bench.comparison import Plan, measure, order_of, rows_of
from bench.rows import Row, ratio_of
from bench.workloads import Case

from .fakes import ScriptedContestant

CASE = Case("single", "get", {"get": 1.0})
PLAN = Plan(rounds=5, slice_s=0.0, large_sessions=10_000)
ORDERS = [["b", "c", "a", "d"], ["a", "c", "b", "d"], ["c", "d", "b", "a"]]


def compared(*contestants: ScriptedContestant, case: Case = CASE) -> dict[str, Row]:
    return {row.system: row for row in rows_of(case, contestants, measure(case, contestants, PLAN), PLAN)}


def test_each_round_measures_every_system_once_in_the_order_of_that_round() -> None:
    calls: list[str] = []
    names = ["a", "b", "c", "d"]
    measure(CASE, [ScriptedContestant(name, [1.0] * 6, calls) for name in names], PLAN)
    assert calls == [f"{number} {name}" for number in range(6) for name in order_of(CASE, number, names)]


def test_the_order_of_a_round_is_the_same_in_every_run_whoever_takes_part() -> None:
    assert [order_of(CASE, number, ["a", "b", "c", "d"]) for number in range(3)] == ORDERS
    for number, order in enumerate(ORDERS):
        assert order_of(CASE, number, ["d", "b"]) == [name for name in order if name in "bd"]


def test_over_many_rounds_each_system_follows_each_other_about_as_often() -> None:
    names, rounds = [f"system {number}" for number in range(8)], 2_000
    followed = Counter(pair for number in range(rounds) for pair in pairwise(order_of(CASE, number, names)))
    assert len(followed) == 8 * 7
    assert max(followed.values()) < 1.3 * min(followed.values())


def test_the_warm_up_counts_for_nothing() -> None:
    row = compared(ScriptedContestant("a", [1e9, 10.0, 10.0, 10.0, 10.0, 10.0], []))["a"]
    assert row.ops_per_s == row.ops_per_s_high == 10.0
    assert row.rounds == 5


def test_ratios_are_taken_round_by_round_so_that_a_drift_of_the_machine_cancels_out() -> None:
    drift = [1.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    rows = compared(
        ScriptedContestant("perdure-lmdb", [30.0 * by for by in drift], []),
        ScriptedContestant("peer", [10.0 * by for by in drift], []),
        ScriptedContestant("limit", [60.0 * by for by in drift], []),
    )
    assert rows["peer"].ours_ratio == rows["peer"].ours_ratio_low == rows["peer"].ours_ratio_high == 3.0
    assert rows["perdure-lmdb"].ratio_to_limit == 0.5
    assert rows["perdure-lmdb"].ours_ratio is None
    assert rows["limit"].ratio_to_limit is None
    assert list(rows) == ["perdure-lmdb", "peer", "limit"]


def test_one_that_fails_is_asked_no_further_and_shows_no_figures() -> None:
    calls: list[str] = []
    broken = ScriptedContestant("peer", [1.0, 2.0, OSError("gone"), 1.0, 1.0, 1.0], calls)
    rows = compared(ScriptedContestant("perdure-lmdb", [10.0] * 6, calls), broken)
    assert rows["peer"].note == "OSError: gone"
    assert rows["peer"].ops_per_s is rows["peer"].p50_us is rows["peer"].ours_ratio is None
    assert calls.count("3 peer") == 0
    assert rows["perdure-lmdb"].ops_per_s == 10.0


def test_at_a_given_rate_the_latencies_are_compared() -> None:
    case = Case("open loop", "get at 1,000/s", {"get": 1.0}, rate_per_s=1000)
    fast, slow = (
        ScriptedContestant("perdure-lmdb", [1000.0] * 6, []),
        ScriptedContestant("p", [250.0] * 6, []),
    )
    assert compared(fast, slow, case=case)["p"].ours_ratio == pytest.approx(4.0, rel=0.02)


def test_cases_of_one_node_are_not_asked_of_pairs() -> None:
    calls: list[str] = []
    measure(CASE, [ScriptedContestant("pair", [1.0] * 6, calls, "two")], PLAN)
    assert not calls


def test_a_ratio_says_how_far_its_rounds_lie_apart() -> None:
    ratio = ratio_of([1.0, 1.0, 1.1, 0.9, 5.0])
    assert (ratio.median, ratio.low, ratio.high) == (1.0, 0.9, 5.0)
    assert ratio.spread == pytest.approx(0.148, abs=0.001)  # the single outlier does not count
    with pytest.raises(ValueError, match="round"):
        ratio_of([])


def test_one_that_takes_too_long_is_measured_in_one_round_and_its_row_says_so() -> None:
    plan = Plan(rounds=5, slice_s=0.0, slow_s=-1.0)
    calls: list[str] = []
    both = (
        ScriptedContestant("perdure-lmdb", [8.0] * 6, calls),
        ScriptedContestant("slow", [2.0] * 6, calls),
    )
    rows = {row.system: row for row in rows_of(CASE, both, measure(CASE, both, plan), plan)}
    assert len(calls) == 2
    assert (rows["slow"].rounds, rows["slow"].ours_ratio, rows["slow"].ops_per_s) == (1, 4.0, 2.0)
    assert "one round" in rows["slow"].note


def test_a_row_tells_how_many_sessions_of_its_size_there_are() -> None:
    large = Case("single", "get, 1 KB", {"get": 1.0}, value_bytes=1_000)
    assert compared(ScriptedContestant("p", [1.0] * 6, []))["p"].sessions == 100_000
    row = compared(ScriptedContestant("p", [1.0] * 6, []), case=large)["p"]
    assert (row.sessions, row.note) == (10_000, "")
