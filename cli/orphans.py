"""`perdure orphans`: sessions whose home node is no member any more."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Keys, Members, Yes, parse_members
from .settings import open_store

LIST_LIMIT = 100
LIST_LIMIT_MAX = 1_000_000_000

group = typer.Typer(
    help="Sessions whose home node is no member: list, count, cleanup, adopt.", no_args_is_help=True
)


@group.command("list")
@reporting
def list_(
    directory: Directory,
    members: Members,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=LIST_LIMIT_MAX, help="How many at most.")
    ] = LIST_LIMIT,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """List orphans with their home nodes. Exit code 1 says that there are some.

    \b
    Example:
      perdure orphans list /srv/n1 --members n1,n2,n3
    """
    with open_store(directory, keys=keys, reads=True) as store:
        rows: list[dict[str, object]] = []
        for id in islice(store.orphans(parse_members(members)), limit):
            session = store.peek(id)
            rows.append({"id": id, "home_node": session.home_node if session else None})
    render.rows(rows, as_json=as_json, columns=("id", "home_node"), key="orphans", empty="no orphans")
    leave(Exit.FINDINGS if rows else Exit.FINE)


@group.command("count")
@reporting
def count(
    directory: Directory,
    members: Members,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Count orphans. Exit code 1 says that there are some.

    \b
    Example:
      perdure orphans count /srv/n1 --members n1,n2,n3
    """
    with open_store(directory, keys=keys, reads=True) as store:
        orphans = store.count_orphans(parse_members(members))
    if as_json:
        render.result({"orphans": orphans}, as_json=True)
    else:
        print(orphans)
    leave(Exit.FINDINGS if orphans else Exit.FINE)


@group.command("cleanup")
@reporting
def cleanup(
    directory: Directory,
    members: Members,
    yes: Yes = False,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Remove all orphans. Exit code 1 says that --yes is missing.

    \b
    Example:
      perdure orphans cleanup /srv/n1 --members n1,n2,n3 --yes
    """
    known = parse_members(members)
    with open_store(directory, keys=keys, reads=not yes) as store:
        would = 0 if yes else store.count_orphans(known)
        deleted = store.cleanup_orphans(known) if yes else 0
    render.result({"deleted": deleted, "would_delete": would}, as_json=as_json)
    if would:
        render.note("Nothing was deleted; give --yes.", as_json=as_json)
        leave(Exit.FINDINGS)


@group.command("adopt")
@reporting
def adopt(
    directory: Directory,
    members: Members,
    by: Annotated[
        str, typer.Option("--by", metavar="NODE", help="The member that is their home from now on.")
    ],
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Give all orphans another home node; their life is not extended.

    \b
    Example:
      perdure orphans adopt /srv/n1 --members n1,n2,n3 --by n2
    """
    with open_store(directory, keys=keys) as store:
        adopted = store.adopt_orphans(parse_members(members), by)
    render.result({"adopted": adopted, "home_node": by}, as_json=as_json)
