"""Runs of deadlines: all that was armed, each in a run that may hold it, and few runs."""

from __future__ import annotations

import random

import pytest

from perdure.store.deadlines import RUN_BYTES_MAX, RUN_SPAN_MS, UNSORTED_SPAN_MS, runs_of, unpack_run

SPANS_MS = [0, UNSORTED_SPAN_MS, UNSORTED_SPAN_MS + 1, RUN_SPAN_MS, 50 * RUN_SPAN_MS, 1 << 50]


def armed_within(span_ms: int, count: int = 500) -> list[tuple[int, bytes]]:
    """In any order, with keys of any length; the first and the last moment are both there."""
    choice = random.Random(span_ms)
    moments = [0, span_ms, *(choice.randint(0, span_ms) for _ in range(count - 2))]
    choice.shuffle(moments)
    keys = [b"%06d" % number + bytes(choice.randrange(60)) for number in range(count)]
    return [(10_000 + moment, key) for moment, key in zip(moments, keys, strict=True)]


@pytest.mark.parametrize("span_ms", SPANS_MS)
@pytest.mark.parametrize("is_sorted", [False, True])
def test_runs_hold_all_that_is_armed_and_none_more_than_it_may(span_ms: int, is_sorted: bool) -> None:
    armed = armed_within(span_ms)
    runs = list(runs_of(sorted(armed) if is_sorted else armed))
    assert sorted(entry for _, run in runs for entry in unpack_run(run)) == sorted(armed)
    for first_ms, run in runs:
        assert len(run) <= RUN_BYTES_MAX
        assert all(first_ms <= moment <= first_ms + RUN_SPAN_MS for moment, _ in unpack_run(run))
    assert [first_ms for first_ms, _ in runs] == sorted(first_ms for first_ms, _ in runs)


@pytest.mark.parametrize("span_ms", [span for span in SPANS_MS if span > UNSORTED_SPAN_MS])
def test_runs_of_deadlines_in_their_order_are_those_of_any_order(span_ms: int) -> None:
    armed = armed_within(span_ms)
    assert list(runs_of(sorted(armed, key=lambda entry: entry[0]))) == list(runs_of(armed))


def test_nothing_armed_makes_no_run() -> None:
    assert list(runs_of([])) == []
