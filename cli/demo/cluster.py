"""The demo's cluster: three nodes in a temporary directory, each a real process or several.

Owns which directories and processes make a node, and how they come and go. A node's processes are the very
commands that an operator runs: `perdure receive`, `perdure ship`; the app's writers are `demo.writer`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from ...store import Config
from ...store.option import parse_address
from ..init import make_node
from .gauge import Gauge
from .processes import Child, Processes
from .writer import Task

PRIMARY = "n1"
REPLICAS = ("n2", "n3")
READY_S = 20.0
SECRET_BYTES = 24


class Cluster:
    """Directories, addresses and processes of all nodes, and of the app that writes."""

    def __init__(self, root: Path, *, backend: str, sync_replicas: int) -> None:
        self.root = root
        self.backend = backend
        self.sync_replicas = sync_replicas
        self.secret = secrets.token_hex(SECRET_BYTES)
        outputs = root / "output"
        outputs.mkdir()
        self.processes = Processes(outputs, self.secret)
        self.directories = {node: root / node for node in (PRIMARY, *REPLICAS)}
        self.addresses: dict[str, tuple[str, int]] = {}
        self.receivers: dict[str, Child] = {}
        self.shipper: Child | None = None
        self.writers: list[Child] = []
        self.cluster_id = b""

    def make(self) -> None:
        """Make the directories of all nodes; the first is primary."""
        config = Config(voters=(PRIMARY, *REPLICAS), sync_replicas=self.sync_replicas)
        made = make_node(self.directories[PRIMARY], PRIMARY, None, self.backend, config)
        self.cluster_id = made.cluster_id
        for node in REPLICAS:
            make_node(self.directories[node], node, self.cluster_id, self.backend, None)

    def start_receivers(self, nodes: Iterable[str]) -> None:
        """Start the receivers of nodes, and learn where they listen."""
        started: list[str] = []
        for node in nodes:
            arguments = ["receive", str(self.directories[node]), "--listen", "127.0.0.1:0", "--json"]
            self.receivers[node] = self.processes.command(f"{node}-receiver", arguments)
            started.append(node)
        for node in started:
            said = self.receivers[node].first_line(READY_S)
            self.addresses[node] = parse_address(str(said.get("listening")))

    def start_shipper(self, node: str, replicas: Sequence[str]) -> Child:
        """Start the shipper of a primary; its process group is that of its whole machine."""
        arguments = ["ship", str(self.directories[node]), "--json"]
        for replica in replicas:
            host, port = self.addresses[replica]
            arguments += ["--replica", f"{replica}={host}:{port}"]
        self.shipper = self.processes.command(f"{node}-shipper", arguments)
        self.shipper.first_line(READY_S)
        return self.shipper

    def start_writers(self, tasks: Sequence[Task], group: int) -> None:
        """Start one app process for each task, in the process group of a machine."""
        self.writers = []
        for task in tasks:
            file = self.root / f"writer-{task.writer}.json"
            file.write_bytes(msgspec.json.encode(task))
            arguments = ["perdure.cli.demo.writer", str(file)]
            self.writers.append(self.processes.start(f"writer-{task.writer}", arguments, group=group))

    def kill_machine(self, group: int, node: str) -> list[Child]:
        """kill -9 to everything of a node at once, then take its directory away as if the machine were
        gone."""
        died = self.processes.kill_group(group)
        gone = self.root / f"{node}-gone"
        os.rename(self.directories[node], gone)
        return died

    def replace_machine(self, node: str) -> None:
        """A new, empty machine under the name of the one that is gone."""
        make_node(self.directories[node], node, self.cluster_id, self.backend, None)
        self.start_receivers([node])

    def ledger(self, writer: int) -> Path:
        """Where a writer keeps its ledger: with the client, so that it outlives the machine."""
        return self.root / f"writer-{writer}.ledger"

    def gauge(self, writer: int) -> Path:
        return self.root / f"writer-{writer}.gauge"

    def open_gauges(self, writers: int) -> list[Gauge]:
        """The gauges of all writers."""
        return [Gauge(self.gauge(writer)) for writer in range(writers)]
