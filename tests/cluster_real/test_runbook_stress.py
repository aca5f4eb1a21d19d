"""The runbook's stress: 10,000 sessions, ten times failover and failback under load, none lost or changed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import perdure
from perdure.cli.demo.caller import CallerTask
from perdure.cli.demo.etcd import why_no_etcd
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
    """Failover and failback, again and again; from the second time on with a member of etcd killed, if
    there is one."""
    fill(run, run.cluster.path(run.primary()), sessions)
    for number in range(times):
        if number == 1 and run.etcd is not None:
            run.etcd.kill(0)
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
@pytest.mark.parametrize(
    ("nodes", "coordinator"),
    [
        (3, "quorum"),
        (4, "quorum"),
        pytest.param(3, "etcd", marks=pytest.mark.skipif(bool(why_no_etcd()), reason=why_no_etcd())),
    ],
)
def test_ten_thousand_sessions_outlive_ten_failovers_and_failbacks(
    nodes: int, coordinator: str, tmp_path: Path, seed: int
) -> None:
    task = CallerTask(seed=seed, keys=STEADY, pause_ms=2.0, has_deletes=False)
    with run_of(tmp_path, task, nodes=nodes, coordinator=coordinator) as run:
        stress(run, 10_000, 10)
        report = run.check(f"stress-of-{nodes}-{coordinator}", operations_min=5_000)
    assert report.sessions == 10_000 + STEADY
    assert len(report.failovers) == 20
