"""Bootstrapping a replica from a snapshot: the replica's side.

Owns the directory `incoming/` and the planned installation. Both parts arrive in files of their own and
go on where they stopped, after a crash of either side too. Nothing of the old log is touched before all
of the new one is here, checked and on disk. Steps then, each durable before the next; a crash after any
of them is finished by finish_install, which a receiver calls before it opens the log. So is a failure after
step 1: the receiver ends, and is started again.

    1. the plan
    2. the snapshot moves to `snapshots/`
    3. the snapshots of another history move to `diverged/`
    4. the old mark, then the old segments and the old state move to `aside/`, but segments with something
       from behind the fork to `diverged/`
    5. the new segment moves to `log/`
    6. mark and control page say where the log ends now; the plan is removed

The state is then made from the snapshot and the log by whoever opens the store next.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.cursor import LogCursor, SegmentFile, list_segments
from ..store.errors import CorruptError, FormatError, PerdureError, WireError
from ..store.files import (
    FILE_MODE,
    make_directory,
    next_free,
    remove_durably,
    rename_durably,
    sync_directory,
    translated,
)
from ..store.frame import FRAME_BYTES_MAX, cluster_key
from ..store.identity import Identity, read_identity
from ..store.ids import StatePosition
from ..store.promise import Promise
from ..store.segment import HEADER_BYTES, SegmentHeader, encode_header
from ..store.smallfile import publish_small, read_small_file
from ..store.snapshot import verify_snapshot
from ..store.state import set_aside
from .faults import clear_fault
from .messages import Piece, SnapshotOffer, SnapshotWant
from .nodelog import NodeLog
from .parted import export_folder, move_snapshots, segments_behind
from .rebuild import keep_floor, read_rebuild
from .replacing import check_unplanned, lock_log, move_if_there, renew_page, set_mark

logger = logging.getLogger(__name__)

OFFER_MAGIC: Final = b"PDROFFR1"
PLAN_MAGIC: Final = b"PDRINST1"
VERSION: Final = 1
OFFER: Final = "offer"
SNAPSHOT: Final = "snapshot"
LOG_BYTES_MAX: Final = (64 << 20) + FRAME_BYTES_MAX * 2
"""A segment that is rolled at 64 MiB holds at most one largest frame more."""
SYNC_BYTES: Final = 8 << 20


class InstallPlan(msgspec.Struct, frozen=True):
    """An installation that was decided."""

    snapshot: str
    segment: str
    end: tuple[int, int, int]
    committed_lsn: int
    folder: str
    """Where in `aside/` the old log goes."""
    parted_lsn: int = -1
    """Behind this LSN the old log is of another history; -1 if it is not known to be."""
    diverged: str = ""
    """Where in `diverged/` that is kept."""


class Incoming:
    """A snapshot that arrives."""

    def __init__(self, node: NodeLog, offer: SnapshotOffer, reign: Promise) -> None:
        """`reign` is the promise of this node under which the snapshot is offered.

        Raises WireError for an offer that cannot be one, StoreInUseError while another one is half installed.
        """
        self._node = node
        self._reign = reign
        self._offer = offer
        self._at = StatePosition(*offer.at)
        self._folder = node.store / names.INCOMING
        self._verifier: threading.Thread | None = None
        self._failed: Exception | None = None
        self._is_checked = False
        _check_offer(offer)
        check_unplanned(node.store, names.INSTALL_PLAN)
        with translated("cannot receive a snapshot", self._folder):
            if read_small_file(self._folder / OFFER, OFFER_MAGIC, VERSION, SnapshotOffer) != offer:
                self._start_anew()
            self._files = [self._open(SNAPSHOT), self._open(self._segment_name)]
            self._sizes = [os.fstat(descriptor).st_size for descriptor in self._files]
            self._sizes[1] -= HEADER_BYTES
        self._wanted = [offer.snapshot_bytes, offer.log_bytes]
        self._unsynced_bytes = 0

    @property
    def _segment_name(self) -> str:
        return names.segment_name(self._offer.segment_lsn, self._offer.segment_epoch)

    def want(self) -> SnapshotWant:
        return SnapshotWant(self._sizes[0], self._sizes[1])

    def take(self, piece: Piece, raw: bytes) -> tuple[int, int]:
        """Write a piece; answers how much of both parts is here. Raises WireError, StorageError."""
        if piece.part not in (0, 1) or piece.offset != self._sizes[piece.part]:
            raise WireError("a piece of a snapshot that does not follow the one before it")
        if self._sizes[piece.part] + len(raw) > self._wanted[piece.part]:
            raise WireError("more of a snapshot than was offered")
        start = piece.offset + (HEADER_BYTES if piece.part else 0)
        with translated("cannot receive a snapshot", self._folder):
            _pwrite_all(self._files[piece.part], raw, start)
            self._sizes[piece.part] += len(raw)
            self._unsynced_bytes += len(raw)
            if self._unsynced_bytes >= SYNC_BYTES or self._sizes == self._wanted:
                self._sync_or_begin_anew()
        return self._sizes[0], self._sizes[1]

    def check(self) -> bool:
        """Is all of it here and checked? Checking goes on in a thread; call again until it says so.

        Raises CorruptError, ForeignError or WireError if it is not what was offered, StorageError if it
        cannot be put on disk or read; it is then removed.
        """
        if self._failed is not None:
            self.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise self._failed
        if self._sizes == self._wanted and self._verifier is None:
            self._verifier = threading.Thread(target=self._verify, name="perdure-install", daemon=True)
            self._verifier.start()
        return self._is_checked

    def install(self) -> None:
        """Replace this node's log by what has arrived. Its handles have to be opened anew afterwards.

        Raises FencedError, with nothing changed, if this node has given another promise than the one under
        which the snapshot was offered.
        """
        store = self._node.store
        self.close()
        self._node.log.lock_any()
        try:
            old = self._node.log.cursor.at
        finally:
            self._node.log.unlock()
        lock = lock_log(store, self._reign)
        try:
            plan = self._plan(old)
            with translated("cannot install a snapshot", store):
                publish_small(store / names.INSTALL_PLAN, PLAN_MAGIC, VERSION, plan)
                _carry_out(store, self._node.identity, plan)
        finally:
            lock.close()

    def _plan(self, old: StatePosition) -> InstallPlan:
        """What is to be done with a log that ends at `old`."""
        store, end = self._node.store, self._at.position
        folder = next_free(store / names.ASIDE / f"replaced-{old.lsn:020d}-{old.epoch:08x}")
        parted_lsn = self._offer.parted_lsn
        kept = export_folder(store, parted_lsn, old.epoch) if parted_lsn >= 0 else ""
        plan = InstallPlan(self._offer.name, self._segment_name, end, end.lsn, folder.name, parted_lsn, kept)
        logger.warning("installing a snapshot: at=%s old_end=%s kept=%s", end, old.position, folder)
        if end[:2] < old.position[:2] and read_rebuild(store) is None:
            # Until it has again what it acknowledged, it vouches for nothing.
            why = f"a snapshot at LSN {end.lsn} replaced a log that ended at LSN {old.lsn}"
            keep_floor(store, why, old.epoch, old.lsn, self._node.log.now_ms())
        return plan

    def close(self) -> None:
        files, self._files = self._files, []
        for descriptor in files:
            os.close(descriptor)

    def _start_anew(self) -> None:
        offer, identity = self._offer, self._node.identity
        shutil.rmtree(self._folder, ignore_errors=True)
        make_directory(self._folder)
        previous = StatePosition(*offer.segment_previous)
        header = SegmentHeader(
            identity.cluster_id,
            identity.shard,
            offer.segment_epoch,
            identity.node,
            offer.segment_primary,
            offer.segment_lsn,
            previous,
            self._node.log.now_ms(),
        )
        descriptor = self._open(self._segment_name)
        try:
            _pwrite_all(descriptor, encode_header(header), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.close(self._open(SNAPSHOT))
        publish_small(self._folder / OFFER, OFFER_MAGIC, VERSION, offer)

    def _open(self, name: str) -> int:
        return os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)

    def _sync_or_begin_anew(self) -> None:
        """Sync both parts; after a failure nobody knows what of them is on disk, and the next sync would not
        say."""
        try:
            self._sync_parts()
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._unsynced_bytes = 0

    def _sync_parts(self) -> None:
        """By descriptors of its own: the others may be closed while a thread is here."""
        for name in (SNAPSHOT, self._segment_name):
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _verify(self) -> None:
        try:
            # What a receiver that was killed had written may be in memory only, and is read from there.
            with translated("cannot receive a snapshot", self._folder):
                self._sync_parts()
            self._verify_parts()
            self._is_checked = True
        except (PerdureError, OSError) as error:
            self._failed = error

    def _verify_parts(self) -> None:
        identity, at = self._node.identity, self._at
        found = verify_snapshot(self._folder / SNAPSHOT, identity.cluster_id)
        if found != at:
            raise CorruptError(f"the snapshot is of {found.position}, offered was {at.position}")
        path = self._folder / self._segment_name
        cursor = LogCursor(
            self._folder, identity.cluster_id, cluster_key(identity.cluster_id), identity.shard
        )
        try:
            cursor.open_segment(SegmentFile(self._offer.segment_lsn, self._offer.segment_epoch, path))
            while cursor.read(at.lsn) is not None:
                continue
            if cursor.at.position != at.position or cursor.offset != os.stat(path).st_size:
                raise CorruptError(
                    f"the log that came with a snapshot ends at {cursor.at.position}, not at {at.position}",
                    path=path,
                    offset=cursor.offset,
                )
        finally:
            cursor.close()


def incoming_name(store: Path) -> str:
    """The name of the snapshot of which a part is here, empty if there is none."""
    offer = _read_offer(store)
    return offer.name if offer is not None else ""


def incoming_progress(store: Path) -> tuple[int, int]:
    """(bytes here, bytes in all) of a snapshot that arrives with its part of the log; (0, 0) if none does."""
    offer = _read_offer(store)
    if offer is None:
        return 0, 0
    segment = names.segment_name(offer.segment_lsn, offer.segment_epoch)
    have = -HEADER_BYTES
    for name in (SNAPSHOT, segment):
        with suppress(FileNotFoundError):
            have += os.stat(store / names.INCOMING / name).st_size
    return max(have, 0), offer.snapshot_bytes + offer.log_bytes


def _read_offer(store: Path) -> SnapshotOffer | None:
    try:
        return read_small_file(store / names.INCOMING / OFFER, OFFER_MAGIC, VERSION, SnapshotOffer)
    except FormatError:
        return None  # it is begun anew


def finish_install(store: Path) -> bool:
    """Carry out an installation that was planned; says whether there was one."""
    plan = read_small_file(store / names.INSTALL_PLAN, PLAN_MAGIC, VERSION, InstallPlan)
    if plan is None:
        return False
    identity = read_identity(store)
    lock = lock_log(store)
    try:
        with translated("cannot install a snapshot", store):
            _carry_out(store, identity, plan)
    finally:
        lock.close()
    return True


def _carry_out(store: Path, identity: Identity, plan: InstallPlan) -> None:
    log, incoming = names.log_path(store), store / names.INCOMING
    aside = store / names.ASIDE / plan.folder
    make_directory(aside)
    move_if_there(incoming / SNAPSHOT, store / names.SNAPSHOTS / plan.snapshot)
    segment = incoming / plan.segment
    if os.path.exists(segment):
        parted = _keep_parted(store, plan) if plan.diverged else aside
        if not os.path.exists(aside / names.MARK):
            move_if_there(log / names.MARK, aside / names.MARK)
        of_other_history = segments_behind(log, plan.parted_lsn) if plan.diverged else []
        for file in list_segments(log):
            rename_durably(file.path, (parted if file in of_other_history else aside) / file.path.name)
        set_aside(store, "a snapshot of the primary replaced it")
        rename_durably(segment, log / plan.segment)
    epoch, lsn, chain = plan.end
    set_mark(store, identity, StatePosition(epoch, lsn, chain, 0, 0).position, plan.committed_lsn)
    renew_page(store, committed_lsn=plan.committed_lsn, keep_folded=False)
    clear_fault(store)
    remove_durably(store / names.LOG_FAULT)
    shutil.rmtree(incoming, ignore_errors=True)
    sync_directory(store)
    remove_durably(store / names.INSTALL_PLAN)


def _keep_parted(store: Path, plan: InstallPlan) -> Path:
    """Make the place for what is of another history, and move the snapshots there."""
    folder = store / names.DIVERGED / plan.diverged
    make_directory(folder)
    move_snapshots(store, plan.parted_lsn, folder, but=plan.snapshot)
    return folder


def _check_offer(offer: SnapshotOffer) -> None:
    numbers = names.parse_snapshot_name(offer.name)
    at = StatePosition(*offer.at)
    previous = StatePosition(*offer.segment_previous)
    if (
        numbers != (at.lsn, at.epoch)
        or not names.is_node_name(offer.segment_primary)
        or not 0 <= offer.log_bytes <= LOG_BYTES_MAX
        or offer.snapshot_bytes < 0
        or offer.parted_lsn < -1
        or previous.lsn + 1 != offer.segment_lsn
        or not offer.segment_lsn <= at.lsn + 1
    ):
        raise WireError("a snapshot is offered that cannot be one")


def _pwrite_all(descriptor: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
