"""What counts as worse than the baseline."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from bench.gate import (
    Baseline,
    Kept,
    baseline_of,
    exit_code_of,
    judge,
    main,
    read_baseline,
    text_of,
    write_baseline,
)
from bench.report import Result, write_json
from bench.rows import Ratio, Row, with_limit, with_ours


def result(of_limit: float, ahead: float, *, spread: float = 0.02, peer_version: str = "1") -> Result:
    ours = Row(group="single", case="get", system="perdure-lmdb", durability="os", rounds=5, version="0")
    peer = Row(group="single", case="get", system="peer", durability="os", rounds=5, version=peer_version)
    rows = [
        with_limit(ours, "limit", Ratio(of_limit, of_limit, of_limit, spread)),
        with_limit(
            with_ours(peer, "perdure-lmdb", Ratio(ahead, ahead, ahead, spread)), "limit", Ratio(1, 1, 1, 0)
        ),
    ]
    return Result({"cpu": "one"}, {}, rows, {})


BEFORE = baseline_of(result(0.5, 3.0))
NAME_OF_7 = "single: get 7, os, perdure-lmdb / peer"


def test_kept_are_ours_to_the_limit_and_ours_to_each_peer_but_not_a_peers_to_the_limit() -> None:
    assert {name: kept.ratio for name, kept in BEFORE.ratios.items()} == {
        "single: get, os, perdure-lmdb / limit": 0.5,
        "single: get, os, perdure-lmdb / peer": 3.0,
    }


def test_a_ratio_that_fell_by_more_than_the_spread_is_worse_and_named() -> None:
    verdict = judge(BEFORE, result(0.5, 2.0))
    assert [one.name for one in verdict.worse] == ["single: get, os, perdure-lmdb / peer"]
    assert exit_code_of(verdict) == 1
    assert "worse: single: get, os, perdure-lmdb / peer: 3.00 -> 2.00 (-33%" in text_of(verdict)


def test_the_same_fall_within_a_wide_spread_is_not_worse() -> None:
    verdict = judge(BEFORE, result(0.5, 2.0, spread=0.3))
    assert not verdict.worse
    assert exit_code_of(verdict) == 0
    assert "nothing got worse" in text_of(verdict)


def test_a_small_fall_of_quiet_rounds_is_not_worse() -> None:
    assert not judge(BEFORE, result(0.47, 2.8, spread=0.0)).worse


def test_a_rise_is_told_and_not_worse() -> None:
    verdict = judge(BEFORE, result(0.9, 3.0))
    assert exit_code_of(verdict) == 0
    assert "better: single: get, os, perdure-lmdb / limit" in text_of(verdict)


def test_another_version_of_a_peer_is_told() -> None:
    assert judge(BEFORE, result(0.5, 3.0, peer_version="2")).other_versions == {"peer": "1 -> 2"}


def test_what_was_not_measured_is_counted_and_nothing_in_common_is_no_comparison() -> None:
    more = Baseline({}, {}, {**BEFORE.ratios, "single: touch, os, perdure-lmdb / peer": Kept(1.0, 0.1)})
    verdict = judge(more, result(0.5, 3.0))
    assert verdict.missing == ["single: touch, os, perdure-lmdb / peer"]
    assert exit_code_of(judge(Baseline({}, {}, {"another": Kept(1.0, 0.1)}), result(0.5, 3.0))) == 2


def test_a_run_in_which_ours_failed_is_worse_though_no_ratio_fell() -> None:
    run = result(0.5, 3.0)
    failed = Row(group="single", case="touch", system="perdure-lmdb", durability="os", note="OSError: gone")
    verdict = judge(BEFORE, Result(run.machine, {}, [*run.rows, failed], {}))
    assert exit_code_of(verdict) == 1
    assert "failed: single: touch, os, perdure-lmdb: OSError: gone" in text_of(verdict)
    assert "nothing got worse" not in text_of(verdict)
    not_started = judge(BEFORE, Result(run.machine, {}, run.rows, {"perdure-pair, two": "no port"}))
    assert exit_code_of(not_started) == 1


def test_a_peer_that_failed_is_no_fault_of_ours() -> None:
    run = result(0.5, 3.0)
    failed = Row(group="single", case="touch", system="peer", durability="os", note="OSError: gone")
    assert exit_code_of(judge(BEFORE, Result(run.machine, {}, [*run.rows, failed], {"redis, os": "no"}))) == 0


def figure(ratio: float, *, spread: float | None = 0.02, p99: int = 900) -> Result:
    row = Row(
        group="figures", case=f"write: p50 us (p99 {p99:,})", system="perdure", durability="", limit="Redis",
        ratio_to_limit=ratio, ratio_to_limit_spread=spread, is_less_better=True, rounds=20,
    )  # fmt: skip
    return Result({}, {}, [row], {})


def test_where_less_is_better_a_ratio_that_rose_is_worse_and_one_that_fell_is_not() -> None:
    before = baseline_of(figure(1.5))
    assert [one.by for one in judge(before, figure(3.0)).worse] == [1.0]
    assert "better: figures: write: p50 us" in text_of(judge(before, figure(0.75)))
    assert exit_code_of(judge(before, figure(0.75))) == 0


def test_a_figure_is_found_again_whatever_percentiles_its_name_tells() -> None:
    verdict = judge(baseline_of(figure(1.5, p99=1_234)), figure(1.5, p99=987))
    assert len(verdict.changes) == 1
    assert not verdict.missing


def test_what_was_measured_once_has_no_spread_and_is_held_against_nothing() -> None:
    assert not baseline_of(figure(1.5, spread=None)).ratios


def test_a_run_with_another_plan_is_told() -> None:
    full, quick = (
        Result(BEFORE.machine, {"sessions": count, "only": ""}, result(0.5, 3.0).rows, {})
        for count in (100_000, 5_000)
    )
    assert "another plan, so that ratios may differ: sessions: 100000 -> 5000" in text_of(
        judge(baseline_of(full), quick)
    )
    assert "another plan" not in text_of(judge(baseline_of(full), full))


def many(factor: float, seed: int) -> Baseline:
    """Ratios of one program on a machine on which runs differ, though the rounds of each are quiet."""
    choice = random.Random(seed)
    names = [f"single: get {number}, os, perdure-lmdb / peer" for number in range(200)]
    return Baseline({}, {}, {name: Kept(factor * choice.lognormvariate(1.0, 0.2), 0.02) for name in names})


def run_of(baseline: Baseline) -> Result:
    rows = [
        with_ours(
            Row(group="single", case=f"get {number}", system="peer", durability="os", rounds=5),
            "perdure-lmdb",
            Ratio(kept.ratio, kept.ratio, kept.ratio, kept.spread),
        )
        for number, kept in enumerate(baseline.ratios.values())
    ]
    return Result({}, {}, rows, {})


def test_two_runs_that_differ_everywhere_are_worse_nowhere() -> None:
    verdict = judge(many(1.0, 1), run_of(many(1.0, 2)))
    assert not verdict.worse
    assert 0.2 < verdict.between < 0.4
    assert "from run to run they differ by" in text_of(verdict)


def test_one_ratio_that_fell_by_more_than_runs_differ_is_named_among_many() -> None:
    before = many(1.0, 1)
    after = run_of(before)
    after.rows[7] = msgspec.structs.replace(after.rows[7], ours_ratio=before.ratios[NAME_OF_7].ratio / 5)
    assert [one.name for one in judge(before, after).worse] == [NAME_OF_7]


def test_a_group_that_fell_as_a_whole_is_worse_though_each_ratio_is_within_the_spread() -> None:
    verdict = judge(many(1.0, 1), run_of(many(0.75, 2)))
    assert "single: the median of its 200 ratios" in [one.name for one in verdict.worse]
    assert exit_code_of(verdict) == 1


def test_the_command_makes_a_result_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, kept = tmp_path / "bench.json", tmp_path / "baseline.json"
    assert main([str(run), "--baseline", str(kept), "--save"]) == 2
    assert "python -m bench makes a result" in capsys.readouterr().err
    write_json(result(0.5, 1.0), run)
    assert main([str(run), "--baseline", str(kept), "--save"]) == 0
    assert read_baseline(kept) == baseline_of(result(0.5, 1.0))


def test_the_command_compares_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, kept = tmp_path / "bench.json", tmp_path / "baseline.json"
    write_json(result(0.5, 1.0), run)
    assert main([str(run), "--baseline", str(kept)]) == 2
    write_baseline(BEFORE, kept)
    assert main([str(run), "--baseline", str(kept)]) == 1
    assert "perdure-lmdb / peer: 3.00 -> 1.00" in capsys.readouterr().out
    write_json(result(0.5, 3.0), run)
    assert main([str(run), "--baseline", str(kept)]) == 0
