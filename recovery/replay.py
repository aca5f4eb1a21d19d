"""Point-in-time recovery: snapshot and log of one store, folded into a new directory.

Owns what a replayed copy is. It is a store of its own, with a cluster id of its own: frames, promises
and replicas of the source's cluster are foreign to it, so that it can never act as the node that it
was made from. It holds exactly the sessions at the target, as state and as a snapshot, and its log
begins behind them with an epoch of its own; `SessionStore.open` takes it like any standalone store.

The source is only read: it may be dead, in use, a copy, or on a read-only file system. The identity is
published last: a directory that a crash left half done is no store, and neither open nor replay takes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..store import names
from ..store.ahead import end_of_bytes
from ..store.clock import read_wall_ms, time_after_boot
from ..store.control import ALONE, config_of
from ..store.cursor import EVERYTHING
from ..store.errors import (
    CorruptError,
    DivergedError,
    PerdureError,
    PositionGoneError,
    UsageError,
)
from ..store.files import make_directory, remove_durably
from ..store.identity import MAGIC as IDENTITY_MAGIC
from ..store.identity import VERSION as IDENTITY_VERSION
from ..store.identity import Identity, new_cluster_id
from ..store.ids import LSN_LIMIT, NOWHERE, StatePosition
from ..store.log import EventLog
from ..store.opening import STANDALONE_NODE
from ..store.page import Word, read_boot_id
from ..store.placing import open_log
from ..store.ports import Backend
from ..store.promise import Promise
from ..store.rebuild import Progress, Replayed, load_snapshot, replay
from ..store.smallfile import publish_small
from ..store.snapshot import SnapshotFile, SnapshotHead, SnapshotReader, list_snapshots, write_snapshot
from ..store.state import mark_state, open_state
from ..store.tail import TailVerdict
from .findings import Finding, Level
from .source import Source, SourceCursor, judge_end, open_source
from .take import judge_snapshot
from .target import UNFINISHED, claim, empty

DIRTY_TRIES = 50


class ReplayReport(msgspec.Struct, frozen=True):
    """What a replay made."""

    source: Path
    target: Path
    cluster_id: bytes
    """Of the new store."""
    backend: str
    base: str
    """File name of the snapshot that it began from, empty if from the first frame of the log."""
    position: StatePosition
    """Where it stands in the source's history; digest and session count are those of the log's frame."""
    time_ms: int
    """Time of the last frame, 0 if the log was not needed."""
    events: int
    frames: int
    rounded_down: bool
    """The target lay inside a frame: the replay stopped at the end of the frame before."""
    at_end: bool
    """It holds all that is whole in the source's log."""
    findings: list[Finding]
    """What else has to be said: snapshots passed over, a torn tail left out, frames not known committed."""
    elapsed_ms: int


def replay_to(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    upto_lsn: int | None = None,
    upto_ms: int | None = None,
    backend: str | None = None,
    progress: Progress | None = None,
    boot_id: Callable[[], str] = read_boot_id,
) -> ReplayReport:
    """Fold the newest good snapshot at or below a target, and the log behind it, into a new directory.

    The target is an LSN, or a time in ms since 1970 (the last frame not after it), or neither: the end
    of the log as it was when this was called. `backend` names one, None the source's. After
    each frame digest and session count are compared with the frame's, and at the end once more over
    all records. `progress` is called with the number of events done.

    Raises UsageError for a target directory that is not empty, or both kinds of target;
    PositionGoneError if the log does not reach back or up to the target; DivergedError if a digest does
    not come out; CorruptError, with file, offset and LSN, for damage at or below the target;
    StorageError. The source is never changed. An unfinished target is left for inspection, but is
    emptied after PositionGoneError.
    """
    if upto_lsn is not None and upto_ms is not None:
        raise UsageError("a replay goes to an LSN or to a time, not to both")
    if upto_lsn is not None and not 0 <= upto_lsn < LSN_LIMIT:
        raise UsageError(f"an LSN is 0 to {LSN_LIMIT - 1}, not {upto_lsn}")
    if upto_ms is not None and not 0 <= upto_ms < 1 << 63:
        raise UsageError(f"a time in ms since 1970 is 0 to {(1 << 63) - 1}, not {upto_ms}")
    started = time.monotonic_ns()
    evidence = open_source(source, boot_id)
    place = Path(target)
    claim(evidence.store, place, upto_lsn, upto_ms)
    job = _Replay(evidence, place, upto_lsn, upto_ms, backend or evidence.identity.backend, boot_id())
    try:
        report = job.run(progress)
    except PositionGoneError:
        empty(place)
        raise
    elapsed_ms = (time.monotonic_ns() - started) // 1_000_000
    return msgspec.structs.replace(report, elapsed_ms=elapsed_ms)


class _Replay:
    """One replay on its way."""

    def __init__(
        self, source: Source, target: Path, lsn: int | None, time_ms: int | None, backend: str, boot_id: str
    ) -> None:
        self.source = source
        self.target = target
        self.upto_lsn = lsn
        self.upto_ms = time_ms
        self.boot_id = boot_id
        self.findings: list[Finding] = []
        self.identity = Identity(new_cluster_id(), STANDALONE_NODE, 0, time.time_ns() // 1_000_000, backend)

    def run(self, progress: Progress | None) -> ReplayReport:
        end_lsn = self._end_lsn()
        cursor = self.source.cursor()
        backend = self._make_backend()
        try:
            base, replayed = self._fold(backend, cursor, end_lsn, progress)
            self._check_reached(cursor, replayed, end_lsn)
            snapshot = self._keep_snapshot(backend, replayed)
        finally:
            backend.close()
            cursor.close()
        self._begin_log(replayed.end, replayed.time_ms)
        publish_small(self.target / names.IDENTITY, IDENTITY_MAGIC, IDENTITY_VERSION, self.identity)
        remove_durably(self.target / UNFINISHED)
        return ReplayReport(
            source=self.source.store,
            target=self.target,
            cluster_id=self.identity.cluster_id,
            backend=self.identity.backend,
            base=base,
            position=snapshot,
            time_ms=replayed.time_ms,
            events=replayed.events,
            frames=replayed.frames,
            rounded_down=replayed.rounded_down,
            at_end=self.upto_lsn is None and self.upto_ms is None,
            findings=self.findings,
            elapsed_ms=0,
        )

    def _end_lsn(self) -> int:
        """The last LSN to take: while others write, the end as it is now."""
        if self.upto_lsn is not None:
            return self.upto_lsn
        for _ in range(DIRTY_TRIES):
            page = self.source.page()
            if page is None:
                return EVERYTHING
            if not page[Word.DIRTY]:
                return page[Word.APPENDED] or EVERYTHING
            time.sleep(0.001)  # a frame is being written, or its writer died
        return EVERYTHING

    def _make_backend(self) -> Backend:
        for name in (names.LOG, names.SNAPSHOTS, names.SLOTS, names.ASIDE, names.DIVERGED):
            make_directory(self.target / name)
        identity = self.identity
        return open_state(self.target, identity.backend, identity.cluster_id, self.boot_id)[0]

    def _fold(
        self, backend: Backend, cursor: SourceCursor, end_lsn: int, progress: Progress | None
    ) -> tuple[str, Replayed]:
        """(file name of the snapshot that was the base, what the replay behind it did)."""
        file, head = self._choose_base(end_lsn)
        base = NOWHERE
        if file is not None and head is not None:
            base = head.at
            with SnapshotReader(file.path, self.source.identity.cluster_id) as snapshot:
                load_snapshot(backend, base, snapshot)
        name = file.name if file else ""
        files = self.source.segments()
        if not files or end_lsn <= base.lsn:
            return name, Replayed(base, head.log_time_ms if head else 0, 0, 0, False)
        return name, replay(backend, cursor, base, upto_lsn=end_lsn, upto_ms=self.upto_ms, progress=progress)

    def _choose_base(self, end_lsn: int) -> tuple[SnapshotFile | None, SnapshotHead | None]:
        """The newest good snapshot at or below the target; None if the log itself reaches back to LSN 1."""
        files = self.source.segments()
        oldest = files[0].first_lsn if files else 0
        for file in reversed(list_snapshots(self.source.snapshots)):
            if file.lsn > end_lsn:
                continue
            judged = judge_snapshot(self.source, file)
            if judged.head is None or not judged.is_good:
                self.findings.append(judged.finding)
                continue
            if self.upto_ms is not None and judged.head.log_time_ms > self.upto_ms:
                continue
            return file, judged.head
        if oldest == 1:
            return None, None
        what = f"the log begins with LSN {oldest}" if oldest else "there is no log"
        raise PositionGoneError(
            f"{what}, and no good snapshot at or below the target reaches it",
            path=self.source.store,
            lsn=oldest or None,
            hint="; ".join(str(finding) for finding in self.findings)
            or "Give a later target, or replay from an archive or another node.",
        )

    def _check_reached(self, cursor: SourceCursor, replayed: Replayed, end_lsn: int) -> None:
        """Refuse a result that is short of its target; say what was left out where there is no target."""
        wanted, at = self.upto_lsn, replayed.end
        if at.lsn == end_lsn or replayed.rounded_down:
            if wanted is None:
                self._say_rest(cursor)
            self._say_uncommitted(at)
            return
        if cursor.descriptor < 0:
            if wanted is not None:
                raise self._beyond(wanted, at)
            return
        if cursor.at.lsn > at.lsn:  # a time was given, and a later frame stands in the log
            self._say_uncommitted(at)
            return
        judgement = judge_end(cursor, self.source.known())
        if judgement.verdict is TailVerdict.CORRUPT:
            raise CorruptError(
                f"the log is damaged behind LSN {at.lsn}: {judgement.because}",
                path=cursor.path,
                offset=cursor.offset,
                lsn=at.lsn + 1,
                hint=f"Replay up to LSN {at.lsn}, or take another node's log.",
            ) from cursor.damage
        if wanted is not None:
            raise self._beyond(wanted, at)
        if judgement.verdict is TailVerdict.TORN:
            self._say_torn(cursor, judgement.because)
        self._say_uncommitted(at)

    def _say_rest(self, cursor: SourceCursor) -> None:
        """Bytes behind the end that the control page names, where nobody is writing any."""
        page = self.source.page()
        if cursor.descriptor < 0 or page is None:
            return
        if page[Word.DIRTY] or page[Word.APPENDED] != cursor.at.lsn:
            return
        if end_of_bytes(cursor.descriptor, cursor.offset) == cursor.offset:
            return
        try:
            footer = cursor.footer()
        except CorruptError:
            footer = None
        if footer is None or footer.frames_end != cursor.offset:
            self._say_torn(cursor, "the control page ends the log before them")

    def _say_torn(self, cursor: SourceCursor, because: str) -> None:
        message = f"the log ends with bytes that are no whole frame, left out: {because}"
        lsn = cursor.at.lsn + 1
        self.findings.append(
            Finding(Level.NOTICE, "tail-torn", message, str(cursor.path), cursor.offset, lsn)
        )

    def _beyond(self, wanted: int, at: StatePosition) -> PositionGoneError:
        return PositionGoneError(
            f"the log ends at LSN {at.lsn}, before {wanted}",
            path=self.source.log,
            lsn=wanted,
            hint="Give a target that the log has, or none for its end.",
        )

    def _say_uncommitted(self, at: StatePosition) -> None:
        """With sync_replicas: frames that this directory does not know to be committed."""
        cursor = self.source.cursor()
        try:
            replicas = sync_replicas_of(cursor, self.source)
        finally:
            cursor.close()
        committed = self.source.committed_lsn()
        if replicas and committed < at.lsn:
            self.findings.append(
                Finding(
                    Level.NOTICE,
                    "committed-unknown",
                    f"LSN {committed + 1} to {at.lsn} are in this log, and it does not say whether "
                    f"{replicas} replica(s) confirmed them",
                    lsn=committed + 1,
                    hint="The primary's log says it; everything that was acknowledged is included.",
                )
            )

    def _keep_snapshot(self, backend: Backend, replayed: Replayed) -> StatePosition:
        """Publish what was made as the copy's own snapshot: that reads, hashes and sums every record."""
        scan = backend.scan()
        try:
            if scan.position != replayed.end:
                raise DivergedError(
                    f"the new state stands at {scan.position}, the log at {replayed.end}",
                    path=self.target,
                    lsn=replayed.end.lsn,
                )
            if replayed.end.lsn:
                identity = self.identity
                head = SnapshotHead(
                    identity.cluster_id,
                    identity.shard,
                    identity.node,
                    replayed.end,
                    replayed.time_ms,
                    identity.created_ms,
                    False,
                )
                write_snapshot(self.target / names.SNAPSHOTS, head, scan, compress=False)
            return scan.position
        finally:
            scan.close()

    def _begin_log(self, end: StatePosition, end_ms: int) -> None:
        """The copy's own history begins behind the state, in an epoch that nobody else ever had."""
        began_ms = time_after_boot(end_ms, read_wall_ms())
        log = EventLog(self.target, self.identity, boot_id=self.boot_id, now_ms=lambda: began_ms)
        try:
            log.write_lock.acquire(log.lock_timeout_ms)
            try:
                open_log(log, end)
                log.start_epoch(Promise(end.epoch + 1, self.identity.node), ALONE, "replayed")
            finally:
                log.write_lock.release()
        finally:
            log.close()
        mark_state(
            self.target,
            backend_name=self.identity.backend,
            cluster_id=self.identity.cluster_id,
            boot_id=self.boot_id,
        )


def sync_replicas_of(cursor: SourceCursor, source: Source) -> int:
    """sync_replicas by the newest CONFIG in the log, 0 if none can be read."""
    files = source.segments()
    if not files:
        return 0
    try:
        cursor.open_segment(files[-1])
        run = cursor.read(limit_bytes=64 << 10)
        if run is None:
            return 0
        config = config_of(run.events(*run.frames[0]))
        return config.sync_replicas if config else 0
    except PerdureError:
        return 0
