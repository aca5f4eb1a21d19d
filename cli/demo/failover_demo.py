"""The demo of many failovers: nodes as an operator runs them, and whoever is primary is killed, K times.

Owns what it is told, its order, and the report; the run and its checks are failovers'. Nothing is simulated:
each node is `perdure node`, each application embeds its own node's store, and nobody tells it who is primary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from .caller import CallerTask
from .etcd import EtcdCluster
from .failovers import FailoverReport, FailoverRun
from .live import Screen
from .machines import LoopbackMachines
from .nodes import NodeCluster

OPERATIONS_MIN = 5_000
PAUSE_MS = 2.0
SESSIONS = 50


class FailoverDemoOptions(msgspec.Struct, frozen=True):
    """What it is told."""

    nodes: int = 3
    coordinator: str = "quorum"
    failovers: int = 3
    sync_replicas: int | None = None
    """None: the majority's."""
    writers: int | None = None
    """Applications in all; None: one a node."""
    seed: int = 0


def run_failovers(options: FailoverDemoOptions, root: Path, screen: Screen) -> FailoverReport:
    """Play it in a directory. Raises PerdureError or OSError where something fails; all is ended before."""
    machines = LoopbackMachines(f"n{number}" for number in range(1, options.nodes + 1))
    etcd = EtcdCluster(root / "etcd") if options.coordinator == "etcd" else None
    try:
        settings = {"failover": {"etcd_endpoints": etcd.endpoints}} if etcd else {}
        cluster = NodeCluster(
            root,
            machines,
            coordinator=options.coordinator,
            sync_replicas=options.sync_replicas,
            options=settings,
        )
        try:
            return _play(options, cluster, screen)
        finally:
            cluster.close()
    finally:
        machines.close()
        if etcd is not None:
            etcd.close()


def _play(options: FailoverDemoOptions, cluster: NodeCluster, screen: Screen) -> FailoverReport:
    screen.step(f"{options.nodes} nodes, coordinator {options.coordinator}, in {cluster.folder}")
    task = CallerTask(seed=options.seed, keys=SESSIONS, pause_ms=PAUSE_MS, has_deletes=False)
    each = max(1, round((options.writers or options.nodes) / options.nodes))
    run = FailoverRun(cluster, task, each=each, on_step=screen.step)
    for _ in range(options.failovers):
        run.primary()
        run.kill()
    return run.finish(operations_min=OPERATIONS_MIN)


def as_json(report: FailoverReport) -> dict[str, Any]:
    """The report under stable keys."""
    values: dict[str, Any] = msgspec.to_builtins(report)
    return values | {"is_proven": report.is_proven}


def summary(report: FailoverReport) -> Iterator[str]:
    """The report in lines for people."""
    yield (
        f"{len(report.failovers)} failovers of {report.nodes} nodes ({report.coordinator}): of "
        f"{report.operations:,} calls {report.acknowledged:,} writes were acknowledged, {report.unknown:,} "
        f"calls had no answer: {report.lost:,} lost, {report.phantom:,} phantom"
    )
    for failover in report.failovers:
        yield (
            f"  {failover.fault} of {failover.node}: {failover.taken_by} stood after "
            f"{failover.detection_ms:,.0f} ms, reigned {failover.promotion_ms:,.0f} ms later; writes again "
            f"after {failover.write_gap_ms:,.0f} ms"
        )
    agree = "they agree" if report.digests_agree else "they DIFFER"
    yield f"{report.sessions:,} sessions, digest {report.digest}; logs and digests of all nodes: {agree}"
    yield f"the histories of all sessions are {'' if report.linearizable else 'NOT '}linearizable"
    for problem in report.problems:
        yield f"  {problem}"
    yield "proven: nothing that was acknowledged is lost" if report.is_proven else "NOT as it should be"
