"""`python -m bench`: measure perdure beside its limits and peers, print a table, write JSON.

Options: `--only NAME` (part of a figure's name), `--json FILE` (default bench-results.json), `--quick`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from itertools import chain
from pathlib import Path

import msgspec

from . import failover_figures, process_figures, replicated_figures, session_figures, store_figures
from .measure import Figure


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on, and how busy it is by now."""
    model = ""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 1),
    }


def table(figures: list[Figure]) -> str:
    """The figures as text."""
    lines = [f"{'figure':44} {'per s':>10} {'peer per s':>11} {'ratio':>6}  peer; aim"]
    for figure in figures:
        met = "met" if figure.is_met else "MISSED"
        lines.append(
            f"{figure.name:44} {figure.rate_per_s:>10,.0f} {figure.peer_rate_per_s:>11,.0f} "
            f"{figure.ratio:>6.2f}  {figure.peer}; {figure.aim}: {met}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default="", help="measure only figures whose name holds this text")
    parser.add_argument("--json", default="bench-results.json", help="where the figures are written")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter slices")
    parser.add_argument("--directory", default=None, help="where the stores are made")
    options = parser.parse_args()
    figures: list[Figure] = []
    arguments = (options.only, options.quick, options.directory)
    rooms = (store_figures, session_figures, process_figures, replicated_figures, failover_figures)
    for figure in chain.from_iterable(room.measure_all(*arguments) for room in rooms):
        figures.append(figure)
        print(table([figure]).splitlines()[-1] if len(figures) > 1 else table([figure]), flush=True)
    result = {"machine": machine(), "figures": msgspec.to_builtins(figures)}
    Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
