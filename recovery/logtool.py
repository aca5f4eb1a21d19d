"""The log for reading: what happened, event by event, and how the segments are made up.

Owns the readable form of events. It only reads, takes no lock, and goes on where it can: what is damaged
is reported in its place, and the next segment is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..store.control import config_of, epoch_start_of
from ..store.cursor import EVERYTHING, SegmentFile, list_segments
from ..store.errors import CorruptError, PerdureError, StoreMissingError, UsageError
from ..store.event import Event, Kind, Reason, decode_events
from ..store.frame import Frame
from ..store.identity import has_identity
from ..store.ids import Position
from ..store.keyring import key_name
from ..store.sealed import in_clear, is_sealed, seal_of
from ..store.session import ACCESSED, NEVER_MS, Session, expiry_of
from .scan import SegmentScan
from .source import open_source


class SegmentStat(msgspec.Struct, frozen=True):
    """One segment."""

    name: str
    first_lsn: int
    last_lsn: int
    epoch: int
    primary: str
    """Of the epoch."""
    size_bytes: int
    frames: int
    events: int
    first_ms: int
    """Time of the first frame, ms since 1970; 0 if it has none."""
    last_ms: int
    is_sealed: bool
    problem: str
    """Why not all of it could be read, empty if it could."""

    @property
    def events_per_s(self) -> float:
        """Over the time that its frames span; 0 if that is no time at all."""
        span_ms = self.last_ms - self.first_ms
        return self.events * 1000 / span_ms if span_ms > 0 else 0.0


class EpochStat(msgspec.Struct, frozen=True):
    """One primary's reign, as far as the log holds it."""

    epoch: int
    primary: str
    first_lsn: int
    last_lsn: int


class LogStat(msgspec.Struct, frozen=True):
    """A whole log."""

    segments: list[SegmentStat]
    epochs: list[EpochStat]
    end: Position
    frames: int
    events: int
    size_bytes: int
    mark_lsn: int
    """Surely on disk; 0 without a mark."""
    session_count: int
    """After the last frame."""
    digest: int


def dump(
    place: str | os.PathLike[str],
    *,
    from_lsn: int = 1,
    to_lsn: int | None = None,
    key: str | None = None,
) -> Iterator[dict[str, Any]]:
    """The events of a store's log, of one segment file or of a directory of them, as dicts that JSON takes.

    Each has lsn, epoch, time_ms, kind, reason, operation_id, key, value_bytes, segment, offset (bytes of
    its frame), flushed_lsn, digest and session_count after its frame; PUT also session, TOUCH
    last_accessed, RENAME new_key, EPOCH_START and CONFIG what they say. With `key` (a session's id) only
    events of that session, under its old id as well as its new one. What cannot be read is a dict with
    damage, path, offset and lsn. Raises StoreMissingError if there is neither a store nor a segment,
    UsageError for a key that is no text.
    """
    until = EVERYTHING if to_lsn is None else to_lsn
    try:
        wanted = None if key is None else key.encode()
    except UnicodeEncodeError:
        raise UsageError("a session's id is valid Unicode") from None
    yield from dump_segments(
        _files(Path(place), from_lsn, until), from_lsn=from_lsn, to_lsn=until, key=wanted
    )


def dump_segments(
    files: Sequence[SegmentFile], *, from_lsn: int = 1, to_lsn: int = EVERYTHING, key: bytes | None = None
) -> Iterator[dict[str, Any]]:
    """As dump, of segments wherever they stand."""
    for file in files:
        try:
            scan = SegmentScan(file.path)
        except PerdureError as error:
            yield _damage(error, file)
            continue
        with scan:
            yield from _dump_segment(scan, file, from_lsn, to_lsn, key)


def stat(store: str | os.PathLike[str]) -> LogStat:
    """How a store's log is made up; reads all of it. Errors as open_source."""
    source = open_source(store)
    segments: list[SegmentStat] = []
    last = None
    for file in source.segments():
        try:
            scan = SegmentScan(file.path)
        except PerdureError as error:
            segments.append(_unreadable(file, error))
            continue
        with scan:
            segments.append(_stat_segment(scan, file))
            last = scan.at
    mark, _ = source.mark()
    return LogStat(
        segments=segments,
        epochs=_epochs(segments),
        end=last.position if last else Position(0, 0, 0),
        frames=sum(segment.frames for segment in segments),
        events=sum(segment.events for segment in segments),
        size_bytes=sum(segment.size_bytes for segment in segments),
        mark_lsn=mark.position.lsn if mark else 0,
        session_count=last.session_count if last else 0,
        digest=last.digest if last else 0,
    )


def _files(place: Path, from_lsn: int, to_lsn: int) -> list[SegmentFile]:
    if place.is_file():
        return [SegmentFile(0, 0, place)]
    if not place.is_dir():
        raise StoreMissingError(
            "there is neither a store nor a segment here", path=place, hint="Give a store's directory."
        )
    files = open_source(place).segments() if has_identity(place) else list_segments(place)
    if not files and not has_identity(place):
        raise StoreMissingError(
            "there is neither a store nor a segment here", path=place, hint="Give a store's directory."
        )
    ends = [file.first_lsn for file in files[1:]] + [EVERYTHING]
    return [
        file for file, end in zip(files, ends, strict=True) if file.first_lsn <= to_lsn and end > from_lsn
    ]


def _dump_segment(
    scan: SegmentScan, file: SegmentFile, from_lsn: int, to_lsn: int, key: bytes | None
) -> Iterator[dict[str, Any]]:
    for offset, frame, payload in scan.frames():
        if frame.first_lsn > to_lsn:
            return
        if frame.last_lsn < from_lsn or (key is not None and key not in payload):
            continue
        try:
            events = decode_events(payload, frame.event_count)
        except CorruptError as error:
            yield _damage(error, file, offset, frame.first_lsn)
            continue
        for number, event in enumerate(events):
            lsn = frame.first_lsn + number
            is_rename_to = event[0] == Kind.RENAME and event[4] == key
            if from_lsn <= lsn <= to_lsn and (key is None or event[3] == key or is_rename_to):
                yield _readable(lsn, event, frame, offset, file)
    if scan.problem is not None:
        yield _damage(scan.problem, file)


def _readable(lsn: int, event: Event, frame: Frame, offset: int, file: SegmentFile) -> dict[str, Any]:
    kind, reason, operation_id, key, value = event
    entry: dict[str, Any] = {
        "lsn": lsn,
        "epoch": frame.epoch,
        "time_ms": frame.time_ms,
        "kind": Kind(kind).name.lower(),
        "reason": Reason(reason).name.lower(),
        "operation_id": operation_id.hex() if any(operation_id) else "",
        "key": key.decode("utf-8", "backslashreplace"),
        "value_bytes": len(value),
        "segment": file.path.name,
        "offset": offset,
        "flushed_lsn": frame.flushed_lsn,
        "digest": f"{frame.digest:016x}",
        "session_count": frame.session_count,
    }
    try:
        entry |= _meaning(event, entry["key"])
    except (PerdureError, ValueError) as error:
        entry["unreadable"] = str(error)
    return entry


def _meaning(event: Event, id: str) -> dict[str, Any]:
    kind, _reason, _operation_id, _key, value = event
    if kind == Kind.PUT:
        return {"session": _session(Session(id, in_clear(value)), value)}
    if kind == Kind.TOUCH and len(value) == ACCESSED.size:
        return {"last_accessed": ACCESSED.unpack(value)[0]}
    if kind == Kind.RENAME:
        return {"new_key": value.decode("utf-8", "backslashreplace")}
    if kind == Kind.EPOCH_START:
        return {"epoch_start": _plain(epoch_start_of([event]))}
    if kind == Kind.CONFIG:
        return {"config": _plain(config_of([event]))}
    return {}


def _plain(value: Any) -> Any:
    """The value as JSON has it: bytes as Base64, times as text."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _session(session: Session, value: bytes) -> dict[str, Any]:
    session.check()
    expiry_ms = expiry_of(value)
    return {
        "version": session.version,
        "created_at": session.created_at,
        "last_accessed": session.last_accessed,
        "timeout_ms": session.timeout_ms,
        "expires_at": None if expiry_ms == NEVER_MS else expiry_ms,
        "priority": session.priority.name.lower(),
        "group": session.group,
        "tags": list(session.tags),
        **({"sealed_under": key_name(seal_of(value)[0])} if is_sealed(value) else {}),
        "metadata": None if is_sealed(value) else _plain(session.metadata),
    }


def _stat_segment(scan: SegmentScan, file: SegmentFile) -> SegmentStat:
    frames = events = first_ms = last_ms = 0
    for _offset, frame, _payload in scan.frames():
        frames += 1
        events += frame.event_count
        first_ms = first_ms or frame.time_ms
        last_ms = frame.time_ms
    problem = str(scan.problem) if scan.problem else ""
    try:
        is_sealed = scan.footer() is not None
    except CorruptError as error:
        is_sealed, problem = False, problem or str(error)
    header = scan.header
    return SegmentStat(
        file.path.name,
        header.first_lsn,
        scan.at.lsn,
        header.epoch,
        header.primary,
        scan.size_bytes,
        frames,
        events,
        first_ms,
        last_ms,
        is_sealed,
        problem,
    )


def _unreadable(file: SegmentFile, error: PerdureError) -> SegmentStat:
    size = file.path.stat().st_size if file.path.exists() else 0
    last = file.first_lsn - 1
    return SegmentStat(
        file.path.name, file.first_lsn, last, file.epoch, "", size, 0, 0, 0, 0, False, str(error)
    )


def _epochs(segments: list[SegmentStat]) -> list[EpochStat]:
    epochs: dict[int, EpochStat] = {}
    for segment in segments:
        if not segment.frames:
            continue
        held = epochs.get(segment.epoch)
        first = held.first_lsn if held else segment.first_lsn
        epochs[segment.epoch] = EpochStat(segment.epoch, segment.primary, first, segment.last_lsn)
    return [epochs[epoch] for epoch in sorted(epochs)]


def _damage(
    error: PerdureError, file: SegmentFile, offset: int | None = None, lsn: int | None = None
) -> dict[str, Any]:
    return {
        "damage": error.message,
        "path": error.path or str(file.path),
        "offset": error.offset if offset is None else offset,
        "lsn": error.lsn if lsn is None else lsn,
    }
