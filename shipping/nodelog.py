"""A node's log as shipping's processes hold it: opened without the state, with a lock for the process.

Owns how the processes of shipping enter a store. They follow, append and flush the log; what it means
is for the folder. One shipper and one receiver a store: the second finds the lock taken.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from ..store import names
from ..store.clock import SessionClock, last_time_ms
from ..store.cursor import LogCursor, list_segments
from ..store.errors import CorruptError, LockTimeoutError, PositionGoneError, StoreInUseError
from ..store.flush import is_poisoned
from ..store.identity import Identity, read_identity
from ..store.ids import Position
from ..store.lock import FileLock
from ..store.log import LOCK_TIMEOUT_MS, EventLog
from ..store.opening import OpenOptions, open_store
from ..store.page import Word, read_boot_id
from ..store.placing import open_log
from ..store.rejoining import wait_until_rejoined
from ..store.segment import HEADER_BYTES
from .messages import EPOCHS_MAX

SKIP_EVENTS: Final = 1000
_COMMITTED = int(Word.COMMITTED)
_FOLDED = int(Word.FOLDED)


def now_ms() -> int:
    """Wall clock, ms since 1970."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class NodeLog:
    """An open log with its identity and the locks that its process holds."""

    def __init__(self, store: Path, identity: Identity, log: EventLog, locks: list[FileLock]) -> None:
        self.store = store
        self.identity = identity
        self.log = log
        self.clock = SessionClock(log.page)
        self._locks = locks
        log.on_reset = self._begin_again
        log.cursor.is_sparse = True

    @property
    def node(self) -> str:
        return self.identity.node

    def cursor(self, *, is_sparse: bool = True) -> LogCursor:
        """A new cursor over the log; sparse unless its frames are to be looked into."""
        cursor = LogCursor(self.log.cursor.log, self.identity.cluster_id, self.log.key, self.identity.shard)
        cursor.is_sparse = is_sparse
        return cursor

    def end_on_disk(self) -> Position:
        """Where the log ends, after everything up to there was made durable. Locks; errors as flush."""
        self.log.lock_any()
        try:
            at = self.log.cursor.at
            if self.log.cursor.descriptor >= 0:
                self.log.flush(at.lsn)
            return at.position
        finally:
            self.log.unlock()

    def skip_ahead(self) -> None:
        """Go near the log's end without reading what is between, if others appended much.

        Every segment on the way is opened, so that a flush covers it. Costs a few system calls; without
        it the next who takes the write lock would read all of that under the lock.
        """
        log = self.log
        if log.words[Word.APPENDED] - log.cursor.at.lsn < SKIP_EVENTS:
            return
        with log.mutex:
            try:
                self._skip()
            except (CorruptError, PositionGoneError):
                return  # the page's words were changing; later then, or under the lock
        log.look_again()

    def keep_up(self) -> None:
        """For a process that waits: see a changed role, and stay near the end of a log that others append.

        The role is that of the log's newest epoch, so after a change the log is read to its end. Raises
        PoisonedError after a failed sync, CorruptError for a damaged log.
        """
        log = self.log
        if log.words[Word.GENERATION] != log.generation:
            log.refresh_role()
            self.skip_ahead()
            log.follow()
        else:
            self.skip_ahead()
        log.flusher.drop_retired()

    def _skip(self) -> None:
        log = self.log
        words, cursor = log.words, log.cursor
        last_frame, segment = int(words[Word.LAST_FRAME]), int(words[Word.SEGMENT])
        files = list_segments(cursor.log)
        at = cursor.header.first_lsn if cursor.header else 0
        ahead = [file for file in files if at < file.first_lsn <= segment]
        if last_frame <= HEADER_BYTES or words[Word.SEGMENT] != segment or (ahead and not at):
            return
        for file in ahead:
            cursor.retired.append((file.first_lsn - 1, cursor.descriptor))
            cursor.descriptor = -1
            cursor.open_segment(file)
        cursor.jump(last_frame)

    def epochs(self) -> list[tuple[int, int]]:
        """Of all_epochs(), the newest ones: as many as go into a message."""
        return self.all_epochs()[-EPOCHS_MAX:]

    def all_epochs(self) -> list[tuple[int, int]]:
        """(epoch, first LSN) of the epochs in the log, oldest first."""
        first: dict[int, int] = {}
        for file in list_segments(self.log.cursor.log):
            first.setdefault(file.epoch, file.first_lsn)
        return sorted(first.items())

    def oldest_lsn(self) -> int:
        """First LSN that the log holds, 0 if it is empty."""
        files = list_segments(self.log.cursor.log)
        return files[0].first_lsn if files else 0

    def committed_lsn(self) -> int:
        return int(self.log.words[_COMMITTED])

    def folded_lsn(self) -> int:
        return int(self.log.words[_FOLDED])

    def reopened(self) -> NodeLog:
        """The same log opened anew, after it was changed as a whole; this handle is closed.

        The locks go on to the new handle. Raises as open_node_log.
        """
        self.log.close()
        locks, self._locks = self._locks, []
        try:
            return NodeLog(self.store, self.identity, _open(self.store, self.identity), locks)
        except BaseException:
            for lock in locks:
                lock.close()
            raise

    def _begin_again(self) -> None:
        """The log was cut or replaced by another process: go to the start of its newest segment."""
        files = list_segments(self.log.cursor.log)
        if files:
            self.log.cursor.open_segment(files[-1])

    def close(self) -> None:
        self.log.close()
        for lock in self._locks:
            lock.close()


def take_process_lock(store: Path, lock_name: str) -> FileLock:
    """The lock that makes its process the only one of its kind.

    Raises StoreInUseError, StoreMissingError where there is no store, FormatError.
    """
    read_identity(store)  # no lock file is left where there is no store
    lock = FileLock(store / lock_name)
    if not lock.try_acquire():
        lock.close()
        raise StoreInUseError(
            f"another process holds {lock_name}: it does this work already",
            path=store / lock_name,
            hint="One shipper and one receiver serve a store.",
        )
    return lock


def is_running(store: Path, lock_name: str) -> bool:
    """Does a process hold this process lock at the moment?"""
    lock = FileLock(store / lock_name)
    try:
        return not lock.try_acquire()
    finally:
        lock.close()


def open_node_log(store: Path, locks: list[FileLock]) -> NodeLog:
    """Open the log of a store for a process of shipping, which holds `locks`.

    A poisoned store is opened as a whole first, which copies its log anew. Raises as open_store.
    """
    identity = read_identity(store)
    if is_poisoned(store, read_boot_id()):
        open_store(store, OpenOptions(create=False)).close()
    users = FileLock(store / names.USERS_LOCK)
    try:
        try:
            # Who opens the store holds it alone for a moment; who makes its log anew, for longer.
            users.acquire(LOCK_TIMEOUT_MS, shared=True)
        except LockTimeoutError as error:
            raise StoreInUseError(
                "another process has the store to itself, to make its log anew",
                path=store,
                hint="Try again when it has finished.",
            ) from error
        wait_until_rejoined(store, LOCK_TIMEOUT_MS)
        return NodeLog(store, identity, _open(store, identity), [*locks, users])
    except BaseException:
        users.close()
        raise


def _open(store: Path, identity: Identity) -> EventLog:
    log = EventLog(store, identity, boot_id=read_boot_id(), now_ms=now_ms)
    clock = SessionClock(log.page)
    log.now_ms = clock.exact_ms
    try:
        log.write_lock.acquire(log.lock_timeout_ms)
        try:
            open_log(log, None)
            clock.begin(last_time_ms(log))
        finally:
            log.write_lock.release()
    except BaseException:
        log.close()
        raise
    return log
