"""The node process: starts what its role needs, starts again what dies, and ends all of it together.

Owns which processes a node has and when each may run. The work is theirs; this process only watches, so that
it has nothing that could fail. Invariant: each child gets its task, the secret included, over a pipe that it
watches, and ends when this process does, however that ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from ..recovery import ElectionOptions
from ..shipping import (
    Child,
    MonitorOptions,
    NodePorts,
    Secret,
    Task,
    read_fault,
    read_ports,
    start_child,
    write_ports,
)
from ..shipping import __main__ as _shipping_processes  # noqa: F401  (loaded before the first fork)
from ..shipping.launching import Process, end_process, fork
from ..shipping.posts import Post
from ..store import WireError, read_identity
from .chores import ChoreTask
from .elector_process import AUTO, ElectorChild, ElectorTask, start_elector
from .monitor_sockets import MonitorSockets
from .sdnotify import Notifier
from .server_process import ServerChild, ServerTask, start_server

TICK_S = 0.1


class NodePlan(msgspec.Struct, frozen=True):
    """What one node is to run. Times in seconds."""

    directory: Path
    host: str
    port: int
    replicas: Mapping[str, tuple[str, int]]
    """Every other node, by name; the node itself may stand among them."""
    secret: Secret
    chores: ChoreTask
    compress: bool = True
    slot_budget_bytes: int = 0
    """0: the shipper's default."""
    snapshot_bytes_per_s: int = 0
    """To one replica; 0 is no limit."""
    rejoin: str = "auto"
    """Or "manual": nothing is taken off the node's log before `perdure rejoin` says so."""
    serve: tuple[str, int] | None = None
    """Where the server listens; None: on the port after the receiver's, a free one where that was."""
    monitor: tuple[str, int] | None = None
    """Where the monitor listens; None: on the second port after the receiver's, a free one where that was."""
    coordinator: str = AUTO
    election: ElectionOptions = ElectionOptions()
    etcd_endpoints: tuple[str, ...] = ()
    etcd_lease_ms: int = 0
    health: MonitorOptions = MonitorOptions()
    log_level: str = "WARNING"


class Supervisor:
    """The processes of one node."""

    def __init__(self, plan: NodePlan) -> None:
        self._plan = plan
        self._node = read_identity(plan.directory).node
        self._port = plan.port
        self._serve_port = 0
        self._receiver = Post("receiver", self._start_receiver)
        self._folder = Post("folder", lambda: start_child(self._task("folder"), fork))
        self._shipper = Post("shipper", self._start_shipper)
        self._server = Post("server", self._start_server)
        chores = msgspec.structs.replace(plan.chores, replicas=dict(plan.replicas), secret=plan.secret)
        self._chores = Post(
            "chores", lambda: ChoresChild(fork("perdure.cli.chores", chores, name="perdure-chores"))
        )
        self._sockets: MonitorSockets | None = None
        self._monitor = Post("monitor", self._start_monitor)
        self._elector = Post("elector", self._start_elector)
        self._elector_child: ElectorChild | None = None

    def run(self, should_stop: Callable[[], bool], on_ready: Callable[[int], object]) -> None:
        """Keep the node running until `should_stop` says so; `on_ready` gets the port once it listens.

        Raises PerdureError if the receiver cannot be started at first.
        """
        notifier = Notifier()
        try:
            self._receiver.begin()
            address = self._plan.monitor or self._beside_receiver(2)
            self._sockets = sockets = MonitorSockets(address, is_configured=self._plan.monitor is not None)
            write_ports(self._plan.directory, NodePorts(listen=self._port, monitor=sockets.port))
            on_ready(self._port)
            notifier.ready(f"{self._node} has begun")
            while not should_stop():
                self._receiver.tend(True)
                self._monitor.tend(True)
                self._elector.tend(True)
                self._folder.tend(not read_fault(self._plan.directory))
                self._shipper.tend(True)
                self._server.tend(True)
                self._chores.tend(True)
                if self._elector_child is not None:
                    notifier.status(f"{self._node} is {self._elector_child.state or 'initializing'}")
                notifier.alive()
                time.sleep(TICK_S)
        finally:
            notifier.stopping()
            # First the elector, which is not to stand now, then what tells the others that this node ends.
            self._elector.stop()
            self._monitor.stop()
            if self._sockets is not None:
                self._sockets.close()
            for post in (self._shipper, self._server, self._chores, self._folder, self._receiver):
                post.stop()

    def _others(self) -> dict[str, tuple[str, int]]:
        return {node: address for node, address in self._plan.replicas.items() if node != self._node}

    def _start_receiver(self) -> Child:
        child = start_child(self._task("receiver"), fork)
        try:
            self._port = child.wait_ready().port
        except BaseException:
            child.stop()
            raise
        return child

    def _start_shipper(self) -> Child:
        return start_child(self._task("shipper"), fork)

    def _start_server(self) -> ServerChild:
        plan = self._plan
        host, port = plan.serve or self._beside_receiver(1)
        task = ServerTask(
            str(plan.directory), host, self._serve_port or port, plan.secret, self._others(), plan.log_level
        )
        child = start_server(task, fork)
        self._serve_port = child.port
        write_ports(plan.directory, msgspec.structs.replace(read_ports(plan.directory), serve=child.port))
        return child

    def _beside_receiver(self, offset: int) -> tuple[str, int]:
        """The port so much after the receiver's; a free one where that was."""
        plan = self._plan
        return (plan.host, plan.port + offset if plan.port else 0)

    def _start_monitor(self) -> Child:
        sockets, health = self._sockets, self._plan.health
        if sockets is None:
            raise WireError("the monitor has no socket yet")
        task = msgspec.structs.replace(
            self._task("monitor"),
            replicas=self._others(),
            listener=sockets.listener.fileno(),
            pipe=sockets.monitor_end.fileno(),
            heartbeat_ms=health.heartbeat_ms,
            silence_ms=health.silence_ms,
            disk_stall_ms=health.disk_stall_ms,
        )
        return start_child(task, fork)

    def _start_elector(self) -> ElectorChild:
        plan, sockets = self._plan, self._sockets
        if sockets is None:
            raise WireError("the elector has no pipe yet")
        self._elector_child = start_elector(
            ElectorTask(
                str(plan.directory),
                sockets.elector_end.fileno(),
                self._others(),
                plan.secret,
                plan.coordinator,
                plan.election,
                list(plan.etcd_endpoints),
                plan.etcd_lease_ms,
                plan.log_level,
            ),
            fork,
        )
        return self._elector_child

    def _task(self, kind: str) -> Task:
        plan = self._plan
        return Task(
            kind,
            str(plan.directory),
            plan.host,
            self._port,
            plan.secret,
            replicas=self._others() if kind == "shipper" else {},
            compress=plan.compress,
            slot_budget_bytes=plan.slot_budget_bytes,
            snapshot_bytes_per_s=plan.snapshot_bytes_per_s,
            rejoin=plan.rejoin,
            standby=kind == "shipper",
            log_level=plan.log_level,
        )


class ChoresChild:
    """The process that sweeps, takes snapshots and drops old log."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> int:
        return end_process(self._process, "chores")


def start_chores(task: ChoreTask) -> ChoresChild:
    """Start the chores' process; it ends when the pipe to it does. Raises OSError if the system refuses."""
    return ChoresChild(fork("perdure.cli.chores", task, name="perdure-chores"))
