"""Finding the end of a log when a store is opened, and the place in it where a state stands.

Owns the decision from where a log is read: from the state if it is to be trusted, from the control
page's last frame in the same boot, from the mark after another one.
"""

from __future__ import annotations

import os

from . import names
from .cursor import SegmentFile, list_segments
from .errors import CorruptError, DivergedError
from .files import translated
from .follow import is_half_replaced
from .ids import NOWHERE, Position, StatePosition
from .log import EventLog
from .mark import SlotVerdict, read_marks
from .page import Word
from .segment import HEADER_BYTES
from .settle import Known

_APPENDED = int(Word.APPENDED)
_LAST_FRAME = int(Word.LAST_FRAME)
_CHAIN = int(Word.CHAIN)


def open_log(log: EventLog, state: StatePosition | None) -> None:
    """Find the end of the log and put it in order. The caller holds the write lock.

    With a `state` that is to be trusted, every frame above it goes to `on_run`; with None the log is
    only brought to a clean end, and the caller makes a state from it and calls `place`. Raises
    CorruptError for a damaged log, DivergedError if the state is of another history.
    """
    current = log.page.is_current()
    files = list_segments(log.cursor.log)
    mark, slots = read_marks(log.cursor.log / names.MARK, log.key)
    # A power loss may tear the very first mark, before its sync: nothing was acknowledged by it then.
    is_torn_first = not current and SlotVerdict.EMPTY in slots
    if mark is None and SlotVerdict.BAD in slots and not is_torn_first:
        raise CorruptError(
            "the mark is damaged, so that nobody can tell how much of the log must be there",
            path=log.cursor.log / names.MARK,
            hint="Nothing was changed. `perdure verify` shows what the log holds; a replica knows the rest.",
        )
    if not current:
        log.page.reset()
        log.lost_frames = bool(files)
    if not files:
        if mark:
            raise CorruptError(
                f"the log is gone: the mark says that LSN {mark.position.lsn} was on disk",
                path=log.cursor.log,
                lsn=mark.position.lsn,
                hint="Restore the log's files, or start this node anew from a replica.",
            )
        log.cursor.at = state or NOWHERE
        log.publish_place()
        _adopt(log, current)
        log.look_again()
        return
    if state is not None:
        place(log, state)
        log.load_config()
    elif not (current and _enter_by_page(log, files)):
        _enter_by_mark(log, files, mark.position if mark else None)
    if mark and state is None:
        _check_mark(log, mark.position)
    durable_lsn = max(mark.position.lsn if mark else 0, log.words[Word.FLUSHED] if current else 0)
    page_lsn = log.words[_APPENDED] if current and not is_half_replaced(log.store) else 0
    log.settle(Known(log.identity.node, durable_lsn, state.lsn if state else 0, current, page_lsn=page_lsn))
    if not current:
        _make_durable(log, mark.committed_lsn if mark else 0)
    _adopt(log, current)
    log.look_again()


def _adopt(log: EventLog, current: bool) -> None:
    if not current:
        log.page.adopt()


def place(log: EventLog, state: StatePosition, *, is_shared: bool = True) -> None:
    """Go to where the state stands; what follows is read from there.

    The caller holds the write lock, or its state is not `is_shared`: of one that no other process sees the
    control page says nothing.
    Raises DivergedError if the log has another frame there, PositionGoneError if it has none.
    """
    words, cursor = log.words, log.cursor
    if not list_segments(cursor.log):
        cursor.at = state
        return
    if not (_enter_by_fold(log, state) or _enter_at_end(log, state)):
        cursor.seek(state.lsn)
    if state.lsn and cursor.at.position != state.position:
        raise DivergedError(
            f"the state stands at {state.position}, the log has {cursor.at.position} there",
            path=cursor.path,
            lsn=state.lsn,
            hint="The state is of another history; it can be rebuilt from snapshot and log.",
        )
    cursor.at = state if state.lsn else cursor.at
    if is_shared:
        words[Word.FOLDED] = state.lsn


def _enter_by_fold(log: EventLog, state: StatePosition) -> bool:
    """Go behind the state's last frame by the page's hint, if the frame there fits."""
    words, cursor = log.words, log.cursor
    first, offset = words[Word.FOLDED_SEGMENT], words[Word.FOLDED_OFFSET]
    files = [file for file in list_segments(cursor.log) if file.first_lsn == first]
    if words[Word.FOLDED] != state.lsn or not files or offset <= HEADER_BYTES:
        return False
    cursor.open_segment(files[-1])
    frame, _ = log.frame_at(offset)
    if frame is None or frame.first_lsn != state.lsn + 1 or frame.previous_chain != state.chain:
        return False
    cursor.offset, cursor.at = offset, state
    return True


def _enter_at_end(log: EventLog, state: StatePosition) -> bool:
    """Go behind the state's last frame if it is the last one of the log, as after a clean stop."""
    if not state.lsn or log.words[_APPENDED] != state.lsn:
        return False
    return _enter_by_page(log, list_segments(log.cursor.log)) and log.cursor.at.position == state.position


def _make_durable(log: EventLog, committed_lsn: int) -> None:
    """After another boot: what was found is synced, and is what the page and the mark say."""
    log.words[Word.COMMITTED] = min(committed_lsn, log.cursor.at.lsn)
    with translated("a sync to disk failed", log.store):
        os.fdatasync(log.cursor.descriptor)
    log.flusher.publish(log.cursor.at.position)


def _enter_by_page(log: EventLog, files: list[SegmentFile]) -> bool:
    """Go to the page's last frame, if it is there."""
    words = log.words
    tail = [file for file in files if file.first_lsn == words[Word.SEGMENT]]
    if not tail or tail[-1].epoch != words[Word.EPOCH]:
        return False
    try:
        log.cursor.open_segment(tail[-1])
        if words[_LAST_FRAME]:
            log.cursor.jump(words[_LAST_FRAME])
            run = log.cursor.read(words[_APPENDED])
            return run is not None and bool(log.cursor.at.chain == words[_CHAIN])
    except CorruptError:
        return False
    return bool(log.cursor.at.lsn == words[_APPENDED])


def _enter_by_mark(log: EventLog, files: list[SegmentFile], mark: Position | None) -> None:
    """Go to the start of the segment that holds the mark, or of the oldest one."""
    lsn = mark.lsn if mark else 0
    older = [file for file in files if file.first_lsn <= lsn]
    log.cursor.open_segment(older[-1] if older else files[0])


def _check_mark(log: EventLog, mark: Position) -> None:
    """The frame that the mark names must be there, with the mark's chain."""
    cursor = log.cursor
    if mark.lsn <= cursor.at.lsn:
        return
    while cursor.at.lsn < mark.lsn:
        try:
            if cursor.read(mark.lsn) is None:
                return
        except CorruptError:
            return
    if cursor.at.position != mark:
        raise CorruptError(
            f"the log says {cursor.at.position} where the mark says {mark}",
            path=cursor.path,
            lsn=mark.lsn,
            hint="The log or the mark belongs to another history; restore both from one place.",
        )
