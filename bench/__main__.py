"""`python -m bench`: perdure beside its peers and its limits, on this machine, in one run.

Prints a line a row as it is measured; writes the rows as JSON and as Markdown tables, and plots of them.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import msgspec

from . import failover_figures, process_figures, replicated_figures, session_figures, store_figures
from .aims import read_aims
from .comparison import Plan
from .gate import baseline_of, exit_code_of, judge, read_baseline, text_of, write_baseline
from .machine import machine
from .measure import Figure
from .page import write_page
from .parts import PARTS, part_rows
from .plots import write_plots
from .reasons import read_reasons
from .report import Result, line, markdown, write_json
from .rows import Row
from .scaling import GROUP as SCALING
from .suite import Choice, Suite
from .systems import DRIVERS, SYSTEMS
from .systems.ports import Durability

QUICK = Plan(
    slice_s=0.02,
    open_s=0.1,
    sessions=5_000,
    large_sessions=500,
    reopened=(5_000,),
    fill_s=3.0,
    take_overs=2,
    is_quick=True,
)
FIGURES = "figures"
ROOMS = (store_figures, session_figures, process_figures, replicated_figures, failover_figures)
SCALES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


def figures(only: str, quick: bool, directory: str | None) -> Iterator[Row]:
    """Each of perdure's own figures, beside the limit or the peer that it is measured with."""
    for figure in chain.from_iterable(room.measure_all(only, quick, directory) for room in ROOMS):
        yield _row(figure)


def _parts(plan: Plan, options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=options.directory) as folder:
        yield from part_rows(Path(folder), plan, options.only)


def main(words: list[str] | None = None) -> int:
    """Exit codes: 0 measured, 1 a part failed or, with --gate, got worse, 2 nothing to measure or compare."""
    options = _parser().parse_args(words)
    plan = _plan(options)
    choice = Choice(options.only, _words(options.systems), _words(options.durabilities))
    directory = Path(options.directory or tempfile.gettempdir())
    rows: list[Row] = []
    before = machine(directory)
    suite = Suite(SYSTEMS, DRIVERS, plan, choice, options.directory, _say)
    sources: list[Iterator[Row]] = []
    if options.part in ("all", "comparison"):
        sources.append(suite.rows())
    if options.part in ("all", FIGURES) and not (choice.systems or choice.durabilities):
        sources.append(figures(options.only, options.quick, options.directory))
    if options.part in ("all", PARTS) and not (choice.systems or choice.durabilities):
        sources.append(_parts(plan, options))
    if options.part == SCALING:
        most = options.sessions or (50_000 if options.quick else 1_000_000)
        sources.extend(suite.scaling([size for size in SCALES if size <= most]))
    failures = _measured(sources, rows)
    if not rows:
        _say(failures[0] if failures else "nothing has that name")
        return 1 if failures else 2
    if failures:
        suite.skipped["a part of the run"] = "; ".join(failures)
    result = Result(before, {**msgspec.to_builtins(plan), "only": options.only}, rows, suite.skipped)
    write_json(result, Path(options.json))
    Path(options.json).with_suffix(".md").write_text(
        markdown(result, read_reasons(), read_aims()), encoding="utf-8"
    )
    write_plots(result, Path(options.json).parent / "plots")
    if options.save_page:
        write_page(result, read_reasons(), read_aims())
    return 1 if failures else _gated(result, options)


def _measured(sources: Iterable[Iterator[Row]], rows: list[Row]) -> list[str]:
    """Adds the rows of one source after the other as they come, and keeps them: what went wrong."""
    failures: list[str] = []
    for source in sources:
        try:
            for row in source:
                rows.append(row)
                print(line(row), flush=True)
        except KeyboardInterrupt:
            _say("interrupted: what was measured is written")
            return [*failures, "interrupted"]
        except Exception as error:  # noqa: BLE001  an hour's rows are not lost for the one that fails
            failures.append(f"{type(error).__name__}: {error}")
            _say(f"a part of the run failed: {failures[-1]}")
    return failures


def _gated(result: Result, options: argparse.Namespace) -> int:
    if options.save_baseline:
        write_baseline(baseline_of(result))
    if not options.gate:
        return 0
    try:
        verdict = judge(read_baseline(), result)
    except (OSError, msgspec.DecodeError) as error:
        _say(f"there is no baseline to compare with: {error}")
        return 2
    print(text_of(verdict))
    return exit_code_of(verdict)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="example: python -m bench --quick --only 'single: create' --systems redis --durabilities disk",
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="rows whose 'group: case, durability, system' holds it"
    )
    parser.add_argument(
        "--systems", default="", metavar="NAMES", help="these peers only, separated by commas"
    )
    parser.add_argument(
        "--durabilities",
        default="",
        metavar="CLASSES",
        help=f"these classes only, separated by commas: {', '.join(one.value for one in Durability)}",
    )
    parser.add_argument(
        "--part",
        choices=("all", "comparison", FIGURES, PARTS, SCALING),
        default="all",
        help="the comparison with peers, perdure's own figures, the parts that its calls are made of, all of "
        "these, or how perdure's costs grow",
    )
    parser.add_argument("--quick", action="store_true", help="fewer sessions and cases, shorter slices")
    parser.add_argument("--rounds", type=int, default=None, help="after the warm-up; at least 5")
    parser.add_argument("--slice-ms", type=int, default=None, help="of one system in one round")
    parser.add_argument(
        "--sessions",
        type=int,
        default=None,
        help="that are there while calls are measured",
    )
    parser.add_argument(
        "--directory", default=None, help="where everything is stored; it should be on the disk that counts"
    )
    parser.add_argument(
        "--json", default="build/bench.json", help="where the rows are written, tables and plots beside it"
    )
    parser.add_argument("--gate", action="store_true", help="compare the ratios with bench/baseline.json")
    parser.add_argument("--save-baseline", action="store_true", help="make this run's ratios the baseline")
    parser.add_argument(
        "--save-page",
        action="store_true",
        help="make this run's results those of docs/bench.md, with its plots",
    )
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else Plan()
    changes: dict[str, object] = {}
    if options.rounds is not None:
        changes["rounds"] = max(5, options.rounds)
    if options.slice_ms is not None:
        changes["slice_s"] = options.slice_ms / 1000
    if options.sessions is not None:
        changes["sessions"] = options.sessions
        changes["large_sessions"] = max(100, options.sessions // 10)
    return msgspec.structs.replace(plan, **changes)


def _row(figure: Figure) -> Row:
    return Row(
        group=FIGURES,
        case=figure.name,
        system="perdure",
        durability="",
        ops_per_s=figure.rate_per_s,
        ops_per_s_high=figure.best_per_s,
        limit=figure.peer,
        ratio_to_limit=figure.ratio,
        ratio_to_limit_low=figure.ratio_min,
        ratio_to_limit_high=figure.ratio_max,
        unit="",
        note=f"{figure.aim}: {'met' if figure.is_met else 'missed'}",
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    sys.exit(main())
