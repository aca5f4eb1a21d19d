"""Settling: bring the end of a log into order after a death, a power loss or damage.

Owns what happens to bytes behind the last good frame. Complete valid frames stay and are rolled
forward; a torn rest is copied to `aside/`, then cut; corruption is raised and nothing is touched. The
caller holds the write lock, so that nobody appends meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from . import names
from .ahead import bytes_of, end_of_bytes
from .cursor import LogCursor, Run, SegmentFile, list_segments
from .errors import CorruptError
from .files import (
    FILE_MODE,
    next_free,
    remove_durably,
    rename_durably,
    sync_directory,
    translated,
    write_all,
)
from .frame import FRAME_BYTES_MAX, MAGIC, Verdict, decode_frame
from .segment import FOOTER_MAGIC, HEADER_BYTES, SegmentHeader
from .tail import Judgement, TailVerdict, Witnesses, judge_tail

COPY_BYTES = 1 << 20
_MAGIC_BYTES = MAGIC.to_bytes(4, "little")
_MAGIC_OFFSET = 16


class Known(msgspec.Struct, frozen=True):
    """What is known from outside the log when it is settled."""

    node: str
    mark_lsn: int
    state_lsn: int
    same_boot: bool
    acked_lsn_max: int = 0
    page_lsn: int = 0


class Settled(msgspec.Struct, frozen=True):
    """How the end of the log was found."""

    judgement: Judgement
    cut_bytes: int = 0
    aside: Path | None = None
    is_sealed: bool = False
    """The last segment has a footer: the next frame needs a new one."""


def settle(
    cursor: LogCursor, store: Path, known: Known, on_run: Callable[[Run], None] | None = None
) -> Settled:
    """Read from the cursor to the end of the log, and put that end in order.

    `on_run` is given every run of frames that is passed. Raises CorruptError if something durable
    covers what fails; nothing is changed then.
    """
    while run := _read_on(cursor):
        if on_run:
            on_run(run)
    judgement = inspect(cursor, known)
    if judgement.verdict is TailVerdict.CORRUPT:
        raise CorruptError(
            f"the log is damaged: {judgement.because}, and the frame of LSN {cursor.at.lsn + 1} is not there",
            path=cursor.path,
            offset=cursor.offset,
            lsn=cursor.at.lsn + 1,
            hint="Nothing was changed. Restore from a replica, or see `perdure verify`.",
        )
    if cursor.header is not None and cursor.offset == HEADER_BYTES:
        leave_superseded(cursor.log, cursor.header)
    if judgement.verdict is TailVerdict.CLEAN:
        return Settled(judgement, is_sealed=_has_footer(cursor))
    aside, cut = set_rest_aside(cursor, store, "torn")
    return Settled(judgement, cut, aside)


def leave_superseded(log: Path, header: SegmentHeader) -> None:
    """Remove segments without a frame in whose place one of a higher epoch was made; `header` is that one's.

    A crash between the two leaves them. The caller holds the write lock. One that holds anything stays, for
    a person to look at.
    """
    for file in list_segments(log):
        is_superseded = file.first_lsn == header.first_lsn and file.epoch < header.epoch
        if is_superseded and bytes_of(file.path) <= HEADER_BYTES:
            remove_durably(file.path)


def _read_on(cursor: LogCursor) -> Run | None:
    try:
        return cursor.read()
    except CorruptError:
        return None


def inspect(cursor: LogCursor, known: Known) -> Judgement:
    """Judge what stands behind the cursor, which is where reading ended. Changes nothing."""
    failing = cursor.at.lsn + 1
    later = [file for file in list_segments(cursor.log) if file.first_lsn > failing]
    rest = end_of_bytes(cursor.descriptor, cursor.offset) - cursor.offset
    if rest and _has_footer(cursor):
        rest = 0
    follower, flushed = (0, 0)
    if rest or later:
        follower, flushed = _followers(cursor, later, failing, known.node)
    return judge_tail(
        Witnesses(
            failing_lsn=failing,
            has_bytes=bool(rest or later),
            mark_lsn=known.mark_lsn,
            flushed_lsn_max=flushed,
            acked_lsn_max=known.acked_lsn_max,
            same_boot=known.same_boot,
            follower_lsn=follower,
            state_lsn=known.state_lsn,
            page_lsn=known.page_lsn,
        )
    )


def set_rest_aside(cursor: LogCursor, store: Path, why: str) -> tuple[Path, int]:
    """Copy everything behind the cursor to `aside/`, durably, then cut it. Zeros at the end are not copied.

    Survives a crash: before the cut both stand, and settling again makes a second copy; after it the
    copy. Returns (where it went, bytes).
    """
    end = end_of_bytes(cursor.descriptor, cursor.offset)
    folder = store / names.ASIDE
    target = next_free(folder / f"{why}-{cursor.at.lsn + 1:020d}-{cursor.offset}-{cursor.path.name}")
    with translated("cannot set the rest of the log aside", target):
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            at = cursor.offset
            while data := os.pread(cursor.descriptor, min(COPY_BYTES, end - at), at):
                write_all(descriptor, data)
                at += len(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(folder)
        for file in reversed(list_segments(cursor.log)):
            if file.first_lsn > cursor.at.lsn + 1 and file.path != cursor.path:
                rename_durably(file.path, next_free(folder / f"{why}-{file.path.name}"))
        os.ftruncate(cursor.descriptor, cursor.offset)
        os.fsync(cursor.descriptor)
    return target, end - cursor.offset


def _has_footer(cursor: LogCursor) -> bool:
    start = os.pread(cursor.descriptor, len(FOOTER_MAGIC), cursor.offset)
    if start != FOOTER_MAGIC:
        return False
    footer = cursor.footer()
    return footer is not None and footer.frames_end == cursor.offset


def _followers(cursor: LogCursor, later: list[SegmentFile], failing: int, node: str) -> tuple[int, int]:
    """(LSN of a valid frame behind the failing one or 0, highest `flushed` said by this node's frames)."""
    epoch = cursor.header.epoch if cursor.header else 0
    ours = cursor.header is not None and cursor.header.primary == node
    follower, flushed = _search(cursor.descriptor, cursor.offset, cursor.key, failing, epoch)
    flushed = flushed if ours else 0
    for file in later:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found, said = _search(descriptor, 0, cursor.key, failing, epoch)
        finally:
            os.close(descriptor)
        follower = follower or found
        flushed = max(flushed, said if ours else 0)
    return follower, flushed


def _search(descriptor: int, start: int, key: int, failing: int, epoch: int) -> tuple[int, int]:
    """Look for valid frames at any offset from `start` on; as _followers."""
    size = os.fstat(descriptor).st_size
    follower = flushed = 0
    at = start
    while at < size:
        data = os.pread(descriptor, COPY_BYTES + FRAME_BYTES_MAX, at)
        if not data:
            break
        found = data.find(_MAGIC_BYTES)
        while 0 <= found < COPY_BYTES:
            offset = found - _MAGIC_OFFSET
            next_search = found + 1
            if offset >= 0:
                verdict, frame = decode_frame(data, offset, key)
                if verdict is Verdict.OK and frame and frame.first_lsn > failing and frame.epoch >= epoch:
                    follower = follower or frame.first_lsn
                    flushed = max(flushed, frame.flushed_lsn)
                    next_search = offset + frame.size_bytes + _MAGIC_OFFSET
            found = data.find(_MAGIC_BYTES, next_search)
        at += COPY_BYTES - _MAGIC_OFFSET
    return follower, flushed
