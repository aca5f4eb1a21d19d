"""A node's elector as a process of its own, and how the node process starts it.

Owns the wiring: which coordinator the configuration names. Run as `python -m perdure.cli.elector_process`,
with its task on standard input; it ends when that ends.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..recovery import Coordinator, ElectionOptions, Manual, Quorum, run_elector
from ..recovery.election import Action, Own
from ..shipping import PeerHealth, Pipe, Secret
from ..shipping.launching import Launch, Process, end_process, execute, read_task
from ..store import PerdureError, UsageError, read_identity

if TYPE_CHECKING:
    from ..recovery.coordinators.etcd import Etcd

logger = logging.getLogger(__name__)

STDIN = 0
STDOUT = 1
STATE_BYTES_MAX = 256
QUORUM_VOTERS_MIN = 3
AUTO = "auto"
ETCD = "etcd"


class ElectorTask(msgspec.Struct, frozen=True):
    """What an elector is to do. Times in ms."""

    directory: str
    pipe: int
    """Descriptor of the way to the monitor."""
    peers: dict[str, tuple[str, int]]
    secret: Secret = b""
    coordinator: str = AUTO
    options: ElectionOptions = ElectionOptions()
    etcd_endpoints: list[str] = []
    etcd_lease_ms: int = 0
    log_level: str = "WARNING"


class Auto:
    """The coordinator `quorum` where the log has three voters or more, `manual` where it has fewer."""

    def __init__(self, options: ElectionOptions) -> None:
        self._manual = Manual(options)
        self._quorum = Quorum(options, draw)
        self._current: Coordinator = self._manual

    @property
    def name(self) -> str:
        return self._current.name

    def look(self, now_ms: int, own: Own, peers: Sequence[PeerHealth], unmonitored: frozenset[str]) -> Action:
        self._current = self._quorum if len(own.config.voters) >= QUORUM_VOTERS_MIN else self._manual
        return self._current.look(now_ms, own, peers, unmonitored)

    def claim(self, own: Own) -> int:
        return self._current.claim(own)

    def won(self, epoch: int) -> None:
        self._current.won(epoch)

    def lost(self, now_ms: int) -> None:
        self._current.lost(now_ms)

    def close(self) -> None:
        self._manual.close()
        self._quorum.close()


def draw(most: int) -> int:
    """A random number from 0 to `most`."""
    return random.randint(0, most)


def coordinator_of(task: ElectorTask) -> Coordinator:
    """What the task names."""
    if task.coordinator == Manual.name:
        return Manual(task.options)
    if task.coordinator == Quorum.name:
        return Quorum(task.options, draw)
    if task.coordinator == ETCD:
        etcd = load_etcd()
        cluster_id = read_identity(Path(task.directory)).cluster_id
        return etcd(task.etcd_endpoints, cluster_id, task.options, draw, lease_ms=task.etcd_lease_ms)
    return Auto(task.options)


def load_etcd() -> type[Etcd]:
    """The coordinator `etcd`, which needs a package of its own. Raises UsageError without it."""
    try:
        from ..recovery.coordinators.etcd import Etcd
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the coordinator etcd needs the package {error.name}", hint="pip install 'perdure[etcd]'"
        ) from error
    return Etcd


class ElectorChild:
    """The running process of an elector."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._said = b""
        if process.stdout is not None:
            os.set_blocking(process.stdout.fileno(), False)

    @property
    def state(self) -> str:
        """The node's state as it said it last, empty while it has said none. Never waits."""
        stdout = self._process.stdout
        while stdout is not None and not stdout.closed:
            try:
                data = os.read(stdout.fileno(), 4096)
            except BlockingIOError:
                break
            if not data:
                break
            self._said = (self._said + data)[-STATE_BYTES_MAX:]
        lines = self._said.split(b"\n")[:-1]
        return lines[-1].decode("ascii", "replace") if lines else ""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> int:
        """End it in order, by force when that takes too long; answers its exit code."""
        return end_process(self._process, "elector")


def start_elector(task: ElectorTask, launch: Launch = execute) -> ElectorChild:
    """Start an elector; it ends when the pipe to it does. Raises OSError if the system refuses."""
    return ElectorChild(launch("perdure.cli.elector_process", task, [task.pipe], name="perdure-elector"))


def main() -> int:
    """Decide as standard input asks for, until it ends or SIGTERM comes."""
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task = read_task(ElectorTask)
    logging.basicConfig(
        level=task.log_level, format="%(asctime)s %(levelname)s elector[%(process)d] %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request to etcd
    try:
        run_elector(
            task.directory,
            task.peers,
            pipe=Pipe(socket.socket(fileno=task.pipe)),
            coordinator=coordinator_of(task),
            secret=task.secret,
            should_stop=lambda: bool(stopping),
            on_state=_say,
            lifeline=STDIN,
        )
    except PerdureError as error:
        logger.error("ended: %s", error)
        return 5
    return 0


def _say(state: str) -> None:
    os.write(STDOUT, state.encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
