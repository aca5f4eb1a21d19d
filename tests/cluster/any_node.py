"""Clusters whose nodes each have receiver, folder, standby shipper and server, as real processes.

Owns how the tests of writing on any node make such a cluster, open handles with a way to the primary, and
promote a node by hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from perdure.cli.server_process import ServerChild, ServerTask, start_server
from perdure.recovery import PromotionRefusedError, PromotionReport, promote
from perdure.shipping import NodeForwarder, NodePorts, Way, open_gate, write_ports
from perdure.store import SessionStore
from perdure.store.page import Word
from tests.cluster.nodes import HOST, SECRET, Cluster, until
from tests.support.ports import free_ports
from tests.support.template import launch


class AnyNodeCluster(Cluster):
    """Every node can become the primary, and serves."""

    def __init__(self, folder: Path, names: tuple[str, ...], sync_replicas: int, backend: str) -> None:
        super().__init__(folder, names, sync_replicas, backend)
        self.servers: dict[str, ServerChild] = {}
        self.is_down: set[str] = set()

    def begin_all(self) -> None:
        """Start all processes of all nodes, and wait until the replicas follow."""
        self.start(
            *(self.receiver(name) for name in self.names), *(self.folder_of(name) for name in self.names)
        )
        self.start(*(self.shipper(name, standby=True) for name in self.names))
        for name in self.names:
            self.serve(name)
        first = self.names[0]
        until(lambda: self.word(first, Word.VOTERS_CONNECTED) >= len(self.names) - 1, "all follow")

    def serve(self, name: str) -> None:
        port = self.servers[name].port if name in self.servers else free_ports(1)[0]
        child = start_server(ServerTask(str(self.path(name)), HOST, port, SECRET), launch)
        self.servers[name] = child
        write_ports(self.path(name), NodePorts(self.ports[name], child.port))

    def kill_server(self, name: str) -> None:
        self.servers[name]._process.kill()
        self.servers[name].stop()

    def kill_node(self, name: str) -> None:
        """kill -9 of all that runs for a node."""
        self.kill_server(name)
        for kind in ("shipper", "receiver", "folder"):
            self.kill(f"{kind}:{name}")
        self.is_down.add(name)

    def revive(self, name: str) -> None:
        self.start(self.receiver(name), self.folder_of(name))
        self.start(self.shipper(name, standby=True))
        self.serve(name)
        self.is_down.discard(name)

    def promote(self, name: str, *, alone: bool = False) -> PromotionReport:
        """Promote a node; tried again while another one is further."""
        peers = {other: (HOST, self.ports[other]) for other in self.names if other != name}
        reports: list[PromotionReport] = []

        def is_promoted() -> bool:
            with contextlib.suppress(PromotionRefusedError):
                reports.append(promote(self.path(name), peers, SECRET, alone=alone, accept_data_loss=alone))
            return bool(reports)

        until(is_promoted, f"{name} is promoted")
        return reports[0]

    def handle(self, name: str, **options: object) -> SessionStore:
        """A handle on a node, with its gate and its way to the others; closed with the cluster."""
        path = self.path(name)
        peers = {other: (HOST, port) for other, port in self.ports.items()}
        options.setdefault("write_timeout_ms", 30_000)
        forwarder = NodeForwarder(path, lambda: Way(peers, SECRET))
        store = SessionStore.open(path, gate=open_gate(path), forwarder=forwarder, **options)  # type: ignore[arg-type]
        self._open.append(store)
        return store

    def close(self) -> None:
        for opened in reversed(self._open):
            opened.__exit__(None, None, None)
        self._open.clear()
        for server in self.servers.values():
            server.stop()
        super().close()


@contextlib.contextmanager
def any_node_cluster(
    folder: Path, nodes: int = 3, *, sync_replicas: int = 1, backend: str = "lmdb"
) -> Iterator[AnyNodeCluster]:
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    cluster = AnyNodeCluster(folder, names, sync_replicas, backend)
    try:
        cluster.begin_all()
        yield cluster
    finally:
        cluster.close()
