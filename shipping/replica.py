"""A replica: its receiver and its folder, two processes under one supervisor.

Owns starting them, starting again with growing pauses what ended without being asked, and ending both.
What has diverged is not started again.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ..store.errors import WireError
from .children import Child, Task, start_child
from .credentials import Secret, check_secret
from .faults import read_fault
from .launching import Launch, execute
from .permission import AUTO

logger = logging.getLogger(__name__)

TICK_S: Final = 0.05
RESTART_S_MIN: Final = 0.1
RESTART_S_MAX: Final = 5.0
STEADY_S: Final = 10.0
"""A process that lived so long is started again without delay."""


class _Post:
    """One of the two processes, and when it may be started again."""

    def __init__(self, task: Task, launch: Launch) -> None:
        self.task = task
        self._launch = launch
        self.child: Child | None = None
        self.pause_s = 0.0
        self.start_at = 0.0
        self.started_at = 0.0

    def tend(self, may_start: bool) -> None:
        """Start it if it should run and does not."""
        now = time.monotonic()
        if self.child is not None:
            if self.child.is_running:
                return
            code = self.child.stop()
            self.child = None
            steady = now - self.started_at >= STEADY_S
            self.pause_s = (
                RESTART_S_MIN if steady else min(max(RESTART_S_MIN, self.pause_s * 2), RESTART_S_MAX)
            )
            self.start_at = now + self.pause_s
            logger.error("ended: kind=%s code=%d again_in_s=%.1f", self.task.kind, code, self.pause_s)
        if may_start and now >= self.start_at:
            self.started_at = now
            try:
                self.child = start_child(self.task, self._launch)
            except WireError as error:
                self.start_at = now + RESTART_S_MAX
                logger.error("%s", error)

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()
            self.child = None


def run_replica(
    store: str | os.PathLike[str],
    host: str,
    port: int,
    *,
    secret: Secret = b"",
    rejoin: str = AUTO,
    should_stop: Callable[[], bool] = lambda: False,
    on_ready: Callable[[int], object] | None = None,
    lifeline: int | None = None,
    log_level: str = "WARNING",
    launch: Launch = execute,
) -> None:
    """Run a node's receiver and folder, each in a process of its own, until `should_stop` says so.

    `on_ready` is called with the port once the receiver listens. `lifeline` is a descriptor: the replica
    ends when its other end is closed. `rejoin` as in serve_receiver. Raises WireError or another
    PerdureError if the receiver can't be started at first; later failures are logged, and the process is
    started again. `launch` says how: by `fork` where the calling process has no other threads.
    """
    check_secret(secret, host)
    path = Path(store)
    receiver = _Post(
        Task("receiver", str(path), host, port, secret, rejoin=rejoin, log_level=log_level), launch
    )
    folder = _Post(Task("folder", str(path), log_level=log_level), launch)
    poller = select.poll()
    if lifeline is not None:
        poller.register(lifeline, select.POLLIN)
    try:
        receiver.tend(True)
        first = receiver.child
        if first is None:
            raise WireError("the receiver could not be started", path=path)
        ready = first.wait_ready()
        receiver.task = msgspec.structs.replace(receiver.task, port=ready.port)
        folder.tend(True)
        if on_ready is not None:
            on_ready(ready.port)
        while not should_stop() and not poller.poll(TICK_S * 1000):
            receiver.tend(True)
            folder.tend(not read_fault(path))
    finally:
        receiver.stop()
        folder.stop()
