"""The runbook's stress: 10,000 sessions, ten times failover and failback under load, none lost or changed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import perdure
from perdure.cli.demo.caller import CallerTask
from perdure.cli.demo.linearizability import Operation
from tests.cluster_real.network import why_not
from tests.cluster_real.runs import Run, run_of

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.xdist_group("cluster-real"),
]
BATCH = 100
STEADY = 20
TIMEOUT_MS = 24 * 3_600_000


def fill(run: Run, store: Path, sessions: int) -> None:
    """Create sessions in batches, and note them for the checks."""
    with perdure.open(store, create=False) as opened:
        for first in range(0, sessions, BATCH):
            began_ns = time.monotonic_ns()
            with opened.batch() as batch:
                for number in range(first, first + BATCH):
                    batch.put(f"user-{number}", {"v": f"fill.{number}"}, TIMEOUT_MS)
            run.known += [
                Operation(
                    client="fill",
                    kind="put",
                    key=f"user-{number}",
                    start_ns=began_ns,
                    end_ns=time.monotonic_ns(),
                    value=f"fill.{number}",
                    version=1,
                )
                for number in range(first, first + BATCH)
            ]


def stress(run: Run, sessions: int, times: int) -> None:
    fill(run, run.cluster.path(run.primary()), sessions)
    for _ in range(times):
        run.take_out()
        run.switch_over("n1")


@pytest.mark.lab
@pytest.mark.timeout(600)
def test_a_thousand_sessions_outlive_a_failover_and_a_failback(tmp_path: Path, seed: int) -> None:
    task = CallerTask(seed=seed, keys=STEADY, pause_ms=2.0, has_deletes=False)
    with run_of(tmp_path, task) as run:
        stress(run, 1_000, 1)
        report = run.check("stress-small")
        assert set(run.cluster.sessions("n3")) >= {f"user-{number}" for number in range(1_000)}
    assert report.sessions == 1_000 + STEADY
    assert [failover.taken_by for failover in report.failovers][1:] == ["n1"]


@pytest.mark.lab
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("nodes", [3, 4])
def test_ten_thousand_sessions_outlive_ten_failovers_and_failbacks(
    nodes: int, tmp_path: Path, seed: int
) -> None:
    task = CallerTask(seed=seed, keys=STEADY, pause_ms=2.0, has_deletes=False)
    with run_of(tmp_path, task, nodes=nodes) as run:
        stress(run, 10_000, 10)
        report = run.check(f"stress-of-{nodes}", operations_min=5_000)
    assert report.sessions == 10_000 + STEADY
    assert len(report.failovers) == 20
