"""Which keys a node's sessions, snapshots, log and exports are sealed under: what a key is still needed for.

Owns the count; it needs no key, and changes nothing. A key may be forgotten once nothing uses it: what is
sealed under a forgotten key can never be read again. What lies in `aside/` does not count: it is bytes that
no check would let through, or of which the store itself has a better copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import msgspec

from ..store import OpenOptions, names, open_store
from ..store.cursor import SegmentFile, list_segments
from ..store.event import Kind, decode_events
from ..store.files import translated
from ..store.reseal import keys_in_use
from ..store.sealed import is_sealed, seal_of
from ..store.snapshot import SnapshotFile, SnapshotReader, list_snapshots
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
    exports: list[str] = msgspec.field(default_factory=list)
    """Files of `diverged/`."""

    @property
    def is_none(self) -> bool:
        return not (self.sessions or self.snapshots or self.segments or self.exports)

    @property
    def is_history(self) -> bool:
        """Do only snapshots, log and exports need the key?"""
        return not self.sessions and not self.is_none


def key_use(
    directory: str | os.PathLike[str], progress: Callable[[int], object] | None = None
) -> dict[int, KeyUse]:
    """What is sealed under each key id (0: not sealed) on one node. Reads state, snapshots, log and exports.

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
    done = count(1)

    def read() -> None:
        if progress:
            progress(next(done))

    for folder in _exports(store):
        for path, keys in _keys_in(list_snapshots(folder), list_segments(folder), read):
            for key_id in keys:
                found.setdefault(key_id, KeyUse()).exports.append(f"{folder.name}/{path.name}")
    for path, keys in _keys_in(list_snapshots(source.snapshots), source.segments(), read):
        for key_id in keys:
            use = found.setdefault(key_id, KeyUse())
            (use.snapshots if names.parse_snapshot_name(path.name) else use.segments).append(path.name)
    return found


def _exports(store: Path) -> list[Path]:
    place = store / names.DIVERGED
    with translated("cannot list what was exported", place):
        return sorted(entry for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []


def _keys_in(
    snapshots: list[SnapshotFile], segments: list[SegmentFile], read: Callable[[], None]
) -> Iterator[tuple[Path, list[int]]]:
    """(file, key ids in it) of each; `read` is called behind each."""
    for snapshot in snapshots:
        yield snapshot.path, _keys_of_snapshot(snapshot.path)
        read()
    for segment in segments:
        yield segment.path, _keys_of_segment(segment.path)
        read()


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
