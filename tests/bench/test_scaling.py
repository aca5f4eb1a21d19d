"""How costs grow: what is measured in turn, with replicas, and with the log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import pytest

from bench import log_scaling, replica_scaling, scaling
from bench.comparison import Plan
from bench.log_scaling import log_rows
from bench.plots import write_plots
from bench.replica_scaling import replica_rows
from bench.report import Result, markdown
from bench.rows import Row
from bench.scaling import in_turn, line_rows, may_hold
from bench.systems.perdure import Perdure
from bench.systems.ports import Durability

from .fakes import FileSystem

PLAN = Plan(rounds=1, slice_s=0.01, reopen_fill_s=20.0, slow_s=20.0)
OURS = Perdure("lmdb")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[ExitStack], Path]:
    return lambda stack: Path(stack.enter_context(TemporaryDirectory(dir=tmp_path)))


def amounts(rows: list[Row]) -> dict[str, float]:
    return {row.case: row.amount for row in rows if row.amount is not None}


class Clock:
    """In place of the module `time`: it moves only where a test says so."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


def test_points_are_measured_in_turn_and_a_slow_one_in_its_warm_up_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(scaling, "time", clock)
    calls: list[str] = []

    def point(name: str, takes_s: float) -> Callable[[int], float]:
        def measure(number: int) -> float:
            calls.append(f"{number} {name}")
            clock.now_s += takes_s
            return float(number)

        return measure

    taken = in_turn(Plan(rounds=2, slow_s=5.0), {1: point("fast", 4.0), 2: point("slow", 6.0)})
    assert calls == ["0 fast", "0 slow", "1 fast", "2 fast"]
    assert taken == {1: [1.0, 2.0], 2: [0.0]}


@pytest.mark.parametrize(
    ("only", "factors"),
    [
        ("", ["sessions", "replicas"]),
        ("update", ["sessions", "replicas"]),
        ("against replicas", ["replicas"]),
        ("get against sess", ["sessions"]),
        ("against sessions: 1,000, os", ["sessions"]),
    ],
)
def test_a_factor_that_is_named_is_measured_alone(only: str, factors: list[str]) -> None:
    assert [factor for factor in ("sessions", "replicas") if may_hold(only, factor)] == factors


def test_lines_of_two_classes_are_told_and_drawn_apart(tmp_path: Path) -> None:
    rows = [
        row
        for what, durability in (("late", Durability.OS), ("sure", Durability.TWO_DISKS))
        for row in line_rows(
            FileSystem(), f"{what} against replicas", {1: [8.0, 9.0], 2: [18.0] * 2}, durability
        )
    ]
    assert amounts(rows)["sure against replicas: slope"] == pytest.approx(1.082, abs=0.001)
    result = Result({}, {}, rows, {})
    files = write_plots(result, tmp_path)
    assert [file.name for file in files] == ["scaling-replicas.svg", "scaling-replicas-two-disks.svg"]
    assert [
        name in "".join(ElementTree.parse(files[1]).getroot().itertext()) for name in ("sure", "late")
    ] == [
        True,
        False,
    ]
    assert "| sure against replicas: 2 | tests.bench.fakes:FileSystem | 18 us | 0 % |" in markdown(result)


def test_writes_are_measured_until_every_replica_has_them(
    folder: Callable[[ExitStack], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_scaling, "REPLICAS", (2,))
    monkeypatch.setattr(replica_scaling, "_SLICE_S_MIN", 0.01)
    rows = list(replica_rows(OURS, PLAN, folder))
    told = {case.removesuffix(" against replicas: 2"): amount for case, amount in amounts(rows).items()}
    assert set(told) == {name for lines in replica_scaling.LINES.values() for name in lines}
    assert told["asynchronous write, until on every disk"] > told["asynchronous write"] > 0
    assert all(amount > 0 for amount in told.values())
    assert {row.durability for row in rows if row.case.startswith("synchronous")} == {"two-disks"}
    assert {row.durability for row in rows if row.case.startswith("asynchronous")} == {"os"}
    assert list(replica_rows(OURS, PLAN, folder, "against sessions")) == []


def test_costs_are_measured_with_a_log_that_is_longer_than_its_sessions_are_many(
    folder: Callable[[ExitStack], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_scaling, "SESSIONS", 50)
    monkeypatch.setattr(log_scaling, "EVENTS", (1_000,))
    skipped: list[str] = []
    told = amounts(list(log_rows(OURS, PLAN, folder, lambda what, _: skipped.append(what))))
    assert not skipped
    whats = ("update", "replay, an event", "start after kill -9")
    assert list(told) == [f"{what} against events of the log: 1,000" for what in whats]
    assert all(amount > 0 for amount in told.values())
    assert list(log_rows(OURS, PLAN, folder, lambda *_: None, "against replicas")) == []


def test_a_log_that_can_not_be_written_in_time_is_left_out_and_said(
    folder: Callable[[ExitStack], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_scaling, "SESSIONS", 50)
    monkeypatch.setattr(log_scaling, "EVENTS", (1_000_000,))
    monkeypatch.setattr(log_scaling, "_WRITTEN_PER_S", 1e9)
    skipped: dict[str, str] = {}
    plan = Plan(rounds=1, reopen_fill_s=0.05)
    assert list(log_rows(OURS, plan, folder, skipped.__setitem__)) == []
    assert "events within" in skipped["events of the log: 1,000,000"]
