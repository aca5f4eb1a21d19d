"""The results on the page of the docs: the same run as the tables, short enough to be read.

Owns the parts of docs/bench.md between its marks: those of a comparison, one table a durability class, a case
a row, with what perdure reached and how far it is ahead of each system; and those of a run of how costs grow.
All rates and percentiles are in the run's own tables.

`python -m bench.page [RESULT]` makes them of build/bench.json, or of another result, without measuring again.
Exit codes: 0 made, 2 there is no such result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from .aims import Aim, read_aims
from .contestants import is_ours
from .footprint import FOOTPRINT
from .limits import NAME as LIMIT
from .parts import PARTS
from .plots import write_plots
from .reasons import Reason, read_reasons
from .report import (
    CLASSES,
    Result,
    aims_table,
    figure_of,
    head_of,
    machine_of,
    read_json,
    settings_of,
    summary_of,
    table_of,
    us_of,
)
from .rows import OF_P99, Row
from .scaling import GROUP as SCALING
from .workloads import OPEN_LOOP

PAGE: Final = Path(__file__).parents[1] / "docs" / "bench.md"
BEGIN: Final = "<!-- results: python -m bench --save-page -->"
END: Final = "<!-- end of the results -->"
BEGIN_GROWTH: Final = "<!-- growth: python -m bench --part scaling --save-page -->"
END_GROWTH: Final = "<!-- end of the growth -->"
_APART: Final = ("figures", PARTS, "limits")
"""Groups with a table of their own; all others are compared with systems."""
_CASES_TOLD: Final = 3
"""Of a note; of more the number is told."""


def write_page(result: Result, reasons: Sequence[Reason], aims: Sequence[Aim], page: Path = PAGE) -> None:
    """Replace what the run measured on the page: the results, the growth, or both; and draw their plots.

    Raises OSError, or ValueError if the page has no place for them; it is left as it was then.
    """
    text = page.read_text(encoding="utf-8")
    growing = [row for row in result.rows if row.group == SCALING]
    others = [row for row in result.rows if row.group != SCALING]
    if others:
        measured = msgspec.structs.replace(result, rows=others)
        found = results_text(measured, reasons, aims)
        text = _replaced(text, BEGIN, END, found + _drawn(measured, page), page)
    if growing:
        measured = msgspec.structs.replace(result, rows=growing)
        text = _replaced(text, BEGIN_GROWTH, END_GROWTH, growth_text(measured) + _drawn(measured, page), page)
    page.write_text(text, encoding="utf-8")


def _drawn(result: Result, page: Path) -> str:
    """Draws the plots beside the page; answers them as Markdown."""
    files = write_plots(result, page.parent / "plots")
    return "".join(f"\n![{file.stem.replace('-', ' ')}](plots/{file.name})\n" for file in files)


def _replaced(text: str, begin: str, end: str, results: str, page: Path) -> str:
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"{page} has no results between {begin} and {end}")
    return f"{before}{begin}\n\n{results}\n{end}{after}"


def growth_text(result: Result) -> str:
    """A line a row: what it costs at each point, and the exponent with which it grows."""
    rows = result.rows
    lines = [machine_of(result), "", "| cost | class | at each point | slope |", "|---|---|---|---|"]
    for line in dict.fromkeys((row.durability, row.case.rpartition(": ")[0]) for row in rows):
        its = [row for row in rows if (row.durability, row.case.rpartition(": ")[0]) == line]
        slope = next((f"{row.amount:.2f}" for row in its if row.case.endswith(": slope")), "")
        points = [
            f"{row.case.rpartition(': ')[2]}: {figure_of(row)} {row.unit}"
            for row in its
            if not row.case.endswith(": slope")
        ]
        lines.append(f"| {line[1]} | `{line[0]}` | {'; '.join(points)} | {slope} |")
    return "\n".join(lines) + "\n"


def results_text(result: Result, reasons: Sequence[Reason], aims: Sequence[Aim]) -> str:
    """The results as Markdown, from headings of the third level on."""
    rows = result.rows
    parts = [head_of(result), _headed("Where perdure is not ahead", summary_of(result, reasons))]
    compared = [row for row in rows if row.group not in _APART]
    for durability in dict.fromkeys(row.durability for row in compared):
        its = [row for row in compared if row.durability == durability]
        parts.append(
            _headed(
                f"Class `{durability}`: {CLASSES.get(durability, '')}",
                f"{_class_table(its)}\n\n{settings_of(its)}\n{_notes_of(its)}\n{_alone_in(its)}".rstrip(),
            )
        )
    parts.append(_headed("Aims", aims_table(rows, aims)))
    for group, title in ((PARTS, "Parts of a call"), ("limits", "Limits"), ("figures", "Figures")):
        its = [row for row in rows if row.group == group]
        if its:
            parts.append(_headed(title, table_of(its)))
    left_out = "\n".join(f"- {what}: {reason}" for what, reason in result.skipped.items())
    parts.append(_headed("Left out", left_out))
    return "\n\n".join(part for part in parts if part) + "\n"


def _headed(title: str, text: str) -> str:
    return f"### {title}\n\n{text}" if text else ""


def _class_table(rows: Sequence[Row]) -> str:
    """A case a row: what perdure reached, and by how much it is ahead of each system (below 1: behind)."""
    ours = next((row.system for row in rows if row.ours_ratio is None and row.system != LIMIT), "")
    others = list(dict.fromkeys(row.system for row in rows if row.system not in (ours, LIMIT)))
    lines = [
        f"| case | {ours} | of the limit | {' | '.join(others)} |",
        "|---" * (len(others) + 3) + "|",
    ]
    for case in dict.fromkeys((row.group, row.case) for row in rows):
        found = {row.system: row for row in rows if (row.group, row.case) == case}
        mine = found.get(ours)
        if mine is None or not any(found[name].ours_ratio is not None for name in others if name in found):
            continue
        limit = "" if mine.ratio_to_limit is None else f"{mine.ratio_to_limit:.2f}"
        cells = [f"{case[0]}: {case[1]}", _reached(mine), limit]
        cells += [_cell(found.get(name)) for name in others]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _reached(row: Row) -> str:
    """What it measured; where calls arrive at a rate, with the p99 latency, which its ratios are of."""
    has_p99 = row.group == OPEN_LOOP and row.p99_us is not None
    return f"{figure_of(row)} {row.unit}" + (f", p99 {us_of(row.p99_us)} us" if has_p99 else "")


def _notes_of(rows: Sequence[Row]) -> str:
    """What sets rows of a system apart, as fewer sessions or an error."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        note = "; ".join(part for part in row.note.split("; ") if part != OF_P99)
        if note and row.group != FOOTPRINT:
            found.setdefault((row.system, note), []).append(f"{row.group}: {row.case}")
    return "\n".join(
        f"- {system}: {note} ({', '.join(cases) if len(cases) <= _CASES_TOLD else f'{len(cases)} cases'})"
        for (system, note), cases in found.items()
    )


def _alone_in(rows: Sequence[Row]) -> str:
    """What was measured of other systems in cases that have nothing of ours in this class."""
    ours = {(row.group, row.case) for row in rows if is_ours(row.system)}
    return "\n".join(
        f"- {row.system}: {row.group}: {row.case}: {figure_of(row)} {row.unit} (nothing of perdure beside it)"
        for row in rows
        if (row.group, row.case) not in ours and row.system != LIMIT and row.figure is not None
    )


def _cell(row: Row | None) -> str:
    if row is None or row.ours_ratio is None:
        return ""
    told = f"{row.ours_ratio:.2f}" if row.ours_ratio < 10 else f"{row.ours_ratio:.0f}"
    return f"**{told}**" if row.ours_ratio < 1 else told


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.page",
        description="Make the results (or the growth) of docs/bench.md those of an earlier run.",
        epilog="example: python -m bench.page build/bench.json",
    )
    parser.add_argument(
        "result", nargs="?", default="build/bench.json", type=Path, help="of a run; build/bench.json"
    )
    parser.add_argument("--page", default=PAGE, type=Path, help="docs/bench.md")
    options = parser.parse_args(words)
    try:
        write_page(read_json(options.result), read_reasons(), read_aims(), options.page)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        print(f"no page was made: {error}; python -m bench makes a result", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
