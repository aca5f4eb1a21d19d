"""Making segments: a new tail, and the footer of one that is full.

A new segment is written under a temporary name, synced, renamed and its directory synced before the
first frame goes in. A footer is only ever written behind the last frame of a segment that another one
follows, under the write lock: what follows may be taken away again, and the segment then goes on. A crash
in the middle leaves bytes that are no footer, and sealing starts over.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

from . import names
from .cursor import LogCursor, SegmentFile, list_segments
from .errors import CorruptError
from .files import publish, translated, write_all
from .lock import FileLock
from .segment import (
    INDEX_STEP_BYTES,
    IndexEntry,
    SegmentFooter,
    SegmentHeader,
    encode_footer,
    encode_header,
    hash_file,
)

SEAL_LOCK_MS = 1000
"""Who seals waits no longer for the write lock, and comes again."""


def create_segment(log: Path, header: SegmentHeader) -> Path:
    """Publish an empty segment. Survives a crash: the whole header, or no segment."""
    path = log / names.segment_name(header.first_lsn, header.epoch)
    publish(path, encode_header(header))
    return path


def seal_segment(cursor: LogCursor, file: SegmentFile, write_lock: FileLock) -> SegmentFooter:
    """Write the footer of a segment that another one follows; nothing happens if it has one.

    `write_lock` is a handle of the caller's own, and free: it is taken once the footer is known. Raises
    CorruptError if the frames do not reach up to the following segment, LockTimeoutError.
    """
    cursor.open_segment(file)
    following = [other for other in list_segments(cursor.log) if other.first_lsn > file.first_lsn]
    footer = _intact_footer(cursor)
    if footer or not following:
        return footer or _footer_of(cursor, file)
    footer = _footer_of(cursor, file, following[0].first_lsn - 1)
    with translated("cannot seal a segment", file.path):
        write_lock.acquire(SEAL_LOCK_MS)
        try:
            if not _is_left_behind(cursor):
                return footer
            os.ftruncate(cursor.descriptor, footer.frames_end)
            os.lseek(cursor.descriptor, footer.frames_end, os.SEEK_SET)
            write_all(cursor.descriptor, encode_footer(footer))
        finally:
            write_lock.release()
        os.fdatasync(cursor.descriptor)
    return footer


def _is_left_behind(cursor: LogCursor) -> bool:
    """Does another segment still follow the cursor's, which was read to its end? The caller holds the write
    lock."""
    files = list_segments(cursor.log)
    is_followed = any(file.first_lsn == cursor.at.lsn + 1 for file in files)
    is_there = any(file.path == cursor.path for file in files)
    return is_followed and is_there and os.path.samestat(os.fstat(cursor.descriptor), os.stat(cursor.path))


def footer_up_to(cursor: LogCursor, file: SegmentFile, last_lsn: int) -> SegmentFooter:
    """The footer that a segment has if it ends at `last_lsn`. Leaves the cursor there.

    Raises CorruptError if no frame of it ends there.
    """
    cursor.open_segment(file)
    return _footer_of(cursor, file, last_lsn)


def unsealed_segments(log: Path) -> list[SegmentFile]:
    """Segments that another one follows, without the end of a footer.

    One with the first LSN of the next has no frame: a crash left it, and the next stands in its place.
    """
    found = []
    files = list_segments(log)
    for file, following in pairwise(files):
        if file.first_lsn == following.first_lsn:
            continue
        try:
            with open(file.path, "rb") as opened:
                opened.seek(0, os.SEEK_END)
                if opened.tell() >= 4:
                    opened.seek(-4, os.SEEK_END)
                end = opened.read(4)
        except FileNotFoundError:
            continue  # dropped, or cut off, meanwhile
        if end != b"PDRE":
            found.append(file)
    return found


def _intact_footer(cursor: LogCursor) -> SegmentFooter | None:
    try:
        return cursor.footer()
    except CorruptError:
        return None


def _footer_of(cursor: LogCursor, file: SegmentFile, last_lsn: int | None = None) -> SegmentFooter:
    index: list[IndexEntry] = []
    next_at = 0
    while last_lsn is None or cursor.at.lsn < last_lsn:
        start = cursor.offset
        run = cursor.read(last_lsn if last_lsn is not None else (1 << 64) - 1)
        if run is None or cursor.path != file.path:
            break
        for offset, frame in run.frames:
            if start + offset >= next_at:
                index.append(IndexEntry(frame.first_lsn, start + offset, frame.time_ms))
                next_at = start + offset + INDEX_STEP_BYTES
    if last_lsn is not None and (cursor.at.lsn != last_lsn or cursor.path != file.path):
        raise CorruptError(
            f"a segment ends at LSN {cursor.at.lsn}, the next one begins after {last_lsn}",
            path=file.path,
            offset=cursor.offset,
            lsn=cursor.at.lsn + 1,
        )
    file_hash = hash_file(cursor.descriptor, cursor.offset)
    return SegmentFooter(cursor.at, cursor.offset, file_hash, tuple(index))
