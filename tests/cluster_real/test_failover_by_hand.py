"""Machines that fail, and an operator who promotes: what was acknowledged is there, whatever the fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.cli.demo.caller import CallerTask
from tests.cluster_real.network import why_not
from tests.cluster_real.runs import FAULTS, run_of

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.xdist_group("cluster-real"),
]


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
    with run_of(tmp_path, CallerTask(seed=seed), coordinator="manual") as run:
        FAULTS[fault](run)
        report = run.check(f"by-hand-{fault}", operations_min=1000)
    assert [failover.fault for failover in report.failovers] == [fault]
    assert report.false_elections == 0
