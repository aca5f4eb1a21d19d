"""Replicas and the primary's log: waiting until they have it, and saying what they lack.

Owns the waits behind `perdure sync`, `flush`, `ensure-synced` and `transfers`. Frames are sent by the
shipper, and by nothing else; here it is seen to that one runs, and looked how far it is. Can be asked on any
node that reaches the primary; what a replica has is what it has acknowledged to that by chain, while it is
connected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from ..shipping.children import Child, Task, start_child
from ..shipping.nodelog import open_node_log
from ..store.errors import NotPrimaryError, PerdureError, UsageError
from ..store.identity import read_identity
from .primary import Primary
from .reach import NOBODY, Reach
from .report import NodeReport, report_node

POLL_S: Final = 0.02
PENDING_SYNCS_MAX: Final = 100
"""So many pending transfers are listed, and so many sessions are transferred at once."""
Store: TypeAlias = "str | os.PathLike[str]"
OnLook: TypeAlias = Callable[[NodeReport], object]


class Lacking(msgspec.Struct, frozen=True):
    """A replica that does not have everything, and why."""

    node: str
    state: str
    records: int
    error: str


class SyncReport(msgspec.Struct, frozen=True):
    """What replicas had of the primary's log, up to an LSN."""

    node: str
    epoch: int
    lsn: int
    """The end of the log when it was asked, on the primary's disk."""
    synced: list[str]
    """Replicas that have it on disk."""
    lacking: list[Lacking]
    needed: int
    """So many replicas were to have it."""
    elapsed_ms: int

    @property
    def is_synced(self) -> bool:
        return len(self.synced) >= self.needed


class Transfer(msgspec.Struct, frozen=True):
    """What one replica is still to be sent, or to confirm."""

    node: str
    state: str
    from_lsn: int
    records: int
    bytes: int | None
    """Of log; None where it was never connected."""
    age_ms: int | None
    """Of the oldest record; None where that is not known."""
    error: str


def force_sync(
    store: Store,
    reach: Reach = NOBODY,
    *,
    timeout_ms: int,
    on_look: OnLook | None = None,
) -> SyncReport:
    """Make every replica have everything that is in the log now, on disk.

    Replicas are the other voters, those in `reach`, and whoever is connected. Where no shipper runs, one
    is started for as long as this takes, to the peers in `reach`. `on_look` is told how far all are.
    Raises NotPrimaryError where no primary can be asked, and as open_node_log.
    """
    with _shipping(store, reach):
        return wait_for_replicas(store, reach, timeout_ms=timeout_ms, on_look=on_look)


def sync_to(
    store: Store, to: str, reach: Reach, *, lsn: int | None, timeout_ms: int, on_look: OnLook | None = None
) -> SyncReport:
    """As force_sync, for one replica, and up to `lsn` (None: the end of the log)."""
    with _shipping(store, reach):
        return wait_for_replicas(store, reach, timeout_ms=timeout_ms, on_look=on_look, only=to, upto_lsn=lsn)


def flush(store: Store, reach: Reach = NOBODY, *, timeout_ms: int, replicas: int | None = None) -> SyncReport:
    """Wait until `replicas` of them have everything acknowledged so far on disk; the primary has it, too.

    None stands for the cluster's sync_replicas, or for all where that is 0. Raises as force_sync, and
    UsageError for more replicas than there are.
    """
    with Primary(store, reach) as primary:
        known = primary.look()
    if replicas is None and known.sync_replicas:
        replicas = known.sync_replicas
    there = len(_expected(known, reach))
    if replicas is not None and not 0 <= replicas <= there:
        raise UsageError(f"there are {there} replicas, not {replicas}", node=known.node)
    return wait_for_replicas(store, reach, timeout_ms=timeout_ms, replicas=replicas)


def ensure_synced(store: Store, reach: Reach = NOBODY, *, timeout_ms: int = 1000) -> SyncReport:
    """Does every replica have everything? `is_synced` says so; there must be at least one.

    What is under way at the moment is waited for, at most `timeout_ms`. Raises as force_sync.
    """
    found = wait_for_replicas(store, reach, timeout_ms=timeout_ms)
    return msgspec.structs.replace(found, needed=max(1, found.needed))


def wait_for_replicas(
    store: Store,
    reach: Reach = NOBODY,
    *,
    timeout_ms: int,
    replicas: int | None = None,
    on_look: OnLook | None = None,
    only: str = "",
    upto_lsn: int | None = None,
) -> SyncReport:
    """Make the log durable here, then wait until so many replicas (None: all) have it, up to its end of now.

    `only` names the one replica that is looked at, `upto_lsn` an LSN that is enough. Raises NotPrimaryError,
    also when the role is lost meanwhile.
    """
    started = time.monotonic()
    with Primary(store, reach) as primary:
        first = primary.look()
        lsn = _end_to_reach(store, first)
        if upto_lsn is not None:
            lsn = min(lsn, upto_lsn)
        while True:
            known = primary.look()
            if known.epoch != first.epoch:
                raise NotPrimaryError(
                    f"epoch {known.epoch} of {known.node} has begun meanwhile",
                    node=first.node,
                    hint="Ask again.",
                )
            expected = (only,) if only else _expected(known, reach)
            needed = len(expected) if replicas is None else replicas
            synced = [node for node in expected if (found := known.replica(node)) and found.holds(lsn)]
            if on_look is not None:
                on_look(known)
            left_s = started + timeout_ms / 1000 - time.monotonic()
            if (len(synced) >= needed and known.flushed_lsn >= lsn) or left_s <= 0:
                elapsed_ms = round((time.monotonic() - started) * 1000)
                lacking = [_lacking(known, node, lsn) for node in expected if node not in synced]
                return SyncReport(known.node, known.epoch, lsn, synced, lacking, needed, elapsed_ms)
            time.sleep(min(POLL_S, left_s))


def transfers(store: Store, reach: Reach = NOBODY, *, limit: int = PENDING_SYNCS_MAX) -> list[Transfer]:
    """What replicas do not have yet, the oldest first; at most `limit` (1 to PENDING_SYNCS_MAX).

    A replica without a row has everything. Raises NotPrimaryError where no primary can be asked, UsageError.
    """
    if not 1 <= limit <= PENDING_SYNCS_MAX:
        raise UsageError(f"1 to {PENDING_SYNCS_MAX} transfers are listed, not {limit}")
    with Primary(store, reach) as primary:
        known = primary.look(is_brief=False)
    rows: list[Transfer] = []
    for node in _expected(known, reach):
        found = known.replica(node)
        if found is None:
            error = "no shipper knows this node yet"
            rows.append(Transfer(node, "unknown", 1, known.flushed_lsn, None, None, error))
        elif found.lag_events:
            rows.append(
                Transfer(
                    node=node,
                    state=found.state,
                    from_lsn=found.acked_lsn + 1,
                    records=found.lag_events,
                    bytes=found.lag_bytes,
                    age_ms=found.lag_ms,
                    error=found.error,
                )
            )
    rows.sort(key=lambda row: (-(row.age_ms or 0), row.node))
    return rows[:limit]


def _expected(known: NodeReport, reach: Reach) -> tuple[str, ...]:
    others: Iterable[str] = {*known.expected, *reach.peers} - {known.node, *known.witnesses}
    return tuple(sorted(others))


def _lacking(known: NodeReport, node: str, lsn: int) -> Lacking:
    found = known.replica(node)
    if found is None:
        return Lacking(node, "unknown", lsn, "no shipper knows this node yet")
    return Lacking(node, found.state, max(0, lsn - found.acked_lsn), found.error)


def _end_to_reach(store: Store, known: NodeReport) -> int:
    """The end of the primary's log: made durable at once here, by the shipper soon elsewhere."""
    if known.node != read_identity(Path(store)).node:
        return known.appended_lsn
    node = open_node_log(Path(store), [])
    try:
        return node.end_on_disk().lsn
    finally:
        node.close()


@contextmanager
def _shipping(store: Store, reach: Reach) -> Generator[None, None, None]:
    """See to it that a shipper runs as long as this lasts."""
    with ExitStack() as stack:
        known = report_node(store, is_brief=True)
        if known.is_primary and not known.shipper_pid and reach.peers:
            child = _start_shipper(store, reach)
            if child is not None:
                stack.callback(child.stop)
        yield


def _start_shipper(store: Store, reach: Reach) -> Child | None:
    """A shipper of our own; None if another one came first."""
    child = start_child(Task("shipper", os.fspath(store), secret=reach.secret, replicas=dict(reach.peers)))
    try:
        child.wait_ready()
    except PerdureError:
        child.stop()
        return None
    return child
