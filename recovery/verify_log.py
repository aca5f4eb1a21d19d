"""Verifying the log: the files and their order, every check in them, and the whole chain.

Owns what is looked at in segments (verify_end has mark and tail). Reading goes on behind damage wherever it
can, so that one bad frame does not hide what else there is. Nothing is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypedDict

import msgspec

from ..store import names
from ..store.control import config_of, epoch_start_of
from ..store.cursor import SegmentFile
from ..store.errors import CorruptError, ForeignError, FormatError, FormatVersionError, PerdureError
from ..store.event import Event, Kind, decode_events
from ..store.frame import Frame
from ..store.ids import StatePosition
from ..store.mark import Mark, SlotVerdict
from ..store.segment import SegmentFooter, SegmentHeader, hash_file
from .findings import Finding, Level, finding_of
from .scan import SegmentScan
from .source import Source
from .verify_end import Depth, LogFacts, check_end, check_mark


class _Where(TypedDict):
    """Where in a segment something was found."""

    offset: int
    lsn: int


class _Before(msgspec.Struct, frozen=True):
    """What the segments before the one at hand say."""

    end: StatePosition | None
    """Where the next one must begin; None if that cannot be told."""
    epoch: int
    time_ms: int
    name: str = ""
    """Of the file of the segment before."""


def check_log(
    source: Source, depth: Depth, facts: LogFacts, marks: tuple[Mark | None, list[SlotVerdict]]
) -> Iterator[Finding]:
    """All findings about segments, mark and tail; `marks` as read_marks gave them."""
    yield from _check_names(source)
    files = source.segments()
    mark, slots = marks
    if not files:
        yield from _check_empty(source, mark)
        return
    facts.oldest_lsn = files[0].first_lsn
    before = _Before(None, 0, 0)
    for number, file in enumerate(files):
        following = files[number + 1] if number + 1 < len(files) else None
        if following is not None and following.first_lsn == file.first_lsn and _is_frameless(file):
            yield _abandoned(file)
            continue
        check = _SegmentCheck(source, file, following is None, before, depth, facts)
        yield from check.run()
        before = check.after
    if depth >= Depth.CHECKS:
        yield from check_mark(source, mark, slots)
        yield from check_end(source, facts, mark)


class _SegmentCheck:
    """One segment."""

    def __init__(
        self, source: Source, file: SegmentFile, is_tail: bool, before: _Before, depth: Depth, facts: LogFacts
    ) -> None:
        self.source = source
        self.file = file
        self.is_tail = is_tail
        self.before = before
        self.depth = depth
        self.facts = facts
        self.after = _Before(None, before.epoch, before.time_ms, file.path.name)
        self.path = str(file.path)

    def run(self) -> Iterator[Finding]:
        try:
            scan = SegmentScan(self.file.path)
        except FormatVersionError as error:
            yield self._bad(finding_of(error, Level.UNKNOWN, "segment-newer"))
            return
        except ForeignError as error:
            yield self._bad(finding_of(error, Level.CORRUPT, "segment-foreign"))
            return
        except FormatError as error:
            yield self._bad(finding_of(error, Level.CORRUPT, "segment-damaged"))
            return
        except PerdureError as error:
            if not self._was_dropped():
                yield self._bad(finding_of(error, Level.UNKNOWN, "segment-unread"))
            return
        with scan:
            problems = list(self._check_header(scan.header))
            yield from problems
            if any(finding.kind == "segment-foreign" for finding in problems):
                return
            footer, said = self._read_footer(scan)
            if said is not None:
                problems.append(said)
                yield said
            if self.is_tail:
                self.facts.tail = scan.header
            if self.depth < Depth.CHECKS:
                self._note_structure(scan, footer)
            else:
                found = list(self._check_frames(scan, footer))
                problems += found
                yield from found
            if not any(finding.level is Level.CORRUPT for finding in problems):
                yield self._good(scan, footer)

    def _was_dropped(self) -> bool:
        """Did retention take it, and all before it, since the files were listed? Not damage then."""
        left = self.source.segments()
        if not left or left[0].first_lsn <= self.file.first_lsn:
            return False
        self.facts.oldest_lsn = left[0].first_lsn
        self.after = _Before(None, 0, 0)
        return True

    # -- structure -------------------------------------------------------------------------------

    def _check_header(self, header: SegmentHeader) -> Iterator[Finding]:
        identity = self.source.identity
        if header.cluster_id != identity.cluster_id or header.shard != identity.shard:
            whose = f"cluster {header.cluster_id.hex()} shard {header.shard}"
            yield self._corrupt(
                "segment-foreign", f"it belongs to {whose}", "Put it back where it came from."
            )
            return
        if (header.first_lsn, header.epoch) != (self.file.first_lsn, self.file.epoch):
            says = f"it begins with LSN {header.first_lsn} of epoch {header.epoch}, its name says otherwise"
            yield self._corrupt("segment-misnamed", says, "Was it renamed, or copied over another?")
        if header.epoch < self.before.epoch:
            says = f"it is of epoch {header.epoch}, the one before it of {self.before.epoch}"
            yield self._corrupt("epoch-backwards", says)
        end = self.before.end
        if end is None:
            return
        if header.first_lsn > end.lsn + 1:
            says = f"LSN {end.lsn + 1} to {header.first_lsn - 1} are in no segment"
            if self.before.name:
                says += f": {self.before.name} ends before them"
            hint = "It was cut, or a segment is missing; a replica or an archive has them."
            yield self._corrupt("segment-missing", says, hint, lsn=end.lsn + 1)
        elif header.first_lsn <= end.lsn:
            says = f"it begins with LSN {header.first_lsn}, the one before it goes up to {end.lsn}"
            yield self._corrupt("segment-doubled", says, "Is it a copy, or of another history?")
        elif header.previous != end:
            says = f"it follows {header.previous.position}, the one before it ends at {end.position}"
            yield self._corrupt("segment-unrelated", says, "The two are of different histories.")

    def _read_footer(self, scan: SegmentScan) -> tuple[SegmentFooter | None, Finding | None]:
        try:
            footer = scan.footer()
        except CorruptError as error:
            return None, finding_of(error, Level.CORRUPT, "footer-damaged")
        if footer is None and not self.is_tail:
            tail = os.pread(scan.descriptor, 16, max(0, scan.size_bytes - 16))
            if not any(tail):
                return None, self._corrupt("trailing-zeros", "it ends with zeros", offset=scan.size_bytes)
            says = "it is not sealed yet"
            return None, Finding(Level.NOTICE, "segment-unsealed", says, self.path, lsn=self.file.first_lsn)
        return footer, None

    def _note_structure(self, scan: SegmentScan, footer: SegmentFooter | None) -> None:
        end = footer.end if footer else None
        self.after = _Before(end, scan.header.epoch, self.before.time_ms, self.file.path.name)
        if self.is_tail:
            self.facts.end = end or scan.header.previous

    # -- frames ----------------------------------------------------------------------------------

    def _check_frames(self, scan: SegmentScan, footer: SegmentFooter | None) -> Iterator[Finding]:
        wanted = {entry.offset: entry for entry in footer.index} if footer else {}
        limit_lsn = footer.end.lsn if footer else None
        time_ms, flushed = self.before.time_ms, 0
        previous = scan.header.previous
        self.facts.remember(previous)
        for offset, frame, payload in scan.frames():
            entry = wanted.pop(offset, None)
            if entry is not None and (entry.lsn, entry.time_ms) != (frame.first_lsn, frame.time_ms):
                yield self._corrupt("index-wrong", f"the index says LSN {entry.lsn} here", offset=offset)
            try:
                events = decode_events(payload, frame.event_count)
            except CorruptError as error:
                yield self._corrupt("event-damaged", error.message, offset=offset, lsn=frame.first_lsn)
                events = []
            if self.depth >= Depth.CHAIN:
                yield from self._check_frame(offset, frame, events, previous, time_ms, flushed, scan.header)
            time_ms, flushed, previous = frame.time_ms, frame.flushed_lsn, frame.state_position
            self.facts.remember(previous)
        self.after = _Before(scan.at, scan.header.epoch, time_ms, self.file.path.name)
        if self.is_tail:
            self.facts.end = scan.at
        yield from self._check_behind(scan, footer, limit_lsn)
        if footer is not None:
            yield from self._check_footer(scan, footer, len(wanted))

    def _check_frame(
        self,
        offset: int,
        frame: Frame,
        events: list[Event],
        previous: StatePosition,
        time_ms: int,
        flushed: int,
        header: SegmentHeader,
    ) -> Iterator[Finding]:
        where = _Where(offset=offset, lsn=frame.first_lsn)
        if frame.time_ms < time_ms:
            says = f"its time is {time_ms - frame.time_ms} ms before that of the frame before it"
            yield self._corrupt("time-backwards", says, **where)
        if frame.flushed_lsn >= frame.first_lsn or frame.flushed_lsn < flushed:
            says = f"it says that LSN {frame.flushed_lsn} was on disk, the one before it {flushed}"
            yield self._corrupt("flushed-impossible", says, **where)
        control = [event for event in events if event[0] >= Kind.EPOCH_START]
        if len(control) == len(events) and (frame.digest, frame.session_count) != previous[3:]:
            yield self._corrupt("digest-jump", "a frame without sessions changes their digest", **where)
        if frame.first_lsn == header.first_lsn:
            yield from self._check_first(frame, events, header, where)

    def _check_first(
        self, frame: Frame, events: list[Event], header: SegmentHeader, where: _Where
    ) -> Iterator[Finding]:
        """A segment begins with CONFIG, one that begins an epoch with EPOCH_START before it."""
        try:
            start, config = epoch_start_of(events), config_of(events)
        except CorruptError as error:
            yield self._corrupt("control-damaged", error.message, **where)
            return
        if config is None:
            yield self._corrupt("config-missing", "its first frame does not say who votes", **where)
        begins = header.previous.epoch != header.epoch
        if begins and start is None:
            yield self._corrupt("epoch-unbegun", f"epoch {header.epoch} begins without EPOCH_START", **where)
        if start is not None and (not begins or start.node != header.primary):
            says = f"EPOCH_START of {start.node} in a segment of {header.primary}, epoch {frame.epoch}"
            yield self._corrupt("epoch-wrong", says, **where)

    def _check_behind(
        self, scan: SegmentScan, footer: SegmentFooter | None, limit_lsn: int | None
    ) -> Iterator[Finding]:
        """What stands between the last frame and the footer, or the end of the file."""
        if scan.problem is not None and not (self.is_tail and footer is None):
            resumes = scan.resume_offset()
            found = finding_of(scan.problem, Level.CORRUPT, "frame-damaged")
            more = "no good frame follows" if resumes is None else f"good frames go on at offset {resumes}"
            lost = f"LSN {scan.at.lsn + 1} to {limit_lsn}" if limit_lsn else f"what follows LSN {scan.at.lsn}"
            self.facts.is_whole = False
            end = footer.end if footer else None
            self.after = _Before(end, scan.header.epoch, self.after.time_ms, self.file.path.name)
            hint = f"{lost} cannot be relied on here; a replica or an archive has it intact."
            yield msgspec.structs.replace(found, message=f"{found.message}; {more}", hint=hint)
        elif footer is None and not self.is_tail and scan.offset < scan.size_bytes:
            left = scan.size_bytes - scan.offset
            says = f"{left} bytes behind its last frame are no whole footer"
            hint = "Sealing it again, as an open store does, mends it."
            yield Finding(Level.WARNING, "footer-damaged", says, self.path, scan.offset, scan.at.lsn, hint)

    def _check_footer(self, scan: SegmentScan, footer: SegmentFooter, unseen: int) -> Iterator[Finding]:
        where = _Where(offset=footer.frames_end, lsn=scan.at.lsn)
        if scan.problem is None and (footer.end, footer.frames_end) != (scan.at, scan.offset):
            says = f"its footer says {footer.end.position}, its frames end at {scan.at.position}"
            yield self._corrupt("footer-wrong", says, **where)
        elif scan.problem is None and unseen:
            yield self._corrupt("index-wrong", f"{unseen} entries of its index point to no frame", **where)
        if hash_file(scan.descriptor, footer.frames_end) != footer.file_hash:
            yield self._corrupt("file-hash-wrong", "it does not have the hash in its footer", **where)

    # -- saying ----------------------------------------------------------------------------------

    def _good(self, scan: SegmentScan, footer: SegmentFooter | None) -> Finding:
        last = scan.at.lsn if self.depth >= Depth.CHECKS else (footer.end.lsn if footer else 0)
        upto = f"to {last}" if last else "on"
        how = "sealed" if footer else "open"
        says = f"LSN {scan.header.first_lsn} {upto}, epoch {scan.header.epoch}, {how}"
        return Finding(Level.OK, "segment", says, self.path, lsn=scan.header.first_lsn)

    def _bad(self, finding: Finding) -> Finding:
        self.facts.is_whole = False
        return finding

    def _corrupt(
        self, kind: str, message: str, hint: str = "", *, offset: int | None = None, lsn: int | None = None
    ) -> Finding:
        first = self.file.first_lsn if lsn is None else lsn
        return self._bad(Finding(Level.CORRUPT, kind, message, self.path, offset, first, hint))


# -- the directory -----------------------------------------------------------------------------------


def _check_names(source: Source) -> Iterator[Finding]:
    for name in sorted(os.listdir(source.log)):
        if names.parse_segment_name(name) is not None or name == names.MARK:
            continue
        path = str(source.log / name)
        if name.endswith(names.TEMPORARY_SUFFIX):
            says = "a file that was never completed; the next of its name replaces it"
            yield Finding(Level.NOTICE, "unfinished-file", says, path)
        else:
            says = "no file of a log has such a name; it is not read"
            hint = "Was a segment renamed? Then it is missing under its own name."
            yield Finding(Level.WARNING, "stray-file", says, path, hint=hint)


def _check_empty(source: Source, mark: Mark | None) -> Iterator[Finding]:
    if mark is None:
        yield Finding(Level.OK, "log", "there is no log yet", str(source.log))
        return
    says = f"the log is gone: the mark says that LSN {mark.position.lsn} was on disk"
    hint = "Restore its files, or start this node anew from a replica."
    yield Finding(Level.CORRUPT, "log-missing", says, str(source.log), lsn=mark.position.lsn, hint=hint)


def _is_frameless(file: SegmentFile) -> bool:
    try:
        with SegmentScan(file.path) as scan:
            return next(scan.frames(), None) is None and scan.problem is None
    except PerdureError:
        return False


def _abandoned(file: SegmentFile) -> Finding:
    says = f"a segment without a frame: epoch {file.epoch} ended before it began"
    return Finding(Level.NOTICE, "segment-abandoned", says, str(file.path), lsn=file.first_lsn)
