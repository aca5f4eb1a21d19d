"""The demo on the screen: a table that moves on a terminal, plain lines everywhere else. Always on stderr.

Owns the drawing, nothing else. Invariant: in a pipe at most one line a second or so is written, and no
control character.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .watch import Sight

LINE_EVERY_S = 2.0
REFRESH_HZ = 8
STEPS_SHOWN = 14


class Screen:
    """Shows the steps of a demo and what it looks like meanwhile."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, highlight=False)
        self._is_quiet = is_quiet
        self._live: Live | None = None
        self._started_s = time.monotonic()
        self._steps: list[tuple[float, str]] = []
        self._sight: Sight | None = None
        self._line_s = 0.0

    def __enter__(self) -> Screen:
        if self._console.is_terminal and not self._is_quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._draw()
            self._live.stop()

    def step(self, text: str) -> None:
        """Say that a step of the demo begins, or how it ended."""
        elapsed_s = time.monotonic() - self._started_s
        self._steps.append((elapsed_s, text))
        if self._live is not None:
            self._draw()
        elif not self._is_quiet:
            self._say(f"{elapsed_s:5.1f} s  {text}")

    def show(self, sight: Sight) -> None:
        """Show the cluster as it is now."""
        self._sight = sight
        if self._live is not None:
            self._draw()
        elif not self._is_quiet and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._line_s = time.monotonic()
            self._say(f"{time.monotonic() - self._started_s:5.1f} s    {line_of(sight)}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(Group(self._steps_drawn(), _table_of(self._sight)), refresh=True)

    def _steps_drawn(self) -> Text:
        text = Text()
        for elapsed_s, step in self._steps[-STEPS_SHOWN:]:
            text.append(f"{elapsed_s:5.1f} s  ", style="dim").append(f"{step}\n")
        return text


def line_of(sight: Sight) -> str:
    """One line that says how the cluster does."""
    nodes = ", ".join(
        f"{node.node} LSN {node.appended:,}" + ("" if node.is_primary else f" lag {node.lag_ms:.1f} ms")
        for node in sight.nodes
    )
    return (
        f"{sight.writes:,} writes acknowledged, {sight.writes_per_s:,.0f}/s, "
        f"reads {sight.reads_per_s:,.0f}/s; {nodes}"
    )


def _table_of(sight: Sight | None) -> Group:
    if sight is None:
        return Group()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("node")
    table.add_column("role")
    for name in ("LSN", "on disk", "committed", "in the state", "lag ms"):
        table.add_column(name, justify="right", min_width=10)
    for node in sight.nodes:
        table.add_row(
            node.node,
            Text("primary", style="bold green") if node.is_primary else "replica",
            f"{node.appended:,}",
            f"{node.flushed:,}",
            f"{node.committed:,}",
            f"{node.folded:,}" if node.folded else "-",
            "" if node.is_primary else f"{node.lag_ms:.1f}",
        )
    counts = Text.assemble(
        ("writes acknowledged ", "dim"),
        f"{sight.writes:,}",
        (f"  {sight.writes_per_s:,.0f}/s", "bold"),
        ("   reads ", "dim"),
        f"{sight.reads:,}",
        (f"  {sight.reads_per_s:,.0f}/s", "bold"),
        ("   unknown ", "dim"),
        f"{sight.unknown:,}",
    )
    return Group(table, counts)
