"""Schedules of a whole cluster under faults, each from a seed; and bugs that they must find.

A schedule that fails prints how to run it again. PERDURE_SIM_FROM moves the seeds, PERDURE_SIM_COUNT says
how many schedules a run has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain

import pytest

from tests.simulation.bugs import BUGS, FLAVOUR_OF
from tests.simulation.runner import replay_command, run_many
from tests.simulation.schedule import Outcome

FROM = int(os.environ.get("PERDURE_SIM_FROM", "0"))
COUNT = int(os.environ.get("PERDURE_SIM_COUNT", "1500"))
LAB_COUNT = int(os.environ.get("PERDURE_SIM_COUNT", "20000"))
BATCH = 75
LAB_BATCH = 500
BUG_SEEDS = 240
"""A bug is found within so many of the schedules that are about it."""
FOUND_BY = {
    "no-fence": 30,
    "promise-not-durable": 5,
    "ack-before-fsync": 562,
    "shorter-log-promoted": 52,
    "epoch-reused": 427,
    "two-promised-in-one-epoch": 25,
    "q-is-n-minus-k-only": 526,
    "lease-by-wall-clock": 150,
    "two-voters-at-once": 104,
    "degrade-recorded-late": 80,
    "older-frames-count-as-committed": 52,
}
"""Seeds that find them. A change of the code may make them other schedules: then others are looked for."""
NO_FIND = ("", "the simulator works", "the schedule ends", "the cluster works again")
"""Outcomes that do not show a bug: what has to be broken is what keeps writes."""


def _check(first: int, count: int) -> None:
    outcomes = list(run_many(first, count))
    assert len(outcomes) == count
    failed = [outcome for outcome in outcomes if outcome.rule]
    assert not failed, "\n".join(f"{replay_command(outcome.seed)}\n    {outcome.text}" for outcome in failed)
    assert sum(outcome.counts["acknowledged"] for outcome in outcomes) > 5 * count
    assert sum(outcome.counts["faults"] for outcome in outcomes) > 4 * count
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


@pytest.mark.parametrize("words", [("--seed", str(FROM)), ("--json", "--from", str(FROM), "--count", "3")])
def test_a_reader_that_goes_away_is_no_error_to_read_about(words: tuple[str, ...]) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -n 1', "sh", sys.executable, "-m", "tests.simulation", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_seed_gives_the_same_schedule_again() -> None:
    first, second = (list(run_many(FROM, 6)) for _ in range(2))
    assert [_same(outcome) for outcome in first] == [_same(outcome) for outcome in second]
    assert len({outcome.hash for outcome in first}) == 6


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_bug_that_was_put_in_is_found(bug: str) -> None:
    known = run_many(FOUND_BY[bug], 1, bug=bug)
    search = run_many(0, BUG_SEEDS, bug=bug, flavour=FLAVOUR_OF[bug])
    found = next((outcome for outcome in chain(known, search) if outcome.rule not in NO_FIND), None)
    assert found is not None, f"no schedule of {BUG_SEEDS} found it"
    print(f"{replay_command(found.seed, bug)}\n    {found.text}")
    (without,) = run_many(found.seed, 1)
    assert not without.rule, without.text


def test_a_schedule_is_the_same_in_a_process_of_its_own() -> None:
    (branched,) = run_many(FROM, 1)
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(FROM)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    traced = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert _same(Outcome(**json.loads(traced.splitlines()[-1]))) == _same(branched)


def _same(outcome: Outcome) -> tuple[object, ...]:
    return outcome.hash, outcome.steps, outcome.simulated_ms, outcome.rule, outcome.counts
