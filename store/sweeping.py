"""Sweeping: sessions whose time is over are removed, as logged events.

Owns which sessions a pass looks at (those whose armed deadline has passed, and no others), and when the
background passes are. Only the primary sweeps. What makes a session expired is session's to say, what
time it is the clock's.

Invariant: whatever a chunk did, each session of the state keeps a deadline that is armed at or before its
expiry. One that is met too early is armed anew; one is disarmed only when the state shows why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from fcntl import LOCK_UN, flock
from functools import partial
from typing import TYPE_CHECKING

from .commit import Writer
from .errors import UsageError
from .event import NO_OPERATION, Kind, Reason
from .lock import FileLock
from .page import Word
from .ports import Deadline
from .session import expiry_of
from .stage import Stage
from .view import FoldPlan

if TYPE_CHECKING:
    from .opening import Opened, OpenOptions

SWEEP_CHUNK = 1000
"""Deadlines looked at by one frame, and by one step of a background pass."""
SWEEP_FOLD = 4000
"""Deadlines that a pass which was asked for looks at in one go, under the fold lock: several frames, one
fold."""


class Sweeper:
    """What removes the expired sessions of one store, for one process."""

    def __init__(
        self,
        opened: Opened,
        options: OpenOptions,
        fold_lock: FileLock,
        fold_threads: threading.Lock,
        fold: Callable[[Sequence[Deadline]], FoldPlan | None],
    ) -> None:
        """`fold` folds the visible tail, and disarms what it is given; the caller of it holds `fold_lock` and
        `fold_threads`."""
        self._opened = opened
        self._options = options
        self._view = opened.view
        self._log = opened.log
        self._fold_lock = fold_lock
        self._fold_threads = fold_threads
        self._fold = fold
        self._next_ms = time.monotonic_ns() // 1_000_000 + options.sweep_interval_ms
        self._is_under_way = False

    def sweep(self, writer: Writer, limit: int | None) -> int:
        """Expire what is due, at most `limit` sessions; answers how many, each as durable as the store asks.

        Raises as a write does, LockTimeoutError if another process folds past the deadline.
        """
        expired = 0
        while limit is None or expired < limit:
            count = SWEEP_FOLD if limit is None else min(SWEEP_FOLD, limit - expired)
            with self._fold_threads:
                self._fold_lock.check_open()
                try:
                    self._fold_lock.acquire(self._options.write_timeout_ms)
                    found, done = self._sweep_some(writer, count, waits=True)
                finally:
                    flock(self._fold_lock.descriptor, LOCK_UN)
            expired += found
            if not done:
                break
        return expired

    def tick(self, writer: Writer) -> None:
        """One chunk of a background pass, if it is time for one. Waits for no replica and no disk.

        Raises as a write does; the pass then goes on at the next tick.
        """
        now_ms = time.monotonic_ns() // 1_000_000
        if not self._is_under_way:
            if not self._options.sweep_interval_ms or now_ms < self._next_ms:
                return
            self._next_ms = now_ms + self._options.sweep_interval_ms
            self._is_under_way = True
        self._is_under_way = self._can_write(writer) and self._go_on(writer)

    def _go_on(self, writer: Writer) -> bool:
        """A chunk, unless nothing is due or another process is at it; says whether to come again."""
        with self._view.mutex:
            if not self._opened.backend.due(self._log.now_ms() - 1, 1):
                return False
        if self._fold_threads.locked():
            return True
        with self._fold_threads:
            try:
                if not self._fold_lock.try_acquire():
                    return True
                found, done = self._sweep_some(writer, SWEEP_CHUNK, waits=False)
            finally:
                flock(self._fold_lock.descriptor, LOCK_UN)
        return found + done > 0

    def _can_write(self, writer: Writer) -> bool:
        """Is this the primary, with the replicas that its writes need?"""
        if not self._log.is_primary:
            return False
        need = self._log.config.sync_replicas
        return not need or (writer.gate is not None and self._log.words[Word.VOTERS_CONNECTED] >= need)

    def _sweep_some(self, writer: Writer, limit: int, *, waits: bool) -> tuple[int, int]:
        """(sessions expired, deadlines done with). The caller holds the fold lock."""
        now_ms = self._log.now_ms()
        view = self._view
        with view.mutex:
            view.catch_up()  # another state may stand in place of the one that was open
            due = view.backend.due(now_ms - 1, limit)
        if not due:
            return 0, 0
        keys = list(dict.fromkeys([key for _, key in due]))
        expired, last = 0, None
        for start in range(0, len(keys), SWEEP_CHUNK):
            chunk = keys[start : start + SWEEP_CHUNK]
            found, position = writer.commit(partial(_expire, chunk, now_ms), makes_room=False)
            expired += found
            last = position or last
        if last is not None and waits:
            writer.finish(last, self._options.durability, None)
        # What the state holds after this fold decides: each session in it keeps a deadline at or before
        # its expiry, also one that came anew meanwhile, or whose change is not visible yet.
        plan = self._fold(due)
        kept = set(() if plan is None else plan.armed).intersection(due)
        return expired, len(due) - len(kept)


def _expire(keys: list[bytes], now_ms: int, stage: Stage) -> int:
    return stage.expire(keys, now_ms)


def check_limit(limit: object) -> None:
    """Raise UsageError for a limit of a sweep that is no whole number from 1 on."""
    if not isinstance(limit, int) or limit < 1:
        raise UsageError(f"a limit is a whole number from 1 on, not {limit!r}")


def end_expired(stage: Stage, key: bytes, now_ms: int) -> bool:
    """Remove a session by an EXPIRE event if its time is over; says whether."""
    value = stage.value(key)
    if value is None or expiry_of(value) >= now_ms:
        return False
    stage.remove(key, Kind.EXPIRE, Reason.EXPIRED, NO_OPERATION)
    return True
