"""The verdict of a demo: proven only if nothing is lost, nothing is invented, and everything agrees."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.cli.demo.accesslog import LineCounts
from perdure.cli.demo.audit import Audit
from perdure.cli.demo.failover import Promoted
from perdure.cli.demo.proof import Comparison, ReplayedCopy, Standing
from perdure.cli.demo.report import DemoOptions, Failover, Outcome, Traffic, as_json, is_proven, summary
from perdure.cli.demo.traffic import Plan

KEYS = (
    "acknowledged lost phantom digests_agree failover_ms replay_ms sessions "
    "unknown writes_per_s lag_p99_ms seed"
)
LOG_KEYS = "sessions hits expirations"


def _audit(**changes: int) -> Audit:
    clean = Audit(
        attempted=10,
        acknowledged=9,
        refused=0,
        unknown=1,
        lost=0,
        lost_sessions=0,
        phantom=0,
        holes=0,
        by_kind={"create": 9},
        examples=(),
    )
    return msgspec.structs.replace(clean, **changes)


def _outcome(**changes: Any) -> Outcome:
    standing = Standing(2, 50, 7, "00ff")
    outcome = Outcome(
        options=DemoOptions(Plan(seed=3)),
        traffic=Traffic(5.0, 100.0, 200.0, 1.0, 2.0, 30.0),
        failover=Failover(Promoted("n2", 2, 40, ("n3",), 20, ""), 5, 6.0, 250.0, _audit(), 10.0),
        final=_audit(),
        primary=standing,
        replica=standing,
        replayed=ReplayedCopy("a.snap", 9, 50, 7, "00ff", 120),
        comparison=None,
        lines=LineCounts(),
        mismatches=0,
        writes_confirmed=9,
        elapsed_s=20.0,
    )
    return msgspec.structs.replace(outcome, **changes)


def _lost(**changes: int) -> Failover:
    return msgspec.structs.replace(_outcome().failover, audit=_audit(**changes))


SAME = Comparison(3, 3, 4, 4, 2, 2, 1, 1, ())


def test_a_demo_in_which_everything_holds_is_proven() -> None:
    outcome = _outcome(comparison=SAME)
    assert is_proven(outcome)
    assert list(summary(outcome))[-1].startswith("proven")
    report = as_json(outcome)
    assert {*KEYS.split()} <= set(report)
    assert {f"{side}_{name}" for side in ("expected", "measured") for name in LOG_KEYS.split()} <= set(report)
    assert (report["lost"], report["phantom"], report["digests_agree"]) == (0, 0, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"failover": _lost(lost=1)},
        {"failover": _lost(phantom=1)},
        {"failover": _lost(holes=1)},
        {"final": _audit(lost=1)},
        {"final": _audit(phantom=2)},
        {"replica": Standing(2, 49, 7, "00ff")},
        {"replica": Standing(2, 50, 7, "00fe")},
        {"replica": Standing(2, 50, 6, "00ff")},
        {"replayed": ReplayedCopy("a.snap", 9, 50, 7, "00fe", 120)},
        {"replayed": ReplayedCopy("a.snap", 9, 49, 7, "00ff", 120)},
        {"mismatches": 1},
        {"comparison": msgspec.structs.replace(SAME, differences=("hits: ...",))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_single_thing_that_does_not_hold_is_said(changes: dict[str, Any]) -> None:
    outcome = _outcome(**changes)
    assert not is_proven(outcome)
    assert not as_json(outcome)["is_proven"]
    assert list(summary(outcome))[-1].startswith("NOT")
