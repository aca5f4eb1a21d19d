"""Figures of failover and switchover: nodes as an operator runs them, applications that write on each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from perdure.cli.demo.caller import CallerTask
from perdure.cli.demo.failovers import Failover, FailoverRun
from perdure.cli.demo.machines import LoopbackMachines
from perdure.cli.demo.nodes import NodeCluster

from .measure import Figure, percentile

NODES = ("n1", "n2", "n3")
TIMES = 10
GAP_MS_MAX = 1_000.0
PAUSE_MS_MAX = 100.0


def measure_all(only: str, quick: bool, directory: str | None) -> Iterator[Figure]:
    """All figures whose name holds `only`, one after the other."""
    times = TIMES // (5 if quick else 1)
    for name, figure in _FIGURES.items():
        if only in name:
            with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=directory) as folder:
                yield from figure(name, Path(folder), times)


def _run(folder: Path, times: int, change: Callable[[FailoverRun], object]) -> list[Failover]:
    """So many changes of the primary under load; what was acknowledged must be there afterwards."""
    with ExitStack() as stack:
        machines = LoopbackMachines(NODES)
        stack.callback(machines.close)
        cluster = NodeCluster(folder, machines)
        stack.callback(cluster.close)
        run = FailoverRun(cluster, CallerTask(seed=times, pause_ms=1.0, has_deletes=False))
        for _ in range(times):
            change(run)
        report = run.finish()
    if not report.is_proven:
        raise AssertionError(f"the measured cluster is not as it should be: {report.problems}")
    return report.failovers


def _failover(name: str, folder: Path, times: int) -> Iterator[Figure]:
    failovers = _run(folder, times, FailoverRun.kill)
    yield _time(f"{name}: detection", [one.detection_ms for one in failovers], GAP_MS_MAX)
    yield _time(f"{name}: promotion", [one.promotion_ms for one in failovers], GAP_MS_MAX)
    yield _time(f"{name}: writes again after", [one.write_gap_ms for one in failovers], GAP_MS_MAX)


def _switchover(name: str, folder: Path, times: int) -> Iterator[Figure]:
    def hand_over(run: FailoverRun) -> None:
        here = NODES.index(run.primary())
        run.switch_over(NODES[(here + 1) % len(NODES)])

    pauses = [one.write_gap_ms for one in _run(folder, times, hand_over)]
    yield _time(f"{name}: pause of writes", pauses, PAUSE_MS_MAX)


def _time(name: str, taken_ms: list[float], limit_ms: float) -> Figure:
    p50 = percentile(taken_ms, 0.5)
    ratio = p50 / limit_ms
    return Figure(
        f"{name}, p50 ms (p99 {percentile(taken_ms, 0.99):,.0f})",
        p50,
        min(taken_ms),
        "limit in ms",
        limit_ms,
        ratio,
        min(taken_ms) / limit_ms,
        max(taken_ms) / limit_ms,
        f"p50 below {limit_ms:,.0f} ms",
        ratio < 1.0,
        is_less_better=True,
        rounds=len(taken_ms),
    )


_FIGURES: dict[str, Callable[[str, Path, int], Iterator[Figure]]] = {
    "failover after kill -9": _failover,
    "switchover": _switchover,
}
