"""Following the event log of one store, as one process does: the write lock, the end, the role.

Owns the write lock, the control page and the process's place at the end of the log. It knows frames
and control events, not sessions: what a frame means is for whoever listens (`on_run`). What is appended,
log.py says.

Invariants: between lock() and unlock() the log is clean and followed to its end; what this process has
followed is what the page's last frame says, or an error names where the log ends before it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import names, turns
from .clock import read_boottime_ms
from .control import ALONE, Config, config_of
from .cursor import READ_BYTES, LogCursor, Run, list_segments
from .errors import (
    CorruptError,
    ForkedError,
    LockTimeoutError,
    NotPrimaryError,
    PerdureError,
    PositionGoneError,
    StoreClosedError,
    StoreMissingError,
)
from .event import decode_events
from .files import pread_exactly, translate
from .flush import Flusher
from .forks import quiet_in_forks
from .frame import HEADER_BYTES as FRAME_HEADER_BYTES
from .frame import Frame, Verdict, cluster_key, decode_frame
from .identity import Identity
from .lock import FileLock
from .page import ControlPage, Word
from .promise import Promise, read_promise
from .role import is_primary, why_not_primary
from .segment import HEADER_BYTES
from .settle import Known, Settled, settle

SEGMENT_BYTES = 64 << 20
LOCK_TIMEOUT_MS = 5_000
DRAIN_POLL_S = 0.0005
"""How often a writer that is held back looks whether it may go on."""
READ_BYTES_MIN = 4096
"""So much is read at once, however little of it is known to be frames."""
NOT_PLAIN_BYTES = 2048
"""How much is read the longer way where frames are not plain: those behind them may be again."""
_APPENDED = int(Word.APPENDED)
_GENERATION = int(Word.GENERATION)
_DIRTY = int(Word.DIRTY)
_END = int(Word.END)
_LAST_FRAME = int(Word.LAST_FRAME)
_CHAIN = int(Word.CHAIN)
_OWNER = int(Word.OWNER)
_TURN = int(Word.TURN)
_LOST_FRAMES = int(Word.LOST_FRAMES)
_DRAINED = int(Word.DRAINED_UNTIL_MS)
_SEGMENT = int(Word.SEGMENT)
_EPOCH = int(Word.EPOCH)
_GIVEN_UP = int(Word.GIVEN_UP)
_ALLOCATED = int(Word.ALLOCATED)
_UNSEEN = -1
_MOVING = -2
"""No generation: frames are being taken, or whoever took them broke off in the middle."""


def is_half_replaced(store: Path) -> bool:
    """A cut of the log, or its replacement, is under way, or a crash left it half done: the page still
    speaks of the old one."""
    return any((store / plan).exists() for plan in (names.CUT_PLAN, names.INSTALL_PLAN, names.REJOIN_PLAN))


_open_logs: weakref.WeakSet[LogFollower] = weakref.WeakSet()


class _Refusing:
    """Stands where the page's words were: every look at them raises."""

    def __init__(self, error: PerdureError) -> None:
        self._error = error

    def __getitem__(self, word: int) -> int:
        raise self._error

    def __setitem__(self, word: int, value: int) -> None:
        raise self._error


class LogFollower:
    """One process's place in a store's log.

    `lock()` and `unlock()` frame every append; between them the log is clean and followed to its end.
    `at` (the cursor's state position) is where this process stands; `on_run` is called, in order, with
    every run of frames that some other process appended, and `on_reset` when the log was cut.
    """

    def __init__(
        self,
        store: Path,
        identity: Identity,
        *,
        boot_id: str,
        now_ms: Callable[[], int],
        lock_timeout_ms: int = LOCK_TIMEOUT_MS,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.store = store
        self.identity = identity
        self.now_ms = now_ms
        self.segment_bytes = segment_bytes
        self.lock_timeout_ms = lock_timeout_ms
        self.key = cluster_key(identity.cluster_id)
        self.config: Config = ALONE
        self.promise = Promise(0, "")
        self.is_primary = False
        self.may_append = False
        """It is primary, and its writers are not held back for a switchover."""
        self.must_roll = False
        self.generation = _UNSEEN
        self.on_run: Callable[[Run], None] | None = None
        self.take_plain: Callable[[int], bool] | None = None
        """Takes what frames up to an LSN it can by itself; says whether it took any."""
        self.on_control: Callable[[], None] | None = None
        self.on_reset: Callable[[], None] | None = None
        self.on_look: Callable[[], bool] | None = None
        """Looks whether the state is still the one that is open, whenever the generation has changed; False
        if it has to look again at the next call."""
        self.looks_long: Callable[[], bool] | None = None
        """Would on_look() make a state anew, which is not to be done under the write lock?"""
        self.settled: Settled | None = None
        self.pid = os.getpid()
        self.mutex = threading.Lock()
        """Held by whoever follows the log or looks at what was followed: threads share one place in it."""
        self.thread_locks = [self.mutex]
        """Locks between threads of this process, which are free in a child: its other threads are gone."""
        if not (store / names.LOG).is_dir():
            raise StoreMissingError("the store has no log", path=store / names.LOG)
        self.write_lock = FileLock(store / names.WRITE_LOCK)
        self.page = ControlPage(store / names.CONTROL_PAGE, boot_id)
        self.words: Any = self.page.words
        self.cursor = LogCursor(names.log_path(store), identity.cluster_id, self.key, identity.shard)
        self.cursor.keep_retired = True
        self.flusher = Flusher(store, self.cursor, self.page, lock_timeout_ms)
        self.thread_locks.append(self.flusher.threads)
        quiet_in_forks(self, self.mutex)
        _open_logs.add(self)

    # -- the write lock --------------------------------------------------------------------------

    def lock(self) -> None:
        """Take the write lock; then the log is clean, followed to its end, and ours to append to.

        Raises LockTimeoutError, NotPrimaryError, FencedError, PoisonedError, CorruptError; the lock is
        not held then.
        """
        self._acquire()
        self.locked()

    def lock_any(self) -> None:
        """As lock(), on a node of any role."""
        if self.words[_TURN] or not self.write_lock.try_acquire():
            self._acquire()
        try:
            words = self.words
            if (
                words[_DIRTY]
                or words[_GENERATION] != self.generation
                or words[_APPENDED] != self.cursor.at[1]
                or words[_END] != self.cursor.offset
            ):
                self._settle_locked()
            words[_OWNER] = self.pid
        except BaseException:
            self.write_lock.release()
            raise

    def locked(self) -> None:
        """The second half of lock(): the lock was taken; release it again if this node may not write."""
        try:
            words = self.words
            if (
                words[_DIRTY]
                or words[_GENERATION] != self.generation
                or words[_APPENDED] != self.cursor.at[1]
                or words[_END] != self.cursor.offset
            ):
                self._settle_locked()
            if not self.may_append:
                self._await_drain()
            words[_OWNER] = self.pid
        except BaseException:
            self.write_lock.release()
            raise

    def _await_drain(self) -> None:
        """Wait, without the write lock, while a switchover holds the writers back; then take it again.

        Raises NotPrimaryError if this node is not primary, or is not any more; LockTimeoutError if it takes
        too long. A drain that nobody ended in time is ended here.
        """
        words = self.words
        deadline = time.monotonic() + self.lock_timeout_ms / 1000
        while not self.may_append:
            until_ms = words[_DRAINED]
            if not self.is_primary or (until_ms == 0 and words[_GENERATION] == self.generation):
                raise self.not_primary()
            if 0 < until_ms <= read_boottime_ms():
                words[_DRAINED] = 0
                self.page.bump()
            elif until_ms:
                self.write_lock.release()
                while words[_DRAINED] == until_ms and words[_GENERATION] == self.generation:
                    if time.monotonic() > deadline:
                        raise LockTimeoutError(
                            f"a switchover held writers back for more than {self.lock_timeout_ms} ms",
                            path=self.store,
                            hint="Try again: the node that takes over, or this one, goes on in a moment.",
                        )
                    if read_boottime_ms() >= until_ms:
                        break
                    time.sleep(DRAIN_POLL_S)
                self._acquire()
            self._settle_locked()

    def _acquire(self) -> None:
        if self.words[_TURN]:
            self.give_way()
        try:
            turns.acquire(self.write_lock, self.words, self.lock_timeout_ms, self._read_on_waiting)
        except OSError as error:
            raise translate(error, "cannot take the write lock", self.write_lock.path) from error

    def _read_on_waiting(self) -> None:
        """Read on, so that little is left to do under the lock."""
        words = self.words
        is_behind = words[_GENERATION] == self.generation and words[_APPENDED] > self.cursor.at.lsn
        if is_behind and self.mutex.acquire(blocking=False):
            try:
                self.follow()
            finally:
                self.mutex.release()

    def give_way(self) -> None:
        """Another writer waited long for the lock: let it go first."""
        turns.give_way(self.words)

    def unlock(self) -> None:
        self.write_lock.release()

    def follow(self) -> None:
        """Read on to the last frame of the page, giving every run to `on_run` or `take_plain`."""
        target = self.words[_APPENDED]
        while self.cursor.at.lsn < target:
            is_plain = self.take_plain is not None and not self.config.sync_replicas
            if is_plain and self._follow_plain(target):
                continue
            if self.read_on(NOT_PLAIN_BYTES if is_plain else READ_BYTES) is None:
                return

    def _follow_plain(self, target: int) -> bool:
        generation, self.generation = self.generation, _MOVING
        taken = self.take_plain is not None and self.take_plain(target)
        self.generation = generation
        return taken

    def read_on(self, limit_bytes: int = READ_BYTES) -> Run | None:
        """One step of follow(): the next run up to the page's last frame, None if there is none.

        None also if the generation changed meanwhile: the role, or the log itself, has to be looked at; and
        while the log is being cut or replaced, which the generation says only at the end.
        Raises CorruptError if the log ends before the page's last frame.
        """
        cursor, words = self.cursor, self.words
        target = words[_APPENDED]
        if cursor.at.lsn >= target:
            return None
        generation = self.generation
        if self.on_run:
            self.generation = _MOVING
        try:
            run = cursor.read(target, self.bytes_ahead(cursor, limit_bytes))
        except PerdureError as error:
            self.generation = generation
            is_gone = isinstance(error, (CorruptError, PositionGoneError, StoreMissingError))
            if is_gone and (is_half_replaced(self.store) or words[_GENERATION] != generation):
                return None
            raise
        if run is None:
            self.generation = generation
            is_replaced = is_half_replaced(self.store)  # before the generation, which grows before that ends
            if is_replaced or words[_GENERATION] != generation:
                return None
            if self.on_reset is not None and self._was_dropped():
                self.on_reset()
                return self.read_on(limit_bytes)
            raise self._ends_early(target)
        self._take(run)
        self.generation = generation
        return run

    def _ends_early(self, target: int) -> CorruptError:
        return CorruptError(
            f"the log ends at LSN {self.cursor.at.lsn}, the control page says {target}",
            path=self.cursor.path,
            offset=self.cursor.offset,
            lsn=self.cursor.at.lsn + 1,
            hint="Frames that were written have gone; do not write on. See `perdure verify`.",
        )

    def bytes_ahead(self, cursor: LogCursor, limit_bytes: int) -> int:
        """`limit_bytes`, or fewer where the frames of the cursor's segment end before: zeros may follow."""
        header, words = cursor.header, self.words
        if header is None or words[_SEGMENT] != header.first_lsn:
            return limit_bytes
        left: int = words[_END] - cursor.offset
        return min(limit_bytes, max(left, READ_BYTES_MIN))

    def _was_dropped(self) -> bool:
        """Did this process stop for so long that what it has not read is in the state, and in no segment?"""
        files = list_segments(self.cursor.log)
        return bool(files) and files[0].first_lsn > self.cursor.at.lsn + 1

    def _take(self, run: Run) -> None:
        """Give a run to whoever listens. If that breaks off, the next look at the log begins it anew."""
        if self.cursor.last_frame - run.frames[-1][0] == HEADER_BYTES:
            self._read_config(run)
            self._judge_role()
        if self.on_run:
            self.generation = _MOVING
            self.on_run(run)

    def _settle_locked(self) -> None:
        """The log is not as this process knows it: put it in order and follow it, under the write lock."""
        words = self.words
        while words[_GENERATION] != self.generation and self.looks_long and self.looks_long():
            self.write_lock.release()
            try:
                with self.mutex:
                    self.refresh_role()
                    self.follow()
            finally:
                self._acquire()
        with self.mutex:  # another thread of this process may be reading on at this very moment
            self._catch_up()

    def _catch_up(self) -> None:
        words = self.words
        if words[_GENERATION] != self.generation:
            self.refresh_role()
        if words[_DIRTY]:
            known = Known(self.identity.node, 0, 0, True, page_lsn=words[_APPENDED])
            self.settle(known)
            self.look_again()
        self.follow()
        target = words[_APPENDED]
        if self.cursor.at.lsn < target:
            raise self._ends_early(target)  # whoever was replacing the log died: nothing is appended to this
        self._enter_tail()

    def _enter_tail(self) -> None:
        """Go on into a tail segment that has no frame yet: who made it died, or had no room for its first."""
        words, cursor = self.words, self.cursor
        header, segment = cursor.header, words[_SEGMENT]
        if header is None or segment != cursor.at.lsn + 1:
            return
        if (header.first_lsn, header.epoch) != (segment, words[_EPOCH]):
            cursor.enter_next()
            self.must_roll = True
            self.look_again()

    def settle(self, known: Known) -> None:
        """Put the end of the log in order (see settle). The caller holds the write lock."""
        generation = self.generation
        self.words[_ALLOCATED] = 0
        settled = settle(self.cursor, self.store, known, self._take)
        self.generation = generation
        self.settled = settled
        self.must_roll = settled.is_sealed or self.cursor.offset == HEADER_BYTES
        if settled.cut_bytes and not known.same_boot:
            self.lost_frames = True
        self.publish_place()

    # -- role ------------------------------------------------------------------------------------

    @property
    def lost_frames(self) -> bool:
        """The log may have lost frames: the boot changed, or a torn tail was cut after a power loss.

        It stands in the page, so that it is true in every process until a new epoch has begun.
        """
        return bool(self.words[_LOST_FRAMES])

    @lost_frames.setter
    def lost_frames(self, value: bool) -> None:
        self.words[_LOST_FRAMES] = int(value)

    def refresh_role(self) -> None:
        """Read again what a changed generation may have changed: poison, cut log, promise, role."""
        self.flusher.check_poison()
        seen = self.words[_GENERATION]  # before the look at the log: what changes behind it is looked at anew
        if self.on_look and not self.on_look():
            seen = _UNSEEN
        if self.generation == _MOVING or not self._still_there():
            self._reopen()
        self.look_again(seen)

    def look_anew(self) -> None:
        """The next call looks at all that a changed generation may have changed."""
        if self.generation != _MOVING:
            self.generation = _UNSEEN

    def take_anew(self) -> None:
        """Frames were passed that nobody took: whoever listens begins again at the next look."""
        self.generation = _MOVING

    def look_again(self, seen: int | None = None) -> None:
        """Read poison, promise, config and role anew; all else was looked at in generation `seen`."""
        self.flusher.check_poison()
        generation = self.words[_GENERATION] if seen is None else seen
        self.promise = read_promise(self.store)
        self.load_config()
        self._judge_role()
        # Last: a thread with the write lock that sees it current appends by the role that it finds.
        self.generation = generation

    def _judge_role(self) -> None:
        header, at = self.cursor.header, self.cursor.at
        self.is_primary = (
            is_primary(header, at.epoch, self.promise, self.identity.node)
            and not self.lost_frames
            and self.words[_GIVEN_UP] != at.epoch
        )
        self.may_append = self.is_primary and not self.words[_DRAINED]

    def not_primary(self) -> NotPrimaryError:
        """Why this node may not write."""
        if self.identity.is_first and not self.cursor.at.lsn:
            return NotPrimaryError(
                "the making of this first primary was broken off",
                node=self.identity.node,
                hint="Run the same `perdure init` again: it completes what is there.",
            )
        return why_not_primary(self.cursor.header, self.promise, self.identity.node)

    # -- the end ---------------------------------------------------------------------------------

    def publish_place(self) -> None:
        """Say in the page where this process stands; the log ends there, cleanly."""
        cursor, words = self.cursor, self.words
        header = cursor.header
        words[_SEGMENT] = header.first_lsn if header else 0
        words[_EPOCH] = header.epoch if header else 0
        words[_END] = cursor.offset
        words[_LAST_FRAME] = cursor.last_frame
        words[_CHAIN] = cursor.at.chain
        words[_APPENDED] = cursor.at.lsn
        words[_DIRTY] = 0

    def close(self) -> None:
        """Give back every descriptor. Nothing is written."""
        if isinstance(self.words, _Refusing):
            return
        self.flusher.wait_idle()
        self._refuse(StoreClosedError("the store was closed", path=self.store))
        self.cursor.close()
        self.flusher.close()
        self.write_lock.close()
        self.page.close()

    def _refuse(self, error: PerdureError) -> None:
        self.words = self.flusher.words = _Refusing(error)

    # -- what stands in the log ------------------------------------------------------------------

    def _read_config(self, run: Run) -> None:
        offset, frame = run.frames[0]
        config = config_of(run.events(offset, frame))
        if config is not None:
            self.config = config

    def load_config(self) -> None:
        """The newest CONFIG: the first frame of the tail segment has it."""
        if self.cursor.descriptor < 0:
            return
        frame, payload = self.frame_at(HEADER_BYTES)
        if frame is not None:
            config = config_of(decode_events(payload, frame.event_count))
            if config is not None:
                self.config = config
        elif self.cursor.offset == HEADER_BYTES:
            self._load_older_config()

    def _load_older_config(self) -> None:
        """A crash left the tail without its first frame: the segment before it has the newest CONFIG."""
        older = [file for file in list_segments(self.cursor.log) if file.first_lsn <= self.cursor.at.lsn]
        if not older:
            return
        reader = LogCursor(
            self.cursor.log, self.identity.cluster_id, self.key, self.identity.shard, is_writable=False
        )
        try:
            reader.open_segment(older[-1])
            run = reader.read(limit_bytes=HEADER_BYTES)
            if run is not None:
                self._read_config(run)
        finally:
            reader.close()

    def _still_there(self) -> bool:
        """Is the last frame that this process followed still where it was?"""
        cursor = self.cursor
        if cursor.descriptor < 0:
            return not list_segments(cursor.log)
        try:
            if not os.path.samestat(os.fstat(cursor.descriptor), os.stat(cursor.path)):
                return False  # a cut rewrites the segment that it ends in
        except FileNotFoundError:
            return False
        if not cursor.last_frame:
            return True
        frame, _ = self.frame_at(cursor.last_frame)
        return frame is not None and frame.chain == cursor.at.chain

    def frame_at(self, offset: int) -> tuple[Frame | None, bytes]:
        head = pread_exactly(self.cursor.descriptor, FRAME_HEADER_BYTES, offset)
        size = self.cursor._size_claimed(head)
        data = pread_exactly(self.cursor.descriptor, min(size, 17 << 20), offset)
        verdict, frame = decode_frame(data, 0, self.key)
        if verdict is not Verdict.OK or frame is None:
            return None, b""
        return frame, data[FRAME_HEADER_BYTES : frame.size_bytes]

    def _reopen(self) -> None:
        """The log was cut or made anew by another process: whoever listens begins again from its state."""
        if list_segments(self.cursor.log) and self.on_reset:
            self.on_reset()


def _after_fork_in_child() -> None:
    for log in list(_open_logs):
        if isinstance(log.words, _Refusing):
            continue
        log._refuse(
            ForkedError(
                "this handle was opened before a fork; it belongs to the parent process",
                path=log.store,
                hint="Open the store anew in the child.",
            )
        )
        for lock in log.thread_locks:
            getattr(lock, "_at_fork_reinit")()  # noqa: B009 - it has no typed name


os.register_at_fork(after_in_child=_after_fork_in_child)
