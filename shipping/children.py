"""Processes of shipping as children of another one.

Owns how a child is told what to do, says that it is ready, and ends. A child gets its task, the secret
included, over its standard input (nothing is on a command line or in the environment) and keeps that
open: when the parent dies, however it does, the child sees the end of it and ends too.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping
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
from .launching import STOP_TIMEOUT_S, Launch, Process, end_process, execute, reap_process
from .permission import AUTO
from .vitals import DISK_STALL_MS

READY_TIMEOUT_S: Final = 30.0
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

    def __init__(self, task: Task, process: Process) -> None:
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
        reap_process(self.process)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """End it in order (SIGTERM), by force past the timeout; answers its exit code."""
        return end_process(self.process, self.task.kind, timeout_s)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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


def start_child(task: Task, launch: Launch = execute) -> Child:
    """Start a child; it is not ready yet. Raises WireError if the system refuses."""
    passed = [descriptor for descriptor in (task.listener, task.pipe) if descriptor >= 0]
    try:
        return Child(task, launch("perdure.shipping.__main__", task, passed, name=f"perdure-{task.kind}"))
    except OSError as error:
        raise WireError(f"cannot start the {task.kind}: {error}") from error


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
