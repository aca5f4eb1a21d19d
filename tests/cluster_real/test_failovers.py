"""Machines whose primary fails, again and again, and nodes that choose the next one by themselves.

What was acknowledged is kept, the histories of all sessions are linearizable, no two epochs acknowledge one
LSN, and all logs are equal in the end. The reports have the times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.cli.demo.caller import CallerTask
from perdure.cli.demo.etcd import why_no_etcd
from tests.cluster_real.network import why_not
from tests.cluster_real.runs import Run, run_of

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.xdist_group("cluster-real"),
]
OPERATIONS_MIN = 5_000
PAUSE_MS = 2.0
STEADY_S = 300.0


@pytest.mark.timeout(600)
def test_two_kills_a_partition_and_a_pause_lose_nothing(tmp_path: Path, seed: int) -> None:
    with run_of(tmp_path, CallerTask(seed=seed, pause_ms=PAUSE_MS)) as run:
        run.kill()
        run.partition()
        run.pause()
        run.kill()
        report = run.check("few")
    faults = [failover.fault for failover in report.failovers]
    assert faults == ["kill", "partition", "pause", "kill"]


def kill(run: Run, _number: int) -> None:
    run.kill()


def partition(run: Run, number: int) -> None:
    """Every second one goes one way: others do not hear the primary, or it does not hear them."""
    run.partition(hears=number % 4 == 1, is_heard=number % 4 == 3)


def pause(run: Run, _number: int) -> None:
    run.pause()


@pytest.mark.lab
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "nodes", "count", "fault"),
    [
        ("kills", 3, 30, kill),
        ("partitions", 3, 20, partition),
        ("pauses", 3, 20, pause),
        ("kills-of-four", 4, 10, kill),
    ],
    ids=["kills", "partitions", "pauses", "kills of four nodes"],
)
def test_many_failovers_lose_nothing(
    name: str, nodes: int, count: int, fault: Callable[[Run, int], None], tmp_path: Path, seed: int
) -> None:
    with run_of(tmp_path, CallerTask(seed=seed, pause_ms=PAUSE_MS), nodes=nodes) as run:
        for number in range(count):
            fault(run, number)
        report = run.check(name, operations_min=OPERATIONS_MIN)
    assert len(report.failovers) == count


@pytest.mark.lab
@pytest.mark.timeout(3600)
def test_full_load_alone_makes_no_failover(tmp_path: Path, seed: int) -> None:
    """Twice as many applications as cores on every node, none of which pauses."""
    task = CallerTask(seed=seed, keys=200)
    with run_of(tmp_path, task, each=2) as run:
        started_s = time.monotonic()
        time.sleep(STEADY_S)
        hours = (time.monotonic() - started_s) / 3600
        report = run.check("full-load", operations_min=OPERATIONS_MIN)
    print(f"false elections an hour: {report.false_elections / hours:.1f}")
    assert report.false_elections <= 1


def _with_etcd(run: Run) -> None:
    """A failover with all of etcd, one with a member killed, and one more with it back."""
    assert run.etcd is not None
    run.kill()
    run.etcd.kill(0)
    run.partition()
    run.etcd.start(0)
    run.pause()


@pytest.mark.lab
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(why_no_etcd()), reason=why_no_etcd())
def test_failovers_by_etcd_lose_nothing_with_a_member_of_etcd_killed(tmp_path: Path, seed: int) -> None:
    with run_of(tmp_path, CallerTask(seed=seed, pause_ms=PAUSE_MS), coordinator="etcd") as run:
        for _ in range(3):
            _with_etcd(run)
        report = run.check("etcd", operations_min=OPERATIONS_MIN)
    assert len(report.failovers) == 9
