"""`perdure tls`: certificates to try TLS with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ..store import UsageError
from . import render
from .exits import reporting
from .options import AsJson

group = typer.Typer(help="TLS between nodes: certificates for tests.", no_args_is_help=True)


@group.command("test-ca")
@reporting
def new_test_ca(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go.")],
    node: Annotated[
        list[str], typer.Option("--node", metavar="NODE", help="A node of the cluster; repeat it for each.")
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="HOST", help="A host name or address that goes into every certificate."
        ),
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, help="In force for so long.")] = 365,
    as_json: AsJson = False,
) -> None:
    """Make a CA and a certificate for each node: for tests and small clusters, not for production.

    The CA's key stays in DIR: whoever reads it can join the cluster. Nothing is written over; called again
    with other nodes, the CA that is there signs for them. A node needs NODE.crt, NODE.key and ca.crt.

    \b
    Example:
      perdure tls test-ca /etc/perdure/tls --node n1 --node n2 --node n3
    """
    try:
        from ..shipping.certificates import make_test_ca
    except ImportError as error:
        raise UsageError(
            "making certificates needs the package `cryptography`, which is not installed",
            hint="Install it: pip install 'perdure[encryption]'.",
        ) from error

    made = make_test_ca(directory, node, host or (), days=days)
    if as_json:
        render.write_json({"is_test_ca": True, **msgspec.to_builtins(made)})
        return
    title = "a new test CA" if made.is_new_ca else "the test CA that was there"
    render.result({"ca": made.ca, "ca_key": made.ca_key}, as_json=False, title=title)
    render.rows(
        [msgspec.to_builtins(files) for files in made.nodes],
        as_json=False,
        columns=("node", "cert", "key", "not_after"),
        key="nodes",
    )
    render.note("This is a test CA: who can read its key can join the cluster. Not for production.")
