"""Cutting a replica's log: what the primary does not have, and no majority confirmed, is taken off.

Owns the planned cut. Steps, each durable before the next; a crash after any of them is finished by
finish_cut, which a receiver calls before it opens the log:

    1. the plan: where the log is to end, and where what is cut goes
    2. the segments from there on are copied to `diverged/`, whole; snapshots from behind it move there
    3. the mark is set back to the new end (a mark beyond the end of a log means damage)
    4. the segment that holds the end is rewritten up to there: with a footer, so that nothing is appended
       to it, unless the primary's own segment goes on there
    5. the later segments are removed; they stand in `diverged/`
    6. the control page is renewed, and the plan removed
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.backends import shares_state
from ..store.cursor import LogCursor, SegmentFile, list_segments
from ..store.errors import CorruptError, DivergedError, FencedError
from ..store.files import (
    make_directory,
    pread_exactly,
    publish,
    remove_durably,
    translated,
)
from ..store.frame import cluster_key
from ..store.identity import Identity, read_identity
from ..store.ids import Position
from ..store.promise import Promise
from ..store.sealing import footer_up_to
from ..store.segment import encode_footer
from ..store.smallfile import publish_small, read_small_file
from .nodelog import NodeLog
from .parted import export_folder, keep_copy, move_snapshots, state_lsn
from .replacing import lock_log, renew_page, set_mark

logger = logging.getLogger(__name__)

MAGIC: Final = b"PDRCUTP1"
VERSION: Final = 1
COMPARE_HINT: Final = "Two primaries have committed: stop writing and compare both nodes."


class CutPlan(msgspec.Struct, frozen=True):
    """A cut that was decided."""

    epoch: int
    lsn: int
    chain: int
    committed_lsn: int
    folder: str
    """Where in `diverged/` the cut segments are kept."""
    is_open: bool = False
    """The segment that holds the end goes on there."""


class CommittedError(DivergedError):
    """What is to be cut is committed here: two primaries have committed."""


def cut_log(
    node: NodeLog, to: Position, reign: Promise, *, is_open: bool = False, is_accepted: bool = False
) -> None:
    """End the log of this node at `to`. The node's handles have to be opened anew afterwards.

    `reign` is the promise of this node under which that was decided. `is_open` says that frames of the same
    segment follow, `is_accepted` that what others confirmed may go, too, because a promotion accepted that.
    Raises, with nothing changed, FencedError if the promise is another one by now, or the node itself has
    begun that epoch, DivergedError if `to` is
    not in this log by its chain, or if the state holds what is behind it; CommittedError if that was
    confirmed by others.
    """
    lock = lock_log(node.store, reign)
    try:
        begun = [
            file.epoch for file in list_segments(names.log_path(node.store)) if file.epoch >= reign.epoch
        ]
        if begun and reign.candidate == node.node:
            raise FencedError(
                f"this node has begun epoch {max(begun)} meanwhile: the log stays as it is", path=node.store
            )
        plan = _plan(node, to, is_open=is_open, is_accepted=is_accepted)
        with translated("cannot cut the log", node.store):
            publish_small(node.store / names.CUT_PLAN, MAGIC, VERSION, plan)
            _carry_out(node.store, node.identity, plan)
    finally:
        lock.close()


def _plan(node: NodeLog, to: Position, *, is_open: bool, is_accepted: bool) -> CutPlan:
    """What is to be done; raises as cut_log. The caller holds the write lock."""
    cursor = node.cursor()
    try:
        cursor.seek(to.lsn)
        found = cursor.at.position
    finally:
        cursor.close()
    is_confirmed = node.log.config.sync_replicas > 0
    committed = node.committed_lsn()
    folded = max(node.folded_lsn(), state_lsn(node.store)) if shares_state(node.identity.backend) else 0
    if to.lsn and found != to:
        raise DivergedError(f"the primary has {to}, this log {found} there", path=node.store, lsn=to.lsn)
    if is_confirmed and not is_accepted and to.lsn < max(committed, folded):
        raise CommittedError(
            f"the primary wants this log to end at LSN {to.lsn}; LSN {committed} is committed and "
            f"{folded} in the state here",
            path=node.store,
            lsn=to.lsn,
            hint=COMPARE_HINT,
        )
    if to.lsn < folded:
        raise DivergedError(
            f"the state holds LSN {folded}, behind the last position in common with the primary, {to}",
            path=node.store,
            lsn=to.lsn,
            hint="The primary is asked for another way at the next try.",
        )
    folder = export_folder(node.store, to.lsn, node.log.cursor.at.epoch)
    logger.warning("cutting the log: from=%s to=%s kept=%s", node.log.cursor.at.position, to, folder)
    return CutPlan(to.epoch, to.lsn, to.chain, min(committed, to.lsn), folder, is_open)


def finish_cut(store: Path) -> bool:
    """Carry out a cut that was planned; says whether there was one."""
    plan = read_small_file(store / names.CUT_PLAN, MAGIC, VERSION, CutPlan)
    if plan is None:
        return False
    identity = read_identity(store)
    lock = lock_log(store)
    try:
        # Another process may have finished it meanwhile, and appended: the same cut would take that, too.
        plan = read_small_file(store / names.CUT_PLAN, MAGIC, VERSION, CutPlan)
        if plan is None:
            return False
        with translated("cannot cut the log", store):
            _carry_out(store, identity, plan)
    finally:
        lock.close()
    return True


def _carry_out(store: Path, identity: Identity, plan: CutPlan) -> None:
    log = names.log_path(store)
    folder = store / names.DIVERGED / plan.folder
    make_directory(folder)
    files = list_segments(log)
    later = [file for file in files if file.first_lsn > plan.lsn]
    holding = [file for file in files if file.first_lsn <= plan.lsn][-1:]
    for file in holding + later:
        keep_copy(file, folder)
    move_snapshots(store, plan.lsn, folder)
    end = Position(plan.epoch, plan.lsn, plan.chain)
    if holding:
        set_mark(store, identity, end, plan.committed_lsn)
    else:
        remove_durably(log / names.MARK)
    for file in holding:
        _rewrite(log, identity, file, end, plan.is_open)
    for file in reversed(later):
        remove_durably(file.path)
    renew_page(store, committed_lsn=plan.committed_lsn, keep_folded=True)
    remove_durably(store / names.CUT_PLAN)


def _rewrite(log: Path, identity: Identity, file: SegmentFile, end: Position, is_open: bool) -> None:
    """Replace the segment by what of it stays, sealed unless it is open. The same again after a crash."""
    cursor = LogCursor(log, identity.cluster_id, cluster_key(identity.cluster_id), identity.shard)
    try:
        footer = footer_up_to(cursor, file, end.lsn)
        if footer.end.position != end:
            raise CorruptError(
                f"the segment has {footer.end.position} where the log is to end at {end}",
                path=file.path,
                lsn=end.lsn,
            )
        data = pread_exactly(cursor.descriptor, footer.frames_end, 0)
    finally:
        cursor.close()
    publish(file.path, data if is_open else data + encode_footer(footer))
