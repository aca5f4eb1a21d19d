"""`perdure node`: everything that a node needs, under one process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..store import read_identity
from ..store.config import FILE_VARIABLE
from . import service
from .exits import reporting
from .options import AsJson, SecretFile, Verbose, find_store, set_variables
from .settings import Settings, only_store


@reporting
def node(
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="The store's directory, or @NAME for a named store of the configuration. Without it: the "
            "only named store of the configuration.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="The configuration, as `perdure --config`."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one."),
    ] = None,
    replica: Annotated[
        list[str] | None,
        typer.Option(
            "--replica", metavar="NODE=HOST:PORT", help="Every other node; shipped to while this is primary."
        ),
    ] = None,
    sweep_s: Annotated[
        float | None, typer.Option("--sweep-every", min=0, help="Seconds between sweeps; 0 is never.")
    ] = None,
    snapshot_s: Annotated[
        float | None, typer.Option("--snapshot-every", min=0, help="Seconds between snapshots; 0 is never.")
    ] = None,
    snapshots_kept: Annotated[
        int | None, typer.Option("--keep-snapshots", min=1, help="How many stay.")
    ] = None,
    retention_s: Annotated[
        float | None,
        typer.Option("--retention-every", min=0, help="Seconds between droppings of old log; 0 is never."),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            "--coordinator", metavar="NAME", help="What decides about promotions: auto, manual, quorum, etcd."
        ),
    ] = None,
    secret_file: SecretFile = None,
    is_verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Run a node until SIGTERM: all the processes that it needs, whatever its role is.

    With three voters or more the nodes elect a new primary by themselves when it has ended or stalls (see
    docs/failover.md). What dies is started again, after pauses that grow. What is not given here comes from
    the configuration (`perdure config show DIR`).

    \b
    Example:
      perdure node --config /etc/perdure/node.toml
      perdure node /srv/n1 --listen 10.0.0.1:7001 \\
          --replica n2=10.0.0.2:7001 --replica n3=10.0.0.3:7001 --secret-file /etc/perdure.secret
    """
    from ..shipping import check_secret, write_ways
    from .chores import ChoreTask
    from .rebuilding import run_node
    from .supervisor import NodePlan

    if config is not None:
        set_variables(context, {FILE_VARIABLE: str(config.absolute())})
    directory = find_store(context, directory) if directory is not None else only_store()
    settings = Settings(directory)
    host, port = settings.address(listen)
    replicas, secret = settings.peers(replica), settings.secret(secret_file)
    for address in (host, *(to for to, _ in replicas.values())):
        check_secret(secret, address)
    name = read_identity(directory).node
    level = "INFO" if is_verbose else "WARNING"
    policy = settings.policy(snapshots=snapshots_kept)
    chores = ChoreTask(
        directory=str(directory),
        sweep_s=settings.seconds(sweep_s, "store", "sweep_interval_ms"),
        snapshot_s=settings.seconds(snapshot_s, "recovery", "snapshot_interval_ms"),
        snapshots_kept=policy.snapshots,
        retention_s=settings.seconds(retention_s, "recovery", "retention_interval_ms"),
        policy=policy,
        auto_reconcile=settings.value(None, "recovery", "auto_reconcile"),
        auto_rebuild=settings.value(None, "failover", "rejoin") == "auto",
        alone_after_ms=settings.value(None, "failover", "alone_after_ms"),
        log_level=level,
    )
    plan = NodePlan(
        directory,
        host,
        port,
        replicas,
        secret,
        chores,
        compress=settings.value(None, "shipping", "compress"),
        slot_budget_bytes=policy.slot_bytes,
        snapshot_bytes_per_s=settings.value(None, "shipping", "snapshot_bytes_per_s"),
        rejoin=settings.value(None, "failover", "rejoin"),
        serve=settings.serve_address(),
        monitor=settings.monitor_address(),
        coordinator=settings.coordinator(coordinator),
        election=settings.election(),
        etcd_endpoints=settings.etcd_endpoints(coordinator),
        etcd_lease_ms=settings.value(None, "failover", "etcd_lease_ms"),
        health=settings.health(),
        log_level=level,
    )
    told = settings.told(replica, secret_file, host)

    def ready(taken: int) -> None:
        write_ways(directory, told)  # not sooner: a second start beside a node that runs changes nothing
        service.ready(
            {"node": name, "listening": f"{host}:{taken}"},
            f"{name} listens on {host}:{taken}",
            as_json=as_json,
        )

    with service.until_stopped(is_verbose=is_verbose) as should_stop:
        run_node(plan, should_stop, ready)
