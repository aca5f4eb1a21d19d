"""What tests of operators' commands need beside a cluster: servers, and states damaged on purpose."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from perdure.recovery import OpsService, Reach
from perdure.shipping import Server
from perdure.shipping.ports import NodePorts, write_ports
from perdure.store import names
from perdure.store.lock import FileLock
from perdure.store.opening import OpenOptions, open_store
from perdure.store.ports import Record
from tests.cluster.nodes import CLUSTER, HOST, SECRET, Cluster


@contextlib.contextmanager
def servers(cluster: Cluster, *nodes: str) -> Iterator[dict[str, OpsService]]:
    """The servers of nodes, with the operators' handlers, in threads of the test; told in their status."""
    with contextlib.ExitStack() as stack:
        services: dict[str, OpsService] = {}
        for node in nodes:
            service = services[node] = OpsService(cluster.path(node))
            stack.callback(service.close)
            server = Server(HOST, 0, cluster_id=CLUSTER, secret=SECRET, handlers=service.handlers())
            stopping = threading.Event()
            thread = threading.Thread(target=server.run, args=(stopping.is_set,))
            thread.start()
            stack.callback(server.close)
            stack.callback(thread.join)
            stack.callback(stopping.set)
            write_ports(cluster.path(node), NodePorts(listen=cluster.ports.get(node, 0), serve=server.port))
        yield services


def reach_of(cluster: Cluster, *nodes: str) -> Reach:
    return Reach({node: (HOST, cluster.ports[node]) for node in nodes}, SECRET)


def damage(store: Path, records: Mapping[bytes, Record | None]) -> None:
    """Write these records into a state behind everybody's back; its position stays as it is."""
    opened = open_store(store, OpenOptions(create=False))
    lock = FileLock(store / names.FOLD_LOCK)
    try:
        lock.acquire(10_000)
        backend = opened.backend
        position = backend.refresh()
        backend.fold(sorted(records.items()), [], [], position)
    finally:
        lock.close()
        opened.close()


def stored(store: Path, key: bytes) -> Record | None:
    """The record that a state holds under a key."""
    opened = open_store(store, OpenOptions(create=False))
    try:
        opened.backend.refresh()
        return opened.backend.get(key)
    finally:
        opened.close()
