"""The event log of one store, as one process writes it: append, roll, begin an epoch, make durable.

Owns what is appended and how. Where this process stands, and whether it may append, is follow.py's.

Invariants: a frame is appended only under the write lock, behind a clean end, by the primary of its
epoch; the page names a frame only after its last byte was written; what is said to be durable was
synced through a descriptor that this process had before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from . import names
from .ahead import STEP_BYTES, allocate_ahead, cut_ahead
from .control import Config, EpochStart, control_payload
from .cursor import Run, SegmentFile
from .errors import PerdureError, UsageError
from .files import remove_durably, sync_directory, translate, translated
from .follow import LOCK_TIMEOUT_MS, SEGMENT_BYTES, LogFollower
from .frame import FRAME_BYTES_MAX, MAGIC, pack_body_header, pack_chain, xxh3_64
from .frame import HEADER_BYTES as FRAME_HEADER_BYTES
from .ids import Position, StatePosition
from .page import Word
from .promise import Promise, give_promise, give_reign
from .sealing import create_segment
from .segment import HEADER_BYTES, SegmentHeader

__all__ = ["LOCK_TIMEOUT_MS", "SEGMENT_AGE_MS", "SEGMENT_BYTES", "EventLog"]

SEGMENT_AGE_MS = 3_600_000
PAYLOAD_BYTES_MAX = FRAME_BYTES_MAX - FRAME_HEADER_BYTES
_APPENDED = int(Word.APPENDED)
_DIRTY = int(Word.DIRTY)
_END = int(Word.END)
_LAST_FRAME = int(Word.LAST_FRAME)
_CHAIN = int(Word.CHAIN)
_FLUSHED = int(Word.FLUSHED)
_GENERATION = int(Word.GENERATION)
_SEGMENT = int(Word.SEGMENT)
_DRAINED = int(Word.DRAINED_UNTIL_MS)
_COMMITTED = int(Word.COMMITTED)
_ALLOCATED = int(Word.ALLOCATED)
_new = tuple.__new__


class EventLog(LogFollower):
    """One process's handle of a store's log.

    One whose writes wait for the disk has space allocated ahead of the frames (see ahead): if
    `is_synced`, which says so of all that is appended here, or if the log's CONFIG asks for replicas.
    """

    is_synced = False

    # -- epochs ----------------------------------------------------------------------------------

    def give_promise(self, asked: Promise) -> Promise:
        """Make a promise durable and fence local writers. The caller holds the write lock."""
        given = give_promise(self.store, asked)
        self.page.bump()
        self.look_again()
        return given

    def follow_reign(self, reign: Promise) -> None:
        """Promise an epoch to the primary that began it (see give_reign). The caller holds the write lock."""
        header = self.cursor.header
        begun = header is not None and header.epoch == reign.epoch
        give_reign(self.store, reign, header.primary if header is not None and begun else "")
        self.page.bump()
        self.look_again()

    def start_epoch(
        self, promise: Promise, config: Config, reason: str, at_risk: tuple[int, int] = (0, 0)
    ) -> Position:
        """Begin this node's reign with a durable EPOCH_START. The caller holds the lock and has counted
        the promises that it needs. `at_risk`: first and last LSN of what may be lost by it.
        """
        give_promise(self.store, promise)
        now_ms = max(self.now_ms(), self.cursor.time_ms)
        self.begin_segment(promise.epoch, self.identity.node, now_ms)
        start = EpochStart(self.identity.node, reason, *at_risk)
        position = self.append_control(start, config, now_ms)
        self.lost_frames = False
        self.words[_DRAINED] = 0  # of the reign before
        self.flusher.flush(position.lsn)
        self.page.bump()
        self.look_again()
        return position

    def change_config(self, config: Config) -> Position:
        """Begin a segment with another CONFIG, in the epoch in force; durable, and in force from its own
        frame on. The caller holds the lock with lock(), and has decided that the change may be made.

        What was acknowledged without replicas stays visible: it is on disk, and said to be committed,
        before a k above 0 is in force.
        """
        words, header = self.words, self.cursor.header
        if header is None:
            raise UsageError("a store without a log has no CONFIG to change")
        if self.config.sync_replicas == 0:
            self.flusher.flush(self.cursor.at.lsn)
            words[_COMMITTED] = max(words[_COMMITTED], self.cursor.at.lsn)
        before = config.before or self.config
        now_ms = max(self.now_ms(), self.cursor.time_ms)
        self.begin_segment(header.epoch, header.primary, now_ms)
        position = self.append_control(None, config, now_ms)
        self.flusher.flush(position.lsn)
        if config.sync_replicas == 0 and before.sync_replicas == 0:
            words[_COMMITTED] = max(words[_COMMITTED], position.lsn)
        self.page.bump()
        self.look_again()
        return position

    # -- appending -------------------------------------------------------------------------------

    def append(
        self, payload: bytes, event_count: int, digest: int, session_count: int, now_ms: int
    ) -> StatePosition:
        """Append one frame; answers where the log then stands.

        The caller holds the lock, and has checked the sizes.
        Raises StorageFullError or StorageError if the bytes could not be written; the log is then as
        it was before, or is settled by whoever locks it next.
        """
        cursor, words = self.cursor, self.words
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise UsageError(f"a frame takes at most {PAYLOAD_BYTES_MAX} bytes, not {len(payload)}")
        epoch, lsn, previous_chain, _, _ = cursor.at
        offset = cursor.offset
        if now_ms < cursor.time_ms:
            now_ms = cursor.time_ms
        body = (
            pack_body_header(
                previous_chain,
                MAGIC,
                0,
                self.identity.shard,
                len(payload),
                event_count,
                epoch,
                0,
                now_ms,
                lsn + 1,
                words[_FLUSHED],
                digest,
                session_count,
            )
            + payload
        )
        chain = xxh3_64(body, previous_chain ^ self.key)
        data = pack_chain(chain) + body
        size = len(data)
        last_lsn = lsn + event_count
        end = _new(StatePosition, (epoch, last_lsn, chain, digest, session_count))
        if (self.is_synced or self.config.sync_replicas) and offset + size > words[_ALLOCATED]:
            self._allocate(offset + size)
        words[_DIRTY] = 1
        try:
            written = os.pwrite(cursor.descriptor, data, offset)
            if written != size:
                self._write_rest(data, offset, written)
        except OSError as error:
            self._undo(offset)
            raise translate(error, "cannot append to the log", cursor.path) from error
        # No call from here on: an exception from a signal must not come between these.
        cursor.offset = offset + size
        cursor.last_frame = offset
        cursor.time_ms = now_ms
        cursor.at = end
        words[_END] = offset + size
        words[_LAST_FRAME] = offset
        words[_CHAIN] = chain
        words[_APPENDED] = last_lsn
        words[_DIRTY] = 0
        return end

    def append_run(self, run: Run) -> None:
        """Append frames of the primary as they are, on a replica. The caller holds the lock and rolls.

        The run must follow `at`; the caller has checked chain and digest of every frame.
        """
        cursor, words = self.cursor, self.words
        start = run.frames[0][0]
        last_offset, last = run.frames[-1]
        data, offset = run.data[start : last_offset + last.size_bytes], cursor.offset
        if (self.is_synced or self.config.sync_replicas) and offset + len(data) > words[_ALLOCATED]:
            self._allocate(offset + len(data))
        words[_DIRTY] = 1
        try:
            written = os.pwrite(cursor.descriptor, data, offset)
            if written != len(data):
                self._write_rest(data, offset, written)
        except OSError as error:
            self._undo(offset)
            raise translate(error, "cannot append to the log", cursor.path) from error
        cursor.offset = offset + len(data)
        cursor.last_frame = offset + last_offset - start
        cursor.time_ms = last.time_ms
        cursor.at = last.state_position
        self.must_roll = False
        self.publish_place()

    def roll_if_due(self, now_ms: int) -> bool:
        """Begin a new segment if the tail is full, old or sealed; says whether. The caller holds the lock."""
        header = self.cursor.header
        if header is None:
            return False
        full = self.cursor.offset >= self.segment_bytes
        old = now_ms - header.created_ms >= SEGMENT_AGE_MS and self.cursor.last_frame > HEADER_BYTES
        if not (full or old or self.must_roll):
            return False
        self.begin_segment(header.epoch, header.primary, now_ms)
        self.append_control(None, self.config, now_ms)
        return True

    def begin_segment(self, epoch: int, primary: str, now_ms: int) -> None:
        """Make a new tail segment and go there. The caller holds the lock and appends its first frame."""
        cursor = self.cursor
        header = SegmentHeader(
            self.identity.cluster_id,
            self.identity.shard,
            epoch,
            self.identity.node,
            primary,
            cursor.at.lsn + 1,
            cursor.at,
            now_ms,
        )
        if cursor.path.name == names.segment_name(header.first_lsn, epoch):
            # A crash left it without a frame, perhaps before its name was durable. Others may have it open.
            with translated("cannot begin a segment", cursor.path):
                sync_directory(cursor.log)
            self.must_roll = True
            self.publish_place()
            return
        self.words[_ALLOCATED] = 0
        self._cut_ahead()
        if cursor.descriptor >= 0:
            # Until the page names the new one: if this breaks off, others would go on in the old one.
            self.words[_DIRTY] = 1
        path = create_segment(cursor.log, header)
        if cursor.offset == HEADER_BYTES:
            remove_durably(cursor.path)  # a crash left it without a frame; the new one takes its place
        if cursor.descriptor >= 0:
            cursor.retired.append((cursor.at.lsn, cursor.descriptor))
            cursor.descriptor = -1
        cursor.open_segment(SegmentFile(header.first_lsn, epoch, path))
        self.must_roll = True  # until its first frame stands
        self.publish_place()

    def append_control(self, start: EpochStart | None, config: Config, now_ms: int) -> Position:
        """Append a segment's first frame. The caller holds the lock."""
        payload, count = control_payload(start, config)
        header = self.cursor.header
        at = self.cursor.at
        if header is not None and at.epoch != header.epoch:
            self.cursor.at = StatePosition(header.epoch, at.lsn, at.chain, at.digest, at.session_count)
        try:
            position = self.append(payload, count, at.digest, at.session_count, now_ms).position
        except BaseException:
            self.cursor.at = at
            raise
        self.must_roll = False
        self.config = config
        if self.on_control:
            with self.mutex:
                self.on_control()
        return position

    # -- durability ------------------------------------------------------------------------------

    def flush(
        self, lsn: int, when_synced: Callable[[], object] | None = None, *, is_writer: bool = False
    ) -> None:
        """Return once LSN `lsn` is on this node's disk; the rest and errors as Flusher.flush."""
        self.flusher.flush(lsn, when_synced, is_writer=is_writer)

    def _write_rest(self, data: bytes, offset: int, written: int) -> None:
        while written < len(data):
            written += os.pwrite(self.cursor.descriptor, data[written:], offset + written)

    def _undo(self, offset: int) -> None:
        """Cut a half-written frame. If even that fails the page stays dirty, and it is settled later."""
        self.words[_ALLOCATED] = 0
        try:
            os.ftruncate(self.cursor.descriptor, offset)
        except OSError:
            return
        self.words[_DIRTY] = 0

    # -- space ahead of the frames ---------------------------------------------------------------

    def _allocate(self, end: int) -> None:
        """Have the next frames, up to the offset `end` at least, written where the file need not grow."""
        words, cursor = self.words, self.cursor
        if not words[_ALLOCATED]:
            with translated("cannot look at a segment", cursor.path):
                words[_ALLOCATED] = os.fstat(cursor.descriptor).st_size
        ahead = min(cursor.offset + STEP_BYTES, self.segment_bytes)
        if words[_ALLOCATED] < end < ahead:
            allocate_ahead(cursor.descriptor, cursor.offset, ahead)
            words[_ALLOCATED] = ahead  # if it was refused, too: the next step is tried behind it

    def _cut_ahead(self) -> None:
        """Before another segment follows the tail: it ends behind its last frame, durably."""
        cursor = self.cursor
        if cursor.descriptor < 0 or cursor.offset == HEADER_BYTES:
            return
        with translated("cannot end a segment", cursor.path):
            is_cut = cut_ahead(cursor.descriptor, cursor.offset)
        if is_cut:
            self.flusher.sync_whole(cursor.descriptor)

    def close(self) -> None:
        """Give back every descriptor, and the space ahead of the frames: who writes on takes it anew."""
        if self.is_synced or self.config.sync_replicas:
            with suppress(PerdureError, OSError, ValueError):
                self._give_back()
        super().close()

    def _give_back(self) -> None:
        """Unless another process writes at this moment, or the log is not clean as this one knows it."""
        words, cursor = self.words, self.cursor
        if cursor.descriptor < 0 or os.fstat(cursor.descriptor).st_size <= cursor.offset:
            return
        if words[_DIRTY] or not self.write_lock.try_acquire():
            return
        try:
            header = cursor.header
            is_tail = header is not None and words[_SEGMENT] == header.first_lsn
            is_end = words[_END] == cursor.offset and words[_APPENDED] == cursor.at.lsn
            if is_tail and is_end and not words[_DIRTY] and words[_GENERATION] == self.generation:
                words[_ALLOCATED] = 0
                cut_ahead(cursor.descriptor, cursor.offset)
        finally:
            self.write_lock.release()
