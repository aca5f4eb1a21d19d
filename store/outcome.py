"""What became of a write whose call could not say: committed, lost, pending, or unknown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from enum import Enum
from typing import Final

from .cursor import LogCursor, SegmentFile, list_segments
from .errors import PositionGoneError, StoreMissingError, UsageError
from .ids import Position, parse_position
from .log import EventLog
from .ports import Sought
from .view import View

LOOKS_MAX: Final = 3


class Outcome(Enum):
    COMMITTED = "committed"
    """It is part of the one history, as durable as the store makes it."""
    PENDING = "pending"
    """It is in this node's log, and not confirmed by sync_replicas yet."""
    LOST = "lost"
    """It is not in the history, and never will be."""
    UNKNOWN = "unknown"
    """Retention has passed it, or this node's log does not reach it (yet)."""


def find_outcome(log: EventLog, view: View, what: Position | tuple[int, int, int] | str) -> Outcome:
    """The outcome of a write by its position (also as the text that an error gives), or by its operation id.

    An operation id is 32 hexadecimal characters; to find it the whole retained log is read. Raises
    UsageError for text that is neither.
    """
    if isinstance(what, str) and ":" in what:
        try:
            what = parse_position(what)
        except ValueError as error:
            raise UsageError(str(error)) from error
    with view.mutex:
        view.catch_up()
        view.advance()
        end, visible, knows_all = log.cursor.at, view.visible, log.is_primary
    cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key, log.identity.shard)
    try:
        if isinstance(what, str):
            operation_id = _operation_id(what)
            found = _look(lambda: _by_operation(cursor, operation_id, end.lsn, visible.lsn))
            return found if knows_all or found is not Outcome.LOST else Outcome.UNKNOWN
        position = Position(*what)
        return _look(lambda: _by_position(cursor, position, end.position, visible.lsn))
    finally:
        cursor.close()


def _look(look: Callable[[], Outcome]) -> Outcome:
    """What `look` finds, again where retention dropped a segment between the listing and the opening."""
    for _ in range(LOOKS_MAX):
        with contextlib.suppress(StoreMissingError, PositionGoneError):
            return look()
    return Outcome.UNKNOWN


def _by_position(cursor: LogCursor, asked: Position, end: Position, visible_lsn: int) -> Outcome:
    if asked.epoch > end.epoch:
        return Outcome.UNKNOWN
    if asked.lsn > end.lsn:
        return Outcome.LOST if asked.epoch < end.epoch else Outcome.UNKNOWN
    try:
        cursor.seek(asked.lsn)
    except PositionGoneError:
        oldest = cursor.header.first_lsn if cursor.header else asked.lsn + 1
        # Only if a frame goes on beyond it none ends there: else the log was dropped, or lacks some.
        is_passed = asked.lsn >= oldest and cursor.read() is not None
        return Outcome.LOST if is_passed else Outcome.UNKNOWN
    if cursor.at.position != asked:
        return Outcome.LOST
    return Outcome.COMMITTED if asked.lsn <= visible_lsn else Outcome.PENDING


def find_forwarded(log: EventLog, view: View, sought: Sought) -> Outcome:
    """The outcome of a write that was asked for on another node, or on this one in an earlier epoch."""
    if sought.position is not None:
        found = find_outcome(log, view, sought.position)
        if found is not Outcome.UNKNOWN:
            return found
    with view.mutex:
        end, visible = log.cursor.at, view.visible
    cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key, log.identity.shard)
    try:
        base = _base_lsn(list_segments(log.cursor.log), sought.base)
        return _look(lambda: _by_operation(cursor, sought.operation_id, end.lsn, visible.lsn, base))
    finally:
        cursor.close()


def _base_lsn(files: list[SegmentFile], base: Position) -> int:
    """Behind which LSN a frame must be that was asked for when readers stood at `base`.

    If that is in no history any more, a later epoch began before it.
    """
    later = [file.first_lsn - 1 for file in files if file.epoch > base.epoch]
    return min([base.lsn, *later])


def _by_operation(
    cursor: LogCursor, wanted: bytes, end_lsn: int, visible_lsn: int, base_lsn: int = 0
) -> Outcome:
    files = list_segments(cursor.log)
    if not files:
        return Outcome.UNKNOWN
    while len(files) > 1 and files[1].first_lsn <= base_lsn + 1:
        files.pop(0)
    cursor.open_segment(files[0])
    while run := cursor.read(end_lsn):
        if wanted not in run.data:
            continue
        for offset, frame in run.frames:
            if frame.last_lsn > base_lsn and any(event[2] == wanted for event in run.events(offset, frame)):
                return Outcome.COMMITTED if frame.last_lsn <= visible_lsn else Outcome.PENDING
    is_read = files[0].first_lsn <= base_lsn + 1 and cursor.at.lsn >= end_lsn
    return Outcome.LOST if is_read else Outcome.UNKNOWN


def _operation_id(text: str) -> bytes:
    try:
        wanted = bytes.fromhex(text)
    except ValueError:
        wanted = b""
    if len(wanted) != 16:
        raise UsageError(f"an operation id is 32 hexadecimal characters, not {text!r}")
    return wanted
