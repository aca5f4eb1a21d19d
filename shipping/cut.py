"""Cutting a replica's log: what was never committed, and the primary does not have, is taken off.

Owns the planned cut. Steps, each durable before the next; a crash after any of them is finished by
finish_cut, which a receiver calls before it opens the log:

    1. the plan: where the log is to end, and where what is cut goes
    2. the segments from there on are copied to `diverged/`, whole
    3. the mark is set back to the new end (a mark beyond the end of a log means damage)
    4. the segment that holds the end is rewritten up to there, with a footer; it is never appended to
    5. the later segments are removed; they stand in `diverged/`
    6. the control page is renewed, and the plan removed
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.cursor import LogCursor, SegmentFile, list_segments
from ..store.errors import CorruptError, DivergedError
from ..store.files import (
    make_directory,
    next_free,
    pread_exactly,
    publish,
    read_small,
    remove_durably,
    translated,
)
from ..store.frame import cluster_key
from ..store.identity import Identity, read_identity
from ..store.ids import Position
from ..store.sealing import footer_up_to
from ..store.segment import encode_footer
from ..store.smallfile import publish_small, read_small_file
from .nodelog import NodeLog
from .replacing import renew_page, set_mark, take_write_lock

logger = logging.getLogger(__name__)

MAGIC: Final = b"PDRCUTP1"
VERSION: Final = 1
SEGMENT_BYTES_MAX: Final = 1 << 32


class CutPlan(msgspec.Struct, frozen=True):
    """A cut that was decided."""

    epoch: int
    lsn: int
    chain: int
    committed_lsn: int
    folder: str
    """Where in `diverged/` the cut segments are kept."""


def cut_log(node: NodeLog, to: Position) -> None:
    """End the log of this node at `to`. The node's handles have to be opened anew afterwards.

    Raises DivergedError, with nothing changed, if `to` is not in this log by its chain, or if what is
    behind it was committed or folded here: it can't be cut, then.
    """
    cursor = node.cursor()
    try:
        cursor.seek(to.lsn)
        found = cursor.at.position
    finally:
        cursor.close()
    committed, folded = node.committed_lsn(), node.folded_lsn()
    if to.lsn and found != to:
        raise DivergedError(f"the primary has {to}, this log {found} there", path=node.store, lsn=to.lsn)
    if to.lsn < committed or (to.lsn < folded and node.log.config.sync_replicas > 0):
        raise DivergedError(
            f"the primary wants this log to end at LSN {to.lsn}; LSN {committed} is committed and "
            f"{folded} in the state here",
            path=node.store,
            lsn=to.lsn,
            hint="Two primaries have committed: stop writing and compare both nodes.",
        )
    if to.lsn < folded:
        raise DivergedError(
            f"the state holds LSN {folded}, behind the last position in common with the primary, {to}",
            path=node.store,
            lsn=to.lsn,
            hint="Make this replica anew from the primary.",
        )
    folder = next_free(node.store / names.DIVERGED / f"{to.lsn + 1:020d}-{node.log.cursor.at.epoch:08x}")
    plan = CutPlan(to.epoch, to.lsn, to.chain, committed, folder.name)
    logger.warning("cutting the log: from=%s to=%s kept=%s", node.log.cursor.at.position, to, folder)
    publish_small(node.store / names.CUT_PLAN, MAGIC, VERSION, plan)
    finish_cut(node.store)


def finish_cut(store: Path) -> bool:
    """Carry out a cut that was planned; says whether there was one."""
    plan = read_small_file(store / names.CUT_PLAN, MAGIC, VERSION, CutPlan)
    if plan is None:
        return False
    identity = read_identity(store)
    lock = take_write_lock(store)
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
        _keep(file, folder)
    end = Position(plan.epoch, plan.lsn, plan.chain)
    if holding:
        set_mark(store, identity, end, plan.committed_lsn)
    else:
        remove_durably(log / names.MARK)
    for file in holding:
        _rewrite(log, identity, file, end)
    for file in reversed(later):
        remove_durably(file.path)
    renew_page(store, committed_lsn=plan.committed_lsn, keep_folded=True)
    remove_durably(store / names.CUT_PLAN)


def _keep(file: SegmentFile, folder: Path) -> None:
    """Copy a segment, unless that was done before a crash: what is kept is never written over."""
    target = folder / file.path.name
    if os.path.exists(target):
        return
    data = read_small(file.path, SEGMENT_BYTES_MAX)
    if data is not None:
        publish(target, data)


def _rewrite(log: Path, identity: Identity, file: SegmentFile, end: Position) -> None:
    """Replace the segment by what of it stays, sealed. The same again after a crash."""
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
    publish(file.path, data + encode_footer(footer))
