"""`perdure session`: make, look at, change and remove the sessions of a store."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import typer

from ..store import Priority, Session, SessionStore, UsageError
from . import render
from .exits import Exit, leave, reporting
from .options import (
    AsJson,
    Directory,
    IdArgument,
    IfVersion,
    Keys,
    OfGroup,
    OfHomeNode,
    OfPriority,
    OfTag,
    PriorityName,
    Yes,
    parse_duration_ms,
    parse_json,
    read_metadata,
)
from .settings import open_store

LIST_LIMIT = 100
LIST_LIMIT_MAX = 1_000_000_000
SAMPLE_MAX = 10_000

Metadata = Annotated[
    str, typer.Argument(metavar="METADATA", help="A JSON object, @FILE with one, or - for standard input.")
]
Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="TIME",
        help="Idle timeout: 500ms, 90s, 30m, 12h, 7d or never.",
        show_default=False,
    ),
]
InGroup = Annotated[str | None, typer.Option("--group", metavar="GROUP", help="The group that it is in.")]
WithTags = Annotated[
    list[str] | None, typer.Option("--tag", metavar="TAG", help="A tag of it; repeat it for each.")
]
AtHome = Annotated[str | None, typer.Option("--home-node", metavar="NODE", help="Its home node.")]
WithPriority = Annotated[PriorityName | None, typer.Option("--priority", help="How early it is recovered.")]

group = typer.Typer(
    help="Sessions: create, get, put, update, touch, delete, list, count, sample, watch.",
    no_args_is_help=True,
)


@group.command("create")
@reporting
def create(
    directory: Directory,
    metadata: Metadata = "{}",
    *,
    timeout: Timeout = None,
    max_lifetime: Annotated[
        str | None,
        typer.Option("--max-lifetime", metavar="TIME", help="It ends then, however often it is used."),
    ] = None,
    group: InGroup = None,
    tag: WithTags = None,
    home_node: AtHome = None,
    priority: WithPriority = None,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Make a session under a new random id, and say the id.

    \b
    Example:
      perdure session create /srv/n1 '{"user": 42}' --timeout 30m --group user-42
    """
    options: dict[str, Any] = {"tags": tag or (), "priority": _priority(priority) or Priority.NORMAL}
    if timeout is not None:
        options["timeout_ms"] = parse_duration_ms(timeout)
    if max_lifetime is not None:
        options["max_lifetime_ms"] = parse_duration_ms(max_lifetime)
    found = read_metadata(metadata)
    with open_store(directory, keys=keys) as store:
        id = store.create(found, group=group or "", home_node=home_node, **options)
        session = store.peek(id)
    if as_json:
        render.result(session.to_dict() if session else {"id": id}, as_json=True)
    else:
        print(id)


@group.command("get")
@reporting
def get(
    directory: Directory,
    id: IdArgument,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Show one session; its life is not extended.

    Exit code 1 says that there is none, or that it has expired.

    \b
    Example:
      perdure session get /srv/n1 9f86d081884c7d659a2feaa0c55ad015
    """
    with open_store(directory, keys=keys, reads=True) as store:
        session = store.peek(id)
    if session is None:
        render.result({"id": id, "found": False}, as_json=as_json)
        leave(Exit.FINDINGS)
    else:
        render.result({"found": True, **session.to_dict()}, as_json=as_json)


@group.command("put")
@reporting
def put(
    directory: Directory,
    id: IdArgument,
    metadata: Metadata,
    *,
    ttl: Annotated[
        str | None,
        typer.Option("--ttl", metavar="TIME", help="How long it lives: 90s, 30m, 12h, 7d or never."),
    ] = None,
    is_sliding: Annotated[
        bool, typer.Option("--sliding", help="The time is an idle timeout, counted anew with each use.")
    ] = False,
    group: InGroup = None,
    tag: WithTags = None,
    home_node: AtHome = None,
    priority: WithPriority = None,
    if_version: IfVersion = None,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Store a session under an id of your own, new or in place of the old one.

    Exit code 1 says that it has another version than --if-version.

    \b
    Example:
      perdure session put /srv/n1 user-42 @session.json --ttl 12h --if-version 0
    """
    options: dict[str, Any] = {} if ttl is None else {"ttl_ms": parse_duration_ms(ttl)}
    found = read_metadata(metadata)
    with open_store(directory, keys=keys) as store:
        session = store.put(
            id,
            found,
            sliding=is_sliding,
            group=group or "",
            tags=tag or (),
            home_node=home_node,
            priority=_priority(priority) or Priority.NORMAL,
            if_version=if_version,
            **options,
        )
    render.result(session.to_dict(), as_json=as_json)


@group.command("update")
@reporting
def update(
    directory: Directory,
    id: IdArgument,
    *,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=JSON", help="Set a key of the metadata; repeat it for each."),
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="KEY", help="Remove a key; repeat it for each.")
    ] = None,
    merge: Annotated[
        str | None, typer.Option("--merge", metavar="JSON", help="Set all keys of a JSON object, @FILE or -.")
    ] = None,
    timeout: Timeout = None,
    group: InGroup = None,
    tag: WithTags = None,
    home_node: AtHome = None,
    priority: WithPriority = None,
    if_version: IfVersion = None,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Change a session in one atomic step: keys of its metadata, timeout, labels. It counts as used.

    What is not named stays. --tag replaces all tags; --group '' and --tag '' remove them. Exit code 1 says
    that there is no such session, or that it has another version.

    \b
    Example:
      perdure session update /srv/n1 user-42 --set n=7 --set 'name="Anna"' --unset cart --if-version 3
    """
    changes = {**(read_metadata(merge) if merge is not None else {}), **_changes(set_ or [])}
    removed = set(unset or ())
    fields: dict[str, Any] = {"group": group, "home_node": home_node, "priority": _priority(priority)}
    if timeout is not None:
        fields["timeout_ms"] = parse_duration_ms(timeout)
    if tag is not None:
        fields["tags"] = [name for name in tag if name]
    if removed & changes.keys():
        raise UsageError(f"{min(removed & changes.keys())!r} is set and unset")

    def change(session: Session) -> Session:
        kept = {key: value for key, value in session.metadata.items() if key not in removed}
        return session.replace(metadata={**kept, **changes}, **fields)

    with open_store(directory, keys=keys) as store:
        session = store.update(id, change, if_version=if_version)
    render.result(session.to_dict(), as_json=as_json)


@group.command("touch")
@reporting
def touch(
    directory: Directory,
    id: IdArgument,
    if_version: IfVersion = None,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Extend a session's life as if it was used now. Exit code 1 says that there is none.

    \b
    Example:
      perdure session touch /srv/n1 user-42
    """
    with open_store(directory, keys=keys) as store:
        store.touch(id, if_version=if_version)
        session = store.peek(id)
    render.result({"id": id, "expires_at": session.expires_at if session else None}, as_json=as_json)


@group.command("delete")
@reporting
def delete(
    directory: Directory,
    id: IdArgument,
    if_version: IfVersion = None,
    yes: Yes = False,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Remove a session. Exit code 1 says that there was none, or that --yes is missing.

    \b
    Example:
      perdure session delete /srv/n1 user-42 --yes
    """
    with open_store(directory, keys=keys, reads=not yes) as store:
        is_there = store.exists(id)
        was_deleted = yes and store.delete(id, if_version=if_version)
    would = is_there and not yes
    render.result({"id": id, "deleted": was_deleted, "would_delete": would}, as_json=as_json)
    if would:
        render.note("Nothing was deleted; give --yes.", as_json=as_json)
    leave(Exit.FINE if was_deleted else Exit.FINDINGS)


@group.command("list")
@reporting
def list_(
    directory: Directory,
    *,
    prefix: Annotated[str, typer.Option("--prefix", help="Only ids that begin so.")] = "",
    after: Annotated[str, typer.Option("--after", help="Go on behind this id.")] = "",
    group: OfGroup = None,
    tag: OfTag = None,
    home_node: OfHomeNode = None,
    priority: OfPriority = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=LIST_LIMIT_MAX, help="How many at most.")
    ] = LIST_LIMIT,
    is_long: Annotated[bool, typer.Option("--long", help="Whole sessions, not only ids.")] = False,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """List ids in their order; `next_after` of --json is where to go on.

    \b
    Example:
      perdure session list /srv/n1 --prefix user- --tag mobile --limit 20
    """
    with open_store(directory, keys=keys, reads=True) as store:
        ids = store.ids(
            prefix, after, group=group, tag=tag, home_node=home_node, priority=_priority(priority)
        )
        found = islice(_shown(store, ids, is_long), limit)
        if as_json:
            listed = list(found)
            following = listed[-1]["id"] if len(listed) == limit else None
            render.write_json({"sessions": listed, "next_after": following})
        else:
            render.stream(found, as_json=False, line=_line)


@group.command("count")
@reporting
def count(
    directory: Directory,
    group: OfGroup = None,
    tag: OfTag = None,
    home_node: OfHomeNode = None,
    priority: OfPriority = None,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Count the sessions that are stored, or those with these labels.

    One that has expired counts until it is swept.

    \b
    Example:
      perdure session count /srv/n1 --priority critical --json
    """
    with open_store(directory, keys=keys, reads=True) as store:
        sessions = store.count(group=group, tag=tag, home_node=home_node, priority=_priority(priority))
        position = store.position()
    if as_json:
        render.result({"sessions": sessions, "epoch": position.epoch, "lsn": position.lsn}, as_json=True)
    else:
        print(sessions)


@group.command("sample")
@reporting
def sample(
    directory: Directory,
    number: Annotated[
        int, typer.Option("--number", "-n", min=1, max=SAMPLE_MAX, help="How many are drawn.")
    ] = 10,
    is_long: Annotated[bool, typer.Option("--long", help="Whole sessions, not only ids.")] = False,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Draw sessions at random, each equally likely. All ids are read for that.

    \b
    Example:
      perdure session sample /srv/n1 -n 5 --long
    """
    with open_store(directory, keys=keys, reads=True) as store:
        drawn = [session.to_dict() if is_long else {"id": session.id} for session in store.sample(number)]
    if as_json:
        render.write_json({"sessions": drawn})
    else:
        render.stream(drawn, as_json=False, line=_line)


def _priority(name: str | None) -> Priority | None:
    return None if name is None else Priority[name.upper()]


def _changes(texts: list[str]) -> dict[str, Any]:
    """The keys and values of KEY=JSON texts. Raises UsageError."""
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(
                f"{text!r} sets nothing", hint="Give KEY=JSON, for example n=7 or 'name=\"Anna\"'."
            )
        if key in changes:
            raise UsageError(f"{key!r} is set twice")
        changes[key] = parse_json(value, f"the values of {key!r}")
    return changes


def _shown(store: SessionStore, ids: Iterator[str], is_long: bool) -> Iterator[dict[str, Any]]:
    for id in ids:
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
