"""perdure on two nodes: each write is on both disks before the call returns.

Owns two directories with a `perdure node` each on loopback, which ship, receive and fold as they do for an
operator (settings: the defaults, voters n1 and n2, `sync_replicas` 1, promotions by hand). The clients are
store handles on the primary's directory. A take-over is `promote --alone`, as the other peers' is: the second
node goes on without a replica.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import perdure
from perdure.recovery import promote
from perdure.recovery.candidacy import candidacy
from perdure.shipping import open_node_log
from perdure.store import Config, Indeterminate, NoQuorumError, begin_cluster, init_store

from .embedded import allocated_bytes
from .perdure import PARTS, PerdureClient
from .ports import Address, Client, Durability, Pair
from .processes import ServerProcess, free_ports

_NODES = ("n1", "n2")
_PORTS = 3
"""That a node listens on, from the one that is configured."""
_TRY_MS = 500
_CONFIGURATION = """
[node]
listen = "127.0.0.1:{port}"
secret_file = "{secret}"
[node.peers]
n1 = "127.0.0.1:{ports[0]}"
n2 = "127.0.0.1:{ports[1]}"
[failover]
coordinator = "manual"
"""


class PerdurePair:
    """Two nodes with back end lmdb."""

    name = "perdure-pair"
    settings: Mapping[Durability, str] = {
        Durability.TWO: "sync_replicas=1: both disks (keeps more than the class)",
        Durability.TWO_DISKS: "sync_replicas=1",
    }

    def why_not(self) -> str:
        return ""

    def version(self) -> str:
        return f"perdure {perdure.__version__}"

    def start(self, folder: Path, durability: Durability) -> Pair:
        return _RunningPair(folder)

    def connect(self, address: Address) -> Client:
        return PerdureClient(
            perdure.open(str(address["path"]), create=False, durability="os", sweep_interval_ms=0)
        )


class _RunningPair:
    def __init__(self, folder: Path) -> None:
        self._one, self._two = (folder / node for node in _NODES)
        self._secret = os.urandom(16).hex()
        self._make(folder)
        node = [sys.executable, "-m", "perdure.cli", "node", "--json"]
        self._processes = [
            ServerProcess([*node, str(path)], folder / f"{path.name}.out") for path in (self._one, self._two)
        ]
        self.address: Address = {"path": str(self._one)}
        try:
            self.start_again()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(pid for process in self._processes for pid in process.pids)

    def disk_bytes(self) -> Mapping[str, int]:
        return {part: allocated_bytes(self._one, *patterns) for part, patterns in PARTS.items()}

    def stop(self) -> None:
        for process in self._processes:
            process.stop()

    def kill(self) -> None:
        self._processes[0].kill()

    def take_over(self) -> None:
        with candidacy(self._two) as end_turn:
            promote(self._two, {}, self._secret.encode(), alone=True, on_step=end_turn)
        self.address = {"path": str(self._two)}

    def start_again(self) -> None:
        one, two = self._processes
        two.start(lambda: True)
        one.start(self._is_confirmed)

    def close(self) -> None:
        for process in self._processes:
            process.abandon()

    def _make(self, folder: Path) -> None:
        cluster, now_ms = os.urandom(16), time.time_ns() // 1_000_000
        secret = folder / "secret"
        secret.touch(0o600)
        secret.write_text(self._secret, encoding="ascii")
        ports = [free_ports(_PORTS) for _ in _NODES]
        for path, port in zip((self._one, self._two), ports, strict=True):
            init_store(path, node=path.name, cluster_id=cluster, now_ms=now_ms)
            text = _CONFIGURATION.format(port=port, ports=ports, secret=secret)
            (path / "perdure.toml").write_text(text, encoding="utf-8")
        node = open_node_log(self._one, [])
        node.log.lock_any()
        begin_cluster(node.log, Config(_NODES, 1))
        node.log.unlock()
        node.close()

    def _is_confirmed(self) -> bool:
        """Does the replica confirm a write?"""
        with perdure.open(self._one, create=False, write_timeout_ms=_TRY_MS) as store:
            try:
                store.delete(store.create())
            except (Indeterminate, NoQuorumError):
                return False
            return True
