"""Leaving a segment that has no frame, because the epoch before it goes on.

A candidate begins the segment of its epoch, and loses power before the EPOCH_START in it is on disk. If then
a primary is elected that continues what the segment before holds, its frames begin no segment: they
belong to that one.

Owns the way back. The caller holds the write lock. Each step may be the last one before a crash: without its
footer the older segment may be appended to, and an empty one behind it means nothing.
"""

from __future__ import annotations

import os

from ..store.cursor import list_segments
from ..store.errors import CorruptError
from ..store.files import sync_directory, translated
from ..store.log import EventLog
from ..store.page import Word
from ..store.segment import HEADER_BYTES
from ..store.settle import leave_superseded


def leave_empty_tail(log: EventLog) -> bool:
    """Go back to the end of the segment before one without a frame; says whether there is such a one.

    Raises CorruptError if the older segment does not end where the empty one begins.
    """
    cursor = log.cursor
    if cursor.header is None or cursor.offset != HEADER_BYTES:
        return False
    older = [file for file in list_segments(cursor.log) if file.first_lsn <= cursor.at.lsn]
    if not older:
        return False
    end, empty, left = cursor.at.position, cursor.path, cursor.header
    cursor.open_segment(older[-1])
    while cursor.at.lsn < end.lsn and cursor.read(end.lsn) is not None:
        pass
    if cursor.at.position != end:
        raise CorruptError(
            f"the segment ends at {cursor.at.position}, and the empty one behind it begins at {end}",
            path=cursor.path,
            offset=cursor.offset,
            lsn=end.lsn,
        )
    with translated("cannot leave an empty segment", empty):
        if cursor.footer() is not None:
            os.ftruncate(cursor.descriptor, cursor.offset)
            os.fsync(cursor.descriptor)
        os.unlink(empty)
        leave_superseded(cursor.log, left)
        log.must_roll = False
        log.words[Word.ALLOCATED] = 0
        log.publish_place()
        log.page.bump()  # for those who have the empty one open
        sync_directory(cursor.log)
    return True
