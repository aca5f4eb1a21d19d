"""Kill -9 and refused calls at every step of what nodes do besides writing: all seven checks hold.

Rolling, sealing and folding, snapshots, rebuilding a state, receiving, installing a snapshot, promotion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.process_checks import (
    check_after_errors,
    check_migration,
    check_other_candidate,
    check_promotion,
    check_replica,
    check_snapshots,
    check_store,
    words_of,
)
from tests.crash.process_programs import prepare_log, prepare_rebuild, prepare_three
from tests.crash.receive_program import prepare_bootstrap, prepare_pair
from tests.crash.rejoin_program import check_rejoin, prepare_parted
from tests.support.faults.explore import Check
from tests.support.faults.shim import KINDS, Rule
from tests.support.faults.sweep import SweepResult, count_calls, kill_points, kill_sweep
from tests.support.faults.workload import Workload, run

STEPS = tuple(kind for kind in KINDS if kind != "create")
"""Opening a file changes nothing unless it makes one, and each one made is written or renamed next."""
RECEIVING = ("receiver", "folder")
WRITES = ("write", "pwrite", "fallocate", "trunc")
SYNCS = ("fsync", "fdatasync")
NAMES = ("create", "rename", "mkdir")
SEGMENTS = "log/*.seg"
WORK = "tests.crash.process_work:work"


@dataclass(frozen=True)
class Sweep:
    """A program, its check, how many points a sample has and how many there are at least in all."""

    arguments: tuple[str, ...]
    check: Check
    sample: int
    least: int
    prepare: Callable[[Path], None] | None = None
    roles: tuple[str, ...] | None = None

    def workload(self) -> Workload:
        return Workload(WORK, self.arguments, prepare=self.prepare)


SWEEPS = {
    "roll-seal-fold": Sweep(("roll", "lmdb", "30"), check_store, 5, 250),
    "roll-seal-fold-sqlite": Sweep(("roll", "sqlite", "12"), check_store, 3, 200),
    "snapshot": Sweep(("snapshots",), check_snapshots, 4, 60, prepare=prepare_log("lmdb"), roles=("taker",)),
    "migrate-to-sqlite": Sweep(
        ("migration", "sqlite"), check_migration, 6, 200, prepare=prepare_log("lmdb"), roles=("migrator",)
    ),
    "migrate-to-lmdb": Sweep(
        ("migration", "lmdb"), check_migration, 4, 200, prepare=prepare_log("sqlite"), roles=("migrator",)
    ),
    "rebuild": Sweep(("rebuild",), check_store, 4, 20, prepare=prepare_rebuild("lmdb", has_snapshot=True)),
    "rebuild-sqlite": Sweep(
        ("rebuild",), check_store, 2, 80, prepare=prepare_rebuild("sqlite", has_snapshot=False)
    ),
    "receive": Sweep(
        ("receive", "14", "confirmed"), check_replica, 6, 120, prepare=prepare_pair, roles=RECEIVING
    ),
    "bootstrap": Sweep(
        ("receive", "6", "unconfirmed"), check_replica, 4, 120, prepare=prepare_bootstrap, roles=RECEIVING
    ),
    "rejoin-keys": Sweep(("rejoin",), check_rejoin, 5, 60, prepare=prepare_parted("lmdb"), roles=RECEIVING),
    "rejoin-keys-sqlite": Sweep(
        ("rejoin",), check_rejoin, 3, 60, prepare=prepare_parted("sqlite"), roles=RECEIVING
    ),
    "rejoin-truncate": Sweep(
        ("rejoin",), check_rejoin, 3, 60, prepare=prepare_parted("memory"), roles=RECEIVING
    ),
    "rejoin-anew": Sweep(
        ("rejoin",),
        check_rejoin,
        3,
        60,
        prepare=prepare_parted("lmdb", keeps_log=False),
        roles=RECEIVING,
    ),
    "promote": Sweep(("promotion",), check_promotion, 4, 20, prepare=prepare_three),
    "promote-another": Sweep(("promotion",), check_other_candidate, 3, 20, prepare=prepare_three),
}


def swept(shim: Path, workdir: Path, sweep: Sweep, sample: int | None, workers: int = 1) -> SweepResult:
    workload = sweep.workload()
    counts = count_calls(shim, workload, workdir)
    kinds = STEPS if sample else KINDS
    points = kill_points(counts, roles=sweep.roles, kinds=kinds, sample=sample)
    return kill_sweep(shim, workload, sweep.check, workdir, points=points, workers=workers)


def refused(
    shim: Path,
    workdir: Path,
    durability: str,
    faults: Sequence[tuple[str, tuple[str, ...]]],
    sample: int | None,
    workers: int = 1,
) -> SweepResult:
    """Refuse one call of a writer at a time: (error, kinds of call)."""
    workload = Workload(WORK, ["go_on", durability, "15"])
    counts = count_calls(shim, workload, workdir)
    points = [
        point
        for error, kinds in faults
        for point in kill_points(counts, actions=[error], kinds=kinds, sample=sample)
    ]
    return kill_sweep(shim, workload, check_after_errors, workdir, points=points, workers=workers)


def all_of(violations: list[str]) -> str:
    return "\n".join(["", *violations])


@pytest.mark.parametrize("name", SWEEPS)
def test_a_kill_at_some_steps_is_recovered_from(shim: Path, workdir: Path, name: str) -> None:
    result = swept(shim, workdir, SWEEPS[name], SWEEPS[name].sample)
    assert not result.violations, all_of(result.violations)
    assert result.hit >= SWEEPS[name].sample // 2  # with several processes the calls vary from run to run


def test_some_refused_calls_are_named_and_writing_goes_on(shim: Path, workdir: Path) -> None:
    faults = [("ENOSPC", WRITES), ("EIO", SYNCS), ("EIO", WRITES)]
    result = refused(shim, workdir, "disk", faults, sample=5)
    assert not result.violations, all_of(result.violations)
    assert result.hit >= 10


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (Rule("pwrite", 4, "ENOSPC", glob=SEGMENTS), {"StorageFullError"}),
        (Rule("pwrite", 4, "ENOSPC", until=6, glob=SEGMENTS), {"StorageFullError"}),
        (Rule("fdatasync", 4, "EIO", glob=SEGMENTS), {"Indeterminate", "PoisonedError"}),
    ],
    ids=["full", "full-for-a-while", "sync-failed"],
)
def test_a_refused_call_on_the_log_has_its_name(
    shim: Path, workdir: Path, rule: Rule, names: set[str]
) -> None:
    workload = Workload(WORK, ["go_on", "disk", "15"])
    done = run(shim, workload, workdir / "run", plan=[rule])
    assert done.struck == (3 if rule.until else 1)
    assert set(words_of(done.store, "refusals")) == names, done.output
    assert [str(found) for found in check_after_errors(done.store, done.acks())] == []


@pytest.mark.lab
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SWEEPS)
def test_a_kill_at_every_step_is_recovered_from(shim: Path, workdir: Path, name: str) -> None:
    result = swept(shim, workdir, SWEEPS[name], None, workers=2)
    print(f"{name}: {result.hit} points hit, {result.missed} missed, {result.seconds:.0f} s")
    assert not result.violations, all_of(result.violations)
    assert result.is_complete
    assert result.hit >= SWEEPS[name].least


@pytest.mark.lab
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("durability", ["os", "disk"])
@pytest.mark.parametrize(
    ("error", "kinds"),
    [("ENOSPC", WRITES + NAMES), ("EIO", SYNCS), ("ENOSPC", SYNCS), ("EIO", WRITES), ("SHORT=50%", WRITES)],
    ids=["full", "sync-failed", "full-at-sync", "write-failed", "short"],
)
def test_every_refused_call_is_named_and_writing_goes_on(
    shim: Path, workdir: Path, durability: str, error: str, kinds: tuple[str, ...]
) -> None:
    result = refused(shim, workdir, durability, [(error, kinds)], sample=None, workers=2)
    print(f"{error} {durability}: {result.hit} points hit, {result.seconds:.0f} s")
    assert not result.violations, all_of(result.violations)
    assert result.is_complete
    assert result.hit >= 10
