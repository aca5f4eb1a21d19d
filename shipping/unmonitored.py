"""Nodes that are not monitored: their failure is to have no consequence, because somebody works on them.

Owns the file `unmonitored`. The decision is made on any node and passed on with heartbeats; the newest one
counts everywhere.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.control import VOTERS_MAX
from ..store.errors import FormatError, UsageError
from ..store.identity import read_identity
from ..store.smallfile import publish_small, read_small_file

MAGIC: Final = b"PDRUNMO1"
VERSION: Final = 1


class Unmonitored(msgspec.Struct, frozen=True):
    """Which nodes, by name in order, and when that was decided (wall clock, ms)."""

    nodes: tuple[str, ...] = ()
    changed_ms: int = 0


NOBODY: Final = Unmonitored()


def read_unmonitored(store: Path) -> Unmonitored:
    """What was decided last; nobody if nothing was, or if the file is damaged."""
    try:
        return read_small_file(store / names.UNMONITORED, MAGIC, VERSION, Unmonitored) or NOBODY
    except FormatError:
        return NOBODY  # to monitor a node too much costs a pause at most


def write_unmonitored(store: Path, decided: Unmonitored) -> None:
    """Replace it durably. Raises StorageError."""
    publish_small(store / names.UNMONITORED, MAGIC, VERSION, decided)


def set_monitored(store: Path, node: str, is_monitored: bool) -> Unmonitored:
    """Decide about one node, from this node on. Raises UsageError for a name that none can have."""
    read_identity(store)
    if not names.is_node_name(node):
        raise UsageError(f"{node!r} is no node name: 1 to 32 of a-z, 0-9, '.', '-', '_'")
    held = read_unmonitored(store)
    nodes = set(held.nodes) - {node} if is_monitored else {*held.nodes, node}
    if len(nodes) > VOTERS_MAX:
        raise UsageError(f"at most {VOTERS_MAX} nodes can be left unmonitored")
    decided = Unmonitored(tuple(sorted(nodes)), max(time.time_ns() // 1_000_000, held.changed_ms + 1))
    write_unmonitored(store, decided)
    return decided


def is_sound(decided: Unmonitored) -> bool:
    """Can a decision that came with a heartbeat be taken over?"""
    return len(decided.nodes) <= VOTERS_MAX and all(names.is_node_name(node) for node in decided.nodes)
