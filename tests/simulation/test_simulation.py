"""Schedules of a whole cluster under faults, each from a seed; and bugs that they must find.

A schedule that fails prints how to run it again. PERDURE_SIM_FROM moves the seeds, PERDURE_SIM_COUNT says
how many schedules a run has.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.runner import replay_command, run_many
from tests.simulation.schedule import Outcome

FROM = int(os.environ.get("PERDURE_SIM_FROM", "0"))
COUNT = int(os.environ.get("PERDURE_SIM_COUNT", "3000"))
LAB_COUNT = int(os.environ.get("PERDURE_SIM_COUNT", "20000"))
BATCH = 75
LAB_BATCH = 500


def _check(first: int, count: int) -> None:
    outcomes = list(run_many(first, count))
    assert len(outcomes) == count
    failed = [outcome for outcome in outcomes if outcome.rule]
    assert not failed, "\n".join(f"{replay_command(outcome.seed)}\n    {outcome.text}" for outcome in failed)
    assert sum(outcome.counts["acknowledged"] for outcome in outcomes) > 5 * count
    assert sum(outcome.counts["faults"] for outcome in outcomes) > 5 * count
    assert sum(outcome.counts["epochs"] for outcome in outcomes) > 1.2 * count


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(FROM, FROM + COUNT, BATCH))
def test_every_schedule_keeps_the_invariants(first: int) -> None:
    _check(first, min(BATCH, FROM + COUNT - first))


@pytest.mark.lab
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(FROM, FROM + LAB_COUNT, LAB_BATCH))
def test_every_schedule_of_many_keeps_the_invariants(first: int) -> None:
    _check(first, min(LAB_BATCH, FROM + LAB_COUNT - first))


def test_a_seed_gives_the_same_schedule_again() -> None:
    first, second = (list(run_many(FROM, 6)) for _ in range(2))
    assert [_same(outcome) for outcome in first] == [_same(outcome) for outcome in second]
    assert len({outcome.hash for outcome in first}) == 6


def _same(outcome: Outcome) -> tuple[object, ...]:
    return outcome.hash, outcome.steps, outcome.simulated_ms, outcome.rule, outcome.counts
