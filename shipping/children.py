"""Processes of shipping as children of another one.

Owns how a child is told what to do, says that it is ready, and ends. A child gets its task, the secret
included, over its standard input (nothing is on a command line or in the environment) and keeps that
open: when the parent dies, however it does, the child sees the end of it and ends too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from ..store.errors import (
    CorruptError,
    DivergedError,
    FencedError,
    ForeignError,
    FormatVersionError,
    NotPrimaryError,
    PerdureError,
    PoisonedError,
    StorageError,
    StorageFullError,
    StoreInUseError,
    StoreMissingError,
    StoreReadOnlyError,
    UsageError,
    WireError,
)
from .credentials import Secret
from .detection import HEARTBEAT_MS, SILENCE_MS
from .permission import AUTO
from .vitals import DISK_STALL_MS

logger = logging.getLogger(__name__)

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 5.0
TASK_BYTES_MAX: Final = 1 << 20
_LINE_BYTES_MAX: Final = 64 << 10
_KINDS: Final[Mapping[str, type[PerdureError]]] = {
    kind.__name__: kind
    for kind in (
        CorruptError,
        DivergedError,
        FencedError,
        ForeignError,
        FormatVersionError,
        NotPrimaryError,
        PoisonedError,
        StorageError,
        StorageFullError,
        StoreInUseError,
        StoreMissingError,
        StoreReadOnlyError,
        UsageError,
    )
}
"""Errors of a child that its parent raises as what they are; any other one is a WireError."""


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a child is to do: `kind` is shipper, receiver, folder, replica or monitor."""

    kind: str
    store: str
    host: str = "127.0.0.1"
    port: int = 0
    secret: Secret = b""
    replicas: dict[str, tuple[str, int]] = {}
    compress: bool = True
    slot_budget_bytes: int = 0
    """0: the default."""
    poll_ms: int = 0
    use_pokes: bool = True
    use_watcher: bool = True
    snapshot_bytes_per_s: int = 0
    rejoin: str = AUTO
    """Of a receiver: see permission."""
    standby: bool = False
    """A shipper that waits until its node is primary, and again when it is no more."""
    listener: int = -1
    """A monitor's listening socket, which its parent keeps: a descriptor that is passed on."""
    pipe: int = -1
    """A monitor's way to the elector, likewise."""
    heartbeat_ms: int = HEARTBEAT_MS
    silence_ms: int = SILENCE_MS
    disk_stall_ms: int = DISK_STALL_MS
    log_level: str = "WARNING"


class Ready(msgspec.Struct, frozen=True):
    """A child's first line on its standard output: it is ready, or why it can't be."""

    pid: int
    port: int = 0
    error: str = ""
    error_kind: str = ""
    path: str | None = None
    hint: str = ""


class Child:
    """A running child."""

    def __init__(self, task: Task, process: subprocess.Popen[bytes]) -> None:
        self.task = task
        self.process = process
        self.ready: Ready | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        """The port a receiver listens on, once it is ready."""
        return self.ready.port if self.ready else 0

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> Ready:
        """Wait until the child says that it is ready.

        Raises the child's own error if it says that it can't be, WireError if it ends or says nothing.
        """
        if self.ready is None:
            line = self._first_line(time.monotonic() + timeout_s)
            try:
                self.ready = msgspec.json.decode(line, type=Ready)
            except msgspec.DecodeError as error:
                raise WireError(f"the {self.task.kind} did not start: it said {line[:200]!r}") from error
        if self.ready.error:
            raise _KINDS.get(self.ready.error_kind, WireError)(
                f"the {self.task.kind} did not start: {self.ready.error}",
                path=self.ready.path,
                hint=self.ready.hint,
            )
        return self.ready

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        self.process.kill()
        self._reap()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """End it in order (SIGTERM), by force past the timeout; answers its exit code."""
        if self.is_running:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                logger.warning("killed, because it did not end: kind=%s pid=%d", self.task.kind, self.pid)
                self.process.kill()
        self._reap()
        return int(self.process.returncode)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _reap(self) -> None:
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _first_line(self, deadline: float) -> bytes:
        stream = self.process.stdout
        if stream is None:
            return b""
        line = b""
        while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                raise WireError(f"the {self.task.kind} did not get ready in time", path=self.task.store)
            data = os.read(stream.fileno(), 4096)
            if not data:
                code = self.process.wait()
                raise WireError(
                    f"the {self.task.kind} ended with code {code} before it was ready", path=self.task.store
                )
            line += data
        return line


def start_child(task: Task) -> Child:
    """Start a child; it is not ready yet. Raises WireError if the system refuses."""
    passed = [descriptor for descriptor in (task.listener, task.pipe) if descriptor >= 0]
    data = msgspec.json.encode(task)
    package = Path(__file__).absolute().parent.parent.parent
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "perdure.shipping"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(package),
            start_new_session=True,
            pass_fds=passed,
        )
    except OSError as error:
        raise WireError(f"cannot start the {task.kind}: {error}") from error
    child = Child(task, process)
    try:
        if process.stdin is not None:
            process.stdin.write(len(data).to_bytes(4, "little") + data)
            process.stdin.flush()
    except OSError as error:
        child.kill()
        raise WireError(f"the {task.kind} ended at once: {error}") from error
    return child


def spawn_receiver(
    store: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    secret: Secret = b"",
    log_level: str = "WARNING",
) -> Child:
    """Start a receiver as a child and wait until it listens; its port is `child.port`."""
    child = start_child(Task("receiver", str(store), host, port, secret, log_level=log_level))
    try:
        child.wait_ready()
    except BaseException:
        child.kill()
        raise
    return child


def _environment(package: Path) -> dict[str, str]:
    """The environment, with the way to this very package in front."""
    environment = dict(os.environ)
    path = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = f"{package}{os.pathsep}{path}" if path else str(package)
    return environment
