"""The command: what is kept when a part of a run fails, and its exit codes."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import gate, page
from bench.gate import Baseline, baseline_of
from bench.measure import REPORTED, Figure
from bench.report import Result, read_json
from bench.rows import Row

FIGURE = Figure("create, os", 40_000.0, 45_000.0, "naive", 50_000.0, 0.8, 0.7, 0.9, "at least 1.00", False)


class Room:
    """Measures one figure, and then fails if told so."""

    def __init__(self, failure: BaseException | None = None, figure: Figure = FIGURE) -> None:
        self._failure = failure
        self._figure = figure
        self.is_asked = False

    def measure_all(self, only: str, quick: bool, directory: str | None) -> Iterator[Figure]:
        self.is_asked = True
        if only in self._figure.name:
            yield self._figure
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


def test_a_figure_without_an_aim_has_no_ratio_and_is_neither_met_nor_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reported = Figure("bytes of log", 181.0, 181.0, "none", 5_000.0, 0.04, 0.04, 0.04, REPORTED, True)
    assert run(monkeypatch, tmp_path, Room(figure=reported)) == 0
    (row,) = read_json(tmp_path / "bench.json").rows
    assert (row.ops_per_s, row.ratio_to_limit, row.limit, row.note) == (181.0, None, "", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--systems", "redis,postgres"], "no system is called postgres; there are perdure-lmdb, "),
        (["--durabilities", "disc"], "no durability class is called disc; there are none, os, second, disk"),
        (["--systems", "redis"], "--part figures has none: use --only"),
        (["--directory", "/nowhere/to/be/found"], "make it first"),
        (["--json", "/dev/null/bench.json"], "name another file with --json"),
        (["--save-page", "--only", "create"], "with --only a run has some rows only"),
        (["--save-baseline", "--only", "create"], "with --only a run has some rows only"),
    ],
)
def test_what_would_be_in_vain_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    room = Room()
    for name in ("write_page", "write_baseline"):
        monkeypatch.setattr(command, name, lambda *_: None)
    assert run(monkeypatch, tmp_path, room, *words) == 2
    assert told in capsys.readouterr().err
    assert not room.is_asked


def test_without_a_baseline_the_gate_says_how_to_make_one_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Baseline:
        raise FileNotFoundError("baseline.json")

    monkeypatch.setattr(command, "read_baseline", missing)
    room = Room()
    assert run(monkeypatch, tmp_path, room, "--gate") == 2
    assert "with --save-baseline the baseline" in capsys.readouterr().err
    assert not room.is_asked


def test_a_run_is_compared_with_the_baseline_that_it_replaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[Baseline] = []
    monkeypatch.setattr(command, "write_baseline", kept.append)
    monkeypatch.setattr(command, "read_baseline", lambda: kept[-1] if kept else Baseline({}, {}, {}))
    assert run(monkeypatch, tmp_path, Room(), "--gate", "--save-baseline") == 2
    assert kept == [baseline_of(read_json(tmp_path / "bench.json"))]


@pytest.mark.parametrize("option", ["--sessions", "--rounds", "--slice-ms"])
def test_less_than_one_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([option, "0"])
    assert ended.value.code == 2
    assert "0 is less than 1" in capsys.readouterr().err


def test_where_nothing_was_measured_the_run_says_what_a_name_looks_like(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, tmp_path, Room(), "--only", "nothing like it")
    assert (
        "no row's name holds 'nothing like it' (a name: 'single: get, os, redis'" in capsys.readouterr().err
    )


def test_an_interrupted_run_keeps_its_rows_and_leaves_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages: list[Result] = []
    monkeypatch.setattr(command, "write_page", lambda result, *_: pages.append(result))
    assert run(monkeypatch, tmp_path, Room(KeyboardInterrupt()), "--save-page") == 1
    assert len(read_json(tmp_path / "bench.json").rows) == 1
    assert not pages
    assert "python -m bench.page" in capsys.readouterr().err
    assert run(monkeypatch, tmp_path, Room(), "--save-page") == 0
    assert len(pages) == 1


def test_results_that_can_not_be_written_are_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_json", refuse)
    assert run(monkeypatch, tmp_path, Room()) == 1
    assert "No space left on device: free some space" in capsys.readouterr().err


class Closed(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_who_leaves_ends_the_run_as_an_interrupt_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Room()
    monkeypatch.setattr(command, "ROOMS", (Room(), other))
    monkeypatch.setattr(sys, "stdout", Closed())
    assert command.main(["--part", "figures", "--json", str(tmp_path / "bench.json")]) == 1
    assert len(read_json(tmp_path / "bench.json").rows) == 1
    assert not other.is_asked
    assert "interrupted: what was measured is written" in capsys.readouterr().err


def test_a_system_whose_pipe_breaks_is_no_reader_who_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(monkeypatch, tmp_path, Room(BrokenPipeError("of a client"))) == 1
    assert "BrokenPipeError: of a client" in read_json(tmp_path / "bench.json").skipped["a part of the run"]


@pytest.mark.parametrize("name", ["create, os", "figures: create, os, perdure", "figures: create"])
def test_a_figure_is_chosen_by_the_name_that_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    assert run(monkeypatch, tmp_path, Room(), "--only", name) == 0
    assert read_json(tmp_path / "bench.json").options["only"] == name


def test_rows_behind_for_which_there_is_no_reason_are_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row(group="single", case="get", system="swift", durability="os", ops_per_s=9.0, ours_ratio=0.5)
    monkeypatch.setattr(command, "figures", lambda *_: iter([row]))
    assert run(monkeypatch, tmp_path, Room()) == 0
    assert "not ahead in 1 rows for which bench/reasons.toml has no reason: single: get, os, swift" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("number", "before", "after"),
    [
        (signal.SIGTERM, signal.SIG_DFL, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_IGN, signal.SIG_IGN),
    ],
)
def test_what_ends_the_run_ends_what_it_has_started_unless_nohup_forbids_it(
    number: signal.Signals, before: signal.Handlers, after: object
) -> None:
    previous = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(number, before)
        command._end_in_order()
        assert signal.getsignal(number) == after
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)


def test_little_room_is_said_before_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "NEEDED_BYTES", 1 << 60)
    assert run(monkeypatch, tmp_path, Room()) == 0
    assert "--directory names another place" in capsys.readouterr().err


@pytest.mark.parametrize("main", [command.main, gate.main, page.main])
def test_help_has_an_example(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "example: python -m bench" in capsys.readouterr().out
