"""The status of shipping, as a node's own files tell it: control page and slots. Read-only.

Owns how far each replica is behind the primary. It asks nobody over the network.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ..store import names
from ..store.backends import shares_state
from ..store.errors import StoreMissingError
from ..store.identity import read_identity
from ..store.page import ControlPage, Word, read_boot_id
from ..store.promise import Promise, read_promise
from . import slots
from .bootstrap import log_bytes_behind
from .faults import read_fault
from .install import incoming_progress
from .nodelog import now_ms
from .slots import read_slots


class ReplicaStatus(msgspec.Struct, frozen=True):
    """One replica as the primary sees it."""

    node: str
    state: str
    acked_lsn: int
    applied_lsn: int
    lag_events: int
    """Events on the primary's disk that the replica has not acknowledged."""
    lag_bytes: int
    """Log behind its position, in whole segments: at most so much."""
    lag_ms: int | None
    """None where it lacks events and was never seen from here."""
    round_trip_us: int
    last_seen_ms: int
    error: str
    snapshot_bytes: int = 0
    """It has so much of the snapshot that it is being sent."""
    snapshot_total_bytes: int = 0


class ShippingStatus(msgspec.Struct, frozen=True):
    """A node's shipping."""

    node: str
    epoch: int
    promise: Promise
    shipper_pid: int
    """0 if no shipper runs."""
    appended_lsn: int
    flushed_lsn: int
    committed_lsn: int
    folded_lsn: int
    pending_events: int
    """Appended and not committed."""
    voters_connected: int
    replicas: list[ReplicaStatus]
    fault: str
    """Why folding stopped, empty if it did not."""
    incoming_bytes: int
    """So much of a snapshot has arrived here, of `incoming_total_bytes`."""
    incoming_total_bytes: int
    is_state_shared: bool
    """False if each process keeps a state of its own in memory: `folded_lsn` is then what the folder of a
    replica has checked, and 0 on a primary."""

    @property
    def is_primary(self) -> bool:
        """Is the epoch of its log the one that it was promised itself?"""
        return self.promise.candidate == self.node and self.promise.epoch == self.epoch


def shipping_status(store: str | os.PathLike[str]) -> ShippingStatus:
    """What a node's page and slots say. Raises StoreMissingError, FormatError, StorageError."""
    path = Path(store)
    identity = read_identity(path)
    if not (path / names.CONTROL_PAGE).exists():
        raise StoreMissingError(
            "nobody has opened this store yet", path=path, hint="Start its node, or open it once."
        )
    page = ControlPage(path / names.CONTROL_PAGE, read_boot_id())
    try:
        words = {word: int(page.words[word]) for word in Word} if page.is_current() else {}
    finally:
        page.close()
    appended, flushed = words.get(Word.APPENDED, 0), words.get(Word.FLUSHED, 0)
    committed = words.get(Word.COMMITTED, 0)
    shipper = words.get(Word.SHIPPER, 0)
    if shipper and not _is_running(shipper):
        shipper = 0
    incoming = incoming_progress(path)
    return ShippingStatus(
        node=identity.node,
        epoch=words.get(Word.EPOCH, 0),
        promise=read_promise(path),
        shipper_pid=shipper,
        appended_lsn=appended,
        flushed_lsn=flushed,
        committed_lsn=committed,
        folded_lsn=words.get(Word.FOLDED, 0),
        pending_events=max(0, appended - committed),
        voters_connected=words.get(Word.VOTERS_CONNECTED, 0) if shipper else 0,
        replicas=[_replica(path, slot, flushed, bool(shipper)) for slot in read_slots(path)],
        fault=read_fault(path),
        incoming_bytes=incoming[0],
        incoming_total_bytes=incoming[1],
        is_state_shared=shares_state(identity.backend),
    )


def _replica(store: Path, slot: slots.Slot, flushed_lsn: int, is_shipping: bool) -> ReplicaStatus:
    lag_events = max(0, flushed_lsn - slot.lsn)
    state = slot.state
    if not is_shipping and state in (slots.STREAMING, slots.CATCH_UP, slots.PAUSED):
        state = slots.DISCONNECTED
    is_away = state in (slots.DISCONNECTED, slots.SNAPSHOT, slots.REFUSED, slots.DIVERGED)
    return ReplicaStatus(
        node=slot.node,
        state=state,
        acked_lsn=slot.lsn,
        applied_lsn=slot.applied_lsn,
        lag_events=lag_events,
        lag_bytes=log_bytes_behind(names.log_path(store), slot.lsn) if lag_events else 0,
        lag_ms=_lag_ms(slot, is_away) if lag_events else 0,
        round_trip_us=slot.round_trip_us,
        last_seen_ms=slot.last_seen_ms,
        error=slot.error,
        snapshot_bytes=slot.snapshot_bytes,
        snapshot_total_bytes=slot.snapshot_total_bytes,
    )


def _lag_ms(slot: slots.Slot, is_away: bool) -> int | None:
    """How long ago a replica that lacks events was as far as the primary, as far as is known."""
    if not is_away:
        return slot.lag_ms
    return max(slot.lag_ms, now_ms() - slot.last_seen_ms) if slot.last_seen_ms else None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
