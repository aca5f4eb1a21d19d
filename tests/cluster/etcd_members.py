"""Real etcd members on loopback, as tests start, kill and restore them; skipped where there is no etcd."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_ports

ETCD = shutil.which("etcd")
needs_etcd = pytest.mark.skipif(ETCD is None, reason="etcd is not installed (Debian package etcd-server)")
READY_S = 60.0
HEARTBEAT_MS = 100
ELECTION_MS = 1_000


class Members:
    """One etcd cluster."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        ports = free_ports(2 * count)
        self._clients, self._peers = ports[:count], ports[count:]
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        for number in range(count):
            self.start(number)
        self.wait()

    @property
    def endpoints(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._clients]

    def data(self, number: int) -> Path:
        return self.folder / f"m{number}"

    def start(self, number: int) -> None:
        assert ETCD is not None
        everybody = ",".join(f"m{one}=http://127.0.0.1:{port}" for one, port in enumerate(self._peers))
        client = self.endpoints[number]
        peer = f"http://127.0.0.1:{self._peers[number]}"
        with (self.folder / f"m{number}.log").open("ab") as log:
            self._running[number] = subprocess.Popen(
                [
                    *(ETCD, "--name", f"m{number}", "--data-dir", str(self.data(number))),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", everybody, "--initial-cluster-state", "new"),
                    *("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS)),
                    *("--logger", "zap", "--log-level", "error"),
                ],
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        """Until a majority answers."""
        deadline = time.monotonic() + READY_S
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                for endpoint in self.endpoints:
                    try:
                        if client.post(f"{endpoint}/v3/kv/range", json={"key": "AA=="}).status_code == 200:
                            return
                    except httpx.HTTPError:
                        continue
                time.sleep(0.05)
        pytest.fail(f"etcd did not answer within {READY_S:.0f} s: {self.folder}")

    def leader(self) -> int:
        """The number of the member that leads."""
        deadline = time.monotonic() + READY_S
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                for number in self._running:
                    with contextlib.suppress(httpx.HTTPError):
                        said = client.post(f"{self.endpoints[number]}/v3/maintenance/status", json={}).json()
                        if said.get("leader") == said["header"]["member_id"]:
                            return number
                time.sleep(0.05)
        pytest.fail("nobody leads etcd")

    def kill(self, number: int) -> None:
        killed = self._running.pop(number)
        killed.kill()
        killed.wait()

    def end(self) -> None:
        for number in list(self._running):
            self.kill(number)
