"""Does a node hold a position of the primary's log: on its disk, in its state?

Owns that answer, from the node's own files. A position is held if the log has the same chain there and was
flushed that far; or if the log begins behind it, and the node's own state or snapshot is of that history.
"""

from __future__ import annotations

import os

import msgspec

from ..shipping.status import shipping_status
from ..store.cursor import find_frame_end
from ..store.errors import FormatError
from ..store.ids import Position
from .source import open_source


class Held(msgspec.Struct, frozen=True):
    """What a node has of a position."""

    node: str
    end: Position
    """Of its log, as far as it was flushed."""
    is_held: bool
    is_applied: bool
    why: str
    """Why it is not held, where that is more than not having got so far."""


def find_held(store: str | os.PathLike[str], position: Position) -> Held:
    """What the node in `store` has of `position`. Raises StoreMissingError, FormatError, StorageError."""
    source = open_source(store)
    known = shipping_status(store)
    files = source.segments()
    oldest = files[0].first_lsn if files else 0
    end = Position(known.epoch, known.flushed_lsn, 0)
    applied = known.folded_lsn >= position.lsn
    if not files or position.lsn > known.flushed_lsn:
        return Held(known.node, end, False, False, "")
    if position.lsn < oldest:
        # what stands before the log came by a snapshot, which the first segment's chain follows
        return Held(known.node, end, True, applied, "")
    cursor = source.cursor()
    cursor.is_sparse = True
    try:
        is_held = find_frame_end(cursor, position)
        found = cursor.at.position
        damage = cursor.damage
    except FormatError as error:
        return Held(known.node, end, False, False, f"its log cannot be read: {error.message}")
    finally:
        cursor.close()
    if is_held:
        return Held(known.node, end, True, applied, "")
    why = f"its log is damaged: {damage.message}" if damage else f"its log has another history: {found}"
    return Held(known.node, end, False, False, why)
