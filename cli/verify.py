"""`perdure verify`: is everything in a node's directory what it should be?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory

Depth = Literal["structure", "checks", "chain", "replay"]


@reporting
def verify(
    directory: Directory,
    level: Annotated[
        Depth,
        typer.Option(
            "--level", help="How deep: structure, checks of every frame, the chain, a whole replay."
        ),
    ] = "replay",
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", metavar="DIR", help="Where a replay may build its copy of the state."),
    ] = None,
    is_long: Annotated[bool, typer.Option("--long", help="Show also what is right.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a node's directory, finding by finding; nothing is changed.

    A check that could not be made is "unknown", never "ok". Exit code 0 says that all is well, 1 that
    something is not as it should be or could not be checked, 4 that something is damaged. With --json one
    finding a line, and a summary in the last one.

    \b
    Example:
      perdure verify /srv/n1 --level chain
    """
    from ..recovery import Summary
    from ..recovery import verify as verify_store

    summary = Summary()

    def findings() -> Iterator[Mapping[str, Any]]:
        with render.steps() as on_step:
            for finding in verify_store(directory, level=level, scratch=scratch):
                summary.add(finding)
                on_step(str(finding))
                if as_json:
                    yield _as_json(finding)
                elif is_long or finding.level.value != "ok":
                    yield {"text": str(finding)}

    render.stream(findings(), as_json=as_json, line=lambda row: str(row["text"]))
    counts = {level.value: count for level, count in summary.counts.items()}
    if as_json:
        render.write_json({"verdict": summary.verdict.value, "counts": counts, "code": summary.exit_code})
    else:
        print(f"{summary.verdict.value}: {summary}")
    leave(Exit(summary.exit_code))


def _as_json(finding: Any) -> dict[str, Any]:
    return {
        "level": finding.level.value,
        "kind": finding.kind,
        "message": finding.message,
        "path": finding.path,
        "offset": finding.offset,
        "lsn": finding.lsn,
        "hint": finding.hint,
    }
