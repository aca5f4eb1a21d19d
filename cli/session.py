"""`perdure session`: look at the sessions of a store and what happens to them, without refreshing them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import typer

from ..store import EventKind, Feed, SessionEvent, SessionStore
from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory

LIST_LIMIT = 100
LIST_LIMIT_MAX = 1_000_000_000

group = typer.Typer(help="Look at sessions: get, list, count, watch.", no_args_is_help=True)


@group.command("get")
@reporting
def get(
    directory: Directory,
    id: Annotated[str, typer.Argument(metavar="ID", help="The session's id.")],
    as_json: AsJson = False,
) -> None:
    """Show one session; its life is not extended.

    Exit code 1 says that there is none, or that it has expired.

    \b
    Example:
      perdure session get /srv/n1 9f86d081884c7d659a2feaa0c55ad015
    """
    with SessionStore.open(directory, create=False) as store:
        session = store.peek(id)
    if session is None:
        render.result({"id": id, "found": False}, as_json=as_json)
        leave(Exit.FINDINGS)
    else:
        render.result({"found": True, **session.to_dict()}, as_json=as_json)


@group.command("list")
@reporting
def list_(
    directory: Directory,
    prefix: Annotated[str, typer.Option("--prefix", help="Only ids that begin so.")] = "",
    after: Annotated[str, typer.Option("--after", help="Go on behind this id.")] = "",
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=LIST_LIMIT_MAX, help="How many at most.")
    ] = LIST_LIMIT,
    is_long: Annotated[bool, typer.Option("--long", help="Whole sessions, not only ids.")] = False,
    as_json: AsJson = False,
) -> None:
    """List ids in their order; `next_after` of --json is where to go on.

    \b
    Example:
      perdure session list /srv/n1 --prefix user- --limit 20
    """
    with SessionStore.open(directory, create=False) as store:
        found = islice(_sessions(store, prefix, after, is_long), limit)
        if as_json:
            listed = list(found)
            following = listed[-1]["id"] if len(listed) == limit else None
            render.write_json({"sessions": listed, "next_after": following})
        else:
            render.stream(found, as_json=False, line=_line)


@group.command("count")
@reporting
def count(directory: Directory, as_json: AsJson = False) -> None:
    """Count the sessions that are stored.

    One that has expired counts until it is swept.

    \b
    Example:
      perdure session count /srv/n1 --json
    """
    with SessionStore.open(directory, create=False) as store:
        sessions, position = store.count(), store.position()
    if as_json:
        render.result({"sessions": sessions, "epoch": position.epoch, "lsn": position.lsn}, as_json=True)
    else:
        print(sessions)


@group.command("watch")
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
        SessionStore.open(directory, create=False) as store,
        store.feed(place, consumer=consumer, kinds=kinds, follow=follows, auto_ack=False) as feed,
    ):
        render.stream(
            (event.to_dict() for event in _shown(feed, limit, consumer)),
            as_json=as_json,
            line=_event_line,
            flush=True,
        )


def _shown(feed: Feed, limit: int | None, consumer: str | None) -> Iterator[SessionEvent]:
    for event in islice(feed, limit):
        yield event
        if consumer is not None:  # it was written: whoever asks for the next one has done with it
            feed.ack(event)


def _event_line(row: Any) -> str:
    to = f" to {row['new_id']}" if row["new_id"] else ""
    session = row["session"]
    stored = f"  version {session['version']}  {session['metadata']}" if session else ""
    return f"{row['lsn']:>10}  {row['kind']:<8}  {row['reason']:<9}  {row['id']}{to}{stored}"


def _sessions(store: SessionStore, prefix: str, after: str, is_long: bool) -> Iterator[dict[str, Any]]:
    for id in store.ids(prefix, after):
        if not is_long:
            yield {"id": id}
            continue
        session = store.peek(id)
        if session is not None:
            yield session.to_dict()


def _line(row: Any) -> str:
    if len(row) == 1:
        return str(row["id"])
    return f"{row['id']}  version {row['version']}  expires {row['expires_at'] or 'never'}  {row['metadata']}"
