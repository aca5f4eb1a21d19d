"""Client processes, and a small comparison from end to end with a system of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from bench.comparison import Plan
from bench.contestants import Served
from bench.crew import ClientError, Crew
from bench.rows import Row
from bench.scaling import scaling_rows
from bench.suite import Choice, Suite
from bench.systems import system_named
from bench.systems.ports import Durability
from bench.workloads import CASES, SMALL_BYTES, Case

from .fakes import FileSystem

GET = Case("single", "get", {"get": 1.0})
TWO_CLIENTS = Case("clients", "mix, 2 clients", {"get": 0.5, "update": 0.5}, clients=2, is_zipfian=True)
PLAN = Plan(
    rounds=2, slice_s=0.01, open_s=0.05, sessions=200, large_sessions=20, reopened=(200,), fill_s=10.0
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(FileSystem(), tmp_path, Durability.OS)
    yield one
    one.close()


def test_clients_call_at_once_and_their_latencies_are_put_together(served: Served) -> None:
    growth = served.fill(SMALL_BYTES, 200, limit_s=10.0)
    assert growth.disk_bytes["state"] >= 200 * SMALL_BYTES
    for number in range(2):
        rate, latencies = served.slice(TWO_CLIENTS, number, 0.02)
        assert rate > 0
        assert latencies.total >= 2  # each of the two makes one call at least


def test_what_a_client_raises_is_told_and_the_next_slice_has_new_clients(served: Served) -> None:
    served.fill(SMALL_BYTES, 10, limit_s=10.0)
    touch = Case("single", "touch", {"touch": 1.0})
    with pytest.raises(ClientError, match="ConnectionError: nobody answers"):
        served.slice(touch, 0, 0.01)
    assert served.slice(GET, 0, 0.01)[0] > 0


def test_a_system_that_is_slow_to_fill_has_what_the_time_allowed(tmp_path: Path) -> None:
    (tmp_path / "lines").touch()
    crew = Crew("tests.bench.fakes:SlowSystem", {"path": str(tmp_path / "lines")}, tmp_path)
    try:
        stored = crew.fill(1_000_000, SMALL_BYTES, limit_s=0.3)
        assert 100 <= stored <= 200
        assert len(crew.file_of(SMALL_BYTES).read_text().split()) == stored
        with pytest.raises(ClientError, match="1,000,000 would take"):
            crew.fill(1_000_000, SMALL_BYTES, limit_s=60.0, is_all=True)
    finally:
        crew.close()


def test_a_client_that_is_not_needed_is_disconnected_and_used_again(served: Served) -> None:
    served.fill(SMALL_BYTES, 100, limit_s=10.0)
    served.slice(TWO_CLIENTS, 0, 0.01)
    served.slice(GET, 0, 0.01)
    before = set(served.crew.pids)
    assert len(before) == 2
    served.slice(TWO_CLIENTS, 1, 0.01)
    assert set(served.crew.pids) == before


@pytest.mark.parametrize("name", ["perdure-lmdb", "sqlite", "diskcache", "django-db", "django-file"])
def test_a_client_finds_what_another_process_has_stored(name: str, tmp_path: Path) -> None:
    system = system_named(name)
    if reason := system.why_not():
        pytest.skip(reason)
    served = Served(system, tmp_path, Durability.OS)
    try:
        served.fill(SMALL_BYTES, 100, limit_s=30.0)
        assert served.slice(TWO_CLIENTS, 0, 0.02)[0] > 0
    finally:
        served.close()


def test_a_system_whose_clients_miss_what_is_stored_is_not_measured(served: Served) -> None:
    served.fill(SMALL_BYTES, 10, limit_s=10.0)
    served.crew.file_of(SMALL_BYTES).write_text("nobody\n")
    served.crew.learn(SMALL_BYTES)
    with pytest.raises(ClientError, match="is not there"):
        served.slice(GET, 0, 0.01)


def test_a_comparison_measures_the_chosen_cases_and_says_what_failed() -> None:
    said: list[str] = []
    choice = Choice(only="single: ", durabilities=("os",))
    suite = Suite([FileSystem()], (), PLAN, choice, None, said.append)
    rows = list(suite.rows())
    mine = {row.case: row for row in rows if row.system == FileSystem.name}
    assert set(mine) == {case.name for case in CASES if case.group == "single"}
    assert mine["touch"].note.endswith("ConnectionError: nobody answers")
    assert all(row.ops_per_s and row.p99_us for case, row in mine.items() if case != "touch")
    assert all(row.ratio_to_limit for case, row in mine.items() if case != "touch")
    assert {row.durability for row in rows} == {"os"}
    assert not suite.skipped


@pytest.mark.parametrize(("only", "cases"), [("footprint", 3), ("start: ", 2), ("YCSB A at 1,000/s", 1)])
def test_other_groups_can_be_chosen_alone(only: str, cases: int) -> None:
    suite = Suite([FileSystem()], (), PLAN, Choice(only=only), None, lambda _: None)
    rows: list[Row] = [row for row in suite.rows() if row.system == FileSystem.name]
    assert len(rows) == cases
    assert all(row.figure is not None and row.figure > 0 for row in rows if "memory" not in row.case)
    assert not suite.skipped


@pytest.mark.parametrize(
    ("only", "durabilities", "groups"),
    [
        ("footprint: memory, a session, os", (), {"footprint"}),
        ("disk: state, a session", (), {"footprint"}),
        ("after kill -9, os", (), {"start"}),
        ("limits: raw write + fdatasync, disk", (), {"limits"}),
        ("start: ", ("os",), {"start"}),
        ("start: ", ("disk",), set()),
    ],
)
def test_a_row_is_chosen_by_any_part_of_its_name_and_by_the_class_that_it_has(
    only: str, durabilities: tuple[str, ...], groups: set[str]
) -> None:
    suite = Suite([FileSystem()], (), PLAN, Choice(only, durabilities=durabilities), None, lambda _: None)
    assert {row.group for row in suite.rows()} == groups


def test_starts_are_measured_in_the_class_that_was_asked_for_or_not_at_all() -> None:
    choice = Choice("start: ", durabilities=("os",))
    suite = Suite([system_named("perdure-lmdb")], (), PLAN, choice, None, lambda _: None)
    assert list(suite.rows()) == []


def test_a_system_that_can_not_run_here_is_left_out_with_its_reason() -> None:
    class Absent(FileSystem):
        name = "absent"

        def why_not(self) -> str:
            return "it is not installed"

    suite = Suite([Absent()], (), PLAN, Choice(only="single"), None, lambda _: None)
    assert list(suite.rows()) == []
    assert suite.skipped == {"absent": "it is not installed"}


def test_the_plan_has_five_rounds_at_least() -> None:
    assert msgspec.structs.asdict(Plan())["rounds"] >= 5


def test_costs_are_measured_at_each_point_and_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.scaling.SIZES", (100, 10_000))
    monkeypatch.setattr("bench.scaling.CLIENTS", (1, 2))

    def folder(stack: ExitStack) -> Path:
        return Path(stack.enter_context(TemporaryDirectory(dir=tmp_path)))

    rows = list(scaling_rows(FileSystem(), PLAN, [100, 200], folder))
    cases = [row.case for row in rows]
    assert {"get against sessions: 100", "get against sessions: 200"} <= set(cases)
    assert "start after kill -9 against sessions: slope" in cases
    assert "create against bytes a session: 10,000" in cases
    assert sum(case.endswith("slope") for case in cases) == 10
    assert all(row.amount is not None for row in rows)
