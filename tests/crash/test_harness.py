"""The harness finds the bugs that were put into a toy store, and none in the toy without them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tests.support.faults import toy
from tests.support.faults.checks import Violation, check_all
from tests.support.faults.explore import Check, explore
from tests.support.faults.flips import Damage, cuts, damage_sweep, flips, zeroed_tails
from tests.support.faults.images import CrashImages
from tests.support.faults.ledger import History
from tests.support.faults.powercut import fill, power_cuts, small_ext4, small_tmpfs
from tests.support.faults.shards import Report, run_sharded
from tests.support.faults.shim import KINDS, WRITES, Rule
from tests.support.faults.sweep import KEEP_VARIABLE, Point, count_calls, kill_points, kill_sweep
from tests.support.faults.trace import Model
from tests.support.faults.workload import Workload, record, run

A_SEED_THAT_FINDS_ALL = 1
"""Random images find a bug likely, not surely: what must be found is looked for where it is known to be."""
EIO_AT_A_SYNC = Rule("sync", 9, "EIO")


def writing(*bugs: str, count: int = 24, writers: int = 1, timeout_s: float = 20.0) -> Workload:
    assert set(bugs) <= set(toy.BUGS)
    return Workload("tests.support.faults.toy:work", [str(count), str(writers), *bugs], timeout_s=timeout_s)


def judging(*bugs: str) -> Check:
    """Recovers twice, with the same bugs, and makes all seven checks."""

    def check(directory: Path, lines: list[bytes]) -> Iterable[Violation]:
        first = toy.recover(directory, frozenset(bugs))
        again = toy.recover(directory, frozenset(bugs))
        return check_all(History.of(lines), first, again=again)

    return check


def violated(texts: Iterable[str]) -> set[int]:
    return {number for number in range(1, 8) for text in texts if f"({number})" in text}


@pytest.mark.parametrize("model", Model)
@pytest.mark.parametrize("writers", [1, 2])
def test_power_loss_finds_nothing_in_a_right_store(
    shim: Path, workdir: Path, seed: int, model: Model, writers: int
) -> None:
    recording = record(shim, writing(count=16, writers=writers), workdir / "run")
    result = explore(CrashImages(recording.trace, model=model, seed=seed), judging(), limit=600)
    assert result.violations == []
    assert result.images > 80
    assert result.is_complete


@pytest.mark.parametrize(
    ("bug", "plan", "expected"),
    [
        ("early_ack", (), 1),
        ("no_sync", (), 1),
        ("no_dir_sync", (), 1),
        ("retry_sync", (EIO_AT_A_SYNC,), 1),
        ("no_checksum", (), 2),
        ("state_ahead", (), 6),
        ("keeps_deleted", (), 4),
    ],
)
def test_power_loss_finds_a_seeded_bug(
    shim: Path, workdir: Path, bug: str, plan: Sequence[Rule], expected: int
) -> None:
    recording = record(shim, writing(bug), workdir / "run", plan=plan)
    images = CrashImages(recording.trace, seed=A_SEED_THAT_FINDS_ALL)
    result = explore(images, judging(bug), random_per_point=12, stop_after=10)
    print(result.violations[:3])
    assert expected in violated(result.violations)


def test_a_store_that_stops_at_a_failed_sync_loses_nothing(shim: Path, workdir: Path, seed: int) -> None:
    recording = record(shim, writing(), workdir / "run", plan=[EIO_AT_A_SYNC])
    assert recording.run.struck == 1
    result = explore(CrashImages(recording.trace, seed=seed), judging())
    assert result.violations == []


def test_a_kill_at_any_call_finds_nothing_in_a_right_store(shim: Path, workdir: Path) -> None:
    result = kill_sweep(shim, writing(count=12, writers=2), judging(), workdir, sample=40)
    assert result.violations == []
    assert result.hit >= 30


def test_a_kill_finds_a_state_ahead_of_its_log_and_says_how_to_repeat_it(shim: Path, workdir: Path) -> None:
    result = kill_sweep(shim, writing("state_ahead", count=12), judging("state_ahead"), workdir)
    assert 6 in violated(result.violations)
    assert "FAULTS_PLAN=" in result.violations[0]
    assert "tests.support.faults.toy:work" in result.violations[0]
    assert not result.is_complete


def test_a_directory_that_fails_its_check_is_kept_as_it_was(
    shim: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(directory: Path, lines: list[bytes]) -> list[str]:
        (directory / "log-00000001").unlink()
        return ["wrong"]

    monkeypatch.setenv(KEEP_VARIABLE, str(workdir / "kept"))
    result = kill_sweep(shim, writing(), spoil, workdir, points=[Point("", "fdatasync", 5, "before")])
    assert len(result.violations) == 1
    (kept,) = (workdir / "kept").iterdir()
    found = toy.recover(kept / "store")
    assert check_all(History.read([kept / "ACK"]), found) == []
    assert found.events is not None
    assert len(found.events) >= 3


def test_a_run_that_hangs_is_a_violation_of_check_7(shim: Path, workdir: Path) -> None:
    hang = [Point("", "fdatasync", 2, "STOP")]
    result = kill_sweep(shim, writing(timeout_s=0.5), judging(), workdir, points=hang)
    assert violated(result.violations) == {7}


def test_points_are_sampled_over_all_kinds_and_the_whole_run(shim: Path, workdir: Path) -> None:
    counts = count_calls(shim, writing(writers=2), workdir)
    everything = kill_points(counts)
    assert {point.role for point in everything} == {"w0", "w1"}
    assert {point.kind for point in everything if point.action == "torn"} == {"write"} <= WRITES
    sample = kill_points(counts, sample=80)
    assert len(sample) == len(set(sample)) == 80
    assert set(sample) <= set(everything)
    groups = {(point.role, point.kind, point.action) for point in everything}
    assert {(point.role, point.kind, point.action) for point in sample} == groups
    assert {point.kind for point in everything} <= set(KINDS)


def test_a_full_disk_is_refused_and_later_goes_on(shim: Path, workdir: Path) -> None:
    done = run(shim, writing(), workdir / "run", plan=[Rule("anywrite", 20, "ENOSPC", until=0)])
    assert done.exit_code == 5
    assert list(judging()(done.store, done.acks())) == []


def damaged_toy(shim: Path, workdir: Path) -> tuple[Path, bytes, History]:
    done = run(shim, writing(count=8), workdir / "run")
    path = done.store / "log-00000001"
    return path, path.read_bytes(), History.of(done.acks())


@pytest.mark.parametrize(("bug", "is_found"), [("", False), ("no_checksum", True)])
def test_flipped_bytes_never_give_wrong_data_unless_checksums_are_off(
    shim: Path, workdir: Path, bug: str, is_found: bool
) -> None:
    path, data, history = damaged_toy(shim, workdir)
    bugs = frozenset(filter(None, [bug]))

    def judge(damage: Damage, damaged: bytes) -> list[str]:
        copy = workdir / f"copy-{os.getpid()}"
        copy.mkdir(exist_ok=True)
        (copy / path.name).write_bytes(damaged)
        wrong = check_all(history, toy.recover(copy, bugs))
        return [str(violation) for violation in wrong if violation.check == 2]

    step = max(1, len(data) // 200)
    plan = [*flips(len(data), step=step), *cuts(len(data), step=step), *zeroed_tails(len(data), step=step)]
    result = damage_sweep(data, plan, judge, stop_after=10_000)
    assert bool(result.violations) is is_found
    assert result.totals["checked"] > len(plan) * 0.9


def test_a_check_that_dies_or_hangs_is_a_finding_and_the_rest_is_checked() -> None:
    def work(index: int, report: Report) -> None:
        for step in range(3):
            if not report.at(f"{index}.{step}"):
                continue
            if (index, step) == (1, 1):
                os.kill(os.getpid(), signal.SIGSEGV)
            if (index, step) == (2, 0):
                time.sleep(60)
            if (index, step) == (3, 2):
                raise ValueError("seen")
            report.add("steps")

    result = run_sharded(5, work, workers=2, deadline_s=12.0)
    assert result.totals["steps"] == 15 - 3
    assert len(result.violations) == 3
    assert any("1.1: the checking process died by SIGSEGV" in text for text in result.violations)
    assert any("(7) 2.0: no end within 12 s" in text for text in result.violations)
    assert any("ValueError: seen" in text for text in result.violations)


def test_a_run_that_is_stopped_early_lets_its_workers_tidy_up(workdir: Path) -> None:
    def work(index: int, report: Report) -> None:
        try:
            (workdir / f"begun-{index}").touch()
            if index == 0:
                while not (workdir / "begun-1").exists():
                    time.sleep(0.001)
                report.violation("enough")
            time.sleep(60)
        finally:
            (workdir / f"tidied-{index}").touch()

    result = run_sharded(9, work, workers=2, stop_after=1)
    assert (result.is_complete, len(result.violations)) == (False, 1)
    assert {path.name for path in workdir.glob("tidied-*")} == {"tidied-0", "tidied-1"}


@pytest.mark.usefixtures("mounts")
def test_a_real_power_cut_finds_a_store_that_never_syncs(seed: int) -> None:
    result = power_cuts(writing("no_sync", count=100_000), judging("no_sync"), cuts=3, seed=seed, run_s=0.1)
    print(result.violations)
    # What was lost is the tail (1), or a segment between others, which the toy calls corrupt (7).
    assert {1, 7} & violated(result.violations)


@pytest.mark.usefixtures("mounts")
def test_a_real_power_cut_finds_nothing_in_a_right_store(seed: int) -> None:
    workload = writing(count=100_000, writers=2)
    result = power_cuts(workload, judging(), cuts=3, seed=seed, run_s=0.2, least_lines=20)
    assert result.violations == []
    assert result.totals["cuts"] == 3
    assert result.totals["lines"] >= 60


@pytest.mark.usefixtures("mounts")
def test_a_small_disk_fills_up_and_has_room_again() -> None:
    for disk in (small_tmpfs(256), small_ext4(4)):
        with disk as path:
            ballast = fill(path)
            with pytest.raises(OSError, match="No space left"):
                (path / "more").write_bytes(bytes(65536))
            ballast.unlink()
            (path / "more").write_bytes(bytes(65536))
