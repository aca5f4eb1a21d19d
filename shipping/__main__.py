"""The entry of child processes: `python -m perdure.shipping`, with a task on standard input.

Owns the process around a shipper, receiver, folder, replica or monitor: signals, logging, the first line on
standard output that says "ready" or why not, and the exit code (0 ended in order, 3 not primary or
fenced, 4 corrupt or diverged, 5 anything else that perdure raises).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import Final

import msgspec

from ..store.errors import CorruptError, DivergedError, NotPrimaryError, PerdureError
from .children import Ready, Task
from .folder import run_folder
from .launching import fork, read_task
from .monitor import MonitorOptions, run_monitor
from .monitor_pipe import Pipe
from .receiver import serve_receiver
from .reign import SLOT_BUDGET_BYTES
from .replica import run_replica
from .shipper import ShipperOptions, run_shipper
from .standby import run_standby
from .wake import POLL_MS

EXIT_NOT_PRIMARY: Final = 3
EXIT_CORRUPT: Final = 4
EXIT_FAILED: Final = 5
_STDIN: Final = 0
_STDOUT: Final = 1


class _Process:
    """One child process."""

    def __init__(self) -> None:
        self.is_stopping = False
        self.was_ready = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.is_stopping = True

    def say(self, ready: Ready) -> None:
        if not self.was_ready:
            self.was_ready = True
            os.write(_STDOUT, msgspec.json.encode(ready) + b"\n")

    def should_stop(self) -> bool:
        return self.is_stopping

    def run(self, task: Task) -> None:
        """Do the task until it ends or is stopped."""
        if task.kind == "shipper":
            run = run_standby if task.standby else run_shipper
            run(
                task.store,
                task.replicas,
                secret=task.secret,
                options=ShipperOptions(
                    compress=task.compress,
                    slot_budget_bytes=task.slot_budget_bytes or SLOT_BUDGET_BYTES,
                    snapshot_bytes_per_s=task.snapshot_bytes_per_s,
                    poll_ms=task.poll_ms or POLL_MS,
                    use_pokes=task.use_pokes,
                    use_watcher=task.use_watcher,
                ),
                should_stop=self.should_stop,
                on_ready=lambda: self.say(Ready(os.getpid())),
                lifeline=_STDIN,
            )
        elif task.kind == "receiver":
            serve_receiver(
                task.store,
                task.host,
                task.port,
                secret=task.secret,
                rejoin=task.rejoin,
                should_stop=self.should_stop,
                on_ready=lambda port: self.say(Ready(os.getpid(), port)),
                lifeline=_STDIN,
            )
        elif task.kind == "monitor":
            run_monitor(
                task.store,
                task.replicas,
                listener=socket.socket(fileno=task.listener),
                pipe=Pipe(socket.socket(fileno=task.pipe)) if task.pipe >= 0 else None,
                secret=task.secret,
                options=MonitorOptions(task.heartbeat_ms, task.silence_ms, task.disk_stall_ms),
                should_stop=self.should_stop,
                on_ready=lambda port: self.say(Ready(os.getpid(), port)),
                lifeline=_STDIN,
            )
        elif task.kind == "folder":
            run_folder(
                task.store,
                should_stop=self.should_stop,
                on_ready=lambda: self.say(Ready(os.getpid())),
                lifeline=_STDIN,
            )
        else:
            run_replica(
                task.store,
                task.host,
                task.port,
                secret=task.secret,
                rejoin=task.rejoin,
                should_stop=self.should_stop,
                on_ready=lambda port: self.say(Ready(os.getpid(), port)),
                lifeline=_STDIN,
                log_level=task.log_level,
                launch=fork,
            )


def main() -> int:
    task = read_task(Task)
    logging.basicConfig(
        level=task.log_level,
        format=f"%(asctime)s %(levelname)s {task.kind}[%(process)d] %(name)s: %(message)s",
    )
    process = _Process()
    try:
        process.run(task)
    except PerdureError as error:
        logging.getLogger(__name__).error("ended: store=%s error=%s", task.store, error)
        kind = type(error).__name__
        process.say(Ready(os.getpid(), 0, error.message, kind, path=error.path, hint=error.hint))
        if isinstance(error, NotPrimaryError):
            return EXIT_NOT_PRIMARY
        return EXIT_CORRUPT if isinstance(error, (CorruptError, DivergedError)) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
