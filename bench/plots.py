"""Plots of a run as SVG, drawn here: bars of what systems reach, lines of how a cost grows.

Owns the drawing. An SVG is text, so that a plot in the docs shows in a diff what has changed; nothing but
rows is drawn, and each plot holds one durability class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from .limits import NAME as LIMIT
from .report import Result
from .rows import Row
from .workloads import OPEN_LOOP

WIDTH: Final = 760
_NAME_WIDTH: Final = 170
_BAR: Final = 15
_OURS, _PEER, _BOUND = "#1f6f8b", "#b8c4c9", "#e0d6b8"
_STYLE = "font-family='sans-serif' font-size='11'"
_CASES: Final = ("get", "create", "update", "batch of 100", "A")


class Bar(NamedTuple):
    label: str
    value: float
    color: str
    text: str


class Point(NamedTuple):
    x: float
    y: float


def write_plots(result: Result, folder: Path) -> list[Path]:
    """An SVG for each class with rates, for its latencies at a given rate, and for each cost that may grow:
    the files written."""
    written = _scaling_plots(result.rows, folder)
    for durability in dict.fromkeys(row.durability for row in result.rows if row.durability):
        rows = [row for row in result.rows if row.durability == durability]
        for name, bars in (("rates", _rate_bars(rows)), ("latency", _latency_bars(rows))):
            if bars:
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / f"{name}-{durability}.svg"
                title = "calls a second" if name == "rates" else "p99 in us, calls at a given rate"
                named = f"{title}, class {durability} (logarithmic scale)"
                file.write_text(bar_chart(named, bars), encoding="utf-8")
                written.append(file)
    return written


def bar_chart(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Horizontal bars in groups, on one logarithmic scale."""
    values = [bar.value for _, bars in groups for bar in bars if bar.value > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    span = max(1, high - low)
    room = WIDTH - _NAME_WIDTH - 70
    parts, y = [_text(8, 18, title, "font-weight='bold'")], 34
    for name, bars in groups:
        parts.append(_text(8, y + 11, name, "font-weight='bold'"))
        y += _BAR + 2
        for bar in bars:
            length = room * (math.log10(max(bar.value, 10**low)) - low) / span
            parts.append(_text(16, y + 11, bar.label))
            parts.append(
                f"<rect x='{_NAME_WIDTH}' y='{y}' width='{max(1.0, length):.1f}' height='{_BAR - 3}' "
                f"fill='{bar.color}'/>"
            )
            parts.append(_text(_NAME_WIDTH + max(1.0, length) + 4, y + 11, bar.text))
            y += _BAR
        y += 8
    return _svg(y + 6, parts)


def line_chart(title: str, x_name: str, y_name: str, lines: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Lines over two logarithmic scales, with the slope of each: 0 does not grow, 1 grows in proportion."""
    points = [point for _, its in lines for point in its]
    xs, ys = [math.log10(point.x) for point in points], [math.log10(point.y) for point in points]
    x0, x1, y0, y1 = min(xs), max(xs), math.floor(min(ys)), math.ceil(max(ys))
    height, left = 300, 60
    right = WIDTH - max(180, 24 + 6 * max(len(f"{name} (slope -0.00)") for name, _ in lines))

    def place(point: Point) -> str:
        x = left + (right - left) * (math.log10(point.x) - x0) / max(0.1, x1 - x0)
        y = height - 40 - (height - 80) * (math.log10(point.y) - y0) / max(1, y1 - y0)
        return f"{x:.1f},{y:.1f}"

    parts = [_text(8, 18, title, "font-weight='bold'"), _text(left, height - 8, x_name), _text(8, 34, y_name)]
    for tick in range(y0, y1 + 1):
        x, y = place(Point(10**x0, 10.0**tick)).split(",")
        parts.append(_text(float(x) - 48, float(y) + 4, f"{10.0**tick:,g}"))
        parts.append(f"<line x1='{x}' y1='{y}' x2='{right}' y2='{y}' stroke='#ddd'/>")
    for mark in sorted({point.x for point in points}):
        x, y = place(Point(mark, 10.0**y0)).split(",")
        parts.append(_text(float(x) - 10, float(y) + 16, f"{mark:,.0f}"))
    for number, (name, its) in enumerate(lines):
        color = ("#1f6f8b", "#b5532a", "#5b7f2b", "#6a4c93", "#8a6d1d", "#444")[number % 6]
        path = " ".join(place(point) for point in its)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='2'/>")
        slope = slope_of(its)
        told = name + ("" if slope is None else f" (slope {slope:.2f})")
        parts.append(_text(right + 8, 50 + 16 * number, told, f"fill='{color}'"))
    return _svg(height, parts)


def slope_of(points: Sequence[Point]) -> float | None:
    """The exponent with which y grows with x: least squares over the logarithms; None for one x."""
    xs, ys = [math.log(point.x) for point in points], [math.log(point.y) for point in points]
    if len(set(xs)) < 2:
        return None
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    products = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return products / sum((x - x_mean) ** 2 for x in xs)


def _scaling_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """A plot for each factor and class, from rows whose case is `what against factor: point`."""
    lines: dict[tuple[str, str], dict[str, list[Point]]] = {}
    for row in rows:
        case, _, point = row.case.rpartition(": ")
        what, _, factor = case.partition(" against ")
        if row.group == "scaling" and point != "slope" and row.amount:
            its = lines.setdefault((factor, row.durability), {}).setdefault(what, [])
            its.append(Point(float(point.replace(",", "")), row.amount))
    written = []
    for (factor, durability), drawn_lines in lines.items():
        folder.mkdir(parents=True, exist_ok=True)
        name = factor if durability == "os" else f"{factor} {durability}"
        file = folder / f"scaling-{name.replace(' ', '-')}.svg"
        drawn = line_chart(f"us a call against {factor}", factor, "us", list(drawn_lines.items()))
        file.write_text(drawn, encoding="utf-8")
        written.append(file)
    return written


def _rate_bars(rows: Sequence[Row]) -> list[tuple[str, list[Bar]]]:
    return [
        (f"{group}: {case}", bars)
        for group in ("single", "ycsb", "replicated")
        for case in dict.fromkeys(row.case for row in rows if row.group == group)
        if case.removeprefix("YCSB ") in _CASES or group == "replicated"
        if (bars := _bars([row for row in rows if (row.group, row.case) == (group, case)]))
    ]


def _bars(rows: Sequence[Row]) -> list[Bar]:
    told = [row for row in rows if row.ops_per_s]
    told.sort(key=lambda row: -(row.ops_per_s or 0.0))
    return [Bar(row.system, row.ops_per_s or 0.0, _color(row), f"{row.ops_per_s:,.0f}") for row in told]


def _latency_bars(rows: Sequence[Row]) -> list[tuple[str, list[Bar]]]:
    groups: list[tuple[str, list[Bar]]] = []
    for case in dict.fromkeys(row.case for row in rows if row.group == OPEN_LOOP):
        told = [row for row in rows if row.case == case and row.group == OPEN_LOOP and row.p99_us]
        told.sort(key=lambda row: row.p99_us or 0.0)
        if told:
            bars = [Bar(row.system, row.p99_us or 0.0, _color(row), f"{row.p99_us:,.0f}") for row in told]
            groups.append((case, bars))
    return groups


def _color(row: Row) -> str:
    return _BOUND if row.system == LIMIT else _OURS if row.system.startswith("perdure") else _PEER


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' {_STYLE} {more}>{escape(words)}</text>"


def _svg(height: int, parts: Sequence[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}'>"
    return "\n".join([head, f"<rect width='{WIDTH}' height='{height}' fill='white'/>", *parts, "</svg>", ""])
