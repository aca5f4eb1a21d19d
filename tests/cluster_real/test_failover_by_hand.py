"""Machines that fail, and an operator who promotes: what was acknowledged is there, whatever the fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster_real.client import Task
from tests.cluster_real.network import why_not
from tests.cluster_real.nodes import real_cluster
from tests.cluster_real.runs import Run

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.xdist_group("cluster-real"),
]

FAULTS: dict[str, Callable[[Run], None]] = {"kill": Run.kill, "partition": Run.partition, "pause": Run.pause}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "fault",
    [
        "kill",
        pytest.param("partition", marks=pytest.mark.lab),
        pytest.param("pause", marks=pytest.mark.lab),
    ],
)
def test_a_promotion_by_hand_keeps_what_was_acknowledged(fault: str, tmp_path: Path, seed: int) -> None:
    with real_cluster(tmp_path, coordinator="manual") as cluster:
        run = Run(f"by-hand-{fault}", cluster, Task(seed=seed, keys=20))
        FAULTS[fault](run)
        report = run.finish(operations_min=1000)
    assert [failover["fault"] for failover in report.failovers] == [fault]
    assert report.false_elections == 0
