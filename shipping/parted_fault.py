"""A fault of two primaries: how a receiver records it, and when it is known to be over.

Owns that kind of fault. It is over if nothing had to be taken off: this node follows a primary that has found
the end of this log in its own, by chain, whose own EPOCH_START is committed, and all that this node had when
the fault was found still stands in this log, and is committed by that primary. Then another primary was the
one at fault. Faults of other kinds, and those of which the end of the log is not known, stay.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ..store.errors import CorruptError, PositionGoneError
from ..store.ids import Position
from ..store.promise import Promise
from .faults import NO_END, PARTED, Fault, clear_fault, fault_of, write_fault
from .nodelog import NodeLog, now_ms

logger = logging.getLogger(__name__)


class PartedFault:
    """The receiver's look at it. One for each open log."""

    def __init__(self, store: Path) -> None:
        fault = fault_of(store)
        self._found = fault if fault is not None and fault.kind == PARTED else None

    def note(self, node: NodeLog, lsn: int, why: str, *, kept_lsn: int) -> None:
        """Record it durably. `kept_lsn` is what this node knows as committed, or has in its state."""
        end = node.log.cursor.at.position
        # Of what is not in the log it could never be said that the primary has it.
        fault = Fault(lsn, why, now_ms(), PARTED, end if kept_lsn <= end.lsn else NO_END)
        write_fault(node.store, fault)
        self._found = fault

    def look(self, node: NodeLog, reign: Promise, committed_lsn: int) -> None:
        """The primary of `reign` streams to this node, and says that so much is committed."""
        fault = self._found
        if fault is None:
            return
        end, epochs = Position(*fault.end), node.epochs()
        if not end.lsn or not epochs or epochs[-1][0] != reign.epoch:
            return
        if min(committed_lsn, node.log.cursor.at.lsn) < max(end.lsn, epochs[-1][1]):
            return
        self._found = None  # it was looked at: nothing that comes from this primary changes the answer
        if fault_of(node.store) != fault or not _is_in_log(node, end):
            return
        clear_fault(node.store)
        logger.warning(
            "no longer at fault, this log up to %s is in that of the primary: primary=%s epoch=%d fault=%s",
            end,
            reign.candidate,
            reign.epoch,
            fault.text,
        )


def _is_in_log(node: NodeLog, end: Position) -> bool:
    """Does a frame of this node's log end there, by its chain?"""
    cursor = node.cursor()
    try:
        cursor.seek(end.lsn)
        found = cursor.at.position
    except (CorruptError, PositionGoneError) as error:
        logger.error("the fault stays, its position cannot be read: %s", error)
        return False
    finally:
        cursor.close()
    if found != end:
        logger.error("the fault stays, the log has %s where it had %s", found, end)
    return found == end
