"""Making the log durable: the fdatasync that all waiters share, then the mark.

Owns the sync lock, the mark, and what a failed sync means: poison, final for the store in every
process until all have closed it. A sync covers everything that any process had appended before it
began, so whoever waits finds its own bytes covered.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from . import names
from .cursor import LogCursor, list_segments
from .errors import PoisonedError, StorageError
from .files import read_small, translate
from .ids import Position
from .lock import FileLock
from .mark import MarkFile
from .page import Word
from .smallfile import publish_small

MARK_SYNC_MS = 1000
POISON_MAGIC = b"PDRPOIS1"
POISON_VERSION = 1
_FLUSHED = int(Word.FLUSHED)
_APPENDED = int(Word.APPENDED)
_DIRTY = int(Word.DIRTY)
_CHAIN = int(Word.CHAIN)
_EPOCH = int(Word.EPOCH)
_SEGMENT = int(Word.SEGMENT)
_POISON = int(Word.POISON)
_COMMITTED = int(Word.COMMITTED)


class Poison(msgspec.Struct, frozen=True):
    """What was said when a sync failed."""

    reason: str
    position: tuple[int, int, int]
    time_ms: int


class Flusher:
    """One process's way to make its log durable."""

    def __init__(self, store: Path, cursor: LogCursor, words: Any, timeout_ms: int) -> None:
        self.store = store
        self.words = words
        self.timeout_ms = timeout_ms
        self._cursor = cursor
        self.threads = threading.Lock()
        self._lock = FileLock(store / names.SYNC_LOCK)
        self.mark = MarkFile(names.log_path(store) / names.MARK, cursor.key)

    def flush(self, lsn: int) -> None:
        """Return once LSN `lsn` is on this node's disk.

        Raises PoisonedError if the sync fails or one failed before, LockTimeoutError if another
        process keeps the sync lock past the deadline.
        """
        words = self.words
        if words[_FLUSHED] >= lsn and not words[_POISON]:
            return
        with self.threads:
            if words[_FLUSHED] >= lsn and not words[_POISON]:
                return
            self._lock.acquire(self.timeout_ms)
            try:
                self.check_poison()
                if words[_FLUSHED] < lsn:
                    self._sync()
                if words[_FLUSHED] < lsn:
                    raise StorageError(f"LSN {lsn} is not in this log any more", path=self.store, lsn=lsn)
            finally:
                self._lock.release()

    def drop_retired(self) -> None:
        """Close segments that were read to their end and that some process has synced."""
        if self._cursor.retired:
            with self.threads:
                self._close_retired(self.words[_FLUSHED])

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

    def sync_mark(self) -> None:
        """Sync the mark if that was not done within the last second."""
        now_ms = time.monotonic_ns() // 1_000_000
        if now_ms - self.words[int(Word.MARK_SYNCED_MS)] >= MARK_SYNC_MS:
            self.words[int(Word.MARK_SYNCED_MS)] = now_ms
            self._guarded(self.mark.sync)

    def close(self) -> None:
        self._lock.close()
        self.mark.close()

    def _sync(self) -> None:
        target = self._target()
        cursor = self._cursor
        # In this order: another thread that moves on to a new segment first puts the old descriptor into
        # `retired`, so that whatever holds bytes up to the target is in one of the two.
        current = cursor.descriptor
        retired = cursor.retired[:]
        for descriptor in {entry[1] for entry in retired} | {current}:
            if descriptor >= 0:
                self._guarded(partial(os.fdatasync, descriptor))
        self._sync_older(target.lsn)
        self.check_poison()
        if target.lsn <= self.words[_FLUSHED]:
            return  # the mark never goes back
        self.publish(target)
        self._close_retired(target.lsn)

    def _sync_older(self, lsn: int) -> None:
        """Sync what nobody has yet of segments before the tail, which this process may never have read."""
        header, flushed = self._cursor.header, self.words[_FLUSHED]
        if header is None or flushed + 1 >= header.first_lsn:
            return
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
        try:
            self.mark.write(target, words[_COMMITTED])
        except OSError as error:
            raise translate(error, "cannot write the mark", self.mark.path) from error
        self.sync_mark()
        if words[_FLUSHED] < target.lsn:
            words[_FLUSHED] = target.lsn

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


def is_poisoned(store: Path) -> bool:
    """Did a sync of this store fail, as far as its directory tells?"""
    return read_small(store / names.POISON, 1) is not None
