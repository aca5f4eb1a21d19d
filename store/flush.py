"""Making the log durable: the fdatasync that all waiters share, then the mark.

Owns the sync lock, the mark, and what a failed sync means: poison, final for the store in every
process until all have closed it. A sync covers everything that any process had appended before it
began. Of the threads of one process one leads: it syncs, the others sleep until their bytes are
covered, and the first whose bytes are not leads next.

Invariant: who syncs speaks of the log that is there. Who takes frames off it holds the sync lock, too, and
raises the generation; a process whose segment was replaced by then syncs nothing, and fails.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from fcntl import LOCK_UN, flock
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from . import names
from .cursor import LogCursor, list_segments
from .errors import LockTimeoutError, PoisonedError, StorageError
from .files import read_small, translate
from .gathering import SLOW_NS, gather, note_sync
from .ids import Position
from .lock import FileLock
from .mark import MarkFile
from .page import ControlPage, Word, is_page_poisoned
from .smallfile import publish_small

MARK_SYNC_MS = 1000
LOOK_S = 0.2
"""A thread that waits for another one's sync looks for itself this often, should that one have died."""
RETRY_S = 0.0001
"""Who closes the flusher looks this often whether a thread still syncs."""
SYNC_LOOK_S = 0.005
"""A process that waits for another one's sync looks for itself this often, should that one have died."""
POISON_MAGIC = b"PDRPOIS1"
POISON_VERSION = 1
_FLUSHED = int(Word.FLUSHED)
_APPENDED = int(Word.APPENDED)
_DIRTY = int(Word.DIRTY)
_CHAIN = int(Word.CHAIN)
_EPOCH = int(Word.EPOCH)
_SEGMENT = int(Word.SEGMENT)
_POISON = int(Word.POISON)
_GENERATION = int(Word.GENERATION)
_SYNC_NS = int(Word.SYNC_NS)
_SYNC_WANTED = int(Word.SYNC_WANTED)
_COMMITTED = int(Word.COMMITTED)
_MARK_SEQUENCE = int(Word.MARK_SEQUENCE)
_MARK_SYNCED = int(Word.MARK_SYNCED_MS)
_MARK_SYNCED_SEQUENCE = int(Word.MARK_SYNCED_SEQUENCE)
_EVERYTHING = (1 << 64) - 1
_CLOSED = -1
"""No thread has this number: nobody leads any more."""
get_ident = threading.get_ident


class Poison(msgspec.Struct, frozen=True):
    """What was said when a sync failed."""

    reason: str
    position: tuple[int, int, int]
    time_ms: int


class _Waiter:
    """What a thread that does not lead waits for: its LSN is covered, or it leads next."""

    __slots__ = ("lock", "lsn")

    def __init__(self, lsn: int) -> None:
        self.lsn = lsn
        self.lock = threading.Lock()
        self.lock.acquire()


class Flusher:
    """One process's way to make its log durable."""

    def __init__(self, store: Path, cursor: LogCursor, page: ControlPage, timeout_ms: int) -> None:
        self.store = store
        self.words: Any = page.words
        self._bell = page.sync_bell
        self.timeout_ms = timeout_ms
        self._cursor = cursor
        self.threads = threading.Lock()
        """Held for a moment by whoever looks at, or changes, who leads and who waits."""
        self.leader = 0
        """The thread of this process that syncs at this moment, or is about to; 0 if none does."""
        self._waiting: list[_Waiter] = []
        self._lock = FileLock(store / names.SYNC_LOCK)
        self._generation = self.words[_GENERATION]
        """In this one the cursor's segment was the log's."""
        self.mark = MarkFile(names.log_path(store) / names.MARK, cursor.key)

    def flush(
        self, lsn: int, when_synced: Callable[[], object] | None = None, *, is_writer: bool = False
    ) -> None:
        """Return once LSN `lsn` is on this node's disk.

        `when_synced` is called as soon as its bytes are, before the mark says so, if it is this call that
        syncs them; nothing may be acknowledged in it. `is_writer`: the caller answers a write with it, so
        that a slow sync may wait for other writers first (see gathering). Raises PoisonedError if the sync
        fails or one failed before, LockTimeoutError if another process keeps the sync lock past the deadline.
        """
        words = self.words
        if words[_FLUSHED] >= lsn and not words[_POISON]:
            return
        me = get_ident()
        covered = _EVERYTHING  # if this fails all wake up, and see for themselves
        try:
            while not self._leads_or_waited(me, lsn):
                if words[_FLUSHED] >= lsn and not words[_POISON]:
                    return
            self._lead(lsn, when_synced, is_writer)
            covered = words[_FLUSHED]
        finally:
            try:
                if self.leader == me:
                    self._hand_over(covered)
            finally:
                if self.leader == me:  # a signal's exception: who waits looks for itself
                    self.leader = 0

    def drop_retired(self) -> None:
        """Close segments that were read to their end and that some process has synced."""
        if not self._cursor.retired:
            return
        me = get_ident()
        try:
            with self.threads:
                if self.leader:
                    return  # who leads syncs them at this moment, and closes them itself
                self.leader = me
            self._close_retired(self.words[_FLUSHED])
        finally:
            try:
                if self.leader == me:
                    self._hand_over(_EVERYTHING)
            finally:
                if self.leader == me:
                    self.leader = 0

    def check_poison(self) -> None:
        """Raise PoisonedError if a sync failed in any process since the log was last made anew."""
        if self.words[_POISON]:
            raise self.poisoned()

    def poisoned(self) -> PoisonedError:
        return PoisonedError(
            "a sync to disk failed; what was written since may be lost, so the store accepts nothing more",
            path=self.store,
            hint="Close it in every process and open it again: the log is then read and copied anew.",
        )

    def poison(self, reason: str) -> None:
        """Stop every process of this store."""
        words = self.words
        words[_POISON] = 1
        words[int(Word.GENERATION)] += 1
        position = tuple(self._cursor.at.position)
        try:
            publish_small(
                self.store / names.POISON,
                POISON_MAGIC,
                POISON_VERSION,
                Poison(reason, (position[0], position[1], position[2]), time.time_ns() // 1_000_000),
            )
        except Exception:  # noqa: BLE001 - the disk that failed refuses this too; the page still says it to all
            return

    def sync_mark(self, *, at_once: bool = False) -> None:
        """Sync the newest mark if it is not synced, and no mark was within the last second (or `at_once`).

        Called behind each flush and by whatever works in the background, so that the mark of the last
        flush before a quiet spell is synced within a second too. Raises PoisonedError if that fails.
        """
        words = self.words
        sequence = words[_MARK_SEQUENCE]
        if not sequence or sequence == words[_MARK_SYNCED_SEQUENCE] or words[_POISON]:
            return
        now_ms = time.monotonic_ns() // 1_000_000
        if at_once or now_ms - words[_MARK_SYNCED] >= MARK_SYNC_MS:
            words[_MARK_SYNCED] = now_ms
            self._guarded(self.mark.sync)
            words[_MARK_SYNCED_SEQUENCE] = sequence

    def sync_whole(self, descriptor: int) -> None:
        """fsync a file of the log, its size included. Raises PoisonedError if that fails."""
        self._guarded(partial(os.fsync, descriptor))

    def wait_idle(self) -> None:
        """Before the end: wait until no thread syncs, for a flush's time at most. None begins then."""
        deadline = time.monotonic() + self.timeout_ms / 1000
        while True:
            with self.threads:
                if not self.leader or time.monotonic() >= deadline:
                    self.leader = _CLOSED
                    return
            time.sleep(RETRY_S)

    def close(self) -> None:
        self._lock.close()
        self.mark.close()

    # -- who leads -------------------------------------------------------------------------------

    def _leads_or_waited(self, me: int, lsn: int) -> bool:
        """True if this thread, `me`, leads now; False after it waited for the one that does to cover it."""
        with self.threads:
            if not self.leader:
                self.leader = me
                return True
            waiter = _Waiter(lsn)
            self._waiting.append(waiter)
        self._sleep(waiter)
        return False

    def _sleep(self, waiter: _Waiter) -> None:
        if not waiter.lock.acquire(timeout=LOOK_S):
            with self.threads:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    def _hand_over(self, covered: int) -> None:
        """Lead no longer: wake all whose LSN is covered, and who leads next."""
        with self.threads:
            self.leader = 0
            waiting = self._waiting
            if not waiting:
                return
            self._waiting = left = []
            leads_next = None
            for waiter in waiting:
                if waiter.lsn <= covered:
                    waiter.lock.release()
                elif leads_next is None:
                    leads_next = waiter
                else:
                    left.append(waiter)
            if leads_next is not None:
                leads_next.lock.release()

    def _lead(self, lsn: int, when_synced: Callable[[], object] | None, is_writer: bool) -> None:
        words, lock = self.words, self._lock
        has_led = False
        try:  # also around the lock: to release what is not held does nothing
            if not lock.try_acquire() and not self._acquire_or_covered(lsn):
                return
            has_led = True
            self.check_poison()
            if words[_FLUSHED] < lsn:
                if is_writer and words[_SYNC_NS] >= SLOW_NS:
                    gather(words)
                self._sync(when_synced)
                if words[_FLUSHED] < lsn:
                    raise StorageError(f"LSN {lsn} is not in this log any more", path=self.store, lsn=lsn)
        finally:
            flock(lock.descriptor, LOCK_UN)
            if has_led and words[_SYNC_WANTED]:
                words[_SYNC_WANTED] = 0
                self._bell.ring()

    def _acquire_or_covered(self, lsn: int) -> bool:
        """Take the sync lock: True. False if the process that has it covered `lsn` meanwhile.

        Who has it rings as soon as it is free. That somebody waits is said before the lock is tried, and
        looked at after it was released: so one of the two sees the other.
        """
        words, bell = self.words, self._bell
        deadline = time.monotonic() + self.timeout_ms / 1000
        while True:
            heard = bell.heard()
            words[_SYNC_WANTED] = 1
            if words[_FLUSHED] >= lsn and not words[_POISON]:
                return False
            if self._lock.try_acquire():
                return True
            if time.monotonic() >= deadline:
                raise LockTimeoutError(
                    f"another process kept the sync lock for {self.timeout_ms} ms",
                    path=self._lock.path,
                    hint="See whether that process hangs or is stopped, or whether the disk does.",
                )
            bell.wait(heard, SYNC_LOOK_S)

    # -- one sync --------------------------------------------------------------------------------

    def _sync(self, when_synced: Callable[[], object] | None) -> None:
        words, cursor = self.words, self._cursor
        if words[_GENERATION] != self._generation and not self._is_current():
            return
        target = self._target()
        began_ns = time.monotonic_ns()
        # In this order: another thread that moves on to a new segment first puts the old descriptor into
        # `retired`, so that whatever holds bytes up to the target is in one of the two.
        current = cursor.descriptor
        retired = cursor.retired[:]
        for descriptor in {entry[1] for entry in retired} | {current} if retired else (current,):
            if descriptor >= 0:
                self._guarded(partial(os.fdatasync, descriptor))
        header = cursor.header
        if header is not None and words[_FLUSHED] + 1 < header.first_lsn:
            self._sync_older(target[1])
        self.check_poison()
        if target[1] <= words[_FLUSHED]:
            return  # the mark never goes back
        if when_synced is not None:
            when_synced()
        note_sync(words, began_ns, target[1])
        self.publish(target)
        if retired:
            self._close_retired(target.lsn)

    def _is_current(self) -> bool:
        """Is the segment that this process follows still the log's, or did a cut rewrite or remove it?"""
        generation, cursor = self.words[_GENERATION], self._cursor
        deadline = time.monotonic() + LOOK_S
        while True:
            descriptor = cursor.descriptor
            if descriptor < 0:
                return True
            try:
                if os.path.samestat(os.fstat(descriptor), os.stat(cursor.path)):
                    self._generation = generation
                    return True
            except OSError:
                pass  # gone, or closed at this moment
            if time.monotonic() >= deadline:
                return False
            time.sleep(RETRY_S)  # another thread may be moving on to the next segment

    def _sync_older(self, lsn: int) -> None:
        """Sync what nobody has yet of segments before the tail, which this process may never have read."""
        flushed = self.words[_FLUSHED]
        for file, following in pairwise(list_segments(self._cursor.log)):
            if following.first_lsn <= flushed + 1 or file.first_lsn > lsn:
                continue
            try:
                descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # retention took it
            except OSError as error:
                raise translate(error, "cannot open a segment", file.path) from error
            try:
                self._guarded(partial(os.fdatasync, descriptor))
            finally:
                os.close(descriptor)

    def _close_retired(self, lsn: int) -> None:
        retired = self._cursor.retired
        for entry in [entry for entry in retired if entry[0] <= lsn]:
            retired.remove(entry)
            os.close(entry[1])

    def publish(self, target: Position) -> None:
        """Say that everything up to `target` is on disk: mark, then page."""
        words = self.words
        sequence = words[_MARK_SEQUENCE]
        words[_MARK_SEQUENCE] = 0  # whoever dies in between leaves it to the next one to read the file
        try:
            sequence = self.mark.write(target, words[_COMMITTED], sequence)
        except OSError as error:
            raise translate(error, "cannot write the mark", self.mark.path) from error
        words[_MARK_SEQUENCE] = sequence
        if time.monotonic_ns() // 1_000_000 - words[_MARK_SYNCED] >= MARK_SYNC_MS:
            self.sync_mark()
        if words[_FLUSHED] < target[1]:
            words[_FLUSHED] = target[1]

    def _target(self) -> Position:
        """What a sync that begins now covers: the page's last frame if it can be read whole."""
        words, at = self.words, self._cursor.at
        if not words[_DIRTY]:
            lsn, chain, epoch, segment = words[_APPENDED], words[_CHAIN], words[_EPOCH], words[_SEGMENT]
            header = self._cursor.header
            whole = not words[_DIRTY] and words[_APPENDED] == lsn
            if whole and lsn > at.lsn and header is not None and segment == header.first_lsn:
                return Position(epoch, lsn, chain)
        return at.position

    def _guarded(self, sync: Callable[[], None]) -> None:
        try:
            sync()
        except OSError as error:
            self.poison(str(error))
            raise self.poisoned() from translate(error, "a sync to disk failed", self.store)


def is_poisoned(store: Path, boot_id: str) -> bool:
    """Did a sync of this store fail? A disk that refused to take down so much leaves it to the page."""
    if read_small(store / names.POISON, 1) is not None:
        return True
    return is_page_poisoned(store / names.CONTROL_PAGE, boot_id)
