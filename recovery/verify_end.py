"""Verifying where a log ends: the mark, the tail, and what proves that nothing was cut off behind it.

Owns how deep a verification goes, what is learnt of the log on the way, and the checks that rest on it:
the tail verdict, and whether the positions that other files name stand on the chain. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

from ..store import names
from ..store.errors import PerdureError
from ..store.ids import NOWHERE, Position, StatePosition
from ..store.mark import Mark, SlotVerdict
from ..store.page import Word
from ..store.segment import SegmentHeader
from ..store.tail import TailVerdict
from .findings import Finding, Level
from .source import PageWords, Source, judge_end


class Depth(IntEnum):
    """How much is checked; each includes the ones before it."""

    STRUCTURE = 1
    """Names, headers, identity, and that the segments follow each other."""
    CHECKS = 2
    """Every check of every file: frames, footers, index, file hash, mark, promise, slots, snapshots."""
    CHAIN = 3
    """The whole chain: epochs, LSNs, times, digests; snapshots, mark and slots stand on it."""
    REPLAY = 4
    """Snapshot and log are folded, and compared with the state, session by session."""


class LogFacts:
    """What was learnt of the log on the way, for the checks that rest on it."""

    def __init__(self) -> None:
        self.wanted: set[int] = set()
        """LSNs of which the frame end is to be remembered."""
        self.found: dict[int, StatePosition] = {}
        self.oldest_lsn = 0
        """First LSN of the log, 0 if it has none."""
        self.end: StatePosition = NOWHERE
        self.end_is_proven = False
        """Nothing can have been cut off behind `end` without being noticed."""
        self.is_whole = True
        """No damage was found up to `end`."""
        self.tail: SegmentHeader | None = None
        self.is_in_use = False

    def remember(self, at: StatePosition) -> None:
        if at.lsn in self.wanted:
            self.found[at.lsn] = at


def check_mark(source: Source, mark: Mark | None, slots: list[SlotVerdict]) -> Iterator[Finding]:
    path = str(source.log / names.MARK)
    if SlotVerdict.BAD in slots:
        both = mark is None
        says = "neither of its slots is intact" if both else "one of its two slots is damaged"
        hint = "A crash while it was written leaves one such slot; the next two syncs write both anew."
        level = Level.CORRUPT if both else Level.WARNING
        yield Finding(level, "mark-damaged", says, path, hint="" if both else hint)
    elif mark is not None and SlotVerdict.EMPTY in slots and mark.sequence > 1:
        says = f"one of its slots is gone, after {mark.sequence} marks"
        yield Finding(Level.WARNING, "mark-damaged", says, path)
    elif mark is not None:
        says = f"LSN {mark.position.lsn} of epoch {mark.position.epoch} is on disk"
        yield Finding(Level.OK, "mark", says, path, lsn=mark.position.lsn)


def check_end(source: Source, facts: LogFacts, mark: Mark | None) -> Iterator[Finding]:
    """The tail verdict, and whether anything can be missing behind it."""
    cursor = source.cursor()
    try:
        page = source.page()
        upto = page[Word.APPENDED] if page and facts.is_in_use else 1 << 62
        files = [file for file in source.segments() if file.first_lsn <= max(upto, facts.oldest_lsn)]
        try:
            cursor.open_segment(files[-1])
        except PerdureError:
            return  # said already, where the segment was looked at
        while cursor.read(upto) is not None:
            continue
        end = cursor.at
        path, offset, lsn = str(cursor.path), cursor.offset, end.lsn + 1
        if facts.is_in_use and page and end.lsn == upto:
            facts.end, facts.end_is_proven = end, True
            says = f"the log ends at LSN {end.lsn}, and is in use"
            yield Finding(Level.OK, "tail", says, path, offset, end.lsn)
            return
        judgement = judge_end(cursor, source.known())
    finally:
        cursor.close()
    if judgement.verdict is TailVerdict.CORRUPT:
        facts.is_whole = False
        says = f"the frame of LSN {lsn} is missing or damaged: {judgement.because}"
        hint = "Restore the log from a replica; see `perdure replay` for what is intact here."
        yield Finding(Level.CORRUPT, "tail-corrupt", says, path, offset, lsn, hint)
    elif page is not None and page[Word.APPENDED] > end.lsn:
        says = f"the log ends at LSN {end.lsn}, the control page says {page[Word.APPENDED]}"
        yield Finding(Level.CORRUPT, "tail-cut", says, path, offset, lsn)
    elif judgement.verdict is TailVerdict.TORN:
        says = f"bytes that are no whole frame; the next opening puts them aside: {judgement.because}"
        yield Finding(Level.NOTICE, "tail-torn", says, path, offset, lsn)
        yield from _prove(source, facts, page, mark, end)
    else:
        yield from _prove(source, facts, page, mark, end)


def _prove(
    source: Source, facts: LogFacts, page: PageWords | None, mark: Mark | None, end: StatePosition
) -> Iterator[Finding]:
    """Can whole frames have been cut off without a trace?"""
    path = str(source.log)
    missing = {
        what: file
        for what, file, is_there in (
            ("mark", source.log / names.MARK, mark is not None),
            ("control page", source.store / names.CONTROL_PAGE, (source.store / names.CONTROL_PAGE).exists()),
        )
        if not is_there
    }
    if missing and end.lsn:
        path = str(next(iter(missing.values())))
        says = f"without {' and '.join(missing)} nothing proves that the log did not go further"
        hint = "A replica's or an archive's log shows it."
        yield Finding(Level.UNKNOWN, "tail-unproven", says, path, lsn=end.lsn, hint=hint)
        return
    facts.end_is_proven = True
    if page is None and mark is not None and mark.position.lsn < end.lsn:
        says = f"the log ends at LSN {end.lsn}; another boot wrote it, and synced LSN {mark.position.lsn}"
    else:
        says = f"the log ends at LSN {end.lsn}, with a whole frame"
    yield Finding(Level.OK, "tail", says, path, lsn=end.lsn)


def check_standing(
    facts: LogFacts, what: str, path: str, position: Position | StatePosition, kind: str
) -> Iterator[Finding]:
    """Does a position that some file names stand on the chain? Nothing if the log does not reach it."""
    found = facts.found.get(position.lsn)
    inside = facts.oldest_lsn <= position.lsn + 1 and position.lsn <= facts.end.lsn
    if found is None:
        if inside and facts.is_whole and position.lsn:
            says = f"{what} stands at LSN {position.lsn}, where no frame ends"
            yield Finding(Level.CORRUPT, kind, says, path, lsn=position.lsn)
        return
    there: Position | StatePosition = found if isinstance(position, StatePosition) else found.position
    if there != position and position.lsn:
        says = f"{what} stands at {_text(position)}, the log has {_text(there)} there"
        yield Finding(Level.CORRUPT, kind, says, path, lsn=position.lsn)


def _text(position: Position | StatePosition) -> str:
    if isinstance(position, StatePosition):
        return f"{position.position} with {position.session_count} sessions, digest {position.digest:016x}"
    return str(position)
