"""An etcd cluster of real processes on loopback, for demos and tests of the etcd coordinator.

Owns its processes and their end. Invariant: every port was free when it was chosen, and none is chosen twice.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from ...shipping.launching import package_environment
from ...store import StorageError, UsageError
from .leash import PARENT_VARIABLE
from .machines import python
from .ports import HOST, free_ports

MEMBERS = 3
START_S = 30.0


def why_no_etcd() -> str:
    """Why there can be no etcd here; empty if there can."""
    return "" if shutil.which("etcd") else "etcd is not installed (Debian: etcd-server)"


class Start(Protocol):
    """Starts a command of these words, its output in a file."""

    def __call__(self, *words: object, stdout: IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]: ...


class EtcdCluster:
    """Members by number, from 0."""

    def __init__(
        self,
        folder: Path,
        members: int = MEMBERS,
        *,
        host: str = HOST,
        start: Start | None = None,
        within: Callable[[Callable[[], bool]], bool] = lambda call: call(),
    ) -> None:
        """Start all members and wait until one of them answers. Raises UsageError without etcd.

        On another machine `host` is its address, `start` starts a command there, and `within` calls
        what must be called from there.
        """
        missing = why_no_etcd()
        if missing:
            raise UsageError(missing, hint="Install it, or take another coordinator.")
        folder.mkdir(parents=True)
        self._folder = folder
        self._host = host
        self._start = start or _start_here
        self._within = within
        ports = free_ports(2 * members)
        self._clients, self._peers = ports[:members], ports[members:]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * members
        try:
            for number in range(members):
                self.start(number)
            self._wait_healthy()
        except BaseException:
            self.close()
            raise

    @property
    def endpoints(self) -> list[str]:
        return [f"http://{self._host}:{port}" for port in self._clients]

    def start(self, number: int) -> None:
        """Start a member that does not run."""
        client, peer = (f"http://{self._host}:{ports[number]}" for ports in (self._clients, self._peers))
        members = ",".join(f"e{place}=http://{self._host}:{port}" for place, port in enumerate(self._peers))
        words = ["etcd", "--name", f"e{number}", "--data-dir", str(self._folder / f"e{number}")]
        words += ["--listen-client-urls", client, "--advertise-client-urls", client]
        words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        words += ["--initial-cluster", members, "--initial-cluster-state", "new"]
        words += ["--logger", "zap", "--log-level", "error"]
        with (self._folder / f"e{number}.output").open("ab") as output:
            self._processes[number] = self._start(*words, stdout=output, stderr=output)

    def kill(self, number: int) -> None:
        """kill -9 of a member."""
        process = self._processes[number]
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
            self._processes[number] = None

    def close(self) -> None:
        for number in range(len(self._processes)):
            self.kill(number)

    def _wait_healthy(self) -> None:
        deadline_s = time.monotonic() + START_S
        while True:
            if self._within(self._is_healthy):
                return
            if time.monotonic() > deadline_s:
                raise StorageError("etcd did not get ready", path=self._folder)
            time.sleep(0.05)

    def _is_healthy(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.endpoints[0]}/health", timeout=2) as reply:
            return b'"true"' in reply.read(1024)
        return False


def _start_here(*words: object, stdout: IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(word) for word in python("perdure.cli.demo.leash", "--", *words)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**package_environment(), PARENT_VARIABLE: str(os.getpid())},
        process_group=0,
    )
