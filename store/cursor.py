"""Reading the log: segments on disk, and a cursor that follows them frame by frame.

Owns how segments are listed, opened and followed. A cursor checks every frame against the one before
it (chain, LSN, epoch); it never repairs. What a bad tail means is judged elsewhere (see tail).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from . import names
from .ahead import end_of_bytes
from .errors import CorruptError, ForeignError, PositionGoneError
from .event import Event, decode_events
from .files import translated
from .fold import Fold
from .fold_frames import Folded, fold_frames
from .frame import HEADER_BYTES as FRAME_HEADER_BYTES
from .frame import Frame, Verdict, decode_frame, frame_checked, scan_frames, unpack_header
from .ids import Position, StatePosition
from .segment import (
    FOOTER_MAGIC,
    HEADER_BYTES,
    SegmentFooter,
    SegmentHeader,
    read_footer,
    read_header,
    seek,
)

READ_BYTES = 256 << 10
EVERYTHING = (1 << 64) - 1


T = TypeVar("T")
Take: TypeAlias = "Callable[[bytes, int], tuple[T | None, Verdict]]"
"""(bytes that follow the cursor, last LSN to take) -> (what was taken, what stands behind that)."""


class SegmentFile(msgspec.Struct, frozen=True):
    """A segment as its name says."""

    first_lsn: int
    epoch: int
    path: Path


class Run(msgspec.Struct, frozen=True):
    """Consecutive frames as they stand in one segment.

    `data[start:end]` is the frames byte for byte; `frames` gives each with its offset in `data`, or, of
    a sparse cursor, the first and the last.
    """

    data: bytes
    frames: list[tuple[int, Frame]]

    @property
    def raw(self) -> bytes:
        start = self.frames[0][0]
        offset, last = self.frames[-1]
        return self.data[start : offset + last.size_bytes]

    def payload(self, offset: int, frame: Frame) -> bytes:
        start = offset + FRAME_HEADER_BYTES
        return self.data[start : start + frame.payload_bytes]

    def events(self, offset: int, frame: Frame) -> list[Event]:
        return decode_events(self.payload(offset, frame), frame.event_count)


def list_segments(log: Path) -> list[SegmentFile]:
    """The segments of a log directory, by first LSN, then epoch."""
    with translated("cannot list the log", log):
        found = [(names.parse_segment_name(name), name) for name in os.listdir(log)]
    files = [SegmentFile(parsed[0], parsed[1], log / name) for parsed, name in found if parsed]
    return sorted(files, key=lambda file: (file.first_lsn, file.epoch))


class LogCursor:
    """A place in the log of one directory, from which frames are read on.

    `at` is the state position of the last frame read; `offset` (bytes) is where the next one begins
    in the segment that `descriptor` has open, for reading alone unless `is_writable`. `retired` holds
    descriptors of segments that were read to their end, until someone takes them.
    """

    def __init__(
        self, log: Path, cluster_id: bytes, key: int, shard: int = 0, *, is_writable: bool = True
    ) -> None:
        self.log = log
        self.is_writable = is_writable
        self.cluster_id = cluster_id
        self.key = key
        self.shard = shard
        self.descriptor = -1
        self.path = log
        self.header: SegmentHeader | None = None
        self.offset = 0
        self.last_frame = 0
        self.at = StatePosition(0, 0, 0, 0, 0)
        self.time_ms = 0
        self.keep_retired = False
        self.is_sparse = False
        """Check every frame, but decode only the first and the last of a run: half the work."""
        self.retired: list[tuple[int, int]] = []

    def open_segment(self, file: SegmentFile) -> None:
        """Go to the start of a segment, whatever was read before.

        Raises CorruptError, ForeignError, FormatVersionError or StorageError, each with the path.
        """
        with translated("cannot open a segment", file.path):
            access = os.O_RDWR if self.is_writable else os.O_RDONLY
            descriptor = os.open(file.path, access | os.O_CLOEXEC)
        try:
            header = read_header(descriptor, path=str(file.path))
            self._check_header(header, file)
        except BaseException:
            os.close(descriptor)
            raise
        self._close_descriptor()
        self.descriptor, self.header, self.path = descriptor, header, file.path
        self.offset, self.last_frame = HEADER_BYTES, 0
        self.at = header.previous

    def footer(self) -> SegmentFooter | None:
        """The footer of the open segment, None if it is not sealed."""
        return read_footer(self.descriptor, path=str(self.path))

    def seek(self, lsn: int) -> None:
        """Go to the start of the frame that holds LSN `lsn` + 1, in whatever segment that is.

        Raises PositionGoneError if the log does not reach back to it or does not go up to `lsn`.
        """
        self.approach(lsn)
        while self.at.lsn < lsn and self.advance(self._take_ends, lsn, READ_BYTES) is not None:
            pass
        if self.at.lsn != lsn:
            raise PositionGoneError(
                f"LSN {lsn} is not the end of a frame of this log, which is at {self.at.lsn} here",
                path=self.path,
                lsn=lsn,
            )

    def approach(self, lsn: int) -> None:
        """Go to the last frame at or before LSN `lsn` + 1 that segments and their indexes lead to.

        Reading on up to `lsn` completes what seek() does, in steps. Raises PositionGoneError if the log
        does not reach back to it.
        """
        files = [file for file in list_segments(self.log) if file.first_lsn <= lsn + 1]
        if not files:
            raise PositionGoneError(
                f"the log no longer holds LSN {lsn + 1}",
                path=self.log,
                lsn=lsn + 1,
                hint="Start from a snapshot.",
            )
        self.open_segment(files[-1])
        footer = self.footer()
        if footer and footer.index:
            self.jump(seek(footer.index, lsn + 1))

    def read(self, upto_lsn: int = EVERYTHING, limit_bytes: int = READ_BYTES) -> Run | None:
        """The next frames whose last LSN is at most `upto_lsn`; None if there are none.

        At least one frame even if it is over `limit_bytes`. Raises CorruptError at a frame that is
        damaged or does not follow, with the path and offset; `at` then stands before it.
        """
        return self.advance(self._take_ends if self.is_sparse else self._take, upto_lsn, limit_bytes)

    def fold(
        self,
        fold: Fold,
        upto_lsn: int = EVERYTHING,
        upto_ms: int | None = None,
        limit_bytes: int = READ_BYTES,
    ) -> Folded | None:
        """Fold the next frames, as read() would answer them, that are not later than `upto_ms`.

        `fold` must stand at `at`. None if there are none. Raises as read(), and as fold_frames().
        """
        latest_ms = EVERYTHING if upto_ms is None else upto_ms

        def take(data: bytes, upto_lsn: int) -> tuple[Folded | None, Verdict]:
            folded = fold_frames(
                data,
                fold,
                key=self.key,
                shard=self.shard,
                epoch=self.header.epoch if self.header else 0,
                lsn=self.at.lsn,
                chain=self.at.chain,
                upto_lsn=upto_lsn,
                upto_ms=latest_ms,
                path=self.path,
            )
            if folded.frame is None:
                return None, folded.verdict
            self.pass_frames(folded.last, folded.frame)
            return folded, folded.verdict

        return self.advance(take, upto_lsn, limit_bytes)

    def advance(self, take: Take[T], upto_lsn: int, limit_bytes: int) -> T | None:
        """What `take` makes of the bytes behind the last frame, from whatever segment they are in.

        It is called until it takes something, which moves the cursor, or nothing is left to take: None.
        """
        while self.at.lsn < upto_lsn:
            if self.descriptor < 0:  # the log was empty when this cursor came
                if not self._next_segment():
                    return None
                self.enter_next()
            data = os.pread(self.descriptor, limit_bytes, self.offset)
            taken, verdict = take(data, upto_lsn)
            if taken is not None:
                return taken
            if verdict is Verdict.OK:
                return None
            need = self._size_claimed(data) if verdict is Verdict.SHORT else 0
            if need > limit_bytes:
                limit_bytes = need
                continue
            # What stands behind the last frame of a segment, a footer or half of one, hides no frame if
            # the next segment follows by LSN and chain; enter_next() checks that.
            if self._next_segment():
                self.enter_next()
                continue
            if verdict is not Verdict.BAD or data[:8] == FOOTER_MAGIC or self._is_unwritten(data):
                return None
            if data != os.pread(self.descriptor, limit_bytes, self.offset):
                continue  # a writer came between two looks at the space ahead
            raise self._damaged("a frame is damaged or does not follow the one before it")
        return None

    def runs(self, upto_lsn: int = EVERYTHING, limit_bytes: int = READ_BYTES) -> Iterator[Run]:
        """All runs up to `upto_lsn` or the end."""
        while run := self.read(upto_lsn, limit_bytes):
            yield run

    def peek(self, limit_bytes: int) -> bytes:
        """The bytes that follow in the open segment."""
        return os.pread(self.descriptor, limit_bytes, self.offset) if limit_bytes > 0 else b""

    def pass_frames(self, offset: int, last: Frame) -> None:
        """Go behind a frame that stands `offset` bytes further on. The caller has checked all up to there."""
        self.last_frame = at = self.offset + offset
        self.offset = at + FRAME_HEADER_BYTES + last.payload_bytes
        self.at, self.time_ms = last.state_position, last.time_ms

    def enter_next(self) -> None:
        """Go on in the segment that begins with the next LSN; it must follow by chain."""
        file = self._next_segment()
        if file is None:
            raise PositionGoneError(
                f"no segment begins with LSN {self.at.lsn + 1}", path=self.log, lsn=self.at.lsn + 1
            )
        before = self.at
        self.open_segment(file)
        if self.at != before:
            raise CorruptError(
                f"the segment does not follow the one before it: it says {self.at.position}, "
                f"the log stood at {before.position}",
                path=self.path,
                offset=0,
                lsn=self.at.lsn + 1,
            )

    def close(self) -> None:
        self._close_descriptor()
        while self.retired:
            os.close(self.retired.pop()[1])

    def _close_descriptor(self) -> None:
        """Retire it where that is wanted: another thread may be syncing it at this moment."""
        descriptor = self.descriptor
        if descriptor >= 0 and self.keep_retired:
            self.retired.append((self.at.lsn, descriptor))  # first: it is always among them, or the open one
            self.descriptor = -1
        elif descriptor >= 0:
            self.descriptor = -1
            os.close(descriptor)

    def _check_header(self, header: SegmentHeader, file: SegmentFile) -> None:
        if header.cluster_id != self.cluster_id or header.shard != self.shard:
            raise ForeignError(
                f"the segment belongs to cluster {header.cluster_id.hex()} shard {header.shard}, "
                f"this store to {self.cluster_id.hex()} shard {self.shard}",
                path=file.path,
                hint="Put it back where it came from.",
            )
        if header.first_lsn != file.first_lsn or header.epoch != file.epoch:
            raise CorruptError(
                f"the segment begins with LSN {header.first_lsn} of epoch {header.epoch}, "
                "its name says otherwise",
                path=file.path,
                lsn=file.first_lsn,
                hint="Was it renamed or copied over another?",
            )

    def jump(self, offset: int) -> None:
        """Go to a frame in the open segment, by its own word for what is before it."""
        if offset == HEADER_BYTES:
            return
        data = os.pread(self.descriptor, READ_BYTES, offset)
        verdict, frame = decode_frame(data, 0, self.key)
        if verdict is Verdict.SHORT:
            data = os.pread(self.descriptor, self._size_claimed(data), offset)
            verdict, frame = decode_frame(data, 0, self.key)
        if frame is None:
            raise CorruptError("the index points to no frame", path=self.path, offset=offset)
        self.offset = offset
        self.at = StatePosition(frame.epoch, frame.first_lsn - 1, frame.previous_chain, 0, 0)

    def _take(self, data: bytes, upto_lsn: int) -> tuple[Run | None, Verdict]:
        frames: list[tuple[int, Frame]] = []
        start = 0
        lsn, chain = self.at.lsn, self.at.chain
        key, epoch = self.key, self.header.epoch if self.header else 0
        while True:
            verdict, frame = decode_frame(data, start, key)
            if frame is None:
                break
            if frame.first_lsn != lsn + 1 or frame.previous_chain != chain or frame.epoch != epoch:
                verdict = Verdict.BAD
                break
            if frame.last_lsn > upto_lsn:
                break
            frames.append((start, frame))
            start += FRAME_HEADER_BYTES + frame.payload_bytes
            lsn, chain = frame.first_lsn + frame.event_count - 1, frame.chain
        return self._run(data, frames), verdict

    def _take_ends(self, data: bytes, upto_lsn: int) -> tuple[Run | None, Verdict]:
        scan = scan_frames(
            data,
            0,
            key=self.key,
            shard=self.shard,
            epoch=self.header.epoch if self.header else 0,
            lsn=self.at.lsn,
            chain=self.at.chain,
            upto_lsn=upto_lsn,
        )
        at = scan.last
        if at < 0:
            return None, scan.verdict
        last = frame_checked(data, at)
        self.pass_frames(at, last)
        frames = [(0, frame_checked(data, 0)), (at, last)] if at else [(0, last)]
        return Run(data, frames), scan.verdict

    def _run(self, data: bytes, frames: list[tuple[int, Frame]]) -> Run | None:
        """The run of these frames, with the cursor moved behind them; None if there are none."""
        if not frames:
            return None
        self.pass_frames(*frames[-1])
        return Run(data, frames)

    def _is_unwritten(self, data: bytes) -> bool:
        """Is `data`, which follows, nothing, or a frame that was not written to its last byte?

        In space that was allocated ahead zeros take the place of the end of the file, and a frame that is
        being written at this moment ends in them.
        """
        behind = self.offset + len(data)
        if end_of_bytes(self.descriptor, behind) > behind:
            return False
        used = len(data.rstrip(b"\0"))
        is_header = decode_frame(data[:FRAME_HEADER_BYTES], 0, self.key)[0] is Verdict.SHORT
        claimed = self._size_claimed(data) if is_header else FRAME_HEADER_BYTES
        return not used or used < claimed < os.fstat(self.descriptor).st_size - self.offset

    def _size_claimed(self, data: bytes) -> int:
        """Bytes that the frame at the start of `data` says it has, 0 if it does not get that far."""
        if len(data) < FRAME_HEADER_BYTES:
            return 0
        return FRAME_HEADER_BYTES + int(unpack_header(data)[5])

    def _next_segment(self) -> SegmentFile | None:
        """The segment that begins with the next LSN.

        A crash may leave two that begin there, neither with a frame: the one of the higher epoch counts. Its
        reader goes back only once that has been removed.
        """
        files = list_segments(self.log)
        following = [file for file in files if file.first_lsn == self.at.lsn + 1 and file.path != self.path]
        if not following:
            return None
        header, last = self.header, following[-1]
        is_behind = header is not None and header.first_lsn == last.first_lsn and header.epoch > last.epoch
        return None if is_behind and any(file.path == self.path for file in files) else last

    def _damaged(self, message: str) -> CorruptError:
        return CorruptError(
            message,
            path=self.path,
            offset=self.offset,
            lsn=self.at.lsn + 1,
            hint="`perdure verify` says how much is affected; a replica or an archive has it intact.",
        )


def find_frame_end(cursor: LogCursor, position: Position) -> bool:
    """Is `position` the end of a frame of the cursor's log? Leaves the cursor behind it if so."""
    try:
        cursor.seek(position.lsn)
    except PositionGoneError:
        return False
    return cursor.at.position == position
