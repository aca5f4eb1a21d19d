"""The real store under kill -9 at its system calls and under power loss: all seven checks hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.store_program import BLIND, check_after_kill, check_after_power_cut
from tests.support.faults.explore import ExploreResult, explore
from tests.support.faults.images import CrashImages
from tests.support.faults.powercut import power_cuts
from tests.support.faults.sweep import SweepResult, kill_sweep
from tests.support.faults.trace import Kind, Model
from tests.support.faults.workload import Recording, Workload, record


def writing(durability: str, count: int, writers: int = 1) -> Workload:
    return Workload("tests.crash.store_program:write", [durability, str(count), str(writers)])


def all_of(violations: list[str]) -> str:
    return "\n".join(["", *violations])


def explored(recording: Recording, model: Model, seed: int, limit: int | None, more: int) -> ExploreResult:
    images = CrashImages(recording.trace, model=model, blind=BLIND, final=recording.final, seed=seed)
    return explore(images, check_after_power_cut, limit=limit, random_per_point=more)


def swept(shim: Path, workdir: Path, workload: Workload, sample: int | None) -> SweepResult:
    return kill_sweep(shim, workload, check_after_kill, workdir, sample=sample)


@pytest.mark.parametrize(("model", "writers"), [(Model.STRICT, 1), (Model.STRICT, 2), (Model.EXT4, 2)])
def test_a_power_cut_loses_nothing_acknowledged_on_disk(
    shim: Path, workdir: Path, seed: int, model: Model, writers: int
) -> None:
    recording = record(shim, writing("disk", 24, writers), workdir / "run")
    assert any(op.kind is Kind.GROW and op.path.endswith(".seg") for op in recording.trace.ops)
    result = explored(recording, model, seed, limit=220, more=3)
    assert not result.violations, all_of(result.violations)
    assert result.images > 150


@pytest.mark.parametrize(("durability", "writers"), [("os", 1), ("disk", 2)])
def test_a_kill_at_any_call_loses_nothing_acknowledged(
    shim: Path, workdir: Path, durability: str, writers: int
) -> None:
    result = swept(shim, workdir, writing(durability, 20, writers), sample=30)
    assert not result.violations, all_of(result.violations)
    assert result.hit >= 20


@pytest.mark.parametrize("unsynced", ["segments", "directories"])
def test_a_sync_that_is_left_out_is_found(shim: Path, workdir: Path, unsynced: str) -> None:
    recording = record(shim, writing("disk", 24), workdir / "run")
    for op in recording.trace.ops:
        is_segment = op.path.endswith(".seg")
        is_directory = op.path in (".", "log")
        if op.kind is Kind.SYNC_END and (is_segment if unsynced == "segments" else is_directory):
            op.kind = Kind.SYNC_BEGIN  # as if it had never come back
    assert explored(recording, Model.STRICT, 1, limit=220, more=3).violations


@pytest.mark.lab
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", Model)
@pytest.mark.parametrize("writers", [1, 3])
def test_thousands_of_power_cuts_lose_nothing(
    shim: Path, workdir: Path, seed: int, model: Model, writers: int
) -> None:
    recording = record(shim, writing("disk", 60 // writers, writers), workdir / "run")
    result = explored(recording, model, seed, limit=2_200, more=5)
    assert not result.violations, all_of(result.violations)
    assert result.images > 1_250


@pytest.mark.lab
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("durability", "writers"), [("os", 1), ("disk", 1), ("disk", 3)])
def test_a_kill_at_every_call_loses_nothing(shim: Path, workdir: Path, durability: str, writers: int) -> None:
    result = swept(shim, workdir, writing(durability, 30, writers), sample=None)
    assert not result.violations, all_of(result.violations)
    assert result.hit > 200


@pytest.mark.lab
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("mounts")
def test_forty_real_power_cuts_lose_nothing(seed: int) -> None:
    workload = writing("disk", 100_000, 3)
    result = power_cuts(workload, check_after_power_cut, cuts=40, seed=seed, size_mib=256, least_lines=20)
    assert not result.violations, all_of(result.violations)
    assert result.totals["cuts"] == 40
