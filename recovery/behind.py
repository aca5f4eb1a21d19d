"""How far something is behind a log: records, bytes, and the age of the oldest record that it lacks.

Owns that measure. It is read from the log's own files, so that it is right however long a replica has been
away, and nothing is locked or changed.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ..store.ahead import bytes_of
from ..store.cursor import SegmentFile, list_segments
from ..store.errors import FormatError, PositionGoneError, StorageError
from ..store.page import Word
from .source import Source, SourceCursor

_SMALL_BYTES: Final = 64 << 10


class Behind(msgspec.Struct, frozen=True):
    """What stands in a log behind some LSN."""

    records: int
    bytes: int
    """Of frames; where the log no longer reaches back so far, what it still has."""
    oldest_ms: int | None
    """Time of the oldest of these records, ms since 1970; None if there is none, or it is gone."""


NOT_BEHIND: Final = Behind(0, 0, None)


def behind(source: Source, lsn: int, upto_lsn: int) -> Behind:
    """What the log holds above `lsn`, up to `upto_lsn` (the end of a frame).

    Reads at most one segment. Raises nothing for a damaged log: what can be told of it is told.
    """
    if upto_lsn <= lsn:
        return NOT_BEHIND
    records = upto_lsn - lsn
    cursor = source.cursor()
    cursor.is_sparse = True
    try:
        return _measured(source, cursor, lsn, records)
    except (FormatError, PositionGoneError, StorageError):
        return Behind(records, 0, None)
    finally:
        cursor.close()


def _measured(source: Source, cursor: SourceCursor, lsn: int, records: int) -> Behind:
    files = list_segments(source.log)
    if not files:
        return Behind(records, 0, None)
    is_gone = files[0].first_lsn > lsn + 1
    cursor.approach(files[0].first_lsn - 1 if is_gone else lsn)
    while not is_gone and cursor.at.lsn < lsn and cursor.read(lsn) is not None:
        pass
    run = cursor.read(limit_bytes=_SMALL_BYTES)
    if run is None:
        return Behind(records, 0, None)
    first_offset, first = run.frames[0]
    last_offset, last = run.frames[-1]
    start = cursor.offset - (last_offset + last.size_bytes) + first_offset
    here = cursor.path
    size = sum(_size_bytes(source, file) for file in files if file.path >= here)
    size = max(0, size - start)
    return Behind(records, size, None if is_gone else first.time_ms)


def _size_bytes(source: Source, file: SegmentFile) -> int:
    """Of a segment: up to its end of frames, where the control page knows that."""
    page = source.page()
    if page is not None and page[Word.SEGMENT] == file.first_lsn:
        return page[Word.END]
    return bytes_of(file.path)
