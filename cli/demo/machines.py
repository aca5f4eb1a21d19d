"""Machines that a cluster's nodes run on: how a process is started on one, and how all of one die.

Owns the port that the cluster of nodes needs, and the machines of a demo: process trees on loopback.
Invariant: what is killed was started here, or by a process that was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol, TypeVar

from ...shipping.launching import package_environment
from ...store import StorageError
from .leash import PARENT_VARIABLE
from .ports import HOST, free_ports

SERVICES = ("listen", "serve", "monitor")
DIE_WITHIN_S = 10.0
T = TypeVar("T")


class Machines(Protocol):
    """Machines by name."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def addresses(self, name: str) -> dict[str, str]:
        """Where a node on this machine is to offer each of its services: HOST:PORT by option."""
        ...

    def start(
        self,
        name: str,
        *words: object,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a machine; it ends when this process does."""
        ...

    def within(self, name: str, call: Callable[[], T]) -> T:
        """Call something in this process that reaches what a machine's own processes reach."""
        ...

    def kill(self, name: str) -> int:
        """kill -9 of everything on a machine at once; answers how many processes that were."""
        ...

    def close(self) -> None:
        """End everything on all machines. Idempotent."""
        ...


class LoopbackMachines:
    """Machines that are no more than their processes, all on this one's loopback."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._started: dict[str, list[subprocess.Popen[bytes]]] = {name: [] for name in self.names}
        ports = iter(free_ports(len(self.names) * len(SERVICES)))
        self._addresses = {
            name: {service: f"{HOST}:{next(ports)}" for service in SERVICES} for name in self.names
        }

    def addresses(self, name: str) -> dict[str, str]:
        return self._addresses[name]

    def start(
        self,
        name: str,
        *words: object,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**package_environment(), PARENT_VARIABLE: str(os.getpid())},
            process_group=0,
        )
        self._started[name].append(process)
        return process

    def within(self, name: str, call: Callable[[], T]) -> T:
        return call()

    def kill(self, name: str) -> int:
        """As Machines.kill: all are stopped before the first one dies, so that none starts another."""
        roots = [process.pid for process in self._started[name] if process.poll() is None]
        killed = _stop_trees(roots)
        for pid in killed:
            _signal(pid, signal.SIGKILL)
        for process in self._started[name]:
            process.wait(DIE_WITHIN_S)
        _wait_dead(killed - set(roots))
        return len(killed)

    def close(self) -> None:
        for name in self.names:
            self.kill(name)
            for process in self._started[name]:
                for stream in (process.stdout, process.stderr):
                    if stream is not None:
                        stream.close()
            self._started[name].clear()


def python(module: str, *words: object) -> tuple[object, ...]:
    """The words that run a module of this package."""
    return sys.executable, "-m", module, *words


def _stop_trees(roots: Iterable[int]) -> set[int]:
    """SIGSTOP these processes and all below them; answers which those are."""
    stopped: set[int] = set()
    while new := _below(roots) - stopped:
        for pid in new:
            _signal(pid, signal.SIGSTOP)
        stopped |= new
    return stopped


def _below(roots: Iterable[int]) -> set[int]:
    """These processes and all that descend from them."""
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid in found:
            continue
        found.add(pid)
        for listing in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                waiting += [int(word) for word in listing.read_text().split()]
    return found


def _wait_dead(pids: set[int]) -> None:
    """Wait until processes that are not this one's children are gone."""
    deadline_s = time.monotonic() + DIE_WITHIN_S
    while any(process_state(pid) not in {"X", "Z"} for pid in pids):
        if time.monotonic() > deadline_s:
            raise StorageError(f"processes that were killed are still there: {sorted(pids)}")
        time.sleep(0.002)


def process_state(pid: int) -> str:
    """As /proc has it; X for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
