"""Small clusters of real processes on loopback, for the tests of shipping.

Owns how tests make nodes, start and end their processes, write on the primary, and look at a node. The
writer is the test's own process; shippers and receivers are children, which end with the test whatever
happens.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure.shipping import (
    Child,
    NodeClient,
    Secret,
    ShipperOptions,
    Task,
    open_gate,
    open_node_log,
    run_folder,
    run_shipper,
    serve_receiver,
    shipping_status,
    start_child,
)
from perdure.shipping.bootstrap import MakeSnapshot
from perdure.store import Config, Position, SessionStore, begin_cluster, init_store
from perdure.store.identity import read_identity
from perdure.store.page import ControlPage, Word, read_boot_id
from tests.support.ports import free_ports
from tests.support.template import launch

CLUSTER = os.urandom(16)
"""Another one in each worker: a port that changed hands leads to no node of the same cluster."""
SECRET = b"a secret of the tests, 32 bytes."
NOW_MS = 1_700_000_000_000
HOST = "127.0.0.1"
WAIT_S = 30.0


class Cluster:
    """Nodes n1 (the first primary), n2, ... in one directory."""

    def __init__(self, folder: Path, names: tuple[str, ...], sync_replicas: int, backend: str) -> None:
        self.folder = folder
        self.names = names
        self.children: dict[str, Child] = {}
        self.ports: dict[str, int] = {}
        self._open: list[contextlib.AbstractContextManager[object]] = []
        self._threads = ThreadPoolExecutor(8)
        self._here: list[tuple[threading.Event, Future[None]]] = []
        for name in names:
            init_store(folder / name, node=name, cluster_id=CLUSTER, backend=backend, now_ms=NOW_MS)
        self.begin(names[0], Config(names, sync_replicas))

    def path(self, name: str) -> Path:
        return self.folder / name

    def begin(self, name: str, config: Config) -> None:
        """Make a node the first primary."""
        node = open_node_log(self.path(name), [])
        try:
            node.log.lock_any()
            begin_cluster(node.log, config)
            node.log.unlock()
        finally:
            node.close()

    # -- processes -------------------------------------------------------------------------------

    def start(self, *tasks: tuple[str, Task]) -> None:
        """Start children at the same time, and wait until all are ready."""
        for key, task in tasks:
            self.children[key] = start_child(task, launch)
        for key, _ in tasks:
            ready = self.children[key].wait_ready()
            if ready.port:
                self.ports[key.split(":")[1]] = ready.port

    def port_of(self, name: str) -> int:
        """Where it listened before, or will: below the ports that the system gives to connections."""
        return self.ports.get(name) or free_ports(1)[0]

    def receiver(self, name: str, *, secret: bytes = SECRET) -> tuple[str, Task]:
        port = self.port_of(name)
        return f"receiver:{name}", Task("receiver", str(self.path(name)), HOST, port, secret)

    def folder_of(self, name: str) -> tuple[str, Task]:
        return f"folder:{name}", Task("folder", str(self.path(name)))

    def shipper(self, name: str, to: tuple[str, ...] | None = None, **options: object) -> tuple[str, Task]:
        targets = to if to is not None else tuple(other for other in self.names if other != name)
        replicas = {other: (HOST, self.ports[other]) for other in targets}
        settings: dict[str, object] = {"secret": SECRET, **options}
        return f"shipper:{name}", Task("shipper", str(self.path(name)), replicas=replicas, **settings)  # type: ignore[arg-type]

    def start_all(self) -> None:
        """Receivers and folders on all but the first node, then its shipper."""
        others = self.names[1:]
        self.start(*(self.receiver(name) for name in others), *(self.folder_of(name) for name in others))
        self.start(self.shipper(self.names[0]))

    def serve_here(self, *names: str, secret: Secret = SECRET, rejoin: str = "auto") -> None:
        """Receivers in threads of the test, for what needs no process of its own."""
        for name in names:
            listening = threading.Event()

            def ready(port: int, name: str = name, listening: threading.Event = listening) -> None:
                self.ports[name] = port
                listening.set()

            port = self.port_of(name)
            self._run_here(
                listening,
                serve_receiver,
                self.path(name),
                HOST,
                port,
                secret=secret,
                rejoin=rejoin,
                on_ready=ready,
            )

    def fold_here(self, *names: str) -> None:
        """Folders in threads of the test."""
        for name in names:
            ready = threading.Event()
            self._run_here(ready, run_folder, self.path(name), on_ready=ready.set)

    def ship_here(
        self,
        name: str,
        *,
        options: ShipperOptions | None = None,
        make_snapshot: MakeSnapshot | None = None,
        secret: Secret = SECRET,
    ) -> None:
        """A shipper in a thread of the test."""
        ready = threading.Event()
        replicas = {other: (HOST, port) for other, port in self.ports.items() if other != name}
        self._run_here(
            ready,
            run_shipper,
            self.path(name),
            replicas,
            secret=secret,
            options=options,
            make_snapshot=make_snapshot,
            on_ready=ready.set,
        )

    def start_here(self) -> None:
        """As start_all, in threads."""
        others = self.names[1:]
        self.serve_here(*others)
        self.fold_here(*others)
        self.ship_here(self.names[0])

    def _run_here(
        self, ready: threading.Event, run: Callable[..., None], *arguments: object, **options: object
    ) -> None:
        stopping = threading.Event()
        future = self._threads.submit(run, *arguments, should_stop=stopping.is_set, **options)
        until(lambda: ready.is_set() or future.done(), f"{run.__name__} is ready")
        if future.done():
            future.result()
        self._here.append((stopping, future))

    def stop_here(self) -> None:
        """End what runs in threads. Raises what it raised, once all have ended."""
        here, self._here = self._here, []
        for stopping, _ in here:
            stopping.set()
        failed = [error for _, future in here if (error := future.exception(30)) is not None]
        if failed:
            raise failed[0]

    def kill(self, key: str) -> None:
        self.children.pop(key).kill()

    def stop(self, key: str) -> int:
        return self.children.pop(key).stop(60)

    def close(self) -> None:
        for opened in reversed(self._open):
            opened.__exit__(None, None, None)
        for child in self.children.values():
            child.kill()
        try:
            self.stop_here()
        finally:
            self._threads.shutdown()

    # -- looking ---------------------------------------------------------------------------------

    def open(self, name: str, **options: object) -> SessionStore:
        """A store handle with its gate, closed with the cluster; patient unless it is told otherwise."""
        options.setdefault("write_timeout_ms", 30_000)
        store = SessionStore.open(self.path(name), gate=open_gate(self.path(name)), **options)  # type: ignore[arg-type]
        self._open.append(store)
        return store

    def word(self, name: str, word: Word) -> int:
        page = ControlPage(self.path(name) / "control", read_boot_id())
        try:
            return int(page.words[word])
        finally:
            page.close()

    def end(self, name: str) -> Position:
        """Where a node's log ends, as its files tell."""
        node = open_node_log(self.path(name), [])
        try:
            return node.log.cursor.at.position
        finally:
            node.close()

    def client(self, name: str, *, secret: bytes = SECRET, cluster_id: bytes = CLUSTER) -> NodeClient:
        return NodeClient(HOST, self.ports[name], cluster_id=cluster_id, secret=secret)

    def state_of(self, name: str) -> tuple[int, int, int]:
        """(LSN, digest, count) of a node's sessions, as a reader of its files sees them."""
        with SessionStore.open(self.path(name), create=False) as store:
            store.count()
            visible = store._view.visible
            return visible.lsn, visible.digest, visible.session_count

    def slot_state(self, primary: str, replica: str) -> tuple[str, str]:
        found = [one for one in shipping_status(self.path(primary)).replicas if one.node == replica]
        return (found[0].state, found[0].error) if found else ("", "")

    def wait_applied(self, lsn: int, *names: str) -> None:
        for name in names or self.names[1:]:
            until(lambda name=name: self.word(name, Word.FOLDED) >= lsn, f"{name} applies LSN {lsn}")  # type: ignore[misc]


def until(is_true: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until something holds; fails with `what` past the deadline."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.01)


@contextlib.contextmanager
def cluster_of(
    folder: Path, nodes: int = 3, *, sync_replicas: int = 0, backend: str = "lmdb"
) -> Iterator[Cluster]:
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    cluster = Cluster(folder, names, sync_replicas, backend)
    try:
        yield cluster
    finally:
        cluster.close()


def session_ids(path: Path) -> set[str]:
    with SessionStore.open(path, create=False) as store:
        return set(store.ids())


def cluster_id_of(path: Path) -> bytes:
    return read_identity(path).cluster_id
