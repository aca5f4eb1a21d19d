"""Options that several commands share, and how their texts become values.

Owns the spelling of addresses, secrets and node lists on the command line. A secret never stands on the
command line, where every user of the machine can read it: it comes from a file or from the environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ..store import BACKENDS, StorageError, UsageError, backend_kind

SECRET_VARIABLE = "PERDURE_SECRET"
SECRET_BYTES_MAX = 4096
PORT_MAX = 65_535
LSN_MAX = (1 << 62) - 1

Directory: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="The store's directory.")]
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
SecretFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--secret-file",
        metavar="FILE",
        help=f"File that holds the secret which all nodes of the cluster share (or set {SECRET_VARIABLE}).",
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


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT; an IPv6 host stands in brackets. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
        raise UsageError(f"{text!r} is no address", hint="Give HOST:PORT, for example 127.0.0.1:7001.")
    return host, int(port)


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
