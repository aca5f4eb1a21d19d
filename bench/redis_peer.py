"""Redis as a peer: a primary and a replica that sync each write to their append-only files, and WAIT 1.

Owns two redis-server processes of its own on free ports of loopback, and their end. With `appendfsync always`
a replica syncs before it writes to any connection, and so before it confirms: two disks.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from .systems.processes import ending_with_us

RECORD_BYTES = 300
WAIT_MS = 5_000
_START_S = 10.0


def why_not() -> str:
    """Why there is no Redis to compare with; empty if there is."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed (Debian: redis-server)"
    return "" if find_spec("redis") else "the Python package redis is not installed"


class RedisPair:
    """A primary and a replica, in a directory."""

    def __init__(self, folder: Path) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ports = [_free_port(), _free_port()]
        try:
            self._start(folder / "redis-1", self._ports[0])
            self._start(folder / "redis-2", self._ports[1], "--replicaof", "127.0.0.1", str(self._ports[0]))
            client = self._client()
            _until(lambda: client.wait(1, 100) == 1)
            self.version = str(client.info("server")["redis_version"])
            client.close()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        """Primary and replica."""
        return tuple(process.pid for process in self._processes)

    def writer(self) -> Callable[[], None]:
        """The write of one connection: SET and WAIT 1 in one round trip. It raises without the replica."""
        client, record = self._client(), os.urandom(RECORD_BYTES)
        numbers = iter(range(1 << 60))

        def write() -> None:
            pipeline = client.pipeline(transaction=False)
            pipeline.set(f"session:{next(numbers)}", record)
            pipeline.wait(1, WAIT_MS)
            if pipeline.execute()[1] < 1:
                raise OSError("the replica did not confirm")

        return write

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(10)

    def __enter__(self) -> RedisPair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _client(self) -> Any:
        return import_module("redis").Redis(host="127.0.0.1", port=self._ports[0])

    def _start(self, folder: Path, port: int, *options: str) -> None:
        folder.mkdir()
        words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        words += ["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"]
        command = ending_with_us(["redis-server", *words, *options])
        self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        _until(lambda: _listens(port))


def _until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _START_S
    while not is_true():
        if time.monotonic() > deadline_s:
            raise TimeoutError("Redis did not start")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
