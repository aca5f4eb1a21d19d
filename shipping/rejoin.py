"""A planned rejoin: the log goes over to another history, and the state with it, in one go.

Owns what happens to a node whose state holds what stands behind a fork (sync_replicas = 0), once all that it
needs is in `rejoin/`: the primary's frames from the fork up to L, and the records at L of every session that
the old history touched behind the fork (see touched). Steps under the fold lock and the write lock, each
durable before the next; a crash after any of them is finished by finish_rejoin, which a receiver calls before
it opens the log. Until then nobody else opens the store.

    1. the plan
    2. the old segments from behind the fork are copied to `diverged/`, whole
    3. the plan says so; before that nothing was changed, and a plan whose files are lost is dropped
    4. the snapshots from behind the fork move to `diverged/`; the mark is set back to the fork; the segment
       that holds it is rewritten up to there, the old ones behind it are removed, and the new frames come in
       segments of their own, with the mark behind them
    5. the control page is renewed: every process looks again, and waits for the plan to go
    6. one transaction of the back end sets the touched sessions, folds the new frames for all others, and
       says that the state stands at L; digest and count were compared with the frame of L before step 1
    7. the control page says where the state stands; the plan is removed, then `rejoin/`

A failure after step 1 ends the receiver, so that the next one finishes the plan before anything else. After
a power loss the state is not trusted anyway, and is made anew from snapshot and log.
"""

from __future__ import annotations

import logging
import shutil
import struct
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from ..store import names
from ..store.backends import open_backend
from ..store.cursor import LogCursor, list_segments
from ..store.errors import CorruptError, DivergedError, StorageError
from ..store.files import (
    make_directory,
    pread_exactly,
    publish,
    remove_durably,
    translated,
)
from ..store.fold import Fold, unreadable
from ..store.frame import cluster_key
from ..store.identity import Identity, read_identity
from ..store.ids import Position, StatePosition
from ..store.lock import FileLock
from ..store.page import ControlPage, Word, read_boot_id
from ..store.ports import Backend, Record
from ..store.promise import Promise
from ..store.rebuild import write_fold
from ..store.sealing import footer_up_to
from ..store.segment import SegmentHeader, encode_footer, encode_header
from ..store.smallfile import publish_small, read_small_file
from ..store.state import inspect_state, set_aside
from .faults import clear_fault
from .frames_in import Piece, split_frames
from .messages_rejoin import pack_keys, pack_records, unpack_keys, unpack_records
from .nodelog import now_ms
from .parted import keep_copy, move_snapshots, segments_behind
from .replacing import lock_log, renew_page, set_mark
from .touched import events_of, fold_over

logger = logging.getLogger(__name__)

MAGIC: Final = b"PDRREJN1"
VERSION: Final = 1
FRAMES: Final = "frames"
RECORDS: Final = "records"
FOLD_LOCK_MS: Final = 5_000
EPOCH_LIMIT: Final = 1 << 32
PART: Final = struct.Struct("<IQQ")
"""Number of keys, bytes of keys, bytes of records."""


class RejoinPlan(msgspec.Struct, frozen=True):
    """A rejoin that was decided."""

    fork: tuple[int, int, int]
    state: tuple[int, int, int, int, int]
    """Where the old state stands: the transaction was made for that one."""
    at: tuple[int, int, int, int, int]
    """L: where log and state stand afterwards, at least."""
    primary: str
    """Of the epoch that the fork is in."""
    folder: str
    """Where in `diverged/` the old segments are kept."""
    frames_hash: int
    records_hash: int
    is_kept: bool = False
    """Step 2 is done."""


Records = list[tuple[bytes, Record | None]]


class Prepared:
    """What the state becomes, worked out over a state that was not changed yet."""

    def __init__(self, state: StatePosition, fold: Fold) -> None:
        self.state = state
        self.fold = fold


# -- the files in `rejoin/` ------------------------------------------------------------------------


def write_records(folder: Path, records: Records) -> None:
    """Write all records as one file, durably: as many lists of keys and records as are needed."""
    parts: list[bytes] = []
    for start in range(0, len(records), 1024):
        some = records[start : start + 1024]
        keys, values = pack_keys(key for key, _ in some), pack_records([record for _, record in some])
        parts += [PART.pack(len(some), len(keys), len(values)), keys, values]
    publish(folder / RECORDS, b"".join(parts))


def read_records(data: bytes) -> Records:
    """What write_records was given; the file's hash was checked before."""
    found: Records = []
    at = 0
    while at < len(data):
        count, key_bytes, value_bytes = PART.unpack_from(data, at)
        at += PART.size
        keys = unpack_keys(data[at : at + key_bytes], count)
        at += key_bytes
        found += zip(keys, unpack_records(data[at : at + value_bytes], count), strict=True)
        at += value_bytes
    return found


def read_part(store: Path, name: str, expected_hash: int | None = None) -> bytes:
    """A file of `rejoin/`. Raises CorruptError if it is not what the plan says."""
    path = store / names.REJOIN / name
    with translated("cannot read what was gathered for a rejoin", path):
        data = path.read_bytes()
    if expected_hash is not None and xxhash.xxh3_64_intdigest(data) != expected_hash:
        raise CorruptError("what was gathered for a rejoin is not what its plan says", path=path)
    return data


# -- preparing -------------------------------------------------------------------------------------


def prepare(store: Path, identity: Identity, at: StatePosition, backend: Backend) -> Prepared:
    """Work out what the state becomes. Changes nothing.

    Raises DivergedError if that has not the digest and count of L, CorruptError for events or a state that
    cannot be right.
    """
    state = backend.refresh()
    fold = Fold(backend.get, state.digest, state.session_count)
    history = events_of(read_part(store, FRAMES), cluster_key(identity.cluster_id))
    try:
        fold_over(fold, read_records(read_part(store, RECORDS)), history)
    except backend.engine_errors as error:
        raise unreadable(error) from error
    finally:
        backend.release()
    if (fold.digest, fold.session_count) != (at.digest, at.session_count):
        raise DivergedError(
            f"with the primary's keys the state has {fold.session_count} sessions with digest "
            f"{fold.digest:016x}; at LSN {at.lsn} it must be {at.session_count} with {at.digest:016x}",
            path=store,
            lsn=at.lsn,
        )
    return Prepared(state, fold)


def open_trusted(store: Path, identity: Identity) -> Backend | None:
    """The store's state, if there is one that can be trusted."""
    if not inspect_state(store, identity.backend, identity.cluster_id, read_boot_id()).is_trusted:
        return None
    return open_backend(identity.backend, names.state_path(store) / identity.backend)


def begin_rejoin(
    store: Path,
    fork: Position,
    primary: str,
    at: StatePosition,
    prepared: Prepared,
    folder: str,
    *,
    reign: Promise,
) -> bool:
    """Carry out a rejoin, which was decided under the promise `reign`. The node's handles have to be opened
    anew afterwards.

    False, with nothing changed, if the state has moved on since it was prepared for. Raises FencedError, with
    nothing changed, if the promise is another one by now, and as finish_rejoin.
    """
    plan = RejoinPlan(
        fork,
        prepared.state,
        at,
        primary,
        folder,
        xxhash.xxh3_64_intdigest(read_part(store, FRAMES)),
        xxhash.xxh3_64_intdigest(read_part(store, RECORDS)),
    )
    return _locked(store, plan, prepared, reign)


def finish_rejoin(store: Path) -> bool:
    """Carry out a rejoin that was planned; says whether there was one.

    One that has changed nothing yet, and whose files are lost, is dropped: it is decided anew. Raises
    LockTimeoutError, StorageError and its kinds, CorruptError.
    """
    plan = read_small_file(store / names.REJOIN_PLAN, MAGIC, VERSION, RejoinPlan)
    if plan is not None and not plan.is_kept and (why := _why_lost(store, plan)):
        logger.error("a planned rejoin is dropped, and nothing was changed: fork=%s why=%s", plan.fork, why)
        remove_durably(store / names.REJOIN_PLAN)
        plan = None
    if plan is None:
        shutil.rmtree(store / names.REJOIN, ignore_errors=True)
        return False
    return _locked(store, plan, None, None)


def _why_lost(store: Path, plan: RejoinPlan) -> str:
    """Why what was gathered for a plan is of no use any more; empty if it is whole."""
    try:
        read_part(store, FRAMES, plan.frames_hash)
        read_part(store, RECORDS, plan.records_hash)
    except (StorageError, CorruptError) as error:
        return str(error)
    return ""


def _locked(store: Path, plan: RejoinPlan, prepared: Prepared | None, reign: Promise | None) -> bool:
    identity = read_identity(store)
    folding = FileLock(store / names.FOLD_LOCK)
    try:
        folding.acquire(FOLD_LOCK_MS, "a process that folds")
        writing = lock_log(store, reign)
        try:
            if prepared is not None:
                if _state_at(store, identity) != prepared.state:
                    return False
                logger.warning("rejoining: fork=%s at=%s kept=%s", plan.fork, plan.at, plan.folder)
                publish_small(store / names.REJOIN_PLAN, MAGIC, VERSION, plan)
            with translated("cannot rejoin", store):
                _carry_out(store, identity, plan, prepared)
        finally:
            writing.close()
    finally:
        folding.close()
    return True


def _state_at(store: Path, identity: Identity) -> StatePosition | None:
    backend = open_trusted(store, identity)
    if backend is None:
        return None
    try:
        return backend.refresh()
    finally:
        backend.close()


# -- carrying out ----------------------------------------------------------------------------------


def _carry_out(store: Path, identity: Identity, plan: RejoinPlan, prepared: Prepared | None) -> None:
    if not plan.is_kept:
        plan = _keep(store, plan)
    at = StatePosition(*plan.at)
    move_snapshots(store, plan.fork[1], store / names.DIVERGED / plan.folder)
    _swap_log(store, identity, plan)
    renew_page(store, committed_lsn=at.lsn, keep_folded=False)
    folded_lsn = _move_state(store, identity, plan, prepared)
    page = ControlPage(store / names.CONTROL_PAGE, read_boot_id())
    try:
        page.words[Word.FOLDED] = folded_lsn
        page.bump()
    finally:
        page.close()
    clear_fault(store)
    remove_durably(store / names.REJOIN_PLAN)
    shutil.rmtree(store / names.REJOIN, ignore_errors=True)


def _keep(store: Path, plan: RejoinPlan) -> RejoinPlan:
    """Steps 2 and 3."""
    folder = store / names.DIVERGED / plan.folder
    make_directory(folder)
    for file in segments_behind(names.log_path(store), plan.fork[1]):
        keep_copy(file, folder)
    plan = msgspec.structs.replace(plan, is_kept=True)
    publish_small(store / names.REJOIN_PLAN, MAGIC, VERSION, plan)
    return plan


def _swap_log(store: Path, identity: Identity, plan: RejoinPlan) -> None:
    """Step 4; the same again after a crash."""
    log, fork, at = names.log_path(store), Position(*plan.fork), StatePosition(*plan.at)
    frames = read_part(store, FRAMES, plan.frames_hash)
    before_fork = [file for file in list_segments(log) if file.first_lsn <= fork.lsn]
    if not before_fork:
        raise CorruptError("no segment holds the fork of a planned rejoin", path=log, lsn=fork.lsn)
    set_mark(store, identity, fork, fork.lsn)
    holding = before_fork[-1]
    cursor = LogCursor(log, identity.cluster_id, cluster_key(identity.cluster_id), identity.shard)
    try:
        footer = footer_up_to(cursor, holding, fork.lsn)
        if footer.end.position != fork:
            raise CorruptError(
                f"the segment has {footer.end.position} where the fork is at {fork}", path=holding.path
            )
        data = pread_exactly(cursor.descriptor, footer.frames_end, 0)
        before = cursor.at
    finally:
        cursor.close()
    pieces = split_frames(
        frames, before, key=cluster_key(identity.cluster_id), shard=identity.shard, epoch_max=EPOCH_LIMIT
    )
    kept, primary = {holding.path.name}, plan.primary
    if pieces and not pieces[0].opens:
        first = pieces.pop(0)
        publish(holding.path, data + first.run.raw)
        before = first.end
    else:
        publish(holding.path, data + encode_footer(footer))
    for piece in pieces:
        primary = piece.epoch_start.node if piece.epoch_start else primary
        kept.add(_write_segment(log, identity, piece, before, primary))
        before = piece.end
    for file in reversed(list_segments(log)):
        if file.first_lsn > fork.lsn and file.path.name not in kept:
            remove_durably(file.path)
    set_mark(store, identity, at.position, at.lsn)


def _write_segment(log: Path, identity: Identity, piece: Piece, before: StatePosition, primary: str) -> str:
    first = piece.first
    header = SegmentHeader(
        identity.cluster_id,
        identity.shard,
        first.epoch,
        identity.node,
        primary,
        first.first_lsn,
        before,
        now_ms(),
    )
    name = names.segment_name(first.first_lsn, first.epoch)
    publish(log / name, encode_header(header) + piece.run.raw)
    return name


def _move_state(store: Path, identity: Identity, plan: RejoinPlan, prepared: Prepared | None) -> int:
    """Step 6; answers where the state stands then, 0 if it has to be made anew."""
    at = StatePosition(*plan.at)
    backend = open_trusted(store, identity)
    if backend is None:
        return 0
    why = ""
    try:
        state = backend.refresh()
        if state == at:
            return at.lsn
        if state == StatePosition(*plan.state):
            read_part(store, RECORDS, plan.records_hash)
            made = prepared or prepare(store, identity, at, backend)
            write_fold(backend, made.fold, at, is_live=True)
            return at.lsn
        why = f"a rejoin was planned for a state at {plan.state}, and it stands at {state}"
    except (DivergedError, CorruptError) as error:
        why = str(error)
    finally:
        backend.close()
    logger.error("making the state anew: %s", why)
    set_aside(store, why)
    return 0
