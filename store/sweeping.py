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
from collections.abc import Callable
from fcntl import LOCK_UN, flock
from typing import TYPE_CHECKING

from .commit import Writer
from .errors import UsageError
from .event import NO_OPERATION, Kind, Reason
from .fold import HASH_BYTES
from .lock import FileLock
from .page import Word
from .ports import Deadline
from .session import NEVER_MS, expiry_of
from .stage import Stage

if TYPE_CHECKING:
    from .opening import Opened, OpenOptions

SWEEP_CHUNK = 1000
"""Deadlines looked at in one go, under the fold lock; their events are one frame."""


class Sweeper:
    """What removes the expired sessions of one store, for one process."""

    def __init__(
        self,
        opened: Opened,
        options: OpenOptions,
        fold_lock: FileLock,
        fold_threads: threading.Lock,
        fold: Callable[[], int],
    ) -> None:
        """`fold` folds the visible tail; the caller of it holds `fold_lock` and `fold_threads`."""
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
            chunk = SWEEP_CHUNK if limit is None else min(SWEEP_CHUNK, limit - expired)
            with self._fold_threads:
                self._fold_lock.check_open()
                try:
                    self._fold_lock.acquire(self._options.write_timeout_ms)
                    found, done = self._sweep_chunk(writer, chunk, waits=True)
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
                found, done = self._sweep_chunk(writer, SWEEP_CHUNK, waits=False)
            finally:
                flock(self._fold_lock.descriptor, LOCK_UN)
        return found + done > 0

    def _can_write(self, writer: Writer) -> bool:
        """Is this the primary, with the replicas that its writes need?"""
        if not self._log.is_primary:
            return False
        need = self._log.config.sync_replicas
        return not need or (writer.gate is not None and self._log.words[Word.VOTERS_CONNECTED] >= need)

    def _sweep_chunk(self, writer: Writer, limit: int, *, waits: bool) -> tuple[int, int]:
        """(sessions expired, deadlines done with). The caller holds the fold lock."""
        now_ms = self._log.now_ms()
        view = self._view
        with view.mutex:
            view.catch_up()  # another state may stand in place of the one that was open
            backend = view.backend
            due = backend.due(now_ms - 1, limit)
        if not due:
            return 0, 0
        keys = list(dict.fromkeys(key for _, key in due))

        def evaluate(stage: Stage) -> int:
            return sum([end_expired(stage, key, now_ms) for key in keys])

        expired, position = writer.commit(evaluate, makes_room=False)
        if position is not None and waits:
            writer.finish(position, self._options.durability, None)
        # What the state holds after this fold decides: each session in it keeps a deadline at or before
        # its expiry, also one that came anew meanwhile, or whose change is not visible yet.
        self._fold()
        with view.mutex:
            view.refresh()
            rearmed: list[Deadline] = []
            for key in keys:
                record = backend.get(key)
                expiry = NEVER_MS if record is None else expiry_of(record, HASH_BYTES)
                if expiry != NEVER_MS:
                    rearmed.append((expiry, key))
            state = view.state
            view.release()
            backend.fold([], rearmed, due, state)
        return int(expired), len(set(due).difference(rearmed))


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
