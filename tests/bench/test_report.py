"""Tables, JSON and plots of a run."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from bench import process_figures, replicated_figures, session_figures, store_figures
from bench.aims import read_aims
from bench.comparison import Plan
from bench.footprint import FOOTPRINT, FOOTPRINT_CASES
from bench.page import BEGIN, BEGIN_GROWTH, END, END_GROWTH, PAGE, main, results_text, write_page
from bench.plots import Point, line_chart, slope_of, write_plots
from bench.reasons import Reason, read_reasons, reason_for
from bench.report import (
    UNEXPLAINED,
    Result,
    head_of,
    line,
    markdown,
    read_json,
    summary_of,
    unexplained_of,
    write_json,
)
from bench.restarts import AFTER_KILL, KEPT, REPLICATED, TAKE_OVER
from bench.rows import OF_P99, Ratio, Row, with_limit, with_ours
from bench.systems import DRIVERS, PEERS
from bench.systems.ports import Driver, Durability, System
from bench.workloads import CASES, OPEN_LOOP

OURS = with_limit(
    Row(
        group="single", case="get", system="perdure-lmdb", durability="os", rounds=5,
        ops_per_s=250_000.0, spread=0.01, p50_us=2.5, p99_us=8.0, p999_us=120.0, version="perdure 0",
    ),
    "limit",
    Ratio(0.6, 0.5, 0.7, 0.01),
)  # fmt: skip
PEER = with_ours(
    Row(
        group="single", case="get", system="peer & co", durability="os", rounds=5, ops_per_s=50_000.0,
        p50_us=20.0, p99_us=80.0, setting="as it comes", version="peer 7",
    ),
    "perdure-lmdb",
    Ratio(5.0, 4.5, 5.5, 0.02),
)  # fmt: skip
FASTER = with_ours(
    Row(group="single", case="get", system="swift", durability="disk", rounds=5, ops_per_s=9.0),
    "perdure-lmdb",
    Ratio(0.8, 0.7, 0.9, 0.02),
)
FIGURE = Row(
    group="figures", case="create, os", system="perdure", durability="", ops_per_s=40_000.0, unit="",
    limit="naive", ratio_to_limit=0.8, note="at least 1.00 of the peer: missed",
)  # fmt: skip
AMOUNT = Row(
    group="footprint",
    case="memory, a session",
    system="peer & co",
    durability="os",
    amount=312.4,
    unit="bytes",
)
ROWS = [OURS, PEER, FASTER, FIGURE, AMOUNT]
RESULT = Result({"cpu": "one", "cores": 2}, {}, ROWS, {"redis": "not installed"})


def test_json_comes_back_as_it_was_and_has_the_promised_keys(tmp_path: Path) -> None:
    file = tmp_path / "build" / "bench.json"
    write_json(RESULT, file)
    assert read_json(file) == RESULT
    keys = {"group", "case", "system", "durability", "ops_per_s", "p50_us", "p99_us", "ratio_to_limit"}
    assert keys <= set(re.findall(r'"(\w+)":', file.read_text()))


def test_a_table_holds_one_class_only() -> None:
    parts = re.split(r"^## ", markdown(RESULT), flags=re.MULTILINE)
    os_part = next(part for part in parts if part.startswith("Class `os`"))
    disk_part = next(part for part in parts if part.startswith("Class `disk`"))
    assert "| get | perdure-lmdb | 250,000 | 1 % | 2.5 | 8.0 | 120 | 0.60 |" in os_part
    assert "| 5.00 (4.50-5.50) |" in os_part
    assert "| memory, a session | peer & co | 312 bytes |" in os_part
    assert "- peer & co: as it comes, peer 7" in os_part
    assert "swift" in disk_part and "swift" not in os_part


def test_where_ours_is_not_ahead_is_said_first() -> None:
    text = markdown(RESULT)
    assert "Ahead in 1 of 2 comparisons" in text
    assert "| swift | `disk`: single: get 0.80 |" in text
    assert "- redis: not installed" in text
    assert "| create, os | 40,000 | naive | 0.80 | at least 1.00 of the peer: missed |" in text


def test_what_is_ahead_in_the_median_alone_is_told_apart() -> None:
    doubtful = msgspec.structs.replace(PEER, ours_ratio=1.1, ours_ratio_low=0.9)
    text = markdown(Result({}, {}, [PEER, doubtful], {}))
    assert "Ahead in 2 of 2 comparisons with systems of the same class, in 1 of them in every round." in text


def test_rows_of_one_reason_stand_together_the_furthest_behind_first() -> None:
    first = Row(
        group="single", case="get", system="swift", durability="disk", ours_ratio=0.8, ours_ratio_high=1.1
    )
    rows = [
        first,
        msgspec.structs.replace(first, case="list", ours_ratio=0.5, ours_ratio_high=0.6),
        msgspec.structs.replace(first, group="ycsb", case="YCSB A", ours_ratio=0.7, ours_ratio_high=0.9),
        msgspec.structs.replace(first, durability="os", ours_ratio=0.9, ours_ratio_high=0.9),
        msgspec.structs.replace(first, system="apt", ours_ratio=0.6, ours_ratio_high=0.9),
        msgspec.structs.replace(first, system="slow", ours_ratio=3.0),
    ]
    text = summary_of(Result({}, {}, rows, {}), [Reason(why="born so", system="swift")])
    assert "Ahead in 1 of 6 comparisons" in text
    swift = "`disk`: single: list 0.50, get 0.80*; ycsb: YCSB A 0.70. `os`: single: get 0.90"
    assert text.splitlines()[-2:] == [
        f"| swift | {swift} | born so |",
        f"| apt | `disk`: single: get 0.60 | {UNEXPLAINED} |",
    ]


def test_a_row_without_a_reason_is_named() -> None:
    assert unexplained_of(ROWS, ()) == [FASTER]
    assert unexplained_of(ROWS, [Reason(why="born so", system="swift")]) == []
    assert "no reason is known" in markdown(RESULT)


def test_what_of_ours_could_not_be_measured_is_said_first() -> None:
    broken = msgspec.structs.replace(OURS, ops_per_s=None, case="touch", note="OSError: gone")
    skipped = {
        "perdure-lmdb, disk": "no room",
        "start with 1,000 sessions, perdure-pair": "slow",
        "redis": "none",
    }
    text = summary_of(Result({}, {}, [*ROWS, broken], skipped), ())
    assert text.splitlines()[:5:2] == [
        "**perdure could not be measured**: perdure-lmdb, disk: no room",
        "**perdure could not be measured**: start with 1,000 sessions, perdure-pair: slow",
        "**perdure could not be measured**: single: touch, os, perdure-lmdb: OSError: gone",
    ]
    assert "redis" not in text


def test_a_run_that_is_not_the_whole_bench_says_so() -> None:
    whole = {**msgspec.to_builtins(Plan()), "only": "", "part": ""}
    assert "run**" not in head_of(Result({}, whole, ROWS, {})) and "options**" not in head_of(RESULT)
    quick = {**whole, "is_quick": True, "sessions": 5_000, "reopened": (5_000,)}
    assert "**A quick run**: sessions 5000; reopened 5000." in markdown(Result({}, quick, ROWS, {}))
    part = {**whole, "only": "single: get", "systems": "redis"}
    assert "without options**: only single: get; systems redis." in markdown(Result({}, part, ROWS, {}))


def test_a_line_tells_rate_latencies_and_ratios() -> None:
    told = line(PEER)
    assert all(word in told for word in ("50,000 ops/s", "p50     20.0", "p99     80.0", "ours x 5.00"))


def test_plots_are_svg_of_one_class_each(tmp_path: Path) -> None:
    files = write_plots(RESULT, tmp_path)
    assert [file.name for file in files] == ["rates-os.svg", "rates-disk.svg"]
    texts = ["".join(ElementTree.parse(file).getroot().itertext()) for file in files]
    assert "peer & co" in texts[0] and "swift" not in texts[0]
    assert "class os (logarithmic scale)" in texts[0]
    assert "swift" in texts[1]


def test_the_slope_of_a_cost_is_the_exponent_with_which_it_grows() -> None:
    points = [Point(10.0**n, 3.0 * 10.0 ** (n * 0.5)) for n in range(4, 8)]
    assert slope_of(points) == pytest.approx(0.5)
    assert slope_of(points[:1]) is None
    drawn = line_chart("cost", "sessions", "us", [("get", points)])
    assert "get (slope 0.50)" in "".join(ElementTree.fromstring(drawn).itertext())


def test_a_cost_that_may_grow_is_drawn_against_what_it_may_grow_with(tmp_path: Path) -> None:
    rows = [
        Row(
            group="scaling", case=f"get against sessions: {n:,}", system="p", durability="os", amount=n / 1000
        )
        for n in (1000, 10_000, 100_000)
    ]
    files = write_plots(Result({}, {}, rows, {}), tmp_path)
    assert [file.name for file in files] == ["scaling-sessions.svg"]
    assert "get (slope 1.00)" in "".join(ElementTree.parse(files[0]).getroot().itertext())


def test_a_reason_is_told_where_ours_is_not_ahead_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "reasons.toml"
    file.write_text(
        '[[reason]]\nsystem = "swift"\ncase = "single"\nclass = "os"\nwhy = "another class"\n'
        '[[reason]]\nsystem = "swift"\nwhy = "it keeps nothing"\n'
        '[[reason]]\nsystem = "peer & co"\nwhy = "never told"\n'
    )
    text = markdown(RESULT, read_reasons(file))
    assert "| swift | `disk`: single: get 0.80 | it keeps nothing |" in text
    assert "another class" not in text and "never told" not in text


def test_of_several_reasons_the_one_that_says_most_about_the_row_is_told(tmp_path: Path) -> None:
    file = tmp_path / "reasons.toml"
    file.write_text(
        '[[reason]]\nsystem = "swift"\nclass = "disk"\nwhy = "of the class"\n'
        '[[reason]]\nsystem = "swift"\ncase = "single: get"\nwhy = "of the case"\n'
        '[[reason]]\nsystem = "swift"\ncase = "single: get"\nclass = "disk"\nwhy = "of both"\n'
    )
    several = read_reasons(file)
    assert reason_for(FASTER, several) == "of both"
    assert reason_for(FASTER, several[:2]) == "of the case"
    assert reason_for(FASTER, several[:1]) == "of the class"


def test_bytes_on_disk_are_explained_by_what_is_on_disk_whatever_the_class() -> None:
    reasons = read_reasons()
    for system in ("mnesia", "dets"):
        row = Row(group="footprint", case="disk, a session", system=system, durability="none")
        assert reason_for(row, reasons) in [one.why for one in reasons if one.case == "footprint: disk"]


def test_each_reason_of_the_bench_fits_rows_that_a_run_has() -> None:
    names = {durability: set(FOOTPRINT_CASES) for durability in Durability}
    for case in CASES:
        for named in case.classes:
            names[Durability(named)].add(f"{case.group}: {case.name}")
    for durability in KEPT:
        names[durability].add(f"start: first answer, 100,000 sessions, {AFTER_KILL}")
    for durability in REPLICATED:
        names[durability].add(f"failover: kill -9, {TAKE_OVER}")
    systems: list[System | Driver] = [*PEERS, *DRIVERS]
    rows = [
        Row(group=group, case=its_case, system=one.name, durability=its.value)
        for one in systems
        for its in one.settings
        for group, _, its_case in (name.partition(": ") for name in names[its])
    ]
    told = {reason_for(row, read_reasons()) for row in rows}
    assert [reason for reason in read_reasons() if reason.why not in told] == []


@pytest.mark.parametrize("case", ["get", "get, 1 KB", "list", "cleanup"])
@pytest.mark.parametrize("system", ["sqlite", "diskcache"])
def test_what_waits_for_no_disk_is_not_explained_by_a_sync(system: str, case: str) -> None:
    row = Row(group="single", case=case, system=system, durability="disk")
    why = reason_for(row, read_reasons())
    assert why and "sync" not in why and "flush" not in why


@pytest.mark.parametrize("system", ["redis", "postgresql"])
def test_gets_of_several_clients_are_not_explained_by_how_they_write(system: str) -> None:
    row = Row(group="clients", case="get, 8 clients", system=system, durability="disk")
    assert reason_for(row, read_reasons()) == ""


def test_the_reasons_of_the_bench_can_be_read_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    assert all(reason.why for reason in read_reasons())
    file = tmp_path / "reasons.toml"
    file.write_text('[[reason]]\nsystem = "swift"\nbecause = "of it"\n')
    with pytest.raises(ValueError, match="because"):
        read_reasons(file)


def test_aims_are_told_with_what_was_measured_and_what_bounds_a_missed_one(tmp_path: Path) -> None:
    file = tmp_path / "aims.toml"
    file.write_text(
        '[[aim]]\nwhat = "get"\nrow = "single: get, os, perdure-lmdb"\nat_least = 400_000\nwhy = "Python"\n'
        '[[aim]]\nwhat = "near it"\nrow = "single: get, os, p"\nmeasure = "ratio"\nat_least = 0.5\nwhy = ""\n'
        '[[aim]]\nwhat = "memory"\nrow = "footprint: memory"\nat_most = 500\nwhy = ""\n'
        '[[aim]]\nwhat = "not in this run"\nrow = "start: "\nat_most = 1\nwhy = ""\n'
    )
    text = markdown(RESULT, aims=read_aims(file))
    assert "| get | at least 400,000 | 250,000 | missed: Python |" in text
    assert "| near it | at least 0.50 | 0.60 | reached |" in text
    assert "| memory | at most 500 | 312 | reached |" in text
    assert "not in this run" not in text
    assert "## Aims" not in markdown(RESULT)


@pytest.mark.parametrize("bounds", ["", "at_least = 1\nat_most = 2\n"])
def test_an_aim_without_one_bound_is_an_error(tmp_path: Path, bounds: str) -> None:
    file = tmp_path / "aims.toml"
    file.write_text(f'[[aim]]\nwhat = "get"\nrow = "single"\nwhy = ""\n{bounds}')
    with pytest.raises(ValueError, match="one bound"):
        read_aims(file)


def test_the_aims_name_rows_that_a_run_has() -> None:
    rooms = (store_figures, process_figures, replicated_figures)
    names = [f"figures: {name}" for room in rooms for name in vars(room)["_FIGURES"]]
    names += [f"figures: lmdb: {name}" for name in vars(session_figures)["_FIGURES"]]
    names += [f"{case.group}: {case.name}, {durability}, " for case in CASES for durability in case.classes]
    names += [f"start: first answer, {count:,} sessions, " for count in Plan().reopened]
    names += [f"{FOOTPRINT}: memory, a session, "]
    for aim in read_aims():
        assert any(aim.row.startswith(name) for name in names), aim.row


def test_the_page_has_a_row_for_each_case_and_a_column_for_each_system() -> None:
    text = results_text(RESULT, (), ())
    assert "| case | perdure-lmdb | of the limit | peer & co |" in text
    assert "| single: get | 250,000 ops/s | 0.60 | 5.00 |" in text
    assert "Ahead in 1 of 2 comparisons" in text
    assert "| create, os | 40,000 | naive | 0.80 |" in text
    assert "- redis: not installed" in text


def test_the_page_marks_where_ours_is_behind() -> None:
    ours = Row(group="single", case="get", system="perdure-lmdb", durability="disk", ops_per_s=7.2)
    text = results_text(Result({}, {}, [ours, FASTER], {}), (), ())
    assert "| single: get | 7.20 ops/s |  | **0.80** |" in text


def test_the_page_leaves_out_no_row_that_has_nothing_of_ours_beside_it() -> None:
    start = msgspec.structs.replace(AMOUNT, group="start", case="first answer", amount=0.56, unit="ms")
    text = results_text(Result({}, {}, [OURS, PEER, start], {}), (), ())
    assert "- peer & co: start: first answer: 0.56 ms (nothing of perdure beside it)" in text
    assert "single: get: 50,000" not in text


def test_at_a_given_rate_the_page_shows_what_is_compared() -> None:
    name = "YCSB A at 1,000/s"
    ours = Row(
        group=OPEN_LOOP, case=name, system="perdure-lmdb", durability="os", ops_per_s=990.0, p99_us=240.0,
        note=OF_P99,
    )  # fmt: skip
    peer = with_ours(
        Row(group=OPEN_LOOP, case=name, system="peer", durability="os", ops_per_s=990.0, note=OF_P99),
        "perdure-lmdb",
        Ratio(2.0, 2.0, 2.0, 0.0),
    )
    text = results_text(Result({}, {}, [ours, peer], {}), (), ())
    assert "| open loop: YCSB A at 1,000/s | 990 ops/s, p99 240 us |  | 2.00 |" in text
    assert OF_P99 not in text


def test_what_sets_a_row_apart_is_told_on_the_page_and_in_the_tables() -> None:
    slow = msgspec.structs.replace(PEER, note="with 300 sessions")
    result = Result({}, {}, [OURS, slow], {})
    assert "- peer & co: with 300 sessions (single: get)" in results_text(result, (), ())
    assert "| get | peer & co (with 300 sessions) | 50,000 |" in markdown(result)


def test_the_page_is_made_of_a_result_that_was_measured_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, page = tmp_path / "bench.json", tmp_path / "bench.md"
    page.write_text(f"{BEGIN}\nold\n{END}\n")
    assert main([str(run), "--page", str(page)]) == 2
    assert "python -m bench makes a result" in capsys.readouterr().err
    write_json(RESULT, run)
    assert main([str(run), "--page", str(page)]) == 0
    assert "| single: get | 250,000 ops/s |" in page.read_text()


def test_results_replace_those_before_and_leave_the_rest_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "bench.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(RESULT, (), (), page)
    write_page(RESULT, (), (), page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert text.count("| single: get |") == 1
    assert text.count("![rates os](plots/rates-os.svg)") == 1
    assert (tmp_path / "plots" / "rates-os.svg").exists()


def test_growth_has_a_place_of_its_own_and_leaves_the_results(tmp_path: Path) -> None:
    page = tmp_path / "bench.md"
    page.write_text(f"{BEGIN}\nresults\n{END}\n{BEGIN_GROWTH}\nold\n{END_GROWTH}\n")
    points = [("1,000", 3.0, "us"), ("10,000", 6.0, "us"), ("slope", 0.301, "")]
    rows = [
        Row(
            group="scaling", case=f"get against sessions: {at}", system="p", durability="os",
            amount=amount, unit=unit,
        )
        for at, amount, unit in points
    ]  # fmt: skip
    write_page(Result({}, {}, rows, {}), (), (), page)
    text = page.read_text()
    assert "| get against sessions | `os` | 1,000: 3 us; 10,000: 6 us | 0.30 |" in text
    assert "old" not in text
    assert f"{BEGIN}\nresults\n{END}" in text


def test_a_page_without_a_place_for_results_is_left_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "bench.md"
    page.write_text("nothing of the kind\n")
    with pytest.raises(ValueError, match="has no results between"):
        write_page(RESULT, (), (), page)
    assert page.read_text() == "nothing of the kind\n"
    assert all(mark in PAGE.read_text() for mark in (BEGIN, END, BEGIN_GROWTH, END_GROWTH))
