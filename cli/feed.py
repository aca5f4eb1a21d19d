"""`perdure feed`: the consumers of a store's event feed, and how far each is."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ..store import SessionStore
from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory

COLUMNS = ("name", "lsn", "lag_events", "acked_ms", "is_active", "is_gone")

group = typer.Typer(help="Consumers of the event feed: list, drop.", no_args_is_help=True)


@group.command("list")
@reporting
def list_(directory: Directory, as_json: AsJson = False) -> None:
    """List the consumers, how far each is, and how many events it is behind.

    \b
    Example:
      perdure feed list /srv/n1 --json
    """
    with SessionStore.open(directory, create=False) as store:
        found = [msgspec.to_builtins(consumer) for consumer in store.consumers()]
    render.rows(found, as_json=as_json, columns=COLUMNS, key="consumers", empty="no consumers")


@group.command("drop")
@reporting
def drop(
    directory: Directory,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The consumer's name.")],
    as_json: AsJson = False,
) -> None:
    """Forget a consumer, so that no log is kept for it.

    No session is concerned; a feed under the same name begins anew. Exit code 1 says that there is none.

    \b
    Example:
      perdure feed drop /srv/n1 billing
    """
    with SessionStore.open(directory, create=False) as store:
        was_there = store.drop_consumer(name)
    render.result({"name": name, "dropped": was_there}, as_json=as_json)
    if not was_there:
        leave(Exit.FINDINGS)
