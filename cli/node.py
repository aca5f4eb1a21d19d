"""`perdure node`: everything that a node needs, under one process."""

from __future__ import annotations

from typing import Annotated

import typer

from ..store import read_identity
from . import service
from .exits import reporting
from .options import AsJson, Directory, SecretFile, Verbose, parse_address, parse_nodes, read_secret


@reporting
def node(
    directory: Directory,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
    ],
    replica: Annotated[
        list[str] | None,
        typer.Option(
            "--replica", metavar="NODE=HOST:PORT", help="Every other node; shipped to while this is primary."
        ),
    ] = None,
    sweep_s: Annotated[
        float, typer.Option("--sweep-every", min=0, help="Seconds between sweeps; 0 is never.")
    ] = 60.0,
    snapshot_s: Annotated[
        float, typer.Option("--snapshot-every", min=0, help="Seconds between snapshots; 0 is never.")
    ] = 60.0,
    snapshots_kept: Annotated[int, typer.Option("--keep-snapshots", min=1, help="How many stay.")] = 3,
    retention_s: Annotated[
        float,
        typer.Option("--retention-every", min=0, help="Seconds between droppings of old log; 0 is never."),
    ] = 60.0,
    secret_file: SecretFile = None,
    is_verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Run a node until SIGTERM: receiver, folder, and, while it is the primary, the shipper and the sweeper.

    It looks at the node's role by itself, so a promotion needs nothing more; what dies is started again,
    after pauses that grow. Snapshots are taken and log that nobody needs is dropped on every node.

    \b
    Example:
      perdure node /srv/n1 --listen 10.0.0.1:7001 \\
          --replica n2=10.0.0.2:7001 --replica n3=10.0.0.3:7001 --secret-file /etc/perdure.secret
    """
    from ..shipping import check_secret
    from .chores import ChoreTask
    from .supervisor import NodePlan, Supervisor

    host, port = parse_address(listen)
    replicas, secret = parse_nodes(replica), read_secret(secret_file)
    for address in (host, *(to for to, _ in replicas.values())):
        check_secret(secret, address)
    name = read_identity(directory).node
    level = "INFO" if is_verbose else "WARNING"
    chores = ChoreTask(str(directory), sweep_s, snapshot_s, snapshots_kept, retention_s, level)
    plan = NodePlan(directory, host, port, replicas, secret, chores, level)
    with service.until_stopped(is_verbose=is_verbose) as should_stop:
        Supervisor(plan).run(
            should_stop,
            lambda taken: service.ready(
                {"node": name, "listening": f"{host}:{taken}"},
                f"{name} listens on {host}:{taken}",
                as_json=as_json,
            ),
        )
