"""Which keys a node's sessions, snapshots and log are sealed under: what a key is still needed for.

Owns the count; it needs no key, and changes nothing. A key may be forgotten once nothing uses it: what is
sealed under a forgotten key can never be read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..store import OpenOptions, open_store
from ..store.event import Kind, decode_events
from ..store.reseal import keys_in_use
from ..store.sealed import is_sealed, seal_of
from ..store.snapshot import SnapshotReader, list_snapshots
from .scan import SegmentScan
from .source import open_source

NOT_SEALED = 0
"""Stands for a key's id where values are not sealed."""


class KeyUse(msgspec.Struct):
    """What one node has that is sealed under one key."""

    sessions: int = 0
    """In the state."""
    snapshots: list[str] = msgspec.field(default_factory=list)
    segments: list[str] = msgspec.field(default_factory=list)

    @property
    def is_none(self) -> bool:
        return not (self.sessions or self.snapshots or self.segments)

    @property
    def is_history(self) -> bool:
        """Do only snapshots and log need the key?"""
        return not self.sessions and not self.is_none


def key_use(
    directory: str | os.PathLike[str], progress: Callable[[int], object] | None = None
) -> dict[int, KeyUse]:
    """What is sealed under each key id (0: not sealed) on one node. Reads state, snapshots and log.

    `progress` is told how many files have been read. Raises CorruptError for what is damaged, StorageError.
    """
    store = Path(directory)
    found: dict[int, KeyUse] = {}
    opened = open_store(store, OpenOptions(create=False))
    try:
        for key_id, sessions in keys_in_use(opened.view).items():
            found.setdefault(key_id, KeyUse()).sessions = sessions
    finally:
        opened.close()
    source = open_source(store)
    done = 0
    for snapshot in list_snapshots(source.snapshots):
        for key_id in _keys_of_snapshot(snapshot.path):
            found.setdefault(key_id, KeyUse()).snapshots.append(snapshot.path.name)
        done += 1
        if progress:
            progress(done)
    for segment in source.segments():
        for key_id in _keys_of_segment(segment.path):
            found.setdefault(key_id, KeyUse()).segments.append(segment.path.name)
        done += 1
        if progress:
            progress(done)
    return found


def _keys_of_snapshot(path: Path) -> list[int]:
    with SnapshotReader(path) as snapshot:
        return sorted({_key_id(value) for _, value in snapshot})


def _keys_of_segment(path: Path) -> list[int]:
    keys: set[int] = set()
    with SegmentScan(path) as scan:
        for _, frame, payload in scan.frames():
            for kind, _, _, _, value in decode_events(payload, frame.event_count):
                if kind == Kind.PUT:
                    keys.add(_key_id(value))
        if scan.problem is not None:
            raise scan.problem
    return sorted(keys)


def _key_id(value: bytes) -> int:
    return seal_of(value)[0] if is_sealed(value) else NOT_SEALED
