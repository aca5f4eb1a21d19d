"""`perdure retention`: what of log and snapshots may go, and why everything else stays."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from . import render
from .exits import reporting
from .options import AsJson, Directory

MS_AN_HOUR = 3_600_000
LOG_H_MAX = 1_000_000
COLUMNS = ("kind", "name", "size_bytes", "is_dropped", "why")

group = typer.Typer(help="What of log and snapshots may go: explain.", no_args_is_help=True)


@group.command("explain")
@reporting
def explain(
    directory: Directory,
    log_h: Annotated[
        float, typer.Option("--log-hours", min=0, max=LOG_H_MAX, help="Log that is younger stays.")
    ] = 24.0,
    snapshots: Annotated[int, typer.Option("--snapshots", min=1, help="So many of the newest stay.")] = 3,
    consumer_h: Annotated[
        float,
        typer.Option(
            "--consumer-hours", min=0, max=LOG_H_MAX, help="A consumer that is behind holds log for so long."
        ),
    ] = 168.0,
    as_json: AsJson = False,
) -> None:
    """Say, file by file, what the node's retention would drop now, and why each other file stays.

    Nothing is changed. Never dropped is what the newest good snapshot needs, nor, within their
    budgets, what a replica's slot or a consumer of the event feed needs.

    \b
    Example:
      perdure retention explain /srv/n1 --log-hours 1
    """
    from ..recovery import Policy, explain_retention

    policy = Policy(
        log_age_ms=round(log_h * MS_AN_HOUR),
        snapshots=snapshots,
        consumer_age_ms=round(consumer_h * MS_AN_HOUR),
    )
    plan = explain_retention(directory, policy)
    lines: list[dict[str, Any]] = [msgspec.to_builtins(line) for line in plan.lines]
    if as_json:
        of_kind = {kind: [line for line in lines if line["kind"] == kind] for kind in ("segment", "snapshot")}
        render.write_json(
            {
                "segments": of_kind["segment"],
                "snapshots": of_kind["snapshot"],
                "notes": list(plan.notes),
                "freed_bytes": plan.freed_bytes,
            }
        )
        return
    render.rows(lines, as_json=False, columns=COLUMNS, key="files", empty="no log and no snapshots")
    for text in plan.notes:
        print(text)
    print(f"{plan.freed_bytes:,} bytes would be freed")
