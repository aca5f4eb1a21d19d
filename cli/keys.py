"""`perdure keys`: the key file that sessions are encrypted with; made, listed, rotated, freed of old keys."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from ..store import PerdureError
from . import render
from .exits import Exit, code_of, leave, reporting
from .options import AsJson, Yes, find_stores

if TYPE_CHECKING:
    from ..recovery import KeyUse
    from ..store import Keyring

Algorithm: TypeAlias = Literal["aes-256-gcm", "chacha20-poly1305"]
KeyFile: TypeAlias = Annotated[Path, typer.Argument(metavar="FILE", help="The key file.")]
Directories: TypeAlias = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[DIR]...", help="Stores (or @NAME) that are opened with these keys.", callback=find_stores
    ),
]
Kind: TypeAlias = Literal["id", "group", "tag", "home-node"]
COLUMNS = ("key", "algorithm", "created", "is_active", "sessions", "snapshots", "segments", "exports")

group = typer.Typer(
    help="The keys that sessions are encrypted with: init, list, rotate.", no_args_is_help=True
)


@group.command("init")
@reporting
def init(
    file: KeyFile,
    algorithm: Annotated[Algorithm, typer.Option("--algorithm", help="Of the first key.")] = "aes-256-gcm",
    as_json: AsJson = False,
) -> None:
    """Make a key file with one random key and a secret that hides ids; its owner alone may read it.

    Keep a copy of it elsewhere: what is sealed under a key that is lost can never be read again.

    \b
    Example:
      perdure keys init /etc/perdure.keys
    """
    from ..store.keyring import key_name, make_keyring

    ring = make_keyring(file, algorithm, _now_ms())
    render.result(
        {"file": str(file), "active": key_name(ring.active), "algorithm": algorithm}, as_json=as_json
    )


@group.command("list")
@reporting
def list_(file: KeyFile, directories: Directories = None, as_json: AsJson = False) -> None:
    """List the keys of a file; secrets are never shown.

    With stores: how many sessions, snapshots, segments of the log and exported files each key is still needed
    for. All of them are read for that.

    \b
    Example:
      perdure keys list /etc/perdure.keys /srv/n1
    """
    from ..store.keyring import is_open_to_others, read_keyring

    ring = read_keyring(file)
    rows = _rows(ring, _use_of(directories or []) if directories else None)
    if as_json:
        render.write_json({"keys": rows, "is_open_to_others": is_open_to_others(file)})
        return
    columns = COLUMNS if directories else COLUMNS[:4]
    render.rows(rows, as_json=False, columns=columns, key="keys")
    if is_open_to_others(file):
        render.note(f"others may read {file}: say chmod 600")


@group.command("rotate")
@reporting
def rotate(
    file: KeyFile,
    directories: Directories = None,
    algorithm: Annotated[
        Algorithm | None, typer.Option("--algorithm", help="Of the new key; as the active one if not given.")
    ] = None,
    reseal: Annotated[
        bool, typer.Option("--reseal/--no-reseal", help="Store the sessions that are there anew, under it.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Add a new key, make it the active one, and seal the sessions of the stores under it.

    Processes that run take it within a second. If it is broken off while it reseals, go on with
    `perdure keys reseal`. Older keys stay in the file: log and snapshots need them until retention drops
    those.

    \b
    Example:
      perdure keys rotate /etc/perdure.keys /srv/n1
    """
    from ..store.keyring import key_name, rotate_keyring

    ring = rotate_keyring(file, algorithm, _now_ms())
    said: dict[str, Any] = {"file": str(file), "active": key_name(ring.active)}
    code = Exit.FINE
    if reseal and directories:
        said["stores"], code = _reseal(file, directories, None)
    _say(said, ring, as_json)
    leave(code)


@group.command("reseal")
@reporting
def reseal(
    file: KeyFile,
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Stores (or @NAME) of these keys.", callback=find_stores),
    ],
    compression: Annotated[
        Literal["none", "zstd"] | None,
        typer.Option("--compression", help="Compress or uncompress all sessions as well."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Seal all sessions of the stores under the active key, while others go on using them.

    It goes on where an earlier one was broken off: sessions that are under the active key are left alone.
    Versions and times of the sessions stay.

    \b
    Example:
      perdure keys reseal /etc/perdure.keys /srv/n1
    """
    from ..store.keyring import key_name, read_keyring

    ring = read_keyring(file)
    said: dict[str, Any] = {"file": str(file), "active": key_name(ring.active)}
    said["stores"], code = _reseal(file, directories, compression)
    _say(said, ring, as_json)
    leave(code)


@group.command("retire")
@reporting
def retire(
    file: KeyFile,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `keys list` shows it.")],
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="All stores (or @NAME), of all nodes, that use the file.",
            callback=find_stores,
        ),
    ],
    without_history: Annotated[
        bool,
        typer.Option(
            "--without-history",
            help="Also while snapshots, log or exports need it: they cannot be read any more.",
        ),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take an old key out of the file, once nothing is sealed under it any more.

    Refused (exit code 3) while a session of the stores is under it, or a snapshot, a segment of the log, or
    what a rejoin exported to `diverged/`.
    Only the stores that are named are looked at.

    \b
    Example:
      perdure keys retire /etc/perdure.keys 3f2a91bc /srv/n1 --yes
    """
    from ..store.keyring import change_keyring, key_name, parse_key_name, read_keyring, without_key

    key_id = parse_key_name(key)
    without_key(read_keyring(file), key_id)
    use = _use_of(directories).get(key_id)
    is_free = use is None or use.is_none or (use.is_history and without_history)
    if is_free and yes:
        change_keyring(file, lambda ring: without_key(ring, key_id))
    render.result(
        {
            "file": str(file),
            "key": key_name(key_id),
            "is_retired": is_free and yes,
            "would_retire": is_free,
            **_fields(use),
        },
        as_json=as_json,
    )
    if not is_free and not as_json:
        render.note(
            "the key is still needed; `perdure keys reseal` frees sessions, retention drops snapshots and"
            " log, and an export goes only by hand: see `perdure diverged list`"
        )
    leave(Exit.REFUSED if not is_free else Exit.FINE if yes else Exit.FINDINGS)


@group.command("hash")
@reporting
def hash_(
    file: KeyFile,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="An id, or a label.")],
    kind: Annotated[Kind, typer.Option("--of", help="What the text is.")] = "id",
    as_json: AsJson = False,
) -> None:
    """Say under what an id (or a label) stands in log, state and snapshots where ids are hidden.

    \b
    Example:
      perdure keys hash /etc/perdure.keys user-42
      perdure log dump /srv/n1 --session 0f1e2d3c4b5a69788796a5b4c3d2e1f0
    """
    from ..store.keyring import KeySource
    from ..store.labels import GROUP, HOME_NODE, TAG
    from ..store.sealer import Sealer, SealOptions

    sealer = Sealer(SealOptions(keys=KeySource(file), hide_ids=True), is_hidden=None)
    kinds = {"group": GROUP, "tag": TAG, "home-node": HOME_NODE}
    found = sealer.label(kinds[kind], text) if kind in kinds else sealer.hidden_key(text).decode()
    if as_json:
        render.write_json({"of": kind, "hash": found})
    else:
        print(found)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _reseal(
    file: Path, directories: Iterable[Path], compression: str | None
) -> tuple[list[dict[str, Any]], Exit]:
    """What became of each store, and the worst exit code of them."""
    from .. import open as open_replicated

    rows: list[dict[str, Any]] = []
    code = Exit.FINE
    for directory in directories:
        row: dict[str, Any] = {"directory": str(directory), "resealed": 0, "kept": 0, "lsn": 0, "problem": ""}
        try:
            with (
                open_replicated(
                    directory, create=False, keys=file, compression=compression or "none"
                ) as store,
                render.progress(f"reseal {directory}", unit="sessions") as advance,
            ):
                done = store.reseal(lambda seen, _: advance(seen), recompress=compression is not None)
                row |= {"resealed": done.resealed, "kept": done.kept, "lsn": store.position().lsn}
        except PerdureError as error:
            row["problem"] = str(error)
            code = max(code, code_of(error))
        rows.append(row)
    return rows, code


def _say(said: dict[str, Any], ring: Keyring, as_json: bool) -> None:
    from ..store.keyring import key_name

    old = [key for key in ring.keys if key.id != ring.active]
    said["older_keys"] = [key_name(key.id) for key in old]
    if as_json:
        render.write_json(said)
        return
    stores = said.pop("stores", [])
    render.result(said, as_json=False)
    for row in stores:
        if row["problem"]:
            render.note(f"{row['directory']}: {row['problem']}")
        else:
            print(
                f"{row['directory']}: {row['resealed']} sessions stored anew, {row['kept']} left as they are."
                f" An older key is needed until log and snapshots up to LSN {row['lsn']} are dropped."
            )
    if old:
        print(
            "`perdure keys list FILE DIR` shows what an older key is needed for, `keys retire` takes it out."
        )


def _use_of(directories: Iterable[Path]) -> dict[int, KeyUse]:
    """What is sealed under each key in all of the stores."""
    from ..recovery import KeyUse, key_use

    found: dict[int, KeyUse] = {}
    for directory in directories:
        with render.progress(f"read {directory}", unit="files") as advance:
            for key_id, use in key_use(directory, advance).items():
                all_of_it = found.setdefault(key_id, KeyUse())
                all_of_it.sessions += use.sessions
                all_of_it.snapshots += [f"{directory}: {name}" for name in use.snapshots]
                all_of_it.segments += [f"{directory}: {name}" for name in use.segments]
                all_of_it.exports += [f"{directory}: {name}" for name in use.exports]
    return found


def _rows(ring: Keyring, use: dict[int, KeyUse] | None) -> list[dict[str, Any]]:
    from ..store.keyring import key_name

    rows: list[dict[str, Any]] = []
    for key in ring.keys:
        row: dict[str, Any] = {
            "key": key_name(key.id),
            "algorithm": key.algorithm,
            "created": datetime.fromtimestamp(key.created_ms / 1000, UTC).isoformat(timespec="seconds"),
            "is_active": key.id == ring.active,
        }
        rows.append(row if use is None else row | _fields(use.get(key.id)))
    return rows


def _fields(use: KeyUse | None) -> dict[str, Any]:
    if use is None:
        return {"sessions": 0, "snapshots": 0, "segments": 0, "exports": 0}
    return {
        "sessions": use.sessions,
        "snapshots": len(use.snapshots),
        "segments": len(use.segments),
        "exports": len(use.exports),
    }
