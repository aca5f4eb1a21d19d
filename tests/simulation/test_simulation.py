"""Schedules of a whole cluster under faults, each from a seed.

A schedule that fails prints how to run it again. PERDURE_SIM_FROM moves the seeds, PERDURE_SIM_COUNT says
how many schedules a run has.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.runner import replay_command, run_many

FROM = int(os.environ.get("PERDURE_SIM_FROM", "0"))
COUNT = int(os.environ.get("PERDURE_SIM_COUNT", "60"))
BATCH = 20


def _run(first: int, count: int) -> None:
    failed = [outcome for outcome in run_many(first, count) if outcome.rule]
    assert not failed, "\n".join(f"{replay_command(outcome.seed)}\n    {outcome.text}" for outcome in failed)


@pytest.mark.parametrize("first", range(FROM, FROM + COUNT, BATCH))
def test_every_schedule_keeps_the_invariants(first: int) -> None:
    _run(first, min(BATCH, FROM + COUNT - first))


def test_a_seed_gives_the_same_schedule_again() -> None:
    first, second = (list(run_many(FROM, 6)) for _ in range(2))
    assert [outcome.hash for outcome in first] == [outcome.hash for outcome in second]
    assert [outcome.steps for outcome in first] == [outcome.steps for outcome in second]
    assert len({outcome.hash for outcome in first}) == 6
