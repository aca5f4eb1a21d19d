"""Snapshots of a store: taken while it is written, listed, judged and pruned.

Owns when and of what a snapshot is taken, and which one is good. A snapshot is the state at one LSN,
the position of one image of the back end; it gets its name only once the log is on disk up to there,
so that no snapshot holds what the log could lose. With sync_replicas the state, and so the snapshot,
holds committed events only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..shipping.slots import read_slots
from ..store import names
from ..store.cursor import LogCursor, find_frame_end, list_segments
from ..store.errors import (
    DivergedError,
    FormatError,
    FormatVersionError,
    PerdureError,
    PositionGoneError,
    UsageError,
)
from ..store.files import remove_durably, translated
from ..store.ids import Position
from ..store.keeper import check_plan
from ..store.opening import Opened, OpenOptions, open_store
from ..store.page import Word
from ..store.ports import Record, Scan
from ..store.rebuild import Progress
from ..store.snapshot import (
    SnapshotFile,
    SnapshotHead,
    list_snapshots,
    read_head,
    remove_unfinished,
    verify_snapshot,
    write_snapshot,
)
from .findings import Finding, Level, finding_of
from .source import Source, frame_time_ms, open_source

FOLD_LOCK_TIMEOUT_MS = 30_000
UNREAD = "snapshot-unread"
"""The kind of finding for a snapshot of whose content nothing is known."""


class SnapshotState(msgspec.Struct, frozen=True):
    """A snapshot, and what is known of it."""

    file: SnapshotFile
    head: SnapshotHead | None
    """None if it cannot be read."""
    finding: Finding

    @property
    def is_good(self) -> bool:
        """True only if all of it was read and is right."""
        return self.finding.level is Level.OK


def take_snapshot(
    source: Opened | str | os.PathLike[str],
    *,
    compress: bool = False,
    progress: Progress | None = None,
    keep: int | None = None,
) -> SnapshotFile:
    """Take a snapshot of a store, on a primary or a replica, while others write to it.

    `source` is an open store or its directory. `progress` is called with the number of sessions done.
    With `keep`, older snapshots are pruned afterwards (see prune_snapshots). Steps: fold, image of the
    state, flush of the log up to the image's LSN, temporary file, checks, fsync, rename, fsync of the
    directory. Survives a crash: after the last step the snapshot, before the rename a temporary file
    that the next snapshot removes.

    Raises UsageError if the store has no log yet, CorruptError if the state does not match its own
    digest, DivergedError if the log was cut below the image meanwhile or a replica's state is not what its
    frames were written on, StorageError or PoisonedError.
    """
    if not isinstance(source, Opened):
        opened = open_store(Path(source), OpenOptions(create=False))
        try:
            return take_snapshot(opened, compress=compress, progress=progress, keep=keep)
        finally:
            opened.close()
    directory = source.store / names.SNAPSHOTS
    generation = source.log.words[Word.GENERATION]
    scan = _fold_and_image(source)
    try:
        at = scan.position
        if not at.lsn:
            raise UsageError(
                "the store has no log yet, so there is nothing to take a snapshot of", path=source.store
            )
        source.log.flush(at.lsn)
        identity = source.identity
        head = SnapshotHead(
            identity.cluster_id,
            identity.shard,
            identity.node,
            at,
            _time_at(source, at.position),
            source.log.now_ms(),
            compress,
        )
        remove_unfinished(directory)
        records = _guarded(source, scan, generation)
        path = write_snapshot(directory, head, records, compress=compress, progress=progress)
    finally:
        scan.close()
    if keep is not None:
        prune_snapshots(source.store, keep=keep)
    return SnapshotFile(at.lsn, at.epoch, path, path.stat().st_size)


def inspect_snapshots(store: str | os.PathLike[str], *, check: bool = False) -> list[SnapshotState]:
    """The snapshots of a store, oldest first; with `check` each is read to its end.

    Without it a snapshot whose head is readable has level UNKNOWN; so has one that could not be read. One
    that was pruned meanwhile is left out. Errors as open_source.
    """
    source = open_source(store)
    judged = [judge_snapshot(source, file, check=check) for file in list_snapshots(source.snapshots)]
    return [state for state in judged if state.head is not None or state.file.path.exists()]


def judge_snapshot(source: Source, file: SnapshotFile, *, check: bool = True) -> SnapshotState:
    """Is a snapshot good: whole, of this cluster, and of the history that the log holds?"""
    path = str(file.path)
    try:
        head = read_head(file.path, source.identity.cluster_id)
        if not check:
            return SnapshotState(file, head, Finding(Level.UNKNOWN, UNREAD, "its content was not read", path))
        verify_snapshot(file.path, source.identity.cluster_id)
    except FormatVersionError as error:
        return SnapshotState(file, None, finding_of(error, Level.UNKNOWN, "snapshot-newer"))
    except FormatError as error:
        return SnapshotState(file, None, finding_of(error, Level.CORRUPT, "snapshot-damaged"))
    except PerdureError as error:
        return SnapshotState(file, None, finding_of(error, Level.UNKNOWN, UNREAD))
    problem = _of_another_history(source, head.at.position)
    if problem:
        hint = "Snapshot and log belong to different histories; do not use both."
        finding = Finding(Level.CORRUPT, "snapshot-diverged", problem, path, lsn=file.lsn, hint=hint)
    elif _log_begins_behind(source, file.lsn):
        message = "the log behind it is gone, so that it cannot be brought up to date"
        finding = Finding(Level.WARNING, "snapshot-cut-off", message, path, lsn=file.lsn)
    else:
        message = f"{head.at.session_count} sessions at {head.at.position}"
        finding = Finding(Level.OK, "snapshot", message, path, lsn=file.lsn)
    return SnapshotState(file, head, finding)


def prune_snapshots(store: str | os.PathLike[str], *, keep: int) -> list[Path]:
    """Remove all but the newest `keep` snapshots, oldest first; says which.

    One that a replica is being sent stays, too. The newest good one always does: if none of the newest
    `keep` is good, one older than them that is stays as well, and if none is good at all nothing is
    removed. Raises UsageError for keep < 1.
    """
    if keep < 1:
        raise UsageError(f"at least one snapshot is kept, not {keep}")
    source = open_source(store)
    files = list_snapshots(source.snapshots)
    good = next((file for file in reversed(files) if judge_snapshot(source, file).is_good), None)
    if good is None:
        return []
    sent = {slot.snapshot for slot in read_slots(source.store) if slot.keeps_log}
    drop = [file.path for file in files[:-keep] if file != good and file.name not in sent]
    with translated("cannot remove a snapshot", source.snapshots):
        for path in drop:
            remove_durably(path)
    return drop


def _fold_and_image(opened: Opened) -> Scan:
    """Fold what is visible, and image the state; it may be further than that by then."""
    view = opened.view
    lock = opened.fold_lock()
    try:
        with view.fold_threads:
            lock.acquire(FOLD_LOCK_TIMEOUT_MS)
            with view.mutex:
                plan = view.fold_plan()
                if plan is not None:
                    check_plan(view, plan)
                    opened.backend.fold(*plan)
                    view.folded(plan.position)
                return opened.backend.scan()
    finally:
        lock.close()


def _guarded(opened: Opened, scan: Scan, generation: int) -> Iterator[tuple[bytes, Record]]:
    """The image's records; at their end, before the snapshot is published, the log must still hold it.

    `generation` is that of the log before the image was made.
    """
    yield from scan
    opened.log.flush(scan.position.lsn)
    if opened.log.words[Word.GENERATION] != generation and not _is_in_log(opened, scan.position.position):
        raise DivergedError(
            "the log was cut while the snapshot was taken",
            path=opened.store,
            lsn=scan.position.lsn,
            hint="Take it again.",
        )


def _is_in_log(opened: Opened, position: Position) -> bool:
    cursor = _cursor(opened)
    try:
        return find_frame_end(cursor, position)
    finally:
        cursor.close()


def _time_at(opened: Opened, position: Position) -> int:
    """Time of the frame at `position`; where retention has passed it, a time that it surely is not after."""
    cursor = _cursor(opened)
    try:
        found = frame_time_ms(cursor, position.lsn)
    finally:
        cursor.close()
    return found if found is not None else max(opened.log.cursor.time_ms, opened.log.now_ms())


def _cursor(opened: Opened) -> LogCursor:
    log, identity = opened.log, opened.identity
    return LogCursor(log.cursor.log, identity.cluster_id, log.key, identity.shard, is_writable=False)


def _of_another_history(source: Source, position: Position) -> str:
    """Why a snapshot is not of the log's history, empty if it is, or if the log does not reach it."""
    cursor = source.cursor()
    try:
        cursor.seek(position.lsn)
    except PositionGoneError:
        if cursor.damage is None and cursor.descriptor >= 0 and cursor.at.lsn > position.lsn:
            return f"it is of {position}, and no frame of the log ends there"
        return ""
    except PerdureError:
        return ""  # the log is damaged there: that is said where the log is checked
    finally:
        cursor.close()
    return "" if cursor.at.position == position else f"it is of {position}, the log has {cursor.at.position}"


def _log_begins_behind(source: Source, lsn: int) -> bool:
    files = list_segments(source.log)
    return bool(files) and files[0].first_lsn > lsn + 1
