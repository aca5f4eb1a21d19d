"""The parts of a call: what is told of them, and that they add up."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.comparison import Plan
from bench.parts import CALLS, CALLS_OF, INTERPRETER, NAMES, WHOLE, part_rows
from bench.report import Result, markdown
from perdure.store.commit import FOLD_ENTRIES

PLAN = Plan(rounds=2, sessions=3_000)


def test_each_call_has_its_parts_and_they_are_not_more_than_the_whole(tmp_path: Path) -> None:
    rows = list(part_rows(tmp_path, PLAN))
    told = [row.case for row in rows]
    assert told == [
        f"{call}: {part}" for call, parts in CALLS_OF.items() for part in (WHOLE, *parts, INTERPRETER)
    ]
    amounts = {row.case: row.amount or 0.0 for row in rows}
    assert all(amounts[f"{call}: {part}"] > 0 for call, parts in CALLS_OF.items() for part in parts)
    text = markdown(Result({}, {}, rows, {}))
    assert "| get | the whole call |" in text
    assert "/s without the interpreter |" in text


@pytest.mark.parametrize(("only", "calls"), [("parts: get", 1), ("fold", 3), ("figures: get", 0)])
def test_parts_can_be_chosen(tmp_path: Path, only: str, calls: int) -> None:
    rows = list(part_rows(tmp_path, PLAN, only))
    assert len({row.case.rpartition(": ")[0] for row in rows}) == calls
    assert {f"{row.group}: {row.case}" for row in rows} <= {
        *NAMES,
        *(f"parts: {call}: {INTERPRETER}" for call in CALLS_OF),
    }


def test_no_call_that_is_measured_folds_by_itself() -> None:
    assert CALLS < FOLD_ENTRIES
