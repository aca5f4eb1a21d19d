"""Replaying a log into a back end, checked by the digest of every frame.

Owns the loop that turns snapshot plus log into a state, for a state that is not to be trusted and for
point-in-time recovery. The result is the fold of the log up to a frame end, or an error that names the
first frame whose digest or session count does not come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from .cursor import EVERYTHING, LogCursor
from .errors import DivergedError
from .event import decode_events
from .fold import HASH_BYTES, Fold, Lookup, plan_deadlines, record_of, unreadable
from .frame import HEADER_BYTES as FRAME_HEADER_BYTES
from .frame import Frame
from .ids import NOWHERE, StatePosition
from .ports import Backend, Deadline, Record
from .session import NEVER_MS, expiry_of

CHUNK_BYTES = 256 << 20
"""How much changed state is gathered in memory before it goes to the back end."""

READ_BYTES = 1 << 20
Progress = Callable[[int], None]
"""Called with the number of events (or sessions) done so far."""


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did."""

    end: StatePosition
    time_ms: int
    """Time of the last frame that was replayed, 0 if there was none."""
    events: int
    frames: int
    rounded_down: bool
    """The target lay inside a frame; the replay stopped at the frame before."""


def load_snapshot(
    backend: Backend,
    position: StatePosition,
    sessions: Iterable[tuple[bytes, bytes]],
    progress: Progress | None = None,
) -> None:
    """Fill an empty back end from a snapshot's (key, stored session) pairs, which come in key order."""
    armed: list[Deadline] = []

    def records() -> Iterator[tuple[bytes, Record]]:
        done = 0
        for key, value in sessions:
            expiry = expiry_of(value)
            if expiry != NEVER_MS:
                armed.append((expiry, key))
            yield key, record_of(key, value)
            done += 1
            if progress and not done % 10_000:
                progress(done)

    backend.load(records(), armed, position)


def replay(
    backend: Backend,
    cursor: LogCursor,
    base: StatePosition,
    *,
    upto_lsn: int = EVERYTHING,
    upto_ms: int | None = None,
    progress: Progress | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    on_written: Callable[[StatePosition], None] | None = None,
) -> Replayed:
    """Fold the log behind `base`, where the back end stands, up to a target.

    `upto_ms` is the time of the last frame to take, in ms. The back end is written once about
    `chunk_bytes` of payloads are folded, and at the end; `on_written` is told where it stands then, with
    the cursor behind that frame. Raises DivergedError at the first frame
    after which digest or session count are not what it says, CorruptError for damaged frames,
    PositionGoneError if the log does not reach back to `base`.
    """
    go_behind(cursor, base)
    if backend.refresh() != base:
        raise DivergedError("the back end does not stand where the replay begins", lsn=base.lsn)
    fold = _fresh_fold(backend, base)
    at = written = base
    time_ms = events = frames = size = 0
    stopped = False
    while not stopped and (run := cursor.read(upto_lsn, READ_BYTES)):
        data, last, apply = run.data, None, fold.apply
        for offset, frame in run.frames:
            if upto_ms is not None and frame.time_ms > upto_ms:
                stopped = True
                break
            start = offset + FRAME_HEADER_BYTES
            payload = data[start : start + frame.payload_bytes]
            apply(decode_events(payload, frame.event_count))
            if fold.digest != frame.digest or fold.session_count != frame.session_count:
                raise _other_digest(fold, frame, cursor)
            events += frame.event_count
            frames += 1
            size += frame.payload_bytes
            last = frame
        if last is not None:
            at, time_ms = last.state_position, last.time_ms
        if size >= chunk_bytes:
            _write(backend, fold, at)
            written = at
            if on_written:
                on_written(at)
            fold, size = _fresh_fold(backend, at), 0
        if progress:
            progress(events)
    if at != written:
        _write(backend, fold, at)
        if on_written:
            on_written(at)
    rounded = upto_lsn not in (EVERYTHING, at.lsn) and not stopped and cursor.read() is not None
    return Replayed(at, time_ms, events, frames, rounded)


def go_behind(cursor: LogCursor, base: StatePosition) -> None:
    """Put a cursor behind `base`, which must be a frame end of its log with the same chain."""
    if cursor.descriptor >= 0 and cursor.at == base:
        return
    cursor.seek(base.lsn)
    if base.lsn and cursor.at.position != base.position:
        raise DivergedError(
            f"the log has {cursor.at.position} where {base.position} was expected",
            path=cursor.path,
            lsn=base.lsn,
            hint="Snapshot (or state) and log belong to different histories.",
        )
    if base.lsn:
        cursor.at = base


def _other_digest(fold: Fold, frame: Frame, cursor: LogCursor) -> DivergedError:
    return DivergedError(
        f"after this frame the sessions have digest {fold.digest:016x} and count "
        f"{fold.session_count}, the frame says {frame.digest:016x} and {frame.session_count}",
        path=cursor.path,
        lsn=frame.last_lsn,
        hint="The base of the replay is not what the log was written on.",
    )


def _fresh_fold(backend: Backend, at: StatePosition) -> Fold:
    if at == NOWHERE:
        return Fold(_nothing)
    backend.refresh()
    return Fold(reading(backend), at.digest, at.session_count)


def reading(backend: Backend) -> Lookup:
    """The back end's get, with the engine's own errors turned into CorruptError."""

    def read(key: bytes) -> Record | None:
        try:
            return backend.get(key)
        except backend.engine_errors as error:
            raise unreadable(error) from error

    return read


def _nothing(_key: bytes) -> Record | None:
    return None


def _write(backend: Backend, fold: Fold, at: StatePosition) -> None:
    folded = fold.changes
    changes = [(key, folded[key]) for key in sorted(folded)]
    if backend.refresh() == NOWHERE:
        kept = [(key, record) for key, record in changes if record is not None]
        armed = [(expiry_of(record, HASH_BYTES), key) for key, record in kept]
        backend.load(kept, [entry for entry in armed if entry[0] != NEVER_MS], at)
        return
    armed = plan_deadlines(changes, reading(backend))
    backend.fold(changes, armed, [], at)
