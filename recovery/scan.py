"""One segment read on its own, front to back, whatever stands before or behind it.

Owns a second reader of segments, independent of the cursor that the store follows its log with: it
stops at the first bytes that are no frame that follows, says why, and can find where good ones go on.
It holds one window of the file in memory, and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ..store.ahead import end_of_bytes
from ..store.cursor import list_segments
from ..store.errors import CorruptError
from ..store.files import translated
from ..store.frame import FRAME_BYTES_MAX, HEADER_BYTES, MAGIC, Frame, Verdict, cluster_key, decode_frame
from ..store.ids import StatePosition
from ..store.segment import (
    FOOTER_MAGIC,
    SegmentFooter,
    SegmentHeader,
    read_footer,
    read_header,
)
from ..store.segment import HEADER_BYTES as FRAMES_START

WINDOW_BYTES = 1 << 20
_MAGIC_BYTES = MAGIC.to_bytes(4, "little")
_MAGIC_OFFSET = 16


class SegmentScan:
    """An open segment.

    After `frames()` has ended, `at` and `offset` say where: behind the last frame that follows, and
    `problem` why it ended there, None if at the footer or at the end of the file.

    Opening raises CorruptError, ForeignError or FormatVersionError for a bad header, StorageError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with translated("cannot open a segment", path):
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with translated("cannot read a segment", path):
                self.header: SegmentHeader = read_header(self.descriptor, path=str(path))
                self._file_bytes = os.fstat(self.descriptor).st_size
                self.size_bytes = self._used_bytes()
                """Of the file; of one that no other follows, without the zeros at its end."""
        except BaseException:
            os.close(self.descriptor)
            raise
        self.key = cluster_key(self.header.cluster_id)
        self.at: StatePosition = self.header.previous
        self.offset = FRAMES_START
        self.problem: CorruptError | None = None

    def __enter__(self) -> SegmentScan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def footer(self) -> SegmentFooter | None:
        """The footer, None if the file does not end with one. Raises CorruptError if it is damaged."""
        with translated("cannot read a segment", self.path):
            return read_footer(self.descriptor, path=str(self.path))

    def frames(self) -> Iterator[tuple[int, Frame, bytes]]:
        """(offset in the file, frame, payload) of every frame that follows the one before it."""
        window, base = b"", self.offset
        while self.problem is None:
            verdict, frame = decode_frame(window, self.offset - base, self.key)
            if verdict in (Verdict.SHORT, Verdict.END) and base + len(window) < self._file_bytes:
                need = _claimed(window, self.offset - base)
                base = self.offset
                window = self._read(base, max(WINDOW_BYTES, need))
                verdict, frame = decode_frame(window, 0, self.key)
            if frame is None:
                self._stop(verdict, window[self.offset - base : self.offset - base + 8])
                return
            wrong = _misfit(self.at, frame, self.header)
            if wrong:
                self.problem = self._damaged(wrong)
                return
            start = self.offset - base
            found = self.offset
            self.offset += frame.size_bytes
            self.at = frame.state_position
            yield found, frame, window[start + HEADER_BYTES : start + frame.size_bytes]

    def resume_offset(self) -> int | None:
        """Behind where frames() stopped: the offset of the next frame that is good by itself, if any."""
        at = self.offset + 1
        while at < self.size_bytes:
            window = self._read(at, WINDOW_BYTES + FRAME_BYTES_MAX)
            found = window.find(_MAGIC_BYTES)
            while 0 <= found < WINDOW_BYTES:
                start = found - _MAGIC_OFFSET
                if start >= 0 and decode_frame(window, start, self.key)[0] is Verdict.OK:
                    return at + start
                found = window.find(_MAGIC_BYTES, found + 1)
            at += WINDOW_BYTES - _MAGIC_OFFSET
        return None

    def rest(self) -> bytes:
        """Up to a window of what stands behind `offset`."""
        return self._read(self.offset, WINDOW_BYTES)

    def _used_bytes(self) -> int:
        if any(file.first_lsn > self.header.first_lsn for file in list_segments(self.path.parent)):
            return self._file_bytes
        return end_of_bytes(self.descriptor, FRAMES_START)

    def _stop(self, verdict: Verdict, start: bytes) -> None:
        if start == FOOTER_MAGIC or self.offset >= self.size_bytes:
            return
        left = self.size_bytes - self.offset
        if end_of_bytes(self.descriptor, self.offset) == self.offset:
            self.problem = self._damaged(f"{left} bytes of zeros stand where a frame should begin")
        elif verdict is Verdict.SHORT:
            self.problem = self._damaged(f"the file ends {left} bytes into a frame")
        else:
            self.problem = self._damaged("these bytes are no frame, or a damaged one")

    def _damaged(self, message: str) -> CorruptError:
        return CorruptError(message, path=self.path, offset=self.offset, lsn=self.at.lsn + 1)

    def _read(self, offset: int, size: int) -> bytes:
        with translated("cannot read a segment", self.path):
            parts = []
            while size > 0 and (data := os.pread(self.descriptor, size, offset)):
                parts.append(data)
                offset += len(data)
                size -= len(data)
            return b"".join(parts)


def _claimed(window: bytes, start: int) -> int:
    """Bytes that the frame at `start` says it has, 0 if that cannot be read."""
    if len(window) - start < HEADER_BYTES:
        return 0
    size = HEADER_BYTES + int.from_bytes(window[start + 24 : start + 28], "little")
    return size if size <= FRAME_BYTES_MAX else 0


def _misfit(at: StatePosition, frame: Frame, header: SegmentHeader) -> str:
    """Why a frame that is good by itself does not follow `at`, empty if it does."""
    if frame.first_lsn != at.lsn + 1:
        return f"the frame begins with LSN {frame.first_lsn}, {at.lsn + 1} should follow"
    if frame.previous_chain != at.chain:
        return f"the frame follows chain {frame.previous_chain:016x}, the one before it ends {at.chain:016x}"
    if frame.epoch != header.epoch:
        return f"the frame is of epoch {frame.epoch}, its segment of epoch {header.epoch}"
    if frame.shard != header.shard:
        return f"the frame is of shard {frame.shard}, its segment of shard {header.shard}"
    return ""
