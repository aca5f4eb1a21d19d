"""Background work of one open store: fold, flush at an interval, refreshes, read views, sealing.

Owns the fold lock and one daemon thread. The same work is done by a node process for stores that no
application has open; whoever holds the fold lock folds, the others go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from fcntl import LOCK_UN, flock
from typing import TYPE_CHECKING, TypeVar

from . import names
from .cache import drop_folded
from .commit import FOLD_ENTRIES, TAIL_ENTRIES_MAX, Durability, Writer
from .cursor import LogCursor
from .errors import (
    BacklogError,
    DivergedError,
    FormatError,
    LockTimeoutError,
    NotPrimaryError,
    PerdureError,
    StorageError,
    StorageFullError,
    StoreMissingError,
)
from .fold import REBUILD_HINT, totals_after, unreadable
from .ids import StatePosition
from .lock import FileLock
from .page import Word
from .ports import Deadline
from .sealing import seal_segment, unsealed_segments
from .sweeping import Sweeper
from .view import FoldPlan, View

if TYPE_CHECKING:
    from .opening import Opened, OpenOptions

TICK_S = 0.1
FOLD_IDLE_TICKS = 10
KEY_TICKS = 10
"""A rotated key file is noticed within so many ticks."""
TOUCH_TICKS = 5
DROP_TICKS = 10
SEAL_AGAIN_S = 10.0
"""A segment that cannot be sealed is read again this often."""
RENEW_TICKS = 20
"""A read view is renewed at least so often, which is when a back end looks after its readers."""
T = TypeVar("T")


class Keeper:
    """What keeps one handle of a store in order."""

    def __init__(self, opened: Opened, options: OpenOptions, flush_touches: Callable[[], None]) -> None:
        self._opened = opened
        self._options = options
        self._view = opened.view
        self._log = opened.log
        self._flush_touches = flush_touches
        self._writer: Writer | None = None
        self._fold_lock = opened.fold_lock()
        self._seal_lock = FileLock(opened.store / names.FOLD_LOCK)
        self._fold_threads = opened.view.fold_threads
        self._fold_at = FOLD_ENTRIES
        self._diverged_at: StatePosition | None = None
        """The state on which the tail did not come out as the frames say. The view has a new object for
        another one, and for one that was mended."""
        self._sweeper = Sweeper(opened, options, self._fold_lock, self._fold_threads, self._fold)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._sealed_before = 0
        self._seal_error: PerdureError | None = None
        self._seal_again_s = 0.0
        self.last_error: Exception | None = None
        """The newest failure of background work; None once it succeeds again."""
        self.refresh_keys: Callable[[], object] | None = None
        """Looks whether the key file was rotated, where there is one."""

    def start(self, writer: Writer) -> None:
        self._writer = writer
        self._thread = threading.Thread(target=self._run, name="perdure-keeper", daemon=True)
        self._thread.start()

    def stop(self) -> Exception | None:
        """End the thread and do its last work: refreshes, flush, fold.

        Answers why the flush that durability "interval" promised failed, None if it did not.
        """
        if self._thread is None:
            return None
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._thread = None
        failed = None
        for work in (self._flush_touches, self._flush_last, self._sync_mark, self.fold_now):
            try:
                work()
            except Exception as error:  # noqa: BLE001 - each of them is tried, and closing goes on
                self.last_error = error
                if work == self._flush_last and self._options.durability is Durability.INTERVAL:
                    failed = error  # with "disk" every call that could be concerned was told
        with self._fold_threads:
            self._fold_lock.close()
            self._seal_lock.close()
        return failed

    def _flush_last(self) -> None:
        if self._options.durability > Durability.OS:
            self._log.flush(self._log.cursor.at.lsn)

    def _sync_mark(self) -> None:
        self._log.flusher.sync_mark(at_once=True)

    # -- folding ---------------------------------------------------------------------------------

    def after_append(self) -> None:
        """Fold if the tail has grown to its limit and nobody else is folding. Never raises."""
        if len(self._view.tail) >= self._fold_at:
            self._fold_if_free()

    def make_room(self) -> None:
        """Fold, or wait for who folds, until the tail is below its hard limit.

        Raises what the fold raises, or BacklogError past the write deadline.
        """
        deadline = time.monotonic() + self._options.write_timeout_ms / 1000
        while len(self._view.tail) > TAIL_ENTRIES_MAX:
            self._fold_if_free()
            if isinstance(self.last_error, StorageFullError):
                raise self.last_error
            if time.monotonic() > deadline:
                raise BacklogError(
                    f"more than {TAIL_ENTRIES_MAX} sessions wait to be folded into the state",
                    path=self._opened.state_path,
                    hint="Nothing was written. See whether the process that folds hangs.",
                ) from self.last_error
            time.sleep(0.001)

    def fold_now(self) -> int:
        """Fold the visible tail; answers the LSN that the state then holds.

        Raises LockTimeoutError if another process folds past the deadline, StorageError, CorruptError, or
        DivergedError on a replica whose state is not what the frames were written on.
        """

        def fold() -> int:
            self._fold()
            return self._view.state.lsn

        return self.under_fold_lock(fold)

    def under_fold_lock(self, work: Callable[[], T]) -> T:
        """What `work` answers; nobody else folds meanwhile.

        Raises LockTimeoutError, ReentrantWriteError inside an update function, and as `work` does.
        """
        self._log.words[Word.FOLDED]  # raises if the handle was closed, or is a parent's
        if self._writer is not None:
            self._writer.refuse_reentry()  # a sweep holds this lock while it waits to write
        with self._fold_threads:
            self._fold_lock.check_open()  # another thread may have closed the store meanwhile
            try:  # also around the lock: to release what is not held does nothing, and a C call is never
                # broken off at its beginning
                self._fold_lock.acquire(self._options.write_timeout_ms)
                return work()
            finally:
                flock(self._fold_lock.descriptor, LOCK_UN)

    def _fold_if_free(self) -> None:
        if self._fold_threads.locked():
            return
        with self._fold_threads:
            if self._fold_lock.descriptor < 0:
                return  # another thread has closed the store, and folded
            try:
                if self._fold_lock.try_acquire():
                    if self._has_to_fold():
                        self._fold()
                    self.last_error = None
                else:
                    self._drop_folded()
            except Exception as error:  # noqa: BLE001 - the caller's write stands; this is not its failure
                self.last_error = error
                self._fold_at = len(self._view.tail) + FOLD_ENTRIES
            finally:
                flock(self._fold_lock.descriptor, LOCK_UN)

    def _fold(self, due: Sequence[Deadline] = ()) -> FoldPlan | None:
        """Fold what is visible, and disarm what is `due` (see View.fold_plan); answers what was written."""
        view = self._view
        with view.mutex:
            plan = view.fold_plan(due)
            if plan is not None:
                try:
                    check_plan(view, plan)
                except DivergedError:
                    self._diverged_at = view.state
                    raise
                self._opened.backend.fold(*plan)
                view.folded(plan.position)
            self._fold_at = FOLD_ENTRIES
            return plan

    def _has_to_fold(self) -> bool:
        """Not if others that reached the limit at the same time have left little of it."""
        view = self._view
        if view.folded_lsn() <= view.state.lsn:
            return True
        self._drop_folded()
        return len(view.tail) >= FOLD_ENTRIES // 2

    def _drop_folded(self) -> None:
        """Another process folds: drop from the tail map what it has done, and come back later."""
        view = self._view
        with view.mutex:
            view.release()
            view.refresh()
            self._fold_at = len(view.tail) + FOLD_ENTRIES // 2

    # -- sweeping --------------------------------------------------------------------------------

    def sweep(self, limit: int | None) -> int:
        """Expire what is due, at most `limit` sessions, as logged events; answers how many."""
        self._flush_touches()
        self.fold_now()
        return 0 if self._writer is None else self._sweeper.sweep(self._writer, limit)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        tick = 0
        while not self._stopping.wait(TICK_S):
            tick += 1
            try:
                self._opened.clock.tick(is_primary=self._log.is_primary)
                self._tick(tick)
                self.last_error = None
            except (LockTimeoutError, NotPrimaryError):
                continue
            except Exception as error:  # noqa: BLE001 - what is tried again at the next tick must not end
                self.last_error = error

    def _tick(self, tick: int) -> None:
        self._flush_if_due()  # first: nothing else that fails may keep it from being done
        view = self._view
        with view.mutex:
            view.catch_up()
            view.advance()
            view.release()
            if len(view.tail) >= FOLD_ENTRIES // 2 or tick % RENEW_TICKS == 0:
                view.refresh()
        self._log.flusher.drop_retired()
        self._log.flusher.sync_mark()
        if tick % TOUCH_TICKS == 0:
            self._flush_touches()
        if tick % FOLD_IDLE_TICKS == 0 and view.tail and view.state is not self._diverged_at:
            self._fold_if_free()
        try:
            if self._log.identity.is_cache:
                self._drop_log(tick)
            else:
                self._seal()
        finally:  # an old segment that is damaged keeps no session from being swept
            if self._writer is not None:
                self._sweeper.tick(self._writer)
            if self.refresh_keys is not None and tick % KEY_TICKS == 0:
                self.refresh_keys()

    def _flush_if_due(self) -> None:
        """What durability "interval" promises; tried again at every tick until it is done."""
        writer, words = self._writer, self._log.words
        if writer is None or self._options.durability <= Durability.OS:
            return
        now_ms = time.monotonic_ns() // 1_000_000
        if not writer.dirty_since_ms and words[Word.APPENDED] > words[Word.FLUSHED]:
            writer.dirty_since_ms = now_ms  # another process appended that, and may have died since
        since_ms = writer.dirty_since_ms
        if since_ms and now_ms - since_ms + TICK_S * 1000 >= self._options.interval_ms:
            writer.dirty_since_ms = 0  # before: a write during the flush counts anew
            try:
                self._log.flush(self._log.cursor.at.lsn)
            except BaseException:
                writer.dirty_since_ms = since_ms
                raise

    def _seal(self) -> None:
        """Seal segments that were left behind: flush up to their end, then write the footer.

        What failed is not tried again, and read anew, at each tick; but it is raised again.
        """
        log = self._log
        header = log.cursor.header
        if header is None or header.first_lsn == self._sealed_before:
            return
        if self._seal_error is not None and time.monotonic() < self._seal_again_s:
            raise self._seal_error.with_traceback(None)
        if self._fold_threads.locked():
            return
        with self._fold_threads:
            try:
                if self._seal_lock.try_acquire():
                    self._seal_error = None
                    seal_all(log.cursor, lambda: log.flush(log.cursor.at.lsn))
                    self._sealed_before = header.first_lsn
            except (FormatError, StorageError) as error:
                self._seal_error, self._seal_again_s = error, time.monotonic() + SEAL_AGAIN_S
                raise
            finally:
                flock(self._seal_lock.descriptor, LOCK_UN)

    def _drop_log(self, tick: int) -> None:
        """In a cache: drop what the state holds, now and then."""
        if tick % DROP_TICKS or self._fold_threads.locked():
            return
        with self._fold_threads:
            try:
                if self._seal_lock.try_acquire():
                    drop_folded(self._log.cursor.log, self._view.state.lsn)
            finally:
                flock(self._seal_lock.descriptor, LOCK_UN)


def check_plan(view: View, plan: FoldPlan) -> None:
    """On a replica: will the state with this plan have the digest that the last frame says?

    If it will not, the caller folds nothing: the node's folder looks at each frame, and finds which it is.
    Not asked of a primary, which writes on its own state; nor of what it received as a replica and had not
    folded. Raises DivergedError, and CorruptError for a state that cannot be read. The read view is the one
    that the plan was made over.
    """
    if view.log.is_primary:
        return
    state, after, backend = view.state, plan.position, view.backend
    try:
        found = totals_after(backend.get, state.digest, state.session_count, plan.changes)
    except backend.engine_errors as error:
        raise unreadable(error) from error
    if found != (after.digest, after.session_count):
        raise DivergedError(
            f"with the frames behind LSN {state.lsn} the sessions have digest {found[0]:016x} and count "
            f"{found[1]}, the frame at LSN {after.lsn} says {after.digest:016x} and {after.session_count}",
            path=view.log.store,
            lsn=after.lsn,
            hint=REBUILD_HINT,
        )


def seal_all(cursor: LogCursor, flush: Callable[[], None]) -> int:
    """Seal every segment that another one follows; answers how many.

    The caller holds the fold lock, and not the write lock. Raises as `flush`, CorruptError, StorageError, and
    LockTimeoutError if the write lock was not free in time: then some are left.
    """
    files = unsealed_segments(cursor.log)
    if not files:
        return 0
    flush()
    reader = LogCursor(cursor.log, cursor.cluster_id, cursor.key, cursor.shard)
    write_lock = FileLock(cursor.log.parent / names.WRITE_LOCK)
    try:
        for file in files:
            try:
                seal_segment(reader, file, write_lock)
            except StoreMissingError:
                continue  # it was dropped, or cut off, meanwhile
    finally:
        write_lock.close()
        reader.close()
    return len(files)
