"""How a run is written down: JSON for programs, Markdown for people.

Owns both forms, and the one line a row that is printed while the run goes on. Invariant: a table holds rows
of one durability class only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import msgspec

from .aims import Aim, number
from .comparison import Plan
from .contestants import is_ours
from .limits import NAME as LIMIT
from .parts import PARTS, WHOLE
from .reasons import Reason, reason_for
from .rows import Row

CLASSES = {
    "none": "lost with the process",
    "os": "survives the death of every process",
    "second": "on disk within a second",
    "disk": "on this disk before the answer",
    "two": "a second node has it before the answer",
    "two-disks": "on two nodes' disks before the answer",
}
UNEXPLAINED: Final = "**no reason is known** (`bench/reasons.toml` has none that fits)"


class Result(msgspec.Struct, frozen=True):
    """A whole run."""

    machine: dict[str, str | int | float]
    options: dict[str, Any]
    rows: list[Row]
    skipped: dict[str, str]


def write_json(result: Result, path: Path) -> None:
    """Replace the file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def read_json(path: Path) -> Result:
    """Raises OSError, or msgspec.DecodeError if it is no result."""
    return msgspec.json.decode(path.read_bytes(), type=Result)


def line(row: Row) -> str:
    """A row as one line of text."""
    words = f"{row.key:58} {figure_of(row):>14} {row.unit:8}"
    if row.p50_us is not None:
        words += f" p50 {us_of(row.p50_us):>8} p99 {us_of(row.p99_us):>8} us"
    if row.ratio_to_limit is not None:
        words += f"  {row.ratio_to_limit:5.2f} of the limit"
    if row.ours_ratio is not None:
        words += f"  ours x {row.ours_ratio:.2f}"
    return words + (f"  ({row.note})" if row.note else "")


def markdown(result: Result, reasons: Sequence[Reason] = (), aims: Sequence[Aim] = ()) -> str:
    """The tables of a run, class by class and group by group; `reasons` say why a row is not ahead, `aims`
    what was to be reached."""
    told = aims_table(result.rows, aims)
    parts = [head_of(result), summary_of(result, reasons), f"## Aims\n\n{told}" if told else ""]
    for durability, rows in _grouped(result.rows, lambda row: row.durability):
        meaning = CLASSES.get(durability, "")
        parts.append(f"## Class `{durability}`: {meaning}" if meaning else "## Beside limits")
        for group, its in _grouped(rows, lambda row: row.group):
            parts += [f"### {group[:1].upper()}{group[1:]}", table_of(its)]
        parts.append(settings_of(rows))
    if result.skipped:
        parts.append("## Left out\n")
        parts.append("\n".join(f"- {what}: {reason}" for what, reason in result.skipped.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def machine_of(result: Result) -> str:
    """On what it was measured, and when, as a sentence."""
    machine = result.machine
    kernel = str(machine.get("kernel")).partition("-")[0]
    return (
        f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('memory_gib')} GiB, Linux "
        f"{kernel}, {machine.get('file_system')}, CPython {machine.get('python')}, "
        f"{machine.get('at')}, load before {machine.get('load_1min')}."
    )


def plan_of(result: Result) -> str:
    """What the run's options make of it, as a sentence; empty for the bench as it is without any."""
    plan, options = (msgspec.json.decode(msgspec.json.encode(one)) for one in (Plan(), result.options))
    others = {name: value for name, value in options.items() if value and value != plan.get(name)}
    if not others:
        return ""
    kind = "A quick run" if others.pop("is_quick", False) else "Not the bench as it is without options"
    told = (
        f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in others.items()
    )
    return f"**{kind}**: {'; '.join(told)}."


def head_of(result: Result) -> str:
    """On what machine it was measured, and how to read it."""
    plan = plan_of(result)
    return (
        f"{machine_of(result)}\n\n"
        + (f"{plan}\n\n" if plan else "")
        + "Medians of interleaved rounds. *of the limit*: the system's rate as a share of the bare calls' "
        "of the same round; *ours ahead*: perdure's rate over the system's, round by round, with the "
        "lowest and the highest."
    )


def summary_of(result: Result, reasons: Sequence[Reason]) -> str:
    """In how many comparisons ours is ahead, how many of these leave no doubt, and where it is not; first of
    all, what of ours could not be measured."""
    compared = [row for row in result.rows if _is_compared(row)]
    failed = failed_of(result)
    told = [f"**perdure could not be measured**: {name}: {why}" for name, why in failed.items()]
    if not compared:
        return "\n\n".join(told)
    behind = behind_of(result.rows)
    ahead = len(compared) - len(behind)
    always = sum((row.ours_ratio_low or 0.0) >= 1 for row in compared)
    text = (
        f"Ahead in {ahead} of {len(compared)} comparisons with systems of the same class, "
        f"in {always} of them in every round."
    )
    told.append(f"{text} {_behind_table(behind, reasons)}" if behind else text)
    return "\n\n".join(told)


def behind_of(rows: Iterable[Row]) -> list[Row]:
    """Where ours is not ahead, the furthest behind first."""
    return sorted((row for row in rows if _is_compared(row) and _ratio(row) < 1), key=_ratio)


def unexplained_of(rows: Iterable[Row], reasons: Sequence[Reason]) -> list[Row]:
    """Those of them for which there is no reason."""
    return [row for row in behind_of(rows) if not reason_for(row, reasons)]


def failed_of(result: Result) -> dict[str, str]:
    """What of ours has an error instead of a figure, or could not be started: why."""
    found = {
        row.key: row.note for row in result.rows if is_ours(row.system) and row.figure is None and row.note
    }
    left_out = {what: why for what, why in result.skipped.items() if any(map(is_ours, what.split(", ")))}
    return {**left_out, **found}


def _is_compared(row: Row) -> bool:
    return row.ours_ratio is not None and not is_ours(row.system)


def _behind_table(behind: Sequence[Row], reasons: Sequence[Reason]) -> str:
    """The rows of one system with one reason together; what is furthest behind comes first."""
    lines = [
        "Not ahead, with perdure's rate over the other's (*: 1 lies within the spread):",
        "",
        "| system | rows | why |",
        "|---|---|---|",
    ]
    together: dict[tuple[str, str], list[Row]] = {}
    for row in behind:
        together.setdefault((row.system, reason_for(row, reasons)), []).append(row)
    for (system, why), rows in together.items():
        classes = [
            f"`{durability}`: "
            + "; ".join(
                f"{group}: {', '.join(f'{row.case} {_behind(row)}' for row in its)}"
                for group, its in _grouped(in_class, lambda row: row.group)
            )
            for durability, in_class in _grouped(rows, lambda row: row.durability)
        ]
        lines.append(f"| {system} | {'. '.join(classes)} | {why or UNEXPLAINED} |")
    return "\n".join(lines)


def _behind(row: Row) -> str:
    return f"{_ratio(row):.2f}" + ("*" if (row.ours_ratio_high or 0) >= 1 else "")


def aims_table(rows: Sequence[Row], aims: Sequence[Aim]) -> str:
    """Those that the run measured."""
    lines = []
    for aim in aims:
        value = aim.measured(rows)
        if value is not None:
            verdict = "reached" if aim.is_reached(value) else f"missed: {aim.why}"
            lines.append(f"| {aim.what} | {aim.bound} | {number(value)} | {verdict.removesuffix(': ')} |")
    head = ["| | aim | measured | |", "|---|---|---|---|"]
    return "\n".join(head + lines) if lines else ""


def _ratio(row: Row) -> float:
    return row.ours_ratio if row.ours_ratio is not None else 1.0


def table_of(rows: Sequence[Row]) -> str:
    """Of one group and class."""
    if rows[0].group == "figures":
        return _figures_table(rows)
    if rows[0].group == PARTS:
        return _parts_table(rows)
    if rows[0].amount is not None:
        lines = ["| case | system | | spread | ours ahead |", "|---|---|---|---|---|"]
        lines += [
            f"| {row.case} | {row.system} | {figure_of(row)} {row.unit} | {_share(row.spread)} "
            f"| {_ours(row)} |"
            for row in rows
        ]
        return "\n".join(lines)
    lines = [
        "| case | system | per s | spread | p50 us | p99 us | p99.9 us | of the limit | ours ahead |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = [
            figure_of(row),
            _share(row.spread),
            us_of(row.p50_us),
            us_of(row.p99_us),
            us_of(row.p999_us),
        ]
        of_limit = "" if row.ratio_to_limit is None else f"{row.ratio_to_limit:.2f}"
        words = [row.case, _named(row), *figures, of_limit, _ours(row)]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def _named(row: Row) -> str:
    name = "*limit*" if row.system == LIMIT else row.system
    return f"{name} ({row.note})" if row.note else name


def _figures_table(rows: Sequence[Row]) -> str:
    lines = ["| figure | perdure | beside | ratio | aim |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio_to_limit is None else f"{row.ratio_to_limit:.2f}"
        lines.append(f"| {row.case} | {figure_of(row)} | {row.limit} | {ratio} | {row.note} |")
    return "\n".join(lines)


def _parts_table(rows: Sequence[Row]) -> str:
    """Each call with its parts, and what share of it each is."""
    lines = ["| call | | us | share | |", "|---|---|---|---|---|"]
    whole = 1.0
    for row in rows:
        call, _, part = row.case.rpartition(": ")
        whole = (row.amount or 1.0) if part == WHOLE else whole
        share = f"{(row.amount or 0.0) / whole * 100:.0f} %"
        lines.append(
            f"| {call if part == WHOLE else ''} | {part} | {figure_of(row)} | {share} | {row.note} |"
        )
    return "\n".join(lines)


def settings_of(rows: Sequence[Row]) -> str:
    """How each system of the class is set up, and its version."""
    told = {row.system: (row.setting, row.version) for row in rows if row.setting or row.version}
    return "\n".join(
        f"- {name}: {', '.join(part for part in parts if part)}" for name, parts in sorted(told.items())
    )


def _ours(row: Row) -> str:
    if row.ours_ratio is None:
        return ""
    if row.rounds < 2:
        return f"{row.ours_ratio:.2f}"
    return f"{row.ours_ratio:.2f} ({row.ours_ratio_low:.2f}-{row.ours_ratio_high:.2f})"


def figure_of(row: Row) -> str:
    """What a row measured, without its unit."""
    value = row.figure
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.2f}"


def us_of(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.0f} %"


def _grouped(rows: Iterable[Row], key: Any) -> list[tuple[str, list[Row]]]:
    """Rows by a name, in the order in which the names come first."""
    order: Mapping[str, int] = {name: at for at, name in enumerate(dict.fromkeys(map(key, rows)))}
    ordered = sorted(rows, key=lambda row: order[key(row)])
    return [(name, list(its)) for name, its in groupby(ordered, key=key)]
