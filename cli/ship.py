"""`perdure ship`: send a primary's log to its replicas."""

from __future__ import annotations

from typing import Annotated

import typer

from ..store import UsageError
from . import service
from .exits import reporting
from .options import AsJson, Directory, SecretFile, Verbose
from .settings import Settings


@reporting
def ship(
    directory: Directory,
    replica: Annotated[
        list[str] | None,
        typer.Option("--replica", metavar="NODE=HOST:PORT", help="Where a replica listens; repeat it."),
    ] = None,
    secret_file: SecretFile = None,
    is_verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Ship the log of a primary to its replicas until SIGTERM.

    A replica that is away is tried again; one that lacks more log than is kept gets a snapshot. Exit code 3
    says that this node is not the primary, or was fenced by a promotion.

    \b
    Example:
      perdure ship /srv/n1 --replica n2=10.0.0.2:7001 --replica n3=10.0.0.3:7001 \\
          --secret-file /etc/perdure.secret
    """
    from ..recovery import take_snapshot
    from ..shipping import ShipperOptions, run_shipper

    settings = Settings(directory)
    replicas = settings.peers(replica)
    if not replicas:
        raise UsageError(
            "there is no replica to ship to",
            hint="Give --replica NODE=HOST:PORT, or set peers in [node] of the configuration.",
        )
    secret = settings.secret(secret_file)
    with service.until_stopped(is_verbose=is_verbose) as should_stop:
        run_shipper(
            directory,
            replicas,
            secret=secret,
            options=ShipperOptions(
                compress=settings.value(None, "shipping", "compress"),
                slot_budget_bytes=settings.value(None, "shipping", "slot_budget_bytes"),
                snapshot_bytes_per_s=settings.value(None, "shipping", "snapshot_bytes_per_s"),
            ),
            make_snapshot=lambda: take_snapshot(directory).path,
            should_stop=should_stop,
            on_ready=lambda: service.ready(
                {"shipping": sorted(replicas)}, f"shipping to {', '.join(sorted(replicas))}", as_json=as_json
            ),
        )
