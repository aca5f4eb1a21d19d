"""Clusters of real processes in which a switchover can be made, and writers that follow the primary.

Owns starting what a node needs for it beside what nodes.Cluster starts, and looking at how it went.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from perdure.cli.server_process import ServerChild, ServerTask, start_server
from perdure.recovery import SwitchoverReport, WireNodes, switch_over
from perdure.shipping import NodePorts, write_ports
from perdure.store import PerdureError, SessionStore
from tests.cluster.nodes import CLUSTER, HOST, SECRET, Cluster, cluster_of, until
from tests.support.template import launch

WRITER = Path(__file__).with_name("switch_writer.py")


class Switching:
    """A cluster whose nodes run everything that a switchover needs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.servers: dict[str, ServerChild] = {}
        self.writers: list[subprocess.Popen[bytes]] = []

    def start(self, *names: str) -> None:
        cluster = self.cluster
        names = names or cluster.names
        cluster.start(
            *(cluster.receiver(name) for name in names), *(cluster.folder_of(name) for name in names)
        )
        for name in names:
            self.ship(name)
        for name in names:
            self.serve(name)

    def ship(self, name: str) -> None:
        self.cluster.start(self.cluster.shipper(name, standby=True))

    def serve(self, name: str) -> None:
        peers = {other: (HOST, port) for other, port in self.configured().items() if other != name}
        task = ServerTask(str(self.cluster.path(name)), HOST, 0, SECRET, peers)
        self.servers[name] = start_server(task, launch)
        ports = NodePorts(listen=self.cluster.ports[name], serve=self.servers[name].port)
        write_ports(self.cluster.path(name), ports)

    def configured(self) -> dict[str, int]:
        """The ports that the servers are told of."""
        return self.cluster.ports

    def nodes(self) -> WireNodes:
        addresses = {name: (HOST, port) for name, port in self.cluster.ports.items()}
        return WireNodes(addresses, cluster_id=CLUSTER, secret=SECRET)

    def to(self, name: str, **options: object) -> SwitchoverReport:
        with self.nodes() as nodes:
            return switch_over(nodes, name, **options)  # type: ignore[arg-type]

    def primary(self) -> str:
        """The node that says it is primary, once exactly one does."""
        found: list[str] = []

        def is_one() -> bool:
            found.clear()
            with self.nodes() as nodes:
                for name in nodes.names:
                    with contextlib.suppress(PerdureError):
                        if nodes.look(name).is_primary:
                            found.append(name)
            return len(found) == 1

        until(is_one, "there is one primary")
        return found[0]

    def begin_writing(self, count: int) -> None:
        paths = [str(self.cluster.path(name)) for name in self.cluster.names]
        for number in range(count):
            arguments = [sys.executable, str(WRITER), str(self.notes(number)), f"w{number}", *paths]
            self.writers.append(
                subprocess.Popen(
                    arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
                )
            )
        for writer in self.writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"

    def await_writes(self, count: int = 15) -> None:
        """Until each writer has had so many more acknowledgements."""
        wanted = [self.written(number) + count for number in range(len(self.writers))]
        until(lambda: all(self.written(at) >= least for at, least in enumerate(wanted)), "writers go on")

    def written(self, number: int) -> int:
        return self.notes(number).read_bytes().count(b"\n")

    def notes(self, number: int) -> Path:
        return self.cluster.folder / f"notes-{number}"

    def stop_writing(self) -> tuple[list[str], list[float]]:
        """(ids that were acknowledged, the longest gaps between two of them in ms, per writer)."""
        writers, self.writers = self.writers, []
        ids: list[str] = []
        gaps: list[float] = []
        for number, writer in enumerate(writers):
            writer.communicate(timeout=60)
            lines = [line.split() for line in self.notes(number).read_text().splitlines()]
            known = [(id, int(at)) for id, at in lines if not id.startswith("?")]
            ids += [id for id, _ in known]
            gaps.append(max((b[1] - a[1]) / 1e6 for a, b in pairwise(known)))
        return ids, gaps

    def check(self, ids: list[str]) -> None:
        """Everything acknowledged is on the primary, and all nodes come to have the same."""
        primary = self.primary()
        with SessionStore.open(self.cluster.path(primary), create=False) as store:
            missing = [id for id in ids if store.peek(id) is None]
            assert missing == []
        until(
            lambda: len({self.cluster.state_of(name) for name in self.cluster.names}) == 1,
            "all nodes have the same state",
        )

    def close(self) -> None:
        for writer in self.writers:
            writer.kill()
            writer.wait()
        for server in self.servers.values():
            server.stop()


@contextlib.contextmanager
def switching(folder: Path, nodes: int = 3, *, sync_replicas: int = 1) -> Iterator[Switching]:
    with cluster_of(folder, nodes, sync_replicas=sync_replicas) as cluster:
        found = Switching(cluster)
        try:
            yield found
        finally:
            found.close()
