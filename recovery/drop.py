"""Carrying out retention: look at the files, decide, and remove what may go.

Owns the reading of the facts that `retention` decides on, and the order of removal: oldest first, each
file durably gone before the next, so that after a crash what is left is what a shorter plan would have
left. It works on a store that is in use.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from msgspec import structs

from ..shipping.slots import read_slots
from ..store import names
from ..store.ahead import end_of_bytes
from ..store.backends import shares_state
from ..store.consumers import read_progress
from ..store.cursor import EVERYTHING, SegmentFile
from ..store.errors import FormatError, StorageError
from ..store.files import remove_durably, translate, translated
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
from .take import UNREAD, judge_snapshot

FOLD_LOCK_TIMEOUT_MS = 30_000


class _Verdicts:
    """Which snapshots are good; each file is read once, and none while others wait for a lock."""

    def __init__(self) -> None:
        self.may_read = True
        self._is_good: dict[tuple[int, ...], bool] = {}

    def of(self, source: Source, file: SnapshotFile) -> bool | None:
        """True, False, or None if it was not read, and may not be now.

        Raises StorageError if it cannot be read: whether it is needed can't be told then.
        """
        page = source.page()
        try:
            found = file.path.stat()
        except FileNotFoundError:
            return False  # pruned by another process meanwhile
        except OSError as error:
            raise translate(error, "cannot look at a snapshot", file.path) from error
        generation = page[Word.GENERATION] if page else 0
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, generation)
        if key not in self._is_good and self.may_read:
            self._is_good[key] = _is_good(source, file)
        return self._is_good.get(key)


def explain_retention(
    store: str | os.PathLike[str], policy: Policy | None = None, *, now_ms: int | None = None
) -> Plan:
    """What apply_retention would do now, line by line. Read-only.

    Reads the newest snapshots until one is good, and what else would be relied on. A node whose control page
    says nothing (it was not opened since the last boot) keeps all its log. Raises FormatError for a damaged
    slot or segment header, StorageError for a snapshot that cannot be read: what is needed cannot be told
    then.
    """
    return _explained(Path(store), policy or Policy(), _now_ms(now_ms), _Verdicts())


def apply_retention(
    store: str | os.PathLike[str], policy: Policy | None = None, *, now_ms: int | None = None
) -> Plan:
    """Remove what may go; answers the plan that was carried out.

    Holds the fold lock, so that nothing is sealed or pruned by another process meanwhile; snapshots are read
    before that, because readers and writers wait for who folds. Survives a crash: some of the plan's files
    are gone, from its beginning on. Raises as explain_retention, LockTimeoutError, StorageError.
    """
    path, asked, moment_ms, verdicts = Path(store), policy or Policy(), _now_ms(now_ms), _Verdicts()
    lock = FileLock(open_source(path).store / names.FOLD_LOCK)
    try:
        while True:
            verdicts.may_read = True
            _explained(path, asked, moment_ms, verdicts)
            lock.acquire(FOLD_LOCK_TIMEOUT_MS)
            verdicts.may_read = False
            plan = _explained(path, asked, moment_ms, verdicts)
            if not plan.relies_on:
                break
            lock.release()  # the snapshots changed meanwhile
        for line in plan.drop:
            folder = path / (names.SNAPSHOTS if line.kind == "snapshot" else names.LOG)
            with translated("cannot remove a file that is not needed any more", folder / line.name):
                remove_durably(folder / line.name)
        return plan
    finally:
        lock.close()


def _explained(store: Path, policy: Policy, now_ms: int, verdicts: _Verdicts) -> Plan:
    """The plan; what it relies on was read, unless that may not be now."""
    source = open_source(store)
    segments = _segments(source)
    files = list_snapshots(source.snapshots)
    snapshots = _snapshots(source, files, verdicts)
    slots = [
        SlotFacts(slot.node, slot.held_lsn, slot.keeps_log, slot.snapshot)
        for slot in read_slots(source.store)
    ]
    while True:
        plan = plan_retention(
            segments,
            snapshots,
            slots,
            policy,
            now_ms=now_ms,
            state_lsn=_state_lsn(source),
            consumers=_consumers(source.store),
            holds=[HoldFacts(what, lsn) for what, lsn in log_held(source.store)],
        )
        number = next((n for n, file in enumerate(files) if file.name == plan.relies_on), None)
        is_good = verdicts.of(source, files[number]) if number is not None else None
        if number is None or is_good is None:
            return plan
        snapshots[number] = structs.replace(snapshots[number], is_good=is_good, is_bad=not is_good)


def _now_ms(given: int | None) -> int:
    return time.time_ns() // 1_000_000 if given is None else given


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


def _snapshots(source: Source, files: list[SnapshotFile], verdicts: _Verdicts) -> list[SnapshotFacts]:
    """Judged from the newest on until one is good; what is older need not be read for that."""
    found: list[SnapshotFacts] = []
    has_good = False
    for file in reversed(files):
        is_good = None if has_good else verdicts.of(source, file)
        has_good = has_good or bool(is_good)
        found.append(
            SnapshotFacts(
                file.name, file.lsn, file.size_bytes, _made_ms(file), bool(is_good), is_good is False
            )
        )
    return found[::-1]


def _is_good(source: Source, file: SnapshotFile) -> bool:
    try:
        judged = judge_snapshot(source, file)
    except FormatError:
        return False
    if judged.finding.kind == UNREAD and file.path.exists():
        raise StorageError(
            judged.finding.message,
            path=file.path,
            hint="Nothing was removed: what it is needed for cannot be told. Try again.",
        )
    return judged.is_good


def _made_ms(file: SnapshotFile) -> int:
    try:
        return file.path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0
