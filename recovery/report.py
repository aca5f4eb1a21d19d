"""What a node says of itself: role, positions, replicas and their lag, changes of the primary.

Owns the report, which is made from the node's own files: control page, slots, and the log's end. Nothing
is locked, opened for writing or asked over the network. Lags are measured in the log (see behind).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from ..shipping import slots
from ..shipping.faults import read_fault
from ..shipping.status import ReplicaStatus, ShippingStatus, shipping_status
from ..store.clock import read_boottime_ms, read_wall_ms
from ..store.errors import FormatError, PerdureError, StorageError
from ..store.ids import NOWHERE, StatePosition
from ..store.page import Word
from ..store.segment import HEADER_BYTES, SegmentHeader
from .behind import behind
from .scan import SegmentScan
from .source import Source, newest_config, open_source

CONNECTED: Final = frozenset({slots.STREAMING, slots.CATCH_UP, slots.PAUSED})
"""States of a replica that acknowledges, or will once its disk lets it."""
FAILED: Final = frozenset({slots.DIVERGED, slots.REFUSED})
"""States that need a person, or a repair."""
FAILOVERS_MAX: Final = 100
_SIGNED_MAX: Final = (1 << 63) - 1


class ReplicaReport(msgspec.Struct, frozen=True):
    """One replica, as its primary knows it. Lags are of what is on the primary's disk."""

    node: str
    state: str
    acked_lsn: int
    """On the replica's disk."""
    applied_lsn: int
    """In its state."""
    lag_events: int
    lag_bytes: int
    lag_ms: int | None
    """Now minus the time of the oldest event that it does not have on disk, 0 when none; None: not known."""
    apply_lag_events: int
    apply_lag_ms: int | None
    """The same of its state."""
    last_seen_ms: int
    round_trip_us: int
    error: str

    @property
    def is_connected(self) -> bool:
        return self.state in CONNECTED

    def holds(self, lsn: int) -> bool:
        """Is it there, and does it have everything up to `lsn` on disk?"""
        return self.is_connected and self.acked_lsn >= lsn


class Failover(msgspec.Struct, frozen=True):
    """A change of the primary, as the log tells it."""

    epoch: int
    node: str
    """Who became primary."""
    before: str
    at_ms: int
    """Time of the new epoch's first event, ms since 1970."""
    first_lsn: int


class NodeReport(msgspec.Struct, frozen=True):
    """What a node's own files say."""

    node: str
    is_primary: bool
    epoch: int
    epoch_lsn: int
    """First LSN of that epoch in its log, 0 if it holds none."""
    primary: str
    """Who wrote the newest segment of its log; empty if the log is."""
    promise_epoch: int
    promise_candidate: str
    voters: tuple[str, ...]
    witnesses: tuple[str, ...]
    """Voters that keep promises only, and no log."""
    sync_replicas: int
    shipper_pid: int
    voters_connected: int
    appended_lsn: int
    flushed_lsn: int
    committed_lsn: int
    folded_lsn: int | None
    """None where each process keeps a state of its own."""
    is_state_shared: bool
    pending_events: int
    """Appended, and not confirmed by `sync_replicas` yet."""
    sessions: int
    """At the end of the log."""
    digest: str
    replicas: list[ReplicaReport]
    failovers: list[Failover]
    """The newest FAILOVERS_MAX that the log still tells of, oldest first."""
    fault: str
    now_ms: int
    """Session time when this was said, ms since 1970."""

    def replica(self, node: str) -> ReplicaReport | None:
        return next((replica for replica in self.replicas if replica.node == node), None)

    @property
    def expected(self) -> tuple[str, ...]:
        """The nodes that ought to have what this one has: the other voters that keep the log, and whoever is
        connected."""
        others = {name for name in self.voters if name != self.node} - set(self.witnesses)
        others |= {replica.node for replica in self.replicas if replica.is_connected}
        return tuple(sorted(others or {replica.node for replica in self.replicas}))


def report_node(directory: str | os.PathLike[str], *, is_brief: bool = False) -> NodeReport:
    """What the node in `directory` is, by its own files.

    Brief means: no bytes and ages of what replicas lack but those in their slots, and no failovers. Raises
    StoreMissingError, FormatError, StorageError.
    """
    source = open_source(directory)
    known = shipping_status(directory)
    now_ms = _now_ms(source)
    files = source.segments()
    config = newest_config(source)
    end, primary = _end_of_log(source)
    k = config.sync_replicas
    replicas = [_replica(source, known, found, now_ms, is_brief=is_brief) for found in known.replicas]
    return NodeReport(
        node=known.node,
        is_primary=known.is_primary,
        epoch=known.epoch,
        epoch_lsn=min((file.first_lsn for file in files if file.epoch == known.epoch), default=0),
        primary=primary,
        promise_epoch=known.promise.epoch,
        promise_candidate=known.promise.candidate,
        voters=config.voters,
        witnesses=config.witnesses,
        sync_replicas=k,
        shipper_pid=known.shipper_pid,
        voters_connected=known.voters_connected,
        appended_lsn=known.appended_lsn,
        flushed_lsn=known.flushed_lsn,
        committed_lsn=known.committed_lsn if k else known.appended_lsn,
        folded_lsn=known.folded_lsn if known.is_state_shared or not known.is_primary else None,
        is_state_shared=known.is_state_shared,
        pending_events=known.pending_events if known.is_primary and k else 0,
        sessions=end.session_count,
        digest=f"{end.digest:016x}",
        replicas=replicas if known.is_primary else [],
        failovers=[] if is_brief else _failovers(source),
        fault=known.fault or read_fault(Path(directory)),
        now_ms=now_ms,
    )


def _replica(
    source: Source, known: ShippingStatus, found: ReplicaStatus, now_ms: int, *, is_brief: bool
) -> ReplicaReport:
    lag_bytes, lag_ms = found.lag_bytes, found.lag_ms
    applied = min(found.applied_lsn, found.acked_lsn)
    apply_ms: int | None = None
    unapplied = max(0, known.committed_lsn - applied if known.committed_lsn else known.flushed_lsn - applied)
    if not is_brief:
        lacking = behind(source, found.acked_lsn, known.flushed_lsn)
        lag_bytes = lacking.bytes
        if found.state not in CONNECTED and lacking.oldest_ms is not None:
            lag_ms = max(0, now_ms - lacking.oldest_ms)
        oldest_ms = behind(source, applied, applied + unapplied).oldest_ms
        apply_ms = max(0, now_ms - oldest_ms) if oldest_ms is not None else None
    return ReplicaReport(
        node=found.node,
        state=found.state,
        acked_lsn=found.acked_lsn,
        applied_lsn=found.applied_lsn,
        lag_events=found.lag_events,
        lag_bytes=lag_bytes if found.lag_events else 0,
        lag_ms=lag_ms if found.lag_events else 0,
        apply_lag_events=unapplied,
        apply_lag_ms=apply_ms if unapplied else 0,
        last_seen_ms=found.last_seen_ms,
        round_trip_us=found.round_trip_us,
        error=found.error,
    )


def _now_ms(source: Source) -> int:
    page = source.page()
    offset = page[Word.SESSION_OFFSET_MS] if page else 0
    if not offset:
        return read_wall_ms()
    return read_boottime_ms() + (offset if offset <= _SIGNED_MAX else offset - (1 << 64))


def _end_of_log(source: Source) -> tuple[StatePosition, str]:
    """(where the log ends, who wrote it); of a log that cannot be read, nothing."""
    files = source.segments()
    if not files:
        return NOWHERE, ""
    try:
        with SegmentScan(files[-1].path) as scan:
            return _last(source, scan.at), scan.header.primary
    except PerdureError:
        return NOWHERE, ""


def _last(source: Source, at: StatePosition) -> StatePosition:
    """The last frame, where the control page leads to it; else what was read of the log."""
    page, cursor = source.page(), source.cursor()
    try:
        files = [file for file in source.segments() if page and file.first_lsn == page[Word.SEGMENT]]
        if page is None or not files or page[Word.LAST_FRAME] < HEADER_BYTES:
            return at
        cursor.open_segment(files[-1])
        cursor.jump(page[Word.LAST_FRAME])
        return cursor.at if cursor.read(page[Word.APPENDED]) is not None else at
    except (FormatError, StorageError):
        return at
    finally:
        cursor.close()


def _failovers(source: Source) -> list[Failover]:
    """The changes of the primary, by the first segment of each epoch."""
    found: list[Failover] = []
    before: SegmentHeader | None = None
    for file in source.segments():
        if before is not None and file.epoch == before.epoch:
            continue
        header, at_ms = _began(file.path)
        if header is None:
            continue
        if before is not None and header.primary != before.primary:
            found.append(Failover(header.epoch, header.primary, before.primary, at_ms, header.first_lsn))
        before = header
    return found[-FAILOVERS_MAX:]


def _began(path: Path) -> tuple[SegmentHeader | None, int]:
    """(header of a segment, time of its first frame); None if it cannot be read."""
    try:
        with SegmentScan(path) as scan:
            for _, frame, _payload in scan.frames():
                return scan.header, frame.time_ms
            return scan.header, scan.header.created_ms
    except PerdureError:
        return None, 0
