"""Runs on machines in network namespaces: what a test does to them besides killing, and where reports go."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from perdure.cli.demo.caller import CallerTask
from perdure.cli.demo.etcd import EtcdCluster
from perdure.cli.demo.failovers import FailoverReport, FailoverRun
from perdure.cli.demo.nodes import NodeCluster
from tests.cluster_real.network import Network

REPORT_VARIABLE = "REPORT_DIR"
"""Where a run leaves its report as JSON; without it, it is only printed."""


class Run(FailoverRun):
    """A run whose machines can also be parted and paused."""

    def __init__(
        self,
        cluster: NodeCluster,
        network: Network,
        task: CallerTask,
        *,
        each: int = 1,
        etcd: EtcdCluster | None = None,
    ) -> None:
        super().__init__(cluster, task, each=each, on_step=print)
        self.network = network
        self.etcd = etcd

    def partition(self, *, hears: bool = False, is_heard: bool = False) -> None:
        """Part the primary from the others, wholly or one way, until another reigns."""
        node, network = self.primary(), self.network
        what = "partition" + (", it still hears" if hears else ", it is still heard" if is_heard else "")
        try:
            self.fail_over(what, lambda: network.isolate(node, hears=hears, is_heard=is_heard))
        finally:
            network.heal()

    def pause(self) -> None:
        """SIGSTOP of the primary's machine until another reigns, then SIGCONT."""
        node, network = self.primary(), self.network
        try:
            self.fail_over("pause", lambda: network.pause(node))
        finally:
            network.resume(node)

    def check(self, name: str, *, operations_min: int = 0) -> FailoverReport:
        """End the run, leave its report, and fail the test unless everything is as it was promised."""
        report = self.finish(operations_min=operations_min)
        text = msgspec.json.format(msgspec.json.encode(report), indent=1)
        print(text.decode())
        if folder := os.environ.get(REPORT_VARIABLE):
            (Path(folder) / f"{name}.json").write_bytes(text)
        assert report.is_proven, "\n".join(report.problems)
        assert report.operations >= operations_min
        return report


FAULTS: dict[str, Callable[[Run], object]] = {
    "kill": Run.kill,
    "partition": Run.partition,
    "pause": Run.pause,
}


@contextlib.contextmanager
def run_of(
    folder: Path,
    task: CallerTask,
    *,
    nodes: int = 3,
    each: int = 1,
    coordinator: str = "quorum",
    sync_replicas: int | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
) -> Iterator[Run]:
    """Nodes n1, n2, ... on machines of their own, with applications that write."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        has_etcd = coordinator == "etcd"
        network = Network(
            (f"n{number}" for number in range(1, nodes + 1)), others=["etcd"] if has_etcd else []
        )
        stack.callback(network.close)
        etcd = _etcd_on(network, folder) if has_etcd else None
        if etcd is not None:
            stack.callback(etcd.close)
            options = {**(options or {}), "failover": {"etcd_endpoints": etcd.endpoints}}
        cluster = NodeCluster(
            folder, network, coordinator=coordinator, sync_replicas=sync_replicas, options=options
        )
        stack.callback(cluster.close)
        yield Run(cluster, network, task, each=each, etcd=etcd)


def _etcd_on(network: Network, folder: Path) -> EtcdCluster:
    """Three members of etcd, on one machine of their own."""
    return EtcdCluster(
        folder / "etcd",
        host=network.address("etcd"),
        start=lambda *words, stdout, stderr: network.start("etcd", *words, stdout=stdout, stderr=stderr),
        within=lambda call: network.within("etcd", call),
    )
