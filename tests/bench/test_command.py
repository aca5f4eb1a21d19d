"""The command: what is kept when a part of a run fails, and its exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.gate import Baseline
from bench.measure import Figure
from bench.report import read_json

FIGURE = Figure("create, os", 40_000.0, 45_000.0, "naive", 50_000.0, 0.8, 0.7, 0.9, "at least 1.00", False)


class Room:
    """Measures one figure, and then fails if told so."""

    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure

    def measure_all(self, only: str, quick: bool, directory: str | None) -> Iterator[Figure]:
        if only in FIGURE.name:
            yield FIGURE
        if self._failure is not None:
            raise self._failure


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, room: Room, *words: str) -> int:
    monkeypatch.setattr(command, "ROOMS", (room,))
    return command.main(["--part", "figures", "--json", str(folder / "bench.json"), *words])


def test_figures_become_rows_of_the_same_json_and_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(monkeypatch, tmp_path, Room()) == 0
    (row,) = read_json(tmp_path / "bench.json").rows
    assert (row.group, row.case, row.ops_per_s, row.ratio_to_limit) == (
        "figures",
        "create, os",
        40_000.0,
        0.8,
    )
    assert "| create, os | 40,000 | naive | 0.80 |" in (tmp_path / "bench.md").read_text()


def test_what_was_measured_is_kept_when_a_part_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, tmp_path, Room(OSError("no room"))) == 1
    result = read_json(tmp_path / "bench.json")
    assert len(result.rows) == 1
    assert "OSError: no room" in result.skipped.values()


def test_a_name_that_nothing_has_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, tmp_path, Room(), "--only", "nothing like it") == 2
    assert not (tmp_path / "bench.json").exists()


def test_without_anything_in_common_with_the_baseline_the_gate_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "read_baseline", lambda: Baseline({}, {}, {}))
    assert run(monkeypatch, tmp_path, Room(), "--gate") == 2
