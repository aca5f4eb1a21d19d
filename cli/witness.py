"""`perdure witness`: run a voter that keeps promises only."""

from __future__ import annotations

from typing import Annotated

import typer

from . import service
from .exits import reporting
from .options import AsJson, Directory, SecretFile, Verbose
from .settings import Settings


@reporting
def witness(
    directory: Directory,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one."),
    ] = None,
    secret_file: SecretFile = None,
    is_verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Run a witness until SIGTERM: it votes, keeps its promises, and holds no sessions.

    Of two nodes one can then be promoted when the other is gone. Make its directory with `perdure init
    --witness-of`, on a machine that fails on its own, and never make it anew under the same name.

    \b
    Example:
      perdure witness /srv/w --listen 10.0.0.9:7001 --secret-file /etc/perdure.secret
    """
    from ..shipping.witness import serve_witness
    from ..store.witness import read_witness

    settings = Settings(directory)
    host, port = settings.address(listen)
    secret = settings.secret(secret_file)
    node = read_witness(directory).node
    with service.until_stopped(is_verbose=is_verbose) as should_stop:
        serve_witness(
            directory,
            host,
            port,
            secret=secret,
            should_stop=should_stop,
            on_ready=lambda taken: service.ready(
                {"node": node, "listening": f"{host}:{taken}"},
                f"{node} listens on {host}:{taken}",
                as_json=as_json,
            ),
        )
