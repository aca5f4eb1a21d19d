"""The chores of a node: what is made anew by itself, and what waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.cli import chores
from perdure.cli.chores import Chores, ChoreTask
from perdure.recovery import Policy
from perdure.shipping.faults import PARTED, Fault, fault_of, write_fault
from perdure.store import SessionStore


def test_a_fault_of_two_primaries_is_not_put_right_by_making_the_state_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SessionStore.open(tmp_path / "n1").close()
    made_anew: list[Path] = []
    monkeypatch.setattr(chores, "reconcile_self", made_anew.append)
    work = Chores(ChoreTask(str(tmp_path / "n1")))
    parted, folded = Fault(7, "two primaries", 1, PARTED, (1, 7, 9)), Fault(7, "folding stopped", 1)
    write_fault(tmp_path / "n1", parted)
    assert work.reconcile() == ""
    assert fault_of(tmp_path / "n1") == parted
    assert made_anew == []
    write_fault(tmp_path / "n1", folded)
    assert work.reconcile() == "folding stopped"
    assert made_anew == [tmp_path / "n1"]


@pytest.mark.parametrize(
    ("retention_s", "snapshot_age_ms", "left"), [(60.0, 3_600_000, 5), (90.0, 0, 2), (0.0, 3_600_000, 2)]
)
def test_the_policy_says_which_snapshots_stay_and_where_none_is_carried_out_their_number(
    tmp_path: Path, retention_s: float, snapshot_age_ms: int, left: int
) -> None:
    policy = Policy(log_age_ms=0, snapshots=2, snapshot_age_ms=snapshot_age_ms)
    work = Chores(ChoreTask(str(tmp_path / "n1"), snapshots_kept=2, retention_s=retention_s, policy=policy))
    with SessionStore.open(tmp_path / "n1") as store:
        for _ in range(5):
            store.create({})
            store.fold()
            assert work.snapshot()
    assert len(list((tmp_path / "n1" / "snapshots").iterdir())) == left
