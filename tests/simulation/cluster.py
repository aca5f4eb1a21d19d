"""A simulated cluster: machines, each with the processes of a node, and clients.

Owns how the code that ships is started: every function run here is the one that the real processes run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import perdure
from perdure.recovery import Quorum, keep_available, run_elector
from perdure.recovery.members import add_member, remove_member
from perdure.recovery.promote import promote
from perdure.shipping.folder import run_folder
from perdure.shipping.link import listen
from perdure.shipping.messages import PromiseReply
from perdure.shipping.monitor import run_monitor
from perdure.shipping.monitor_pipe import Pipe
from perdure.shipping.nodelog import open_node_log
from perdure.shipping.ports import NodePorts, write_ports
from perdure.shipping.receiver import Receiver, serve_receiver
from perdure.shipping.standby import run_standby
from perdure.shipping.witness import serve_witness
from perdure.store import (
    Config,
    Indeterminate,
    PerdureError,
    SessionNotFoundError,
    begin_cluster,
    init_store,
)
from perdure.store.control import AVAILABLE
from perdure.store.frame import cluster_key
from perdure.store.promise import Promise
from perdure.store.witness import make_witness

from .checks import Checker, NodeView
from .disk import Disk
from .kernel import MS, Host, Kernel, Process
from .network import Network, packet_pair, release_sockets
from .pace import (
    ALONE_AFTER_MS,
    CATCH_UP_MS,
    COMMIT_MS,
    ELECTED,
    MONITORED,
    RESTART_MS,
    SHIPPED,
    WRITE_TIMEOUT_MS,
    quicken,
)
from .seams import System
from .shapes import Shape

CLUSTER: Final = bytes(range(16))
SECRET: Final = b"the secret of the simulated cluster"
CREATED_MS: Final = 1_760_000_000_000
PORT: Final = 7000
MONITOR_PORT: Final = 7002


class Node:
    """One machine of the cluster."""

    def __init__(self, cluster: Cluster, name: str, number: int, root: Path) -> None:
        self.cluster = cluster
        self.name = name
        self.address = f"127.0.0.{number}"
        self.store = root / name
        self.host = Host(cluster.kernel, name, self.address)
        self.disk = Disk(cluster.kernel, self.host, self.store)
        self.view: NodeView
        self._pipe: Any = packet_pair(cluster.network)
        self.is_witness = name == cluster.witness
        self.is_wanted = True
        """Should its processes run?"""

    def start(self) -> None:
        """Start all processes, as the supervisor of a node does."""
        for name, run in self._programs().items():
            self._spawn(name, run)

    def _spawn(self, name: str, run: Callable[[], object]) -> None:
        if not self.is_wanted or not self.host.is_up or name in self.host.processes:
            return
        process = self.cluster.spawn(self.host, name, run)
        process.on_end = lambda ended: self._ended(ended, name, run)

    def _ended(self, process: Process, name: str, run: Callable[[], object]) -> None:
        self.cluster.kernel.note(
            "ended", process, type(process.error).__name__, self.cluster.text(process.error)
        )
        self.cluster.ends.append((self.name, name, process.error))
        self.cluster.kernel.at(RESTART_MS * MS, self._spawn, name, run)

    def _programs(self) -> dict[str, Callable[[], object]]:
        others = self.cluster.addresses(but=self.name)
        if self.is_witness:
            return {"witness": partial(serve_witness, self.store, self.address, PORT, secret=SECRET)}
        programs: dict[str, Callable[[], object]] = {
            "receiver": partial(serve_receiver, self.store, self.address, PORT, secret=SECRET),
            "shipper": partial(
                run_standby,
                self.store,
                others,
                secret=SECRET,
                options=SHIPPED,
            ),
            "folder": partial(run_folder, self.store),
            "client": partial(self.cluster.serve_on, self),
        }
        if self.cluster.witness:
            programs["keeper"] = partial(
                keep_available, self.store, others, SECRET, lambda: False, alone_after_ms=ALONE_AFTER_MS
            )
        if self.cluster.has_electors:
            programs |= {"monitor": self._monitor, "elector": self._elect}
        return programs

    def _monitor(self) -> None:
        run_monitor(
            self.store,
            self.cluster.addresses(but=self.name),
            listener=listen(self.address, MONITOR_PORT),
            pipe=Pipe(self._pipe[0]),
            secret=SECRET,
            options=MONITORED,
        )

    def _elect(self) -> None:
        draw = self.cluster.kernel.random.randint
        run_elector(
            self.store,
            self.cluster.addresses(but=self.name),
            pipe=Pipe(self._pipe[1]),
            coordinator=Quorum(ELECTED, lambda most: draw(0, max(0, most))),
            secret=SECRET,
        )

    # -- faults ----------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """kill -9 of one process; its supervisor starts it again."""
        process = self.host.processes.get(name)
        if process is None:
            return
        run = self._programs().get(name)
        process.kill()
        if run is not None:
            self.cluster.kernel.at(RESTART_MS * MS, self._spawn, name, run)

    def crash(self) -> None:
        """All processes die at once; the machine, and what was written, stays."""
        self.is_wanted = False
        for process in list(self.host.processes.values()):
            process.kill()

    def power_cut(self) -> None:
        """The machine is off: processes, connections and what was not synced are gone."""
        self.cluster.kernel.note("power cut", self.name)
        self.is_wanted = False
        self.host.is_up = False
        self.cluster.network.power_cut(self.host)
        for process in list(self.host.processes.values()):
            process.kill()
        self.disk.power_cut()
        if not self.is_witness:
            self.cluster.checker.power_cut(self.name)

    def come_back(self) -> None:
        """The machine runs again, and its supervisor starts everything."""
        if self.is_wanted:
            return
        self.cluster.kernel.note("back", self.name)
        if not self.host.is_up:
            self.host.boot()
        self.is_wanted = True
        self.cluster.network.changed()
        self.start()


class Cluster:
    """All nodes, the network between them, and what clients were told."""

    def __init__(
        self,
        kernel: Kernel,
        root: Path,
        shape: Shape,
    ) -> None:
        self.kernel = kernel
        self.root = str(root)
        self.has_electors = shape.has_electors
        self.network = Network(kernel)
        self.system = System(kernel, self.network)
        self.checker = Checker(kernel)
        self.checker.key = cluster_key(CLUSTER)
        self.sync_replicas = shape.sync_replicas
        self.tokens = 0
        self.acknowledged = self.refused = self.indeterminate = self.reads = 0
        self.faults: Counter[str] = Counter()
        self.slow_winners: dict[str, int] = {}
        """Candidates that stop for so many ns once they are promised something."""
        self.ids: list[str] = []
        self.ends: list[tuple[str, str, BaseException | None]] = []
        self.is_writing = True
        self.think_ms = 40.0
        self.names = tuple(f"n{number}" for number in range(1, shape.nodes + 1))
        self.witness = self.names[-1] if shape.has_witness else ""
        """The last node, if it keeps promises only; the policy is then `available`."""
        self.nodes = {name: Node(self, name, number, root) for number, name in enumerate(self.names, start=1)}
        self.system.install()
        quicken()
        for node in self.nodes.values():
            self.network.add(node.host)
            self.system.add(node.disk)
        self._make_stores()
        for node in self.nodes.values():
            node.disk.adopt()
            if not node.is_witness:
                node.view = self.checker.add(node.host, node.disk)
        self._watch_promises()
        kernel.after_step = self.checker.step

    def _make_stores(self) -> None:
        """The directories of a new cluster, the first node its primary."""

        def make(node: Node) -> None:
            if node.is_witness:
                make_witness(node.store, node.name, CLUSTER, CREATED_MS)
                return
            init_store(node.store, node=node.name, cluster_id=CLUSTER, backend="memory", now_ms=CREATED_MS)
            write_ports(node.store, NodePorts(listen=PORT, monitor=MONITOR_PORT))
            if node.name != self.names[0]:
                return
            log = open_node_log(node.store, [])
            log.log.write_lock.acquire(1000)
            is_auto = self.sync_replicas == len(self.names) // 2
            members = {name: f"{host}:{port}" for name, (host, port) in self.addresses(but="").items()}
            begin_cluster(log.log, self._config(members, is_auto))
            log.log.write_lock.release()
            log.close()

        made = [self.spawn(node.host, "make", partial(make, node)) for node in self.nodes.values()]
        self.kernel.run(self.kernel.now_ns + 100 * MS)
        for process in made:
            if process.error is not None:
                raise process.error

    def _config(self, members: dict[str, str], is_auto: bool) -> Config:
        if not self.witness:
            return Config(self.names, self.sync_replicas, members, is_auto=is_auto)
        return Config(
            self.names, self.sync_replicas, members, (self.witness,), is_auto=is_auto, policy=AVAILABLE
        )

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()

    def spawn(self, host: Host, name: str, run: Callable[[], object]) -> Process:
        process = self.kernel.spawn(host, name, run)
        process.at_death += [self.system.release, release_sockets]
        return process

    def data_nodes(self) -> list[Node]:
        """Those that keep the log."""
        return [node for node in self.nodes.values() if not node.is_witness]

    def addresses(self, *, but: str) -> dict[str, tuple[str, int]]:
        return {name: (f"127.0.0.{number}", PORT) for number, name in enumerate(self.names, 1) if name != but}

    def _watch_promises(self) -> None:
        """Remember what each node told others of its promises."""
        checker, given = self.checker, Receiver.promise

        def promise(receiver: Receiver, asked: Promise) -> PromiseReply:
            reply = given(receiver, asked)
            checker.answered(receiver.node.node, asked)
            self._hold_back(asked.candidate)
            return reply

        Receiver.promise = promise  # type: ignore[assignment]

    def _hold_back(self, candidate: str) -> None:
        """A candidate that was promised something stops for a while, if it is one of the slow ones."""
        process = self.nodes[candidate].host.processes.get("promote")
        ns = self.slow_winners.pop(candidate, 0)
        if process is not None and ns:
            self.kernel.note("pause", process)
            process.pause()
            self.kernel.at(ns, process.resume)

    # -- promotion by hand -----------------------------------------------------------------------

    def promote(self, node: Node) -> None:
        """What `perdure promote` does, in a process of its own."""
        if node.is_witness or not node.host.is_up or not node.is_wanted or "promote" in node.host.processes:
            return

        def run() -> None:
            report = promote(node.store, self.addresses(but=node.name), SECRET, commit_timeout_ms=COMMIT_MS)
            self.kernel.note("promoted", node.name, report.epoch, report.promisers)

        process = self.spawn(node.host, "promote", run)
        process.on_end = lambda ended: self.kernel.note(
            "promotion ended", node.name, type(ended.error).__name__, self.text(ended.error)
        )

    def change_member(self, primary: Node, node: Node) -> None:
        """What `perdure member` does on the primary: takes a voter out, or lets it vote again."""
        if "member" in primary.host.processes or node is primary:
            return
        is_voter = node.name in primary.view.config.voters

        def run() -> None:
            if is_voter:
                remove_member(primary.store, node.name)
            else:
                add_member(primary.store, node.name, f"{node.address}:{PORT}", timeout_ms=CATCH_UP_MS)

        self.kernel.note("member goes" if is_voter else "member comes", primary.name, node.name)
        process = self.spawn(primary.host, "member", run)
        process.on_end = lambda ended: self.kernel.note(
            "member done", primary.name, type(ended.error).__name__, self.text(ended.error)
        )

    def primary(self) -> Node | None:
        """Who serves: the node whose shipper has enough voters, by its own page."""
        for node in self.data_nodes():
            view = node.view
            if (
                view.is_current()
                and view.promise.candidate == node.name
                and view.promise.epoch == view.epoch
                and view.words[15]
                and view.words[17] >= view.sync_replicas
            ):
                return node
        return None

    def text(self, error: BaseException | None) -> str:
        """What an error says, the same at every run."""
        return str(error).replace(self.root, "")[:200] if error is not None else ""

    def counts(self) -> dict[str, int]:
        """How much was done, to see whether schedules do anything."""
        return {
            "acknowledged": self.acknowledged,
            "refused": self.refused,
            "indeterminate": self.indeterminate,
            "reads": self.reads,
            "committed": len(self.checker.committed),
            "epochs": len(self.checker.begun),
            "faults": self.faults.total(),
        }

    # -- clients ---------------------------------------------------------------------------------

    def open_store(self, node: Node) -> Any:
        return perdure.open(
            node.store,
            write_timeout_ms=WRITE_TIMEOUT_MS,
            sweep_interval_ms=0,
            create=False,
            forward=False,  # only what this node does itself: its server is not simulated
        )

    def serve_on(self, node: Node) -> None:
        """An application on a node: threads that write, as far as its node lets them, and one that reads."""
        store = self.open_store(node)
        process = self.kernel.running().process
        self.kernel.start_thread(process, "reader", lambda: self._read(node, store))
        self.kernel.start_thread(process, "writer", lambda: self._write_on(node, store))
        self._write_on(node, store)

    def _write_on(self, node: Node, store: Any) -> None:
        while True:
            self.kernel.pass_time(int(self.kernel.random.expovariate(1 / self.think_ms) * MS) + MS)
            if self.is_writing:
                self._write(node, store)

    def _write(self, node: Node, store: Any) -> None:
        random = self.kernel.random
        self.tokens += 1
        token = f"#{self.tokens:06d}#"
        try:
            if self.ids and random.random() < 0.5:
                store.patch(random.choice(self.ids[-20:]), {"op": token})
            else:
                self.ids.append(store.create({"op": token}))
        except Indeterminate:
            self.indeterminate += 1
        except SessionNotFoundError:
            return
        except PerdureError as error:
            self.refused += 1
            self.kernel.note("refused", node.name, type(error).__name__)
            self.kernel.pass_time(60 * MS)
        else:
            self.acknowledged += 1
            self.kernel.note("acknowledged", node.name, token)
            self.checker.acknowledged(node.name, token.encode())

    def _read(self, node: Node, store: Any) -> None:
        random = self.kernel.random
        while True:
            self.kernel.pass_time(int(random.expovariate(1 / 60) * MS) + MS)
            session = store.get(random.choice(self.ids[-20:])) if self.ids else None
            if session is not None:
                self.reads += 1
                self.checker.read(node.name, session.metadata["op"].encode())
