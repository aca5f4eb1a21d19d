"""A node's chores: sweep what has expired, take snapshots, drop log that nobody needs, make a state anew that
has diverged. A process of its own.

Owns when each is due. The work is the rooms'; a chore that fails is said and tried again when it is next
due. Run as `python -m perdure.cli.chores`, with its task on standard input; it ends when that ends.
"""

from __future__ import annotations

import logging
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from .. import open as open_replicated
from ..recovery import (
    ALONE_AFTER_MS,
    Policy,
    apply_retention,
    keep_available,
    known_reach,
    rebuild_log,
    reconcile_self,
    take_snapshot,
)
from ..shipping import Secret, shipping_status
from ..shipping.faults import PARTED, fault_of
from ..shipping.launching import read_task
from ..shipping.rebuild import read_log_fault
from ..store import PerdureError, PoisonedError

logger = logging.getLogger(__name__)

STDIN = 0
TICK_S = 0.2
AGAIN_S = 1.0
JOIN_S = 2.0
RECONCILE_S = 0.5
REBUILD_S = 1.0
SAME_FAULT_TRIES = 2
"""So often a state is made anew for a fault at one LSN: then the log is wrong there, and not the state."""


class ChoreTask(msgspec.Struct, frozen=True):
    """What is to be done for one node, and how often, in seconds; 0 is never."""

    directory: str
    sweep_s: float = 60.0
    snapshot_s: float = 60.0
    snapshots_kept: int = 3
    retention_s: float = 60.0
    policy: Policy = Policy()
    """What retention keeps; `snapshots_kept` stands above its number of snapshots."""
    auto_reconcile: bool = True
    """A replica whose fold stopped with a fault has its state made anew."""
    alone_after_ms: int = ALONE_AFTER_MS
    """With the policy available: so long the primary waits for its replicas before it goes on alone."""
    auto_rebuild: bool = True
    """A replica whose log is damaged is made anew from the primary."""
    log_level: str = "WARNING"
    replicas: dict[str, tuple[str, int]] = {}
    """The other nodes; the log may say others."""
    secret: Secret = b""


class Chore:
    """One thing that is done again and again."""

    def __init__(self, name: str, every_s: float, work: Callable[[], object], now_s: float) -> None:
        self.name = name
        self._every_s = every_s
        self._work = work
        self._due_s = now_s + every_s

    def tend(self, now_s: float) -> None:
        """Do it if it is due. Raises PoisonedError, which only a new process can get over."""
        if not self._every_s or now_s < self._due_s:
            return
        self._due_s = now_s + self._every_s
        try:
            done = self._work()
        except PoisonedError:
            raise
        except (PerdureError, OSError) as error:
            logger.error("failed: chore=%s error=%s", self.name, error)
        else:
            logger.log(logging.INFO if done else logging.DEBUG, "done: chore=%s result=%s", self.name, done)


class Chores:
    """The chores of one node."""

    def __init__(self, task: ChoreTask) -> None:
        self._task = task
        self._directory = Path(task.directory)
        self._snapshot_lsn = 0
        self._fault_lsn, self._fault_tries = -1, 0
        now_s = time.monotonic()
        self._chores = (
            Chore("sweep", task.sweep_s, self.sweep, now_s),
            Chore("snapshot", task.snapshot_s, self.snapshot, now_s),
            Chore("retention", task.retention_s, self.drop, now_s),
            Chore("rebuild", REBUILD_S if task.auto_rebuild else 0, self.rebuild, now_s),
            Chore("reconcile", RECONCILE_S if task.auto_reconcile else 0, self.reconcile, now_s),
        )

    def tend(self, now_s: float) -> None:
        for chore in self._chores:
            chore.tend(now_s)

    def sweep(self) -> int:
        """Expire what is due, where this node is the primary; answers how many."""
        if not shipping_status(self._directory).is_primary:
            return 0
        with open_replicated(self._directory, create=False) as store:
            return store.cleanup_expired()

    def snapshot(self) -> str:
        """Take a snapshot if the state moved since the last one; answers its name."""
        known = shipping_status(self._directory)
        reached = known.folded_lsn if known.is_state_shared else known.appended_lsn
        if not reached or reached == self._snapshot_lsn:
            return ""
        # Where there is a retention, its policy says which ones stay.
        keep = None if self._task.retention_s else self._task.snapshots_kept
        file = take_snapshot(self._directory, keep=keep)
        self._snapshot_lsn = file.lsn
        if self._task.snapshot_s < self._task.retention_s:
            self.drop()  # else they would pile up until it is due
        return file.name

    def drop(self) -> int:
        """Drop what neither a replica nor the newest good snapshot needs; answers how many files."""
        task = self._task
        policy = msgspec.structs.replace(task.policy, snapshots=task.snapshots_kept)
        return len(apply_retention(self._directory, policy).drop)

    def reconcile(self) -> str:
        """Put right what made folding stop, unless that was tried in vain; answers what was wrong."""
        fault = fault_of(self._directory)
        if fault is None or fault.kind == PARTED:  # its log is at fault, not its state
            return ""
        if fault.lsn != self._fault_lsn:
            self._fault_lsn, self._fault_tries = fault.lsn, 0
        if self._fault_tries >= SAME_FAULT_TRIES:
            return ""
        self._fault_tries += 1
        logger.warning("folding stopped, making the state anew: lsn=%d fault=%s", fault.lsn, fault.text)
        reconcile_self(self._directory)
        logger.warning("the state was made anew, folding goes on: lsn=%d", fault.lsn)
        return fault.text

    def rebuild(self) -> str:
        """Have a damaged log made anew by the primary, if it may be; answers what was done."""
        if not read_log_fault(self._directory):
            return ""
        task = self._task
        done = rebuild_log(
            task.directory, known_reach(task.directory, {}, task.secret, configured=task.replicas)
        )
        logger.warning("the log is damaged: %s", done)
        return done


class _Keeper(threading.Thread):
    """The keeper of the policy `available`, beside the chores: it must not wait for a snapshot."""

    def __init__(self, task: ChoreTask, should_stop: Callable[[], bool]) -> None:
        super().__init__(name="perdure-available", daemon=True)
        self.failed: Exception | None = None
        self._task = task
        self._should_stop = should_stop

    def run(self) -> None:
        task = self._task
        while not self._should_stop():
            try:
                keep_available(
                    task.directory,
                    task.replicas,
                    task.secret,
                    self._should_stop,
                    alone_after_ms=task.alone_after_ms,
                )
            except PoisonedError as error:
                self.failed = error  # which only a new process can get over
                return
            except (PerdureError, OSError) as error:
                logger.error("failed: chore=available error=%s", error)
                time.sleep(AGAIN_S)


def main() -> None:
    """Do the chores that standard input asks for, until it ends or SIGTERM comes."""
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task = read_task(ChoreTask)
    logging.basicConfig(
        level=task.log_level, format="%(asctime)s %(levelname)s chores[%(process)d] %(name)s: %(message)s"
    )
    chores = Chores(task)
    keeper = _Keeper(task, lambda: bool(stopping))
    keeper.start()
    poller = select.poll()
    poller.register(STDIN, select.POLLIN | select.POLLHUP)
    while not stopping and not poller.poll(TICK_S * 1000):
        chores.tend(time.monotonic())
        if keeper.failed is not None:
            raise keeper.failed
    stopping.append(True)
    keeper.join(JOIN_S)


if __name__ == "__main__":
    main()
