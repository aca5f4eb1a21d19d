"""Findings: levels, exit classes, and how an error of a decoder becomes one."""

from __future__ import annotations

import pytest

from perdure.recovery.findings import Finding, Level, Summary, finding_of, summarise
from perdure.store import CorruptError


@pytest.mark.parametrize(
    ("levels", "exit_code", "verdict"),
    [
        ([], 0, Level.OK),
        ([Level.OK, Level.NOTICE], 0, Level.NOTICE),
        ([Level.OK, Level.UNKNOWN], 1, Level.UNKNOWN),
        ([Level.WARNING, Level.UNKNOWN, Level.OK], 1, Level.WARNING),
        ([Level.CORRUPT, Level.WARNING], 4, Level.CORRUPT),
    ],
)
def test_the_worst_level_gives_verdict_and_exit_code(
    levels: list[Level], exit_code: int, verdict: Level
) -> None:
    summary = summarise(Finding(level, "kind", "text") for level in levels)
    assert summary.exit_code == exit_code
    assert summary.verdict is verdict


def test_what_could_not_be_checked_is_never_fine() -> None:
    summary = Summary()
    summary.add(Finding(Level.UNKNOWN, "log-gone", "retention has passed it"))
    assert summary.exit_code != 0
    assert str(summary) == "1 unknown"


def test_an_error_keeps_where_it_was_found() -> None:
    error = CorruptError("a frame is damaged", path="/x/y.seg", offset=160, lsn=3, hint="Look there.")
    finding = finding_of(error, Level.CORRUPT, "frame")
    assert (finding.path, finding.offset, finding.lsn, finding.hint) == ("/x/y.seg", 160, 3, "Look there.")
    assert str(finding) == (
        "corrupt frame: a frame is damaged (file /x/y.seg, offset 160, lsn 3). Look there."
    )
