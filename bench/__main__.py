"""`python -m bench`: perdure beside its peers and its limits, on this machine, in one run.

Prints a line a row as it is measured; writes the rows as JSON and as Markdown tables, and plots of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import msgspec

from . import failover_figures, process_figures, replicated_figures, session_figures, store_figures
from .aims import read_aims
from .comparison import Plan
from .gate import HINT, baseline_of, exit_code_of, judge, read_baseline, text_of, write_baseline
from .machine import machine
from .measure import REPORTED, Figure
from .page import write_page
from .parts import PARTS, part_rows
from .plots import write_plots
from .reasons import read_reasons
from .report import Result, line, markdown, unexplained_of, write_json
from .rows import Row
from .scaling import GROUP as SCALING
from .suite import Choice, Suite
from .systems import DRIVERS, PEERS, SYSTEMS
from .systems.ports import Durability

QUICK = Plan(
    slice_s=0.02,
    open_s=0.1,
    sessions=5_000,
    large_sessions=5_000,
    reopened=(5_000,),
    fill_s=3.0,
    take_overs=2,
    is_quick=True,
)
FIGURES = "figures"
ROOMS = (store_figures, session_figures, process_figures, replicated_figures, failover_figures)
SCALES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
INTERRUPTED = "interrupted"
CHOICES = ("only", "systems", "durabilities")
"""Options that make a run a part of the bench."""
NEEDED_BYTES = 8_000_000_000
"""What all systems together store at most, with 1,000,000 sessions each."""
NEEDED_BYTES_QUICK = 1_000_000_000


def figures(only: str, quick: bool, directory: str | None) -> Iterator[Row]:
    """Each of perdure's own figures, beside the limit or the peer that it is measured with. `only` may be
    what its row is called, too."""
    name = only.removeprefix(f"{FIGURES}: ").removesuffix(", perdure")
    for figure in chain.from_iterable(room.measure_all(name, quick, directory) for room in ROOMS):
        yield _row(figure)


def _parts(plan: Plan, options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=options.directory) as folder:
        yield from part_rows(Path(folder), plan, options.only)


def main(words: list[str] | None = None) -> int:
    """Exit codes: 0 measured, 1 a part failed or, with --gate, got worse, 2 nothing to measure or compare."""
    options = _parser().parse_args(words)
    plan = _plan(options)
    choice = Choice(options.only, _words(options.systems), _words(options.durabilities))
    if problem := _problem(options, choice):
        _say(problem)
        return 2
    directory = Path(options.directory or tempfile.gettempdir())
    rows: list[Row] = []
    before = machine(directory)
    _say_if_full(directory, plan)
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
        _say(failures[0] if failures else _nothing_said(choice, suite.skipped))
        return 1 if failures else 2
    if failures:
        suite.skipped["a part of the run"] = "; ".join(failures)
    asked = {name: vars(options)[name] for name in CHOICES}
    asked["part"] = "" if options.part == "all" else options.part
    result = Result(before, {**msgspec.to_builtins(plan), **asked}, rows, suite.skipped)
    try:
        _written(result, options, is_whole=INTERRUPTED not in failures)
    except OSError as error:
        _say(f"the results could not be written: {error}: free some space, or name another file with --json")
        return 1
    if unexplained := unexplained_of(rows, read_reasons()):
        names = "; ".join(row.key for row in unexplained)
        _say(f"not ahead in {len(unexplained)} rows for which bench/reasons.toml has no reason: {names}")
    if not failures:
        return _gated(result, options)
    if options.gate or options.save_baseline:
        _say("a part of the run failed: it was not compared with the baseline, and makes none")
    return 1


def _written(result: Result, options: argparse.Namespace, *, is_whole: bool) -> None:
    """Raises OSError."""
    write_json(result, Path(options.json))
    Path(options.json).with_suffix(".md").write_text(
        markdown(result, read_reasons(), read_aims()), encoding="utf-8"
    )
    write_plots(result, Path(options.json).parent / "plots")
    if options.save_page and is_whole:
        write_page(result, read_reasons(), read_aims())
    elif options.save_page:
        _say(
            f"interrupted, so that the page is left: python -m bench.page {options.json} takes what there is"
        )


def _problem(options: argparse.Namespace, choice: Choice) -> str:
    """Why a run with these options would measure nothing, or in vain; empty if it would not."""
    known = [one.name for one in SYSTEMS] + [one.name for one in DRIVERS]
    if unknown := [name for name in choice.systems if name not in known]:
        return f"no system is called {', '.join(unknown)}; there are {', '.join(known)}"
    classes = [one.value for one in Durability]
    if unknown := [name for name in choice.durabilities if name not in classes]:
        return f"no durability class is called {', '.join(unknown)}; there are {', '.join(classes)}"
    if options.part in (FIGURES, PARTS, SCALING) and (choice.systems or choice.durabilities):
        return (
            f"--systems and --durabilities choose among the peers; --part {options.part} has none: use --only"
        )
    if (options.save_page or options.save_baseline) and (
        chosen := [one for one in CHOICES if vars(options)[one]]
    ):
        return (
            "--save-page and --save-baseline replace the whole of what is there, and with "
            f"--{chosen[0]} a run has some rows only: leave one of the two out"
        )
    if options.directory is not None and not Path(options.directory).is_dir():
        return f"--directory {options.directory} is no directory that is there; make it first"
    return _problem_of_files(options)


def _problem_of_files(options: argparse.Namespace) -> str:
    try:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"the results could not be written: {error}; name another file with --json"
    try:
        if options.gate:
            read_baseline()
    except (OSError, msgspec.DecodeError) as error:
        return f"there is no baseline to compare with: {error}; {HINT}"
    return ""


def _say_if_full(directory: Path, plan: Plan) -> None:
    free, needed = shutil.disk_usage(directory).free, NEEDED_BYTES_QUICK if plan.is_quick else NEEDED_BYTES
    if free < needed:
        _say(
            f"{free / 1e9:.1f} GB are free in {directory}, and a run can need {needed / 1e9:.0f}: "
            "what finds no room is left out; --directory names another place, --quick needs less"
        )


def _nothing_said(choice: Choice, skipped: dict[str, str]) -> str:
    """What to tell where no row was measured."""
    told = [f"{what} was left out: {why}" for what, why in skipped.items() if what in choice.systems]
    if choice.only:
        told.append(
            f"no row's name holds {choice.only!r} (a name: 'single: get, os, redis'; build/bench.md has all)"
        )
    return "nothing was measured: " + ("; ".join(told) or "no system has such a class")


def _measured(sources: Iterable[Iterator[Row]], rows: list[Row]) -> list[str]:
    """Adds the rows of one source after the other as they come, and keeps them: what went wrong. A reader of
    the rows who leaves (`| head`) ends the run as an interrupt does."""
    failures: list[str] = []
    for source in sources:
        try:
            for row in source:
                rows.append(row)
                _show(line(row))
        except (KeyboardInterrupt, _NoReaderError):
            _say("interrupted: what was measured is written")
            return [*failures, INTERRUPTED]
        except Exception as error:  # noqa: BLE001  an hour's rows are not lost for the one that fails
            failures.append(f"{type(error).__name__}: {error}")
            _say(f"a part of the run failed: {failures[-1]}")
    return failures


def _gated(result: Result, options: argparse.Namespace) -> int:
    """Compared with the baseline as it was, where both are asked for."""
    verdict = judge(read_baseline(), result) if options.gate else None
    if options.save_baseline:
        write_baseline(baseline_of(result))
    if verdict is None:
        return 0
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
        "--systems",
        default="",
        metavar="NAMES",
        help="these peers only, separated by commas; perdure and the limit are measured with them: "
        + ", ".join([one.name for one in PEERS] + [one.name for one in DRIVERS]),
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
        help="the comparison with peers, perdure's own figures beside their limits, the parts that its calls "
        "are made of, all of these (as without it), or how perdure's costs grow",
    )
    parser.add_argument("--quick", action="store_true", help="fewer sessions and cases, shorter slices")
    parser.add_argument(
        "--rounds", type=_positive, default=None, help="after the warm-up; at least 5, as without it"
    )
    parser.add_argument(
        "--slice-ms", type=_positive, default=None, help="of one system in one round; 100, with --quick 20"
    )
    parser.add_argument(
        "--sessions",
        type=_positive,
        default=None,
        help="of each size that are there while calls are measured; 100,000, with "
        "--quick 5,000; with --part scaling: the most, 1,000,000 or 50,000",
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
        help="make this run's results those of docs/bench.md, with its plots (python -m bench.page: those of "
        "an earlier run)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else Plan()
    changes: dict[str, object] = {}
    if options.rounds is not None:
        changes["rounds"] = max(5, options.rounds)
    if options.slice_ms is not None:
        changes["slice_s"] = options.slice_ms / 1000
    if options.sessions is not None:
        changes["sessions"] = options.sessions
        changes["large_sessions"] = options.sessions
    return msgspec.structs.replace(plan, **changes)


def _row(figure: Figure) -> Row:
    row = Row(
        group=FIGURES,
        case=figure.name,
        system="perdure",
        durability="",
        ops_per_s=figure.rate_per_s,
        ops_per_s_high=figure.best_per_s,
        unit="",
    )
    if figure.aim == REPORTED:
        return row
    return msgspec.structs.replace(
        row,
        limit=figure.peer,
        ratio_to_limit=figure.ratio,
        ratio_to_limit_low=figure.ratio_min,
        ratio_to_limit_high=figure.ratio_max,
        ratio_to_limit_spread=figure.spread,
        is_less_better=figure.is_less_better,
        rounds=figure.rounds,
        note=f"{figure.aim}: {'met' if figure.is_met else 'missed'}",
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in text.split(","))))


class _NoReaderError(Exception):
    """Nobody reads what is printed any more."""


def _show(text: str) -> None:
    """Raises _NoReaderError."""
    try:
        print(text, flush=True)
    except OSError as error:
        with suppress(
            OSError, ValueError
        ):  # what is left in the buffer goes nowhere, also when this process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise _NoReaderError from error


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal is gone: what was measured is written all the same
        print(text, file=sys.stderr, flush=True)


def _end_in_order() -> None:
    """Let what ends a process end all that was started, too: SIGTERM, and the end of the terminal."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    _end_in_order()
    sys.exit(main())
