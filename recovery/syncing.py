"""Replicas and the primary's log: waiting until they have it, and saying what they lack.

Owns the waits behind `perdure sync`, `flush`, `ensure-synced` and `transfers`. Frames are sent by the
shipper, and by nothing else; here it is seen to that one runs, and looked how far it is. Runs where the
primary is; what a replica has is what it has acknowledged by chain, while it is connected.
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
from .behind import behind
from .reach import NOBODY, Reach
from .report import NodeReport, report_node
from .source import open_source

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
    bytes: int
    age_ms: int | None
    """Of the oldest record; None where the log no longer tells."""
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
    Raises NotPrimaryError where this node is not the primary, and as open_node_log.
    """
    with _shipping(store, reach):
        return wait_for_replicas(store, reach, timeout_ms=timeout_ms, on_look=on_look)


def flush(store: Store, reach: Reach = NOBODY, *, timeout_ms: int, replicas: int | None = None) -> SyncReport:
    """Wait until `replicas` of them have everything acknowledged so far on disk; the primary has it, too.

    None stands for the cluster's sync_replicas, or for all where that is 0. Raises as force_sync, and
    UsageError for more replicas than there are.
    """
    known = _primary(store)
    if replicas is None and known.sync_replicas:
        replicas = known.sync_replicas
    if replicas is not None and not 0 <= replicas <= len(_expected(known, reach)):
        raise UsageError(
            f"there are {len(_expected(known, reach))} replicas, not {replicas}", node=known.node
        )
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
) -> SyncReport:
    """Make the log durable here, then wait until so many replicas (None: all) have it, up to its end of now.

    Raises NotPrimaryError, also when the role is lost meanwhile.
    """
    started = time.monotonic()
    _primary(store)
    lsn = _make_durable(store)
    while True:
        known = _primary(store)
        expected = _expected(known, reach)
        needed = len(expected) if replicas is None else replicas
        synced = [node for node in expected if (found := known.replica(node)) and found.holds(lsn)]
        if on_look is not None:
            on_look(known)
        left_s = started + timeout_ms / 1000 - time.monotonic()
        if len(synced) >= needed or left_s <= 0:
            elapsed_ms = round((time.monotonic() - started) * 1000)
            lacking = [_lacking(known, node, lsn) for node in expected if node not in synced]
            return SyncReport(known.node, known.epoch, lsn, synced, lacking, needed, elapsed_ms)
        time.sleep(min(POLL_S, left_s))


def transfers(store: Store, reach: Reach = NOBODY, *, limit: int = PENDING_SYNCS_MAX) -> list[Transfer]:
    """What replicas do not have yet, the oldest first; at most `limit` (1 to PENDING_SYNCS_MAX).

    A replica without a row has everything. Raises NotPrimaryError, UsageError, and as report_node.
    """
    if not 1 <= limit <= PENDING_SYNCS_MAX:
        raise UsageError(f"1 to {PENDING_SYNCS_MAX} transfers are listed, not {limit}")
    known, source = _primary(store), open_source(store)
    rows: list[Transfer] = []
    for node in _expected(known, reach):
        found = known.replica(node)
        acked = found.acked_lsn if found else 0
        if acked >= known.flushed_lsn:
            continue
        lacking = behind(source, acked, known.flushed_lsn)
        age_ms = None if lacking.oldest_ms is None else max(0, known.now_ms - lacking.oldest_ms)
        state, error = (found.state, found.error) if found else ("unknown", "no shipper knows this node yet")
        rows.append(Transfer(node, state, acked + 1, lacking.records, lacking.bytes, age_ms, error))
    rows.sort(key=lambda row: (-(row.age_ms or 0), row.node))
    return rows[:limit]


def _primary(store: Store) -> NodeReport:
    known = report_node(store, is_brief=True)
    if not known.is_primary:
        raise NotPrimaryError(
            f"{known.node} is not the primary, and does not know what replicas have",
            path=os.fspath(store),
            node=known.node,
            hint=f"Ask the primary, which was {known.primary} last." if known.primary else "Ask the primary.",
        )
    return known


def _expected(known: NodeReport, reach: Reach) -> tuple[str, ...]:
    others: Iterable[str] = {*known.expected, *reach.peers} - {known.node, *known.witnesses}
    return tuple(sorted(others))


def _lacking(known: NodeReport, node: str, lsn: int) -> Lacking:
    found = known.replica(node)
    if found is None:
        return Lacking(node, "unknown", lsn, "no shipper knows this node yet")
    return Lacking(node, found.state, max(0, lsn - found.acked_lsn), found.error)


def _make_durable(store: Store) -> int:
    """The end of the log, on this node's disk."""
    node = open_node_log(Path(store), [])
    try:
        return node.end_on_disk().lsn
    finally:
        node.close()


@contextmanager
def _shipping(store: Store, reach: Reach) -> Generator[None, None, None]:
    """See to it that a shipper runs as long as this lasts."""
    with ExitStack() as stack:
        known = _primary(store)
        if not known.shipper_pid and reach.peers:
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
