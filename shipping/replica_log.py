"""The replica's log: appending what the primary sent, durably, and promising epochs.

Owns the order of a replica's steps: promise, append, sync, acknowledge, all under the node's write
lock, so that a position told with a promise covers every acknowledgement ever sent before it.
"""

from __future__ import annotations

from collections.abc import Callable

from ..store.errors import FencedError, PromiseRefusedError, StorageFullError, WireError
from ..store.files import remove_durably
from ..store.ids import EPOCH_MAX, Position
from ..store.page import Word
from ..store.promise import NO_PROMISE, Promise, read_promise
from .empty_tail import leave_empty_tail
from .frames_in import Piece, split_frames
from .nodelog import NodeLog

_COMMITTED = int(Word.COMMITTED)
_FLUSHED = int(Word.FLUSHED)
_GENERATION = int(Word.GENERATION)
_HEARD_LSN = int(Word.HEARD_LSN)
_HEARD_MS = int(Word.HEARD_MS)


def ignored(_position: Position) -> None:
    """Nobody is told."""


class ReplicaLog:
    """What a receiver does to its node's log."""

    def __init__(self, node: NodeLog) -> None:
        self.node = node
        self._log = node.log
        self._log.is_synced = True
        self._announced_lsn = 0
        self._announcer = NO_PROMISE
        """The primary that said so: it says nothing of the frames of another one."""

    # -- promises --------------------------------------------------------------------------------

    def accept_reign(self, promise: Promise) -> Position:
        """A primary of this epoch ships from now on; answers the end of the log, on disk.

        The epoch is promised to it, durably, before anything else. Raises FencedError if a higher epoch was
        promised before, or this one to another primary (see decide_reign).
        """
        log = self._log
        log.lock_any()
        try:
            held = log.promise
            if promise.epoch != held.epoch or promise.candidate != held.candidate:
                try:
                    log.follow_reign(promise)
                except PromiseRefusedError as error:
                    if promise.epoch > held.epoch:
                        raise  # not over, but absurd
                    raise self.fenced() from error
            if promise != self._announcer:
                self._announced_lsn, self._announcer = 0, promise
            self._sync()
            return log.cursor.at.position
        finally:
            log.unlock()

    def give_promise(self, promise: Promise) -> Position:
        """Promise an epoch to a candidate; answers the end of the log, on disk.

        Raises PromiseRefusedError, naming what was promised before.
        """
        log = self._log
        log.lock_any()
        try:
            log.give_promise(promise)
            self._sync()
            return log.cursor.at.position
        finally:
            log.unlock()

    # -- frames ----------------------------------------------------------------------------------

    def append(
        self,
        reign: Promise,
        batch: list[bytes],
        when_durable: Callable[[Position], object] = ignored,
        *,
        epoch_max: int = EPOCH_MAX,
    ) -> Position:
        """Append what was received and make it durable with one sync; answers the end of the log.

        `when_durable` is told it first, still under the lock: an acknowledgement leaves as early as it may.
        No frame may be of a later epoch than the reign's, or than `epoch_max`.
        Takes from the front of `batch` what was appended. Raises StorageFullError if the disk is full:
        what is in the log by then is durable, and is answered by the next call. Raises FencedError if
        the reign is over, WireError for frames that do not follow.
        """
        log = self._log
        log.lock_any()
        try:
            self._check_reign(reign)
            try:
                while batch:
                    pieces = split_frames(
                        batch[0],
                        log.cursor.at,
                        key=log.key,
                        shard=self.node.identity.shard,
                        epoch_max=min(reign.epoch, epoch_max),
                    )
                    self._append_pieces(pieces, batch)
            finally:
                self._sync()
            position = log.cursor.at.position
            when_durable(position)
            return position
        finally:
            try:
                self.node.clock.not_before(log.cursor.time_ms)
            finally:
                log.unlock()

    def hear_time(self, reign: Promise, primary_ms: int) -> bool:
        """The primary's session time is this, or was a moment ago: it is this node's too.

        Unless the reign is over, which is answered: this process may not have noticed that yet, if the node
        was promoted.
        """
        log = self._log
        held = log.promise if log.words[_GENERATION] == log.generation else read_promise(log.store)
        if (held.epoch, held.candidate) != (reign.epoch, reign.candidate):
            return False
        self.node.clock.follow(max(primary_ms, log.cursor.time_ms))
        return True

    def hear_commit(self, lsn: int, at_ms: int) -> None:
        """A heartbeat that came at `at_ms` (monotonic) says that `lsn` is committed."""
        words = self._log.words
        words[_HEARD_LSN] = lsn
        words[_HEARD_MS] = at_ms

    def commit(self, lsn: int) -> int:
        """The primary says that `lsn` is committed: publish it as far as this log has it on disk.

        Never beyond what was appended here: of what another process of this node, newly promoted, has begun
        since that primary does not speak.
        """
        words = self._log.words
        if lsn > self._announced_lsn:
            self._announced_lsn = lsn
        reached = min(self._announced_lsn, self._log.cursor.at[1], words[_FLUSHED])
        if reached > words[_COMMITTED]:
            words[_COMMITTED] = reached
        return int(words[_COMMITTED])

    def _append_pieces(self, pieces: list[Piece], batch: list[bytes]) -> None:
        for number, piece in enumerate(pieces):
            try:
                if piece.opens:
                    self._open_segment(piece)
                elif self._log.cursor.header is None or (
                    self._log.must_roll and not leave_empty_tail(self._log)
                ):
                    raise WireError(
                        "a frame behind the end of a segment opens none", lsn=piece.first.first_lsn
                    )
                self._log.append_run(piece.run)
            except StorageFullError:
                batch[0] = b"".join(left.run.raw for left in pieces[number:])
                raise
            changed = piece.config is not None and piece.config != self._log.config
            if piece.config is not None:
                self._log.config = piece.config
            if changed or piece.epoch_start is not None:
                self._log.page.bump()
        batch.pop(0)

    def _open_segment(self, piece: Piece) -> None:
        """Roll: the piece's first frame begins a segment."""
        log, first = self._log, piece.first
        header = log.cursor.header
        continues = piece.epoch_start is None and header is not None and header.epoch != first.epoch
        if continues and leave_empty_tail(log):  # the segment of an epoch that never came
            header = log.cursor.header
        if piece.epoch_start is not None:
            primary = piece.epoch_start.node
        elif header is not None and header.epoch == first.epoch:
            primary = header.primary
        else:
            raise WireError(f"epoch {first.epoch} begins without its EPOCH_START", lsn=first.first_lsn)
        is_empty = header is not None and header.first_lsn == first.first_lsn
        if is_empty and header is not None and (header.epoch, header.primary) == (first.epoch, primary):
            return  # it was made before a crash, and nothing got into it
        left_behind = log.cursor.path if is_empty else None
        log.begin_segment(first.epoch, primary, log.now_ms())
        if left_behind is not None and left_behind != log.cursor.path:
            remove_durably(left_behind)

    def _sync(self) -> None:
        log = self._log
        cursor = log.cursor
        if cursor.descriptor >= 0 and cursor.at[1] > log.words[_FLUSHED]:
            log.flusher.flush(cursor.at[1])

    def _check_reign(self, reign: Promise) -> None:
        held = self._log.promise
        if (held.epoch, held.candidate) != (reign.epoch, reign.candidate):
            raise self.fenced()

    def fenced(self) -> FencedError:
        """Why a shipper may not ship here any more."""
        held = read_promise(self.node.store)
        return FencedError(
            f"epoch {held.epoch} is promised to {held.candidate}",
            node=self.node.node,
            hint=f"Only {held.candidate} may ship to this node.",
        )
