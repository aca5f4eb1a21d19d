"""Carrying out retention: look at the files, decide, and remove what may go.

Owns the reading of the facts that `retention` decides on, and the order of removal: oldest first, each
file durably gone before the next, so that after a crash what is left is what a shorter plan would have
left. It works on a store that is in use.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..shipping.slots import read_slots
from ..store import names
from ..store.ahead import end_of_bytes
from ..store.backends import shares_state
from ..store.consumers import read_progress
from ..store.cursor import EVERYTHING, SegmentFile
from ..store.errors import FormatError, StorageError
from ..store.files import remove_durably, translated
from ..store.lock import FileLock
from ..store.page import Word
from ..store.segment import read_footer, read_header
from ..store.snapshot import SnapshotFile, list_snapshots
from .migration_plan import log_held
from .retention import (
    ConsumerFacts,
    HoldFacts,
    Plan,
    Policy,
    SegmentFacts,
    SlotFacts,
    SnapshotFacts,
    plan_retention,
)
from .source import Source, open_source
from .take import judge_snapshot

FOLD_LOCK_TIMEOUT_MS = 30_000


def explain_retention(
    store: str | os.PathLike[str], policy: Policy | None = None, *, now_ms: int | None = None
) -> Plan:
    """What apply_retention would do now, line by line. Read-only.

    Reads the newest snapshots until one is good. A node whose control page says nothing (it was not
    opened since the last boot) keeps all its log. Raises FormatError for a damaged slot or segment
    header: what is needed cannot be told then.
    """
    source = open_source(store)
    return plan_retention(
        _segments(source),
        _snapshots(source),
        [
            SlotFacts(slot.node, slot.held_lsn, slot.keeps_log, slot.snapshot)
            for slot in read_slots(source.store)
        ],
        policy or Policy(),
        now_ms=time.time_ns() // 1_000_000 if now_ms is None else now_ms,
        state_lsn=_state_lsn(source),
        consumers=_consumers(source.store),
        holds=[HoldFacts(what, lsn) for what, lsn in log_held(source.store)],
    )


def apply_retention(
    store: str | os.PathLike[str], policy: Policy | None = None, *, now_ms: int | None = None
) -> Plan:
    """Remove what may go; answers the plan that was carried out.

    Holds the fold lock, so that nothing is sealed or pruned by another process meanwhile. Survives a
    crash: some of the plan's files are gone, from its beginning on. Raises as explain_retention,
    LockTimeoutError, StorageError.
    """
    path = Path(store)
    lock = FileLock(open_source(path).store / names.FOLD_LOCK)
    try:
        lock.acquire(FOLD_LOCK_TIMEOUT_MS)
        plan = explain_retention(path, policy, now_ms=now_ms)
        for line in plan.drop:
            folder = path / (names.SNAPSHOTS if line.kind == "snapshot" else names.LOG)
            with translated("cannot remove a file that is not needed any more", folder / line.name):
                remove_durably(folder / line.name)
        return plan
    finally:
        lock.close()


def _consumers(store: Path) -> list[ConsumerFacts]:
    good, damaged = read_progress(store)
    facts = [ConsumerFacts(one.name, one.lsn, one.acked_ms) for one in good]
    return facts + [ConsumerFacts(name, 0, 0, error.message) for name, error in damaged]


def _state_lsn(source: Source) -> int:
    """What the state holds; one that each process makes from snapshot and log asks for no more than these."""
    if not shares_state(source.identity.backend):
        return EVERYTHING
    page = source.page()
    return page[Word.FOLDED] if page else 0


def _segments(source: Source) -> list[SegmentFacts]:
    files = source.segments()
    facts = []
    for number, file in enumerate(files):
        following = files[number + 1] if number + 1 < len(files) else None
        facts.append(_segment(file, following))
    return facts


def _segment(file: SegmentFile, following: SegmentFile | None) -> SegmentFacts:
    path = str(file.path)
    with translated("cannot read a segment", file.path):
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = end_of_bytes(descriptor, 0)
            footer = read_footer(descriptor, path=path)
            created_ms = read_header(descriptor, path=path).created_ms
        finally:
            os.close(descriptor)
    if following is None:
        return SegmentFacts(file.path.name, file.first_lsn, file.first_lsn, size, created_ms, False)
    is_abandoned = following.first_lsn == file.first_lsn
    last_lsn = following.first_lsn - 1
    if footer is not None and footer.end.lsn != last_lsn:
        raise StorageError(
            f"a segment ends at LSN {footer.end.lsn}, the next one begins with {following.first_lsn}",
            path=path,
            hint="Nothing was removed. See `perdure verify`.",
        )
    closed_ms = _created_ms(following)
    return SegmentFacts(
        file.path.name, file.first_lsn, last_lsn, size, closed_ms, footer is not None or is_abandoned
    )


def _created_ms(file: SegmentFile) -> int:
    descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_header(descriptor, path=str(file.path)).created_ms
    finally:
        os.close(descriptor)


def _snapshots(source: Source) -> list[SnapshotFacts]:
    """Judged from the newest on until one is good; what is older need not be read for the decision."""
    found: list[SnapshotFacts] = []
    has_good = False
    for file in reversed(list_snapshots(source.snapshots)):
        is_good = not has_good and _is_good(source, file)
        has_good = has_good or is_good
        found.append(SnapshotFacts(file.name, file.lsn, file.size_bytes, _made_ms(file), is_good))
    return found[::-1]


def _is_good(source: Source, file: SnapshotFile) -> bool:
    try:
        return judge_snapshot(source, file).is_good
    except FormatError:
        return False


def _made_ms(file: SnapshotFile) -> int:
    try:
        return file.path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0
