"""Kill a command before, inside and after each of its system calls, and check what recovery makes of it.

Owns the choice of points and the loop over them. A point is (role, kind of call, n-th of that kind,
action); the first run, without a fault, counts what there is to aim at.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .explore import Check
from .shards import Report, run_sharded
from .shim import KINDS, WRITES, ProcessCounts, Rule, most_calls
from .trace import Base
from .workload import Run, Workload, run

KEEP_VARIABLE = "PERDURE_KEEP_CRASHES"
"""Names a directory to which every directory that fails a check is copied, as it was before the check:
with several writers a run cannot be repeated exactly."""
ACTIONS = {"before": "KILL", "torn": "TORN=50%", "after": "KILL_AFTER"}


@dataclass(frozen=True)
class Point:
    """Where to strike. action: a key of ACTIONS, or an action of the plan's own grammar."""

    role: str
    kind: str
    n: int
    action: str

    def rule(self) -> Rule:
        return Rule(self.kind, self.n, ACTIONS.get(self.action, self.action), role=self.role)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found. hit: points at which a call was really struck; missed: the run made fewer calls
    of that kind than the counting run did (the directory was checked nevertheless)."""

    violations: list[str]
    hit: int
    missed: int
    seconds: float
    is_complete: bool


def count_calls(library: Path, workload: Workload, workdir: Path) -> list[ProcessCounts]:
    """Run the command once without a fault. Raises RuntimeError if it fails even so."""
    folder = workdir / f"count-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    done = run(library, workload, folder)
    if done.exit_code or done.is_timed_out:
        raise RuntimeError(f"exit code {done.exit_code}: {done.command_line}\n{done.output}")
    shutil.rmtree(folder, ignore_errors=True)
    return done.counts


def kill_points(
    counts: Iterable[ProcessCounts],
    *,
    actions: Sequence[str] = tuple(ACTIONS),
    kinds: Sequence[str] = KINDS,
    roles: Sequence[str] | None = None,
    sample: int | None = None,
) -> list[Point]:
    """Every point, or `sample` of them: of each (role, kind, action) the share that it has of all, at least
    one while the sample lasts, spread evenly over the run."""
    groups: list[list[Point]] = []
    for (role, kind), calls in sorted(most_calls(counts).items()):
        if kind in kinds and (roles is None or role in roles):
            groups += [
                [Point(role, kind, n, action) for n in range(1, calls + 1)]
                for action in actions
                if kind in WRITES or not _is_cut(action)
            ]
    total = sum(map(len, groups))
    if sample is None or sample >= total:
        return [point for group in groups for point in group]
    shares = zip(groups, _shares(groups, sample), strict=True)
    return [point for group, wanted in shares for point in spread(group, wanted)]


def spread(group: Sequence[Point], wanted: int) -> list[Point]:
    """`wanted` items of a sequence, evenly spread, the middle ones of equal parts."""
    return [group[(2 * i + 1) * len(group) // (2 * wanted)] for i in range(wanted)]


def _is_cut(action: str) -> bool:
    return action == "torn" or action.startswith(("TORN", "SHORT"))


def _shares(groups: Sequence[Sequence[Point]], sample: int) -> list[int]:
    shares = [0] * len(groups)
    left = sample
    while left:
        # The group that is most behind its share next; an empty one is behind all others.
        index = max(
            (i for i in range(len(groups)) if shares[i] < len(groups[i])),
            key=lambda i: (shares[i] == 0, len(groups[i]) / (shares[i] + 1)),
        )
        shares[index] += 1
        left -= 1
    return shares


def kill_sweep(
    library: Path,
    workload: Workload,
    check: Check,
    workdir: Path,
    *,
    points: Sequence[Point] | None = None,
    sample: int | None = None,
    workers: int = 2,
    stop_after: int = 5,
    check_timeout_s: float = 30.0,
) -> SweepResult:
    """Strike at each point in a run of its own, then check(store, ledger lines).

    points: which; by default kill_points() of a counting run, `sample` of them. A run that does not end
    within its time is a violation of check 7. Each violation carries the line that repeats its run.
    """
    if points is None:
        points = kill_points(count_calls(library, workload, workdir), sample=sample)
    chosen = list(points)
    random.Random(1).shuffle(chosen)  # a bug shows early wherever it is

    def work(index: int, report: Report) -> None:
        point = chosen[index]
        if report.at(f"{point.role or 'any'} {point.kind} {point.n} {point.action}"):
            folder = workdir / f"point-{index}"
            _strike(run(library, workload, folder, plan=[point.rule()]), check, report)
            shutil.rmtree(folder, ignore_errors=True)

    result = run_sharded(
        len(chosen),
        work,
        workers=workers,
        deadline_s=workload.timeout_s + check_timeout_s,
        stop_after=stop_after,
    )
    totals = result.totals
    return SweepResult(result.violations, totals["hit"], totals["missed"], result.seconds, result.is_complete)


def _strike(done: Run, check: Check, report: Report) -> None:
    report.add("hit" if done.struck else "missed")
    if done.is_timed_out:
        report.violation(f"(7) the command did not end within {done.seconds:.0f} s\n  {done.command_line}")
    where = f"\n  {done.command_line}\n  {done.output[-800:]}"
    keep = os.environ.get(KEEP_VARIABLE)
    before = Base.capture(done.store) if keep else Base()
    is_right = report.collect(lambda: check(done.store, done.acks()), where)
    if keep and not is_right:
        kept = Path(keep, f"{done.folder.name}-{time.time_ns()}")
        before.save(kept / "store")
        for ledger in done.folder.glob("ACK*"):
            shutil.copy(ledger, kept)
