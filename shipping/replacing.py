"""Changing what is already in a replica's log: what a cut and an installed snapshot share.

Owns the last steps of both: a mark and a control page that say where the log ends now. The caller
holds the log's locks; every other process looks again, because the generation grows.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..store import names
from ..store.errors import FencedError, StoreInUseError
from ..store.files import rename_durably, sync_directory
from ..store.frame import cluster_key
from ..store.identity import Identity
from ..store.ids import Position
from ..store.lock import FileLock
from ..store.log import LOCK_TIMEOUT_MS
from ..store.mark import MarkFile
from ..store.page import ControlPage, Word, read_boot_id
from ..store.promise import Promise, read_promise


class LogLocks:
    """The write lock and the sync lock of a store: nobody appends, and nobody says what is on disk."""

    def __init__(self, store: Path) -> None:
        self._write = FileLock(store / names.WRITE_LOCK)
        self._sync = FileLock(store / names.SYNC_LOCK)

    def acquire(self, timeout_ms: int) -> None:
        """In this order. Raises LockTimeoutError; close() then."""
        self._write.acquire(timeout_ms)
        self._sync.acquire(timeout_ms)

    def close(self) -> None:
        self._sync.close()
        self._write.close()


def lock_log(store: Path, reign: Promise | None = None) -> LogLocks:
    """The locks of a store's log, for a change of its files.

    `reign` is the promise under which that was decided: if this node has given another one since, it may
    have begun an epoch of its own, and what is to be taken off may be what others count on. Without it a
    change that was planned is finished. Raises LockTimeoutError, FencedError.
    """
    locks = LogLocks(store)
    try:
        locks.acquire(LOCK_TIMEOUT_MS)
        if reign is not None:
            held = read_promise(store)
            if (held.epoch, held.candidate) != (reign.epoch, reign.candidate):
                raise FencedError(
                    f"epoch {held.epoch} was promised to {held.candidate} meanwhile: the log stays as it is",
                    path=store,
                    hint=f"Nothing was changed. What was decided in epoch {reign.epoch} is decided anew.",
                )
    except BaseException:
        locks.close()
        raise
    return locks


def set_mark(store: Path, identity: Identity, end: Position, committed_lsn: int) -> None:
    """Make the mark say that the log is on disk up to `end`, durably."""
    log = names.log_path(store)
    mark = MarkFile(log / names.MARK, cluster_key(identity.cluster_id))
    try:
        mark.write(end, committed_lsn)
        mark.sync()
    finally:
        mark.close()
    sync_directory(log)


def renew_page(store: Path, *, committed_lsn: int, keep_folded: bool) -> None:
    """Write the control page anew: every process finds the end of the log by its files.

    A poisoned store stays one: what other processes have open may be lost, whatever log it is now.
    """
    page = ControlPage(store / names.CONTROL_PAGE, read_boot_id())
    try:
        is_current = page.is_current()
        folded = page.words[Word.FOLDED] if keep_folded and is_current else 0
        poison = page.words[Word.POISON] if is_current else 0
        page.reset()
        if poison:  # else it stays as it is: a sync may have failed since
            page.words[Word.POISON] = poison
        page.words[Word.COMMITTED] = committed_lsn
        page.words[Word.FOLDED] = folded
        page.words[Word.DIRTY] = 1  # whoever takes the write lock next finds the log's end by its files
        page.adopt()
        page.bump()
    finally:
        page.close()


def check_unplanned(store: Path, plan: str) -> None:
    """Raise StoreInUseError while a plan stands: it needs the files that are about to be written anew."""
    if (store / plan).exists():
        raise StoreInUseError(
            "a change of this node's log was begun and not completed, and nothing else is begun before that",
            path=store / plan,
            hint="The node's receiver completes it when it starts.",
        )


def move_if_there(source: Path, target: Path) -> bool:
    """Rename durably; False if `source` is not there (any more)."""
    if not os.path.lexists(source):
        return False
    rename_durably(source, target)
    return True
