"""A replica: its receiver and its folder, two processes under one supervisor.

Owns starting them, starting again with growing pauses what ended without being asked, and ending both.
What has diverged is not started again.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from .children import Task, start_child
from .credentials import Secret, check_secret
from .faults import read_fault
from .launching import Launch, execute
from .permission import AUTO
from .posts import Post

TICK_S: Final = 0.05


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
    task = Task("receiver", str(path), host, port, secret, rejoin=rejoin, log_level=log_level)

    receiver = Post("receiver", lambda: start_child(task, launch))
    folder = Post("folder", lambda: start_child(Task("folder", str(path), log_level=log_level), launch))
    poller = select.poll()
    if lifeline is not None:
        poller.register(lifeline, select.POLLIN)
    try:
        first = start_child(task, launch)
        receiver.begin(first)
        task = msgspec.structs.replace(task, port=first.wait_ready().port)  # kept for later starts
        folder.tend(True)
        if on_ready is not None:
            on_ready(task.port)
        while not should_stop() and not poller.poll(TICK_S * 1000):
            receiver.tend(True)
            folder.tend(not read_fault(path))
    finally:
        receiver.stop()
        folder.stop()
