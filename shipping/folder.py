"""The folder: the process that folds a replica's log into its state, up to what is committed.

Owns the loop and the words in the control page that say how far the state is. The digest and count of
every frame are checked; at the first that does not come out folding stops for good, and the fault is
recorded. It runs beside the receiver, so that receiving never waits for a fold.

Where each process keeps a state of its own in memory, what is folded here is for that check alone: the
store's readers fold for themselves.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..store import names
from ..store.backends import shares_state
from ..store.cursor import LogCursor, list_segments
from ..store.errors import (
    CorruptError,
    DivergedError,
    LockTimeoutError,
    PositionGoneError,
    StorageFullError,
)
from ..store.identity import read_identity
from ..store.ids import StatePosition
from ..store.keeper import seal_all
from ..store.lock import FileLock
from ..store.opening import load_state
from ..store.page import Word, read_boot_id
from ..store.ports import Backend
from ..store.rebuild import replay
from ..store.state import OWN, mark_state, open_state, set_aside
from ..store.switch import StatePlace, finish_locked
from .faults import Fault, clear_state_fault, read_fault, write_fault
from .nodelog import NodeLog, monotonic_ms, now_ms, open_node_log
from .rebuild import confirm_log_fault

logger = logging.getLogger(__name__)

CHUNK_BYTES: Final = 512 << 10
"""Payload bytes folded in one transaction: about a thousand events."""
FOLD_TIMEOUT_MS: Final = 5_000
POLL_MS: Final = 5
GATHER_EVENTS: Final = 256
GATHER_MS: Final = 100
"""Fewer events than these wait for more, but not longer: readers see them in the tail of the log, and a
transaction for each write would take a core that the receiver needs."""
GATHER_POLL_MS: Final = 20
"""Meanwhile it looks this often."""
SEAL_MS: Final = 1_000
FULL_RETRY_MS: Final = 500
_GENERATION = int(Word.GENERATION)
_COMMITTED = int(Word.COMMITTED)
_FLUSHED = int(Word.FLUSHED)


class Folder:
    """The folder of one node."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._lock = FileLock(store / names.FOLD_LOCK)
        self._node: NodeLog
        self._backend: Backend
        self._cursor: LogCursor
        self._at: StatePosition
        self._place: StatePlace
        self._backend_name: str
        self._generation = -1
        self._sealed_ms = 0
        self._waiting_ms = 0
        """Since when something waits to be folded, monotonic; 0 if nothing does."""
        self._open()

    def run(self, should_stop: Callable[[], bool], wait: Callable[[float], object]) -> None:
        """Fold until `should_stop` says so; `wait` sleeps up to so many seconds.

        Raises DivergedError when the sessions do not come out as a frame says; it is recorded then.
        """
        while not should_stop():
            if self._is_due():
                wait(0 if self.step() else POLL_MS / 1000)
            else:
                wait(GATHER_POLL_MS / 1000)

    def _is_due(self) -> bool:
        """Is there enough to fold, or has it waited long enough, or is there something else to do?"""
        words: Any = self._node.log.words
        waiting = min(words[_COMMITTED], words[_FLUSHED]) - self._at[1]
        if 0 < waiting < GATHER_EVENTS and words[_GENERATION] == self._generation:
            now_ms = monotonic_ms()
            self._waiting_ms = self._waiting_ms or now_ms
            if now_ms - self._waiting_ms < GATHER_MS:
                return False
        self._waiting_ms = 0
        return True

    def step(self) -> bool:
        """Fold what is committed and not folded; says whether there was anything."""
        words: Any = self._node.log.words
        # In this order: a cut raises the generation before anything behind it can be committed.
        upto = min(words[_COMMITTED], words[_FLUSHED])
        if words[_GENERATION] != self._generation:
            self._reopen()
            return True
        if upto <= self._at.lsn:
            if words[Word.FOLDED] < self._at.lsn:  # another process said what it saw before this fold
                words[Word.FOLDED] = self._at.lsn
            self._seal()
            return False
        try:
            self._lock.acquire(FOLD_TIMEOUT_MS)
        except LockTimeoutError as error:
            logger.warning("another process folds: %s", error)
            return False
        try:
            if words[_GENERATION] != self._generation:
                return True  # before the lock was ours: the state may be another one
            return self._fold(upto)
        except StorageFullError as error:
            logger.error("folding waits for space: %s", error)
            self._cursor.close()
            threading.Event().wait(FULL_RETRY_MS / 1000)
            self._cursor = self._node.cursor(is_sparse=False)
            return False
        except DivergedError as error:
            self._diverged(error)
            raise
        finally:
            self._lock.release()

    def close(self) -> None:
        self._cursor.close()
        self._backend.close()
        self._place.close()
        self._node.close()
        self._lock.close()

    # -- folding ---------------------------------------------------------------------------------

    def _fold(self, upto: int) -> bool:
        state = self._backend.refresh()
        if state != self._at:
            self._at = state  # a writer of this node folded meanwhile
            self._cursor.close()
        if upto <= state.lsn:
            return False
        result = replay(
            self._backend,
            self._cursor,
            state,
            upto_lsn=upto,
            chunk_bytes=CHUNK_BYTES,
            on_written=self._publish,
            is_live=True,
        )
        self._backend.release()
        return result.frames > 0

    def _publish(self, at: StatePosition) -> None:
        """Say in the page where the state stands, and where the frame behind it begins."""
        words, cursor = self._node.log.words, self._cursor
        words[Word.FOLDED_SEGMENT], words[Word.FOLDED_OFFSET] = 0, 0
        words[Word.FOLDED] = at.lsn
        if cursor.header is not None and cursor.at == at:
            words[Word.FOLDED_SEGMENT], words[Word.FOLDED_OFFSET] = cursor.header.first_lsn, cursor.offset
        self._at = at

    def _diverged(self, error: DivergedError) -> None:
        logger.critical("this replica has diverged, folding stops: %s", error)
        write_fault(self._store, Fault(error.lsn or self._at.lsn, str(error), now_ms()))

    def _seal(self) -> None:
        """Give the segments that were left behind their footers."""
        at_ms = monotonic_ms()
        if at_ms - self._sealed_ms < SEAL_MS:
            return
        self._sealed_ms = at_ms
        log = self._node.log
        if not self._lock.try_acquire():
            return
        try:
            self._node.skip_ahead()
            if log.cursor.descriptor >= 0:
                seal_all(log.cursor, lambda: log.flush(log.cursor.at.lsn))
        except LockTimeoutError as error:
            logger.warning("sealing waits: %s", error)
        finally:
            self._lock.release()

    # -- opening ---------------------------------------------------------------------------------

    def _reopen(self) -> None:
        """The role, the log or the state may be another one now: begin anew."""
        seen = self._node.log.words[_GENERATION]  # before the look at the state
        if not self._is_same_state():
            self._cursor.close()
            self._backend.close()
            self._place.close()
            self._node.close()
            self._open()
            return
        self._node.log.refresh_role()
        self._cursor.close()  # its segment may have been rewritten by a cut
        self._cursor = self._node.cursor(is_sparse=False)
        self._generation = seen

    def _is_same_state(self) -> bool:
        """Are the state's directory and the log still those that are open?"""
        backend_name = read_identity(self._store).backend
        if backend_name != self._backend_name:
            return False
        if not shares_state(backend_name):
            return not _why_not_in_log(self._node, self._at)
        if not self._place.is_same():
            return False
        self._at = self._backend.refresh()
        self._backend.release()
        return not _why_not_in_log(self._node, self._at)

    def _open(self) -> None:
        node = open_node_log(self._store, [])
        try:
            self._lock.acquire(FOLD_TIMEOUT_MS)
            try:
                node.log.lock_any()
                try:
                    finish_locked(self._store, read_boot_id())
                    generation = node.log.words[_GENERATION]
                    self._backend = self._open_backend(node)
                    # Still under the lock: once it is free, a receiver may put the state aside.
                    self._at = self._backend.refresh()
                    self._backend.release()
                    self._backend_name = read_identity(self._store).backend
                    self._place = StatePlace(self._store)
                    node.log.words[Word.FOLDED] = self._at.lsn
                finally:
                    node.log.unlock()
            finally:
                self._lock.release()
        except BaseException:
            node.close()
            raise
        self._node = node
        self._cursor = node.cursor(is_sparse=False)
        self._generation = generation
        logger.info("folding: state=%s", self._at.position)

    def _open_backend(self, node: NodeLog) -> Backend:
        """The state if it can be trusted and stands in this log, else one made anew."""
        identity, boot_id = read_identity(self._store), read_boot_id()
        backend, verdict = open_state(self._store, identity.backend, identity.cluster_id, boot_id)
        try:
            if verdict.is_trusted:
                why = _why_not_in_log(node, backend.refresh())
                if not why:
                    return backend
                backend.close()
                set_aside(self._store, why)
                backend, verdict = open_state(self._store, identity.backend, identity.cluster_id, boot_id)
            else:
                why = verdict.reason
            logger.log(logging.INFO if verdict is OWN else logging.WARNING, "making the state anew: %s", why)
            load_state(backend, node.log)
            mark_state(
                self._store, backend_name=identity.backend, cluster_id=identity.cluster_id, boot_id=boot_id
            )
            clear_state_fault(self._store)
            node.log.page.bump()  # applications may read the state that was there before
        except BaseException:
            backend.close()
            raise
        return backend


def _why_not_in_log(node: NodeLog, state: StatePosition) -> str:
    """Why a state does not belong to this log; empty if it does."""
    if not state.lsn or not list_segments(node.log.cursor.log):
        return ""
    cursor = node.cursor()
    try:
        cursor.seek(state.lsn)
        if cursor.at.position == state.position:
            return ""
        return f"the state stands at {state.position}, the log has {cursor.at.position} there"
    except PositionGoneError as error:
        return str(error)
    finally:
        cursor.close()


def run_folder(
    store: str | os.PathLike[str],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_ready: Callable[[], object] | None = None,
    lifeline: int | None = None,
) -> None:
    """Fold a node's log up to its commit LSN until `should_stop` says so.

    `lifeline` is a descriptor: the folder ends when its other end is closed. Raises DivergedError when
    this replica's sessions are not what the primary's frames say (recorded, and shown by the status; a
    later call refuses to start until the state was made anew), CorruptError for a damaged log or state.
    """
    path = Path(store)
    read_identity(path)
    fault = read_fault(path)
    if fault:
        raise DivergedError(
            f"folding stopped before: {fault}",
            path=path,
            hint="`perdure repair DIR` makes the state anew if the log is right; else make the replica anew.",
        )
    try:
        folder = Folder(path)
    except CorruptError as error:
        confirm_log_fault(path, error, now_ms())
        raise
    ended = threading.Event()
    poller = select.poll()
    if lifeline is not None:
        poller.register(lifeline, select.POLLIN)

    def wait(seconds: float) -> None:
        if poller.poll(seconds * 1000):
            ended.set()

    try:
        if on_ready is not None:
            on_ready()
        folder.run(lambda: ended.is_set() or should_stop(), wait)
    except CorruptError as error:
        confirm_log_fault(path, error, now_ms())
        raise
    finally:
        folder.close()
