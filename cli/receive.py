"""`perdure receive`: take a primary's log, keep it, and fold it."""

from __future__ import annotations

from typing import Annotated

import typer

from ..store import read_identity
from . import service
from .exits import reporting
from .options import AsJson, Directory, SecretFile, Verbose
from .settings import Settings


@reporting
def receive(
    directory: Directory,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one."),
    ] = None,
    secret_file: SecretFile = None,
    is_verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Run a node's receiver and its folder, each in a process of its own, until SIGTERM.

    Every node runs one, the primary too: there it answers how far the node is, and gives promises. An
    address that other machines can reach needs the cluster's secret.

    \b
    Example:
      perdure receive /srv/n2 --listen 10.0.0.2:7001 --secret-file /etc/perdure.secret
    """
    from ..shipping import run_replica
    from ..shipping.launching import fork

    settings = Settings(directory)
    host, port = settings.address(listen)
    secret = settings.secret(secret_file)
    node = read_identity(directory).node
    with service.until_stopped(is_verbose=is_verbose) as should_stop:
        run_replica(
            directory,
            host,
            port,
            secret=secret,
            rejoin=settings.value(None, "failover", "rejoin"),
            should_stop=should_stop,
            on_ready=lambda taken: service.ready(
                {"node": node, "listening": f"{host}:{taken}"},
                f"{node} listens on {host}:{taken}",
                as_json=as_json,
            ),
            log_level="INFO" if is_verbose else "WARNING",
            launch=fork,
        )
