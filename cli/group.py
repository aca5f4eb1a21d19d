"""`perdure group`: the groups that sessions are in, and changes to all sessions of one."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Keys, Yes
from .settings import open_store

LIST_LIMIT = 100
LIST_LIMIT_MAX = 1_000_000_000

GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="The group.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=LIST_LIMIT_MAX, help="How many at most.")]

group = typer.Typer(help="Groups of sessions: list, show, count, touch, delete.", no_args_is_help=True)


@group.command("list")
@reporting
def list_(
    directory: Directory,
    limit: Limit = LIST_LIMIT,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """List the groups that sessions are in, with how many each has.

    \b
    Example:
      perdure group list /srv/n1 --limit 20
    """
    with open_store(directory, keys=keys, reads=True) as store:
        rows = [
            {"group": name, "sessions": store.count(group=name)} for name in islice(store.groups(), limit)
        ]
    render.rows(rows, as_json=as_json, columns=("group", "sessions"), key="groups", empty="no groups")


@group.command("show")
@reporting
def show(
    directory: Directory,
    name: GroupName,
    limit: Limit = LIST_LIMIT,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Show the sessions of a group. Exit code 1 says that there are none.

    \b
    Example:
      perdure group show /srv/n1 user-42
    """
    with open_store(directory, keys=keys, reads=True) as store:
        found: list[dict[str, Any]] = [
            session.to_dict() for session in islice(store.sessions(group=name), limit)
        ]
    columns = ("id", "version", "last_accessed", "expires_at", "metadata")
    render.rows(found, as_json=as_json, columns=columns, key="sessions", empty="no such sessions")
    leave(Exit.FINE if found else Exit.FINDINGS)


@group.command("count")
@reporting
def count(
    directory: Directory,
    name: GroupName,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Count the sessions of a group.

    \b
    Example:
      perdure group count /srv/n1 user-42
    """
    with open_store(directory, keys=keys, reads=True) as store:
        sessions = store.count(group=name)
    if as_json:
        render.result({"group": name, "sessions": sessions}, as_json=True)
    else:
        print(sessions)


@group.command("touch")
@reporting
def touch(
    directory: Directory,
    name: GroupName,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Extend the life of all sessions of a group as if they were used now.

    \b
    Example:
      perdure group touch /srv/n1 user-42
    """
    with open_store(directory, keys=keys) as store:
        done = store.touch_group(name)
    render.result({"group": name, "touched": done.sessions, "is_atomic": done.is_atomic}, as_json=as_json)


@group.command("delete")
@reporting
def delete(
    directory: Directory,
    name: GroupName,
    yes: Yes = False,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Remove all sessions of a group. Exit code 1 says that --yes is missing.

    \b
    Example:
      perdure group delete /srv/n1 user-42 --yes
    """
    with open_store(directory, keys=keys, reads=not yes) as store:
        would = 0 if yes else store.count(group=name)
        done = store.delete_group(name) if yes else None
    deleted = done.sessions if done else 0
    values = {"group": name, "deleted": deleted, "would_delete": would}
    render.result(values | {"is_atomic": done.is_atomic if done else True}, as_json=as_json)
    if would:
        render.note("Nothing was deleted; give --yes.", as_json=as_json)
        leave(Exit.FINDINGS)
