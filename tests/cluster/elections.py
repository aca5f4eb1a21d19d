"""Clusters whose nodes are whole `perdure node` processes that elect their primary by themselves.

Owns how tests start, kill and ask them. A node that is killed is killed with all its processes,
as its machine would take them along.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from perdure.shipping import open_gate, shipping_status
from perdure.store import PerdureError, SessionStore
from tests.cli.runner import process, run, run_json
from tests.support.ports import free_ports

SECRET = "a secret that all nodes share"
NODES = ("n1", "n2", "n3")
PATIENCE_S = 90.0


def until(is_so: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait until something holds; fails with `what` past the deadline."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)


def family(pid: int) -> list[int]:
    """A process and all that it started, itself first."""
    found = [pid]
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for word in listing.read_text().split():
                found += family(int(word))
    return found


class Nodes:
    """Three nodes in one directory, with one configuration file each."""

    def __init__(self, root: Path, options: str = "", failover: str = "") -> None:
        self.root = root
        self.secret = root / "secret"
        self.secret.write_text(SECRET)
        self.running: dict[str, subprocess.Popen[str]] = {}
        self._stores: dict[str, SessionStore] = {}
        ports = dict(zip(NODES, free_ports(len(NODES), in_a_row=3), strict=True))
        peers = ", ".join(f'{node} = "127.0.0.1:{port}"' for node, port in ports.items())
        voters = [word for node in NODES for word in ("--voter", node)]
        made = run_json("init", root / "n1", "--node", "n1", "--primary", *voters, "--sync-replicas", "1")
        for node in NODES[1:]:
            run_json("init", root / node, "--node", node, "--cluster-id", made["cluster_id"])
        for node in NODES:
            (root / f"{node}.toml").write_text(
                f'[node]\nlisten = "127.0.0.1:{ports[node]}"\npeers = {{ {peers} }}\n'
                f'secret_file = "{self.secret}"\n{options}\n'
                f'[stores.main]\npath = "{root / node}"\n[failover]\n{failover}\n'
            )

    def config(self, node: str) -> Path:
        return self.root / f"{node}.toml"

    def start(self, node: str) -> None:
        """Start a node; it is there once it says that it listens."""
        with (self.root / f"{node}.log").open("ab") as log:  # a pipe that nobody reads would fill
            started = process("node", "--config", self.config(node), "--json", "--verbose", stderr=log)
        self.running[node] = started
        assert started.stdout is not None
        said = started.stdout.readline()
        assert json.loads(said)["node"] == node, said

    def kill(self, node: str) -> None:
        """kill -9 of a node with all its processes."""
        killed = self.running.pop(node)
        for pid in family(killed.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.communicate(timeout=PATIENCE_S)

    def stop(self, node: str) -> int:
        stopped = self.running.pop(node)
        stopped.send_signal(signal.SIGTERM)
        stopped.communicate(timeout=PATIENCE_S)
        return stopped.returncode

    def command(self, name: str, node: str, *arguments: object) -> tuple[int, dict[str, Any]]:
        """(exit code, what was said) of a command with a node's configuration."""
        words = ("--config", self.config(node), name, self.root / node, *arguments, "--json")
        result = run(*words)
        return result.exit_code, json.loads(result.stdout)

    def health(self, node: str) -> dict[str, Any]:
        """What a node's monitor says; nothing if it does not run."""
        _, said = self.command("health", node)
        return said if "nodes" in said else {}

    def row(self, node: str, of: str) -> dict[str, Any]:
        """How `node` sees `of`."""
        rows = self.health(node).get("nodes", [])
        return next((row for row in rows if row["node"] == of), {})

    def is_well(self) -> bool:
        """Do all see all, follow, and know what decides?"""
        for node in NODES:
            said = self.health(node)
            rows = said.get("nodes", [])
            if len(rows) != len(NODES) or not said["coordinator"]:
                return False
            if any((row["verdict"], row["state"]) != ("alive", "active") for row in rows):
                return False
        return True

    def primary(self) -> str:
        """Who is primary by its own files, of the highest epoch; empty if nobody runs that is."""
        found: list[tuple[int, str]] = []
        for node in self.running:
            with suppress(PerdureError):
                known = shipping_status(self.root / node)
                if known.is_primary:
                    found.append((known.epoch, node))
        return max(found, default=(0, ""))[1]

    def epoch(self) -> int:
        return max(shipping_status(self.root / node).epoch for node in NODES)

    def store(self, node: str) -> SessionStore:
        """A handle on a node, kept until the end."""
        if node not in self._stores:
            path = self.root / node
            self._stores[node] = SessionStore.open(
                path, gate=open_gate(path), create=False, write_timeout_ms=30_000
            )
        return self._stores[node]

    def write(self, metadata: dict[str, Any]) -> str:
        """Create a session on whoever is primary; its id."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            node = self.primary()
            try:
                if node:
                    return self.store(node).create(metadata)
            except PerdureError:
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, "nobody became primary"
            time.sleep(0.005)

    def end(self) -> None:
        for store in self._stores.values():
            store.close()
        for node in list(self.running):
            self.kill(node)
