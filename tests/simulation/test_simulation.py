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
COUNT = int(os.environ.get("PERDURE_SIM_COUNT", "100"))
LAB_COUNT = int(os.environ.get("PERDURE_SIM_COUNT", "20000"))
BATCH = 50
LAB_BATCH = 500
BUG_SEEDS = 400
"""A bug is found within so many schedules."""
BUGS = (
    "promise-not-durable",
    "lease-by-wall-clock",
    "shorter-log-promoted",
    "epoch-reused",
    "two-promised-in-one-epoch",
    "q-is-n-minus-k-only",
    "older-frames-count-as-committed",
)
BROKEN = ("the simulator works", "the schedule ends")


def _check(first: int, count: int) -> None:
    outcomes = list(run_many(first, count))
    assert len(outcomes) == count
    failed = [outcome for outcome in outcomes if outcome.rule]
    assert not failed, "\n".join(f"{replay_command(outcome.seed)}\n    {outcome.text}" for outcome in failed)
    assert sum(outcome.counts["acknowledged"] for outcome in outcomes) > 10 * count
    assert sum(outcome.counts["epochs"] for outcome in outcomes) > 1.5 * count


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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_that_was_put_in_is_found(bug: str) -> None:
    found = [outcome for outcome in run_many(FROM, BUG_SEEDS, bug=bug, stop=True) if outcome.rule]
    assert found, f"no schedule of {BUG_SEEDS} found it"
    assert found[0].rule not in BROKEN, found[0].text
    print(f"{replay_command(found[0].seed, bug)}\n    {found[0].text}")


def _same(outcome: Outcome) -> tuple[object, ...]:
    return outcome.hash, outcome.steps, outcome.simulated_ms, outcome.rule, outcome.counts
