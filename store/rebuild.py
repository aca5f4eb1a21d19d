"""Replaying a log into a back end, checked by the digest of every frame.

Owns the loop that turns snapshot plus log into a state, for a state that is not to be trusted and for
point-in-time recovery. The result is the fold of the log up to a frame end, or an error that names the
first frame whose digest or session count does not come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Final

import msgspec

from .cursor import EVERYTHING, LogCursor
from .errors import DivergedError
from .fold import Fold, plan_deadlines, record_of, unreadable
from .ids import NOWHERE, StatePosition
from .labels import plan_labels, plan_used
from .ports import Backend, Change, Deadline, Record

CHUNK_BYTES = 256 << 20
"""How much changed state is gathered in memory before it goes to the back end."""

READ_BYTES = 1 << 20
FILL_RECORDS = 2_048
"""How many records a transaction puts into an empty back end: so few stay in the processor's caches."""
ARM_AT_ONCE = 65_536
"""Of so many records the deadlines are gathered for it: the more, the closer together lie those of a run."""
UNARMED_MAX: Final = ARM_AT_ONCE + FILL_RECORDS
"""So many of the last records that fill() wrote may be without their deadlines if it breaks off."""
_KEY: Final = itemgetter(0)
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

    def records() -> Iterator[tuple[bytes, Record]]:
        done = 0
        for key, value in sessions:
            yield key, record_of(key, value)
            done += 1
            if progress and not done % 10_000:
                progress(done)

    fill(backend, records(), position)


def fill(
    backend: Backend,
    records: Iterable[tuple[bytes, Record]],
    position: StatePosition,
    *,
    unarmed: Sequence[Deadline] = (),
) -> None:
    """Fill an empty back end with records in key order; its position comes last.

    If that breaks off, the back end stands at NOWHERE with a part of them: going on with the records behind
    its last key completes it, if the deadlines of the last UNARMED_MAX of those that are there are given as
    `unarmed`.
    """
    if unarmed:
        backend.fold([], unarmed, [], NOWHERE)
    pairs = iter(records)
    armed: list[Deadline] = []
    waiting_count = 0  # not of deadlines: sessions that never expire have none
    while batch := list(islice(pairs, FILL_RECORDS)):
        armed += plan_deadlines(batch, {})
        waiting_count += len(batch)
        now_armed: list[Deadline] = []
        if waiting_count >= ARM_AT_ONCE:
            now_armed, armed, waiting_count = armed, [], 0
        backend.fold(batch, now_armed, [], NOWHERE, plan_labels(batch, {})[0])
    backend.fold([], armed, [], position)


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
    is_live: bool = False,
) -> Replayed:
    """Fold the log behind `base`, where the back end stands, up to a target.

    `upto_ms` is the time of the last frame to take, in ms. The back end is written once about
    `chunk_bytes` of frames are folded, and at the end; `on_written` is told where it stands then, with
    the cursor behind that frame; `is_live` as for write_fold. Raises DivergedError at the first frame
    after which digest or session count are not what it says, CorruptError for damaged frames,
    PositionGoneError if the log does not reach back to `base`.
    """
    go_behind(cursor, base)
    if backend.refresh() != base:
        raise DivergedError("the back end does not stand where the replay begins", lsn=base.lsn)
    fold = _fresh_fold(backend, base)
    at = written = base
    frames = size = 0
    try:
        while folded := cursor.fold(fold, upto_lsn, upto_ms, READ_BYTES):
            at = cursor.at
            frames += folded.frames
            size += folded.end
            if size + fold.moved_bytes >= chunk_bytes:
                write_fold(backend, fold, at, is_live=is_live)
                written = at
                if on_written:
                    on_written(at)
                fold, size = _fresh_fold(backend, at), 0
            if progress:
                progress(at.lsn - base.lsn)
    except backend.engine_errors as error:
        raise unreadable(error) from error
    time_ms = cursor.time_ms if frames else 0
    if at != written:
        write_fold(backend, fold, at, is_live=is_live)
        if on_written:
            on_written(at)
    # What stands behind the target, if anything: then the cursor goes on past `at`, as callers are told.
    stopped = upto_ms is not None and cursor.read(upto_lsn) is not None
    rounded = upto_lsn not in (EVERYTHING, at.lsn) and not stopped and cursor.read() is not None
    return Replayed(at, time_ms, at.lsn - base.lsn, frames, rounded)


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


def _fresh_fold(backend: Backend, at: StatePosition) -> Fold:
    if at == NOWHERE:
        return Fold(None)
    backend.refresh()
    return Fold(backend.get, at.digest, at.session_count)


def write_fold(backend: Backend, fold: Fold, at: StatePosition, *, is_live: bool = False) -> None:
    """Put what a fold changed, and where it then stands, into the back end that it was made over.

    In one transaction, unless that is empty and not `is_live`: nobody else reads it, and it is thrown away if
    this breaks off.
    """
    pairs = sorted(fold.changes.items(), key=_KEY)
    if backend.refresh() == NOWHERE and not is_live:
        _write_all(backend, fold, pairs, at)
    else:
        armed = list(plan_deadlines(pairs, fold.base_expiries))
        labelled, unlabelled = plan_labels(pairs, fold.base_terms)
        labelled += plan_used(backend, (pair for pair in pairs if pair[0] not in fold.base_expiries))
        backend.fold(pairs, armed, [], at, labelled, unlabelled)


def _write_all(backend: Backend, fold: Fold, pairs: list[Change], at: StatePosition) -> None:
    """The same for an empty back end; `pairs` are the changes in key order.

    Deadlines come last, in the order of the log: that is nearly their own, so that little is left to sort
    and each run of them is full.
    """
    if len(pairs) != fold.session_count:
        pairs = [pair for pair in pairs if pair[1] is not None]
    for start in range(0, len(pairs), FILL_RECORDS):
        batch = pairs[start : start + FILL_RECORDS]
        backend.fold(batch, [], [], NOWHERE, plan_labels(batch, {})[0])
    armed = plan_deadlines(fold.changes.items(), {})
    while some := list(islice(armed, ARM_AT_ONCE)):
        backend.fold([], some, [], NOWHERE)
    backend.fold([], [], [], at)
