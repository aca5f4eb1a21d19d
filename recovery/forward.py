"""Fast-forward: a candidate takes what a better log has and its own lacks, before it begins an epoch.

Owns the order of it. The candidate has promised the epoch to itself, so that no primary appends to its log
meanwhile:

    1. if the candidate's log ends inside the other one: fetch what is behind, append, fsync
    2. if not: find the last position in common, cut the candidate's tail there (shipping's planned cut, which
       keeps the tail in `diverged/`), then as 1

Survives a crash: every run of frames is appended as a replica does, checked by its chain and synced, and a
cut that was planned is finished by whoever comes next. Promotion run again goes on from there. A tail is cut
only if sync_replicas >= 1 and nothing of it is known as committed here: the better log is of a later epoch,
whose primary had everything that was acknowledged before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..shipping.cut import cut_log
from ..shipping.nodelog import NodeLog
from ..shipping.replica_log import ReplicaLog
from ..store.cursor import SegmentFile, list_segments
from ..store.errors import DivergedError, PositionGoneError, WireError
from ..store.ids import Position
from ..store.promise import Promise
from .promises import Voters

PROBE_BYTES: Final = 4096
"""So much log is asked for where the question is only whether a position is there."""


def cut_to_prefix(
    node: NodeLog, reign: Promise, better: str, end: Position, source: Voters
) -> tuple[NodeLog, int]:
    """Make the log of `node` a prefix of that of `better`, which ends at `end`: cut its tail if need be.

    `reign` is the promise that the node gave itself.

    Answers the node's log, opened anew if it was cut, and the first LSN that was cut, 0 if none was. Raises
    DivergedError if the two logs can't be one, PositionGoneError if that log no longer reaches back to this
    one, WireError if the node does not answer, FencedError if that promise is no longer in force; nothing was
    changed then.
    """
    ours = node.log.cursor.at.position
    if _has(source, better, ours):
        return node, 0
    common = _last_common(node, lambda position: _has(source, better, position))
    if common is None:
        raise PositionGoneError(
            f"the log of {better} has nothing in common with what {node.node} may still cut off its own",
            node=better,
            hint=f"Promote {better} instead; {node.node} is then made anew.",
        )
    if node.log.config.electors.sync_replicas == 0 or ours.epoch >= end.epoch:
        raise DivergedError(
            f"{node.node} and {better} have different frames behind LSN {common.lsn}",
            node=better,
            lsn=common.lsn + 1,
            hint=f"Promote {better} instead; {node.node} then has to rejoin.",
        )
    # Frames that begin no segment may follow: an older epoch can go on where the one that is cut began.
    cut_log(node, common, reign, is_open=True)
    return node.reopened(), common.lsn + 1


def fetch_rest(node: NodeLog, reign: Promise, better: str, end: Position, source: Voters) -> int:
    """Append what `better`, whose log ends at `end`, has behind this log's end; answers how many events.

    `reign` is the promise that the node gave itself. What was appended is durable, also when this raises:
    WireError if the node does not answer, or gives less than it said, or frames that do not follow or are of
    that epoch, which another candidate has begun then;
    StorageFullError, PositionGoneError, FencedError if the promise is no longer in force.
    """
    log = ReplicaLog(node)
    began = node.log.cursor.at.lsn
    for raw in source.fetch(better, node.log.cursor.at.position):
        log.append(reign, [raw], epoch_max=reign.epoch - 1)
    ours = node.log.cursor.at.position
    if ours[:2] < end[:2]:
        raise WireError(f"{better} said that its log ends at {end}, and gave it up to {ours}", node=better)
    return ours.lsn - began


def _has(source: Voters, better: str, position: Position) -> bool:
    """Is the position in that node's log?"""
    try:
        next(iter(source.fetch(better, position, PROBE_BYTES)), None)
    except PositionGoneError:
        return False
    return True


def _last_common(node: NodeLog, is_shared: Callable[[Position], bool]) -> Position | None:
    """The end of the last frame of this log that is in the other one too; None if none that may be kept is.

    Looked for above what is committed here, which can't be cut: segments from the newest back, then the
    frames of one segment by halves. Below a shared position everything is shared.
    """
    committed = node.committed_lsn()
    for file in reversed(list_segments(node.log.cursor.log)):
        start, ends = _frame_ends(node, file, committed)
        if start.lsn and start.lsn >= committed and is_shared(start):
            return _last_shared([start, *ends], is_shared)
        if start.lsn <= committed:
            return _last_shared(ends, is_shared)
    return None


def _frame_ends(node: NodeLog, file: SegmentFile, committed: int) -> tuple[Position, list[Position]]:
    """What stands before a segment, and the ends of its frames from the last committed one on."""
    cursor = node.cursor(is_sparse=False)
    try:
        cursor.open_segment(file)
        start, header = cursor.at.position, cursor.header
        ends: list[Position] = []
        while (run := cursor.read()) is not None and cursor.header is header:
            ends += [frame.position for _, frame in run.frames if frame.last_lsn >= committed]
        return start, ends
    finally:
        cursor.close()


def _last_shared(ends: list[Position], is_shared: Callable[[Position], bool]) -> Position | None:
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        if is_shared(ends[middle]):
            low = middle + 1
        else:
            high = middle
    return ends[low - 1] if low else None
