"""Options that several commands share, and how their texts become values.

Owns the spelling of addresses, secrets and node lists on the command line. A secret never stands on the
command line, where every user of the machine can read it: it comes from a file or from the environment.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import typer

from ..store import BACKENDS, PerdureError, StorageError, UsageError, backend_kind, load_config
from ..store.lines import from_json
from ..store.option import parse_address

SECRET_VARIABLE = "PERDURE_SECRET"
KEYS_VARIABLE = "PERDURE_KEYS"
SECRET_BYTES_MAX = 4096
LSN_MAX = (1 << 62) - 1
METADATA_BYTES_MAX = 16 << 20
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)\Z")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def find_store(context: typer.Context, directory: Path) -> Path:
    """The directory of a named store for @NAME. Raises BadParameter, as any argument that cannot be read."""
    text = str(directory)
    if not text.startswith("@") or context.resilient_parsing:
        return directory
    try:
        return load_config().path_of(text[1:])
    except PerdureError as error:
        raise typer.BadParameter(str(error)) from error


def set_variables(context: typer.Context, given: Mapping[str, str]) -> None:
    """Say it where this command and the processes that it starts look for it."""
    before = {variable: os.environ.get(variable) for variable in given}
    os.environ.update(given)

    def restore() -> None:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value

    context.call_on_close(restore)


def find_stores(context: typer.Context, directories: list[Path] | None) -> list[Path] | None:
    """As find_store, of several."""
    return None if directories is None else [find_store(context, path) for path in directories]


Directory: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="The store's directory, or @NAME for a named store of the file that `perdure --config` names.",
        callback=find_store,
    ),
]
NewDirectory: TypeAlias = Annotated[
    Path, typer.Option("--into", metavar="NEW_DIR", help="A directory that is empty or does not exist yet.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON with stable keys to stdout.")]
Yes: TypeAlias = Annotated[
    bool, typer.Option("--yes", help="Do it; without this it is only said what would happen.")
]
Verbose: TypeAlias = Annotated[
    bool, typer.Option("--verbose", help="Say on stderr what is done, not only what fails.")
]
IdArgument: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The session's id.")]
IfVersion: TypeAlias = Annotated[
    int | None,
    typer.Option("--if-version", min=0, help="Only if it has this version; 0: only if there is none."),
]
PriorityName: TypeAlias = Literal["critical", "high", "normal", "low"]
OfGroup: TypeAlias = Annotated[
    str | None, typer.Option("--group", metavar="GROUP", help="Only those of this group.")
]
OfTag: TypeAlias = Annotated[
    str | None, typer.Option("--tag", metavar="TAG", help="Only those with this tag.")
]
OfHomeNode: TypeAlias = Annotated[
    str | None, typer.Option("--home-node", metavar="NODE", help="Only those whose home is this node.")
]
OfPriority: TypeAlias = Annotated[
    PriorityName | None, typer.Option("--priority", help="Only those of this priority.")
]
Members: TypeAlias = Annotated[
    str,
    typer.Option(
        "--members", metavar="NODE,NODE,...", help="The nodes that there are; any other home is an orphan's."
    ),
]
SecretFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--secret-file",
        metavar="FILE",
        help=f"File that holds the secret which all nodes of the cluster share (or set {SECRET_VARIABLE}).",
    ),
]
Keys: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        metavar="FILE",
        help=f"The key file of sessions that are encrypted (or set {KEYS_VARIABLE}).",
    ),
]


def _checked(name: str | None) -> str | None:
    if name is not None:
        try:
            backend_kind(name)
        except UsageError as error:
            raise typer.BadParameter(f"{error.message}. {error.hint}") from error
    return name


_BACKEND_HELP = f"Where the state is kept: {', '.join(BACKENDS)}, or one that is installed."
Backend: TypeAlias = Annotated[
    str | None, typer.Option("--backend", metavar="NAME", help=_BACKEND_HELP, callback=_checked)
]
BackendName: TypeAlias = Annotated[
    str, typer.Option("--backend", metavar="NAME", help=_BACKEND_HELP, callback=_checked)
]
Peers: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--peer", metavar="NODE=HOST:PORT", help="Another node of the cluster; repeat it for each."),
]


def read_secret(file: Path | None) -> bytes:
    """The shared secret from a file or the environment, empty if there is none.

    Raises UsageError for an empty or over-long one, StorageError if the file cannot be read.
    """
    if file is None:
        secret, where = os.environ.get(SECRET_VARIABLE, "").strip().encode(), SECRET_VARIABLE
        if not secret:
            return b""
    else:
        try:
            with file.open("rb") as opened:
                secret, where = opened.read(SECRET_BYTES_MAX + 1).strip(), str(file)
        except OSError as error:
            raise StorageError(f"cannot read the secret: {error.strerror}", path=file) from error
    if not 0 < len(secret) <= SECRET_BYTES_MAX:
        what = f"has more than {SECRET_BYTES_MAX} bytes" if secret else "is empty"
        raise UsageError(
            f"the secret in {where} {what}",
            hint="Make one with `openssl rand -hex 32`.",
        )
    return secret


def parse_nodes(texts: list[str] | None) -> dict[str, tuple[str, int]]:
    """The addresses of NODE=HOST:PORT texts by node. Raises UsageError for a bad or doubled one."""
    nodes: dict[str, tuple[str, int]] = {}
    for text in texts or ():
        node, equals, address = text.partition("=")
        if not equals or not node:
            raise UsageError(
                f"{text!r} names no node", hint="Give NODE=HOST:PORT, for example n2=127.0.0.1:7001."
            )
        if node in nodes:
            raise UsageError(f"node {node} is given twice")
        nodes[node] = parse_address(address)
    return nodes


def parse_duration_ms(text: str) -> int | None:
    """Milliseconds of a text such as 500ms, 90s, 30m, 1.5h or 7d; None of "never". Raises UsageError."""
    if text == "never":
        return None
    found = _DURATION.match(text)
    ms = round(float(found[1]) * _UNIT_MS[found[2]]) if found else 0
    if not ms:
        raise UsageError(f"{text!r} is no duration", hint="Give 500ms, 90s, 30m, 12h, 7d or never.")
    return ms


def parse_members(text: str) -> list[str]:
    """The node names of a list with commas. Raises UsageError for an empty one."""
    members = [part.strip() for part in text.split(",") if part.strip()]
    if not members:
        raise UsageError("there are no members", hint="Give --members n1,n2,n3.")
    return members


def read_metadata(text: str) -> dict[str, Any]:
    """The metadata of a JSON object: the text itself, @FILE, or - for standard input.

    Bytes and times are spelt as in an export: {"$bytes": BASE64}, {"$datetime": ISO_8601}. Raises UsageError,
    StorageError if the file cannot be read.
    """
    value = parse_json(_content(text), "metadata")
    if not isinstance(value, dict):
        raise UsageError("metadata are a JSON object", hint="Give for example '{\"user\": 42}'.")
    return value


def parse_json(text: str | bytes, what: str) -> Any:
    """The value of a JSON text, tags understood (see read_metadata). Raises UsageError."""
    try:
        return from_json(msgspec.json.decode(text))
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError, ValueError) as error:
        raise UsageError(
            f"{what} are not JSON: {error}", hint="A text stands in double quotes, within the shell's own."
        ) from error


def _content(text: str) -> str | bytes:
    if text != "-" and not text.startswith("@"):
        return text
    try:
        if text == "-":
            data = sys.stdin.buffer.read(METADATA_BYTES_MAX + 1)
        else:
            with Path(text[1:]).open("rb") as opened:
                data = opened.read(METADATA_BYTES_MAX + 1)
    except OSError as error:
        raise StorageError(f"cannot read the metadata: {error.strerror}", path=text.lstrip("@")) from error
    if len(data) > METADATA_BYTES_MAX:
        raise UsageError(f"metadata take at most {METADATA_BYTES_MAX} bytes")
    return data
