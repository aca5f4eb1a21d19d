"""`perdure session watch`: what happens to the sessions of a store, as it is committed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import typer

from ..store import EventKind, Feed, SessionEvent
from . import render
from .exits import reporting
from .options import AsJson, Directory, Keys
from .settings import open_store

LIST_LIMIT_MAX = 1_000_000_000


@reporting
def watch(
    directory: Directory,
    from_lsn: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="LSN",
            help="Begin with this LSN (0: the oldest event), or behind a position; else with what comes now.",
        ),
    ] = None,
    consumer: Annotated[
        str | None,
        typer.Option(
            "--consumer",
            metavar="NAME",
            help="Keep under this name how far it was shown, and go on there the next time.",
        ),
    ] = None,
    kinds: Annotated[
        list[EventKind] | None,
        typer.Option("--kind", help="Only events of this kind; repeat it for several."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, max=LIST_LIMIT_MAX, help="End after so many.")
    ] = None,
    follows: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait for more, or end with what is committed now.")
    ] = True,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Show committed events as they come, one a line; JSON lines with --json.

    An event counts as shown, for --consumer, once it is written. Ctrl-C ends it.

    \b
    Example:
      perdure session watch /srv/n1 --from 0 --kind expired --no-follow
    """
    place = int(from_lsn) if from_lsn and from_lsn.isascii() and from_lsn.isdigit() else from_lsn
    with (
        open_store(directory, keys=keys, reads=True) as store,
        store.feed(place, consumer=consumer, kinds=kinds, follow=follows, auto_ack=False) as feed,
    ):
        render.stream(
            (event.to_dict() for event in _events(feed, limit, consumer)),
            as_json=as_json,
            line=_event_line,
            flush=True,
        )


def _events(feed: Feed, limit: int | None, consumer: str | None) -> Iterator[SessionEvent]:
    for event in islice(feed, limit):
        yield event
        if consumer is not None:  # it was written: whoever asks for the next one has done with it
            feed.ack(event)


def _event_line(row: Any) -> str:
    to = f" to {row['new_id']}" if row["new_id"] else ""
    session = row["session"]
    stored = f"  version {session['version']}  {session['metadata']}" if session else ""
    return f"{row['lsn']:>10}  {row['kind']:<8}  {row['reason']:<9}  {row['id']}{to}{stored}"
