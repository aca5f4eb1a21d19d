"""`perdure bench`: how fast a store is on this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ..store import UsageError
from . import render
from .exits import reporting
from .options import AsJson, BackendName


@reporting
def bench(
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Measure on this directory's file system.")
    ] = None,
    backend: BackendName = "lmdb",
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.05, max=60, help="How long for each figure.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Measure a temporary store beside the bare calls that bound it.

    The figures are of one process and one thread, and of this machine as busy as it is now.

    \b
    Example:
      perdure bench --dir /srv --seconds 2
    """
    from .measure import measure

    if directory is not None and not directory.is_dir():
        raise UsageError(f"{directory} is no directory", path=directory, hint="Give one to measure on.")
    with render.progress("measuring", total=7) as advance:
        started = iter(range(1, 100))
        figures = list(
            measure(directory, backend=backend, seconds=seconds, told=lambda _: advance(next(started)))
        )
    rows = [{**msgspec.structs.asdict(figure), "of_limit": figure.of_limit} for figure in figures]
    if as_json:
        machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "backend": backend}
        render.write_json({"machine": machine, "figures": rows})
    else:
        render.rows(
            rows,
            as_json=False,
            key="figures",
            columns=("name", "per_s", "p50_us", "p99_us", "limit", "of_limit"),
        )
