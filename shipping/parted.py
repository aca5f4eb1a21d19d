"""What a node has from behind a fork, and how it is kept before it is taken off.

Owns the export to `diverged/`: a folder for each time that the node's log was found to have parted from its
primary's, named after the first LSN and the epoch of what is kept. Segments are kept whole, snapshots of
the other history go there too. Nothing in `diverged/` is ever written over or removed by perdure itself.
"""

from __future__ import annotations

import os
from itertools import zip_longest
from pathlib import Path
from typing import Final

from ..store import names
from ..store.backends import open_backend, shares_state
from ..store.cursor import SegmentFile, list_segments
from ..store.errors import PerdureError
from ..store.files import make_directory, next_free, publish
from ..store.identity import read_identity
from ..store.page import read_boot_id
from ..store.snapshot import list_snapshots
from ..store.state import inspect_state
from .replacing import move_if_there

SNAPSHOTS_MAX: Final = 256


def export_folder(store: Path, lsn: int, epoch: int) -> str:
    """A free name in `diverged/` for what stands behind LSN `lsn` in a log that ends in `epoch`."""
    return next_free(store / names.DIVERGED / f"{lsn + 1:020d}-{epoch:08x}").name


def segments_behind(log: Path, lsn: int) -> list[SegmentFile]:
    """The segments that hold something behind an LSN, or might."""
    files = list_segments(log)
    following = [file.first_lsn for file in files[1:]]
    return [file for file, first in zip_longest(files, following) if first is None or first > lsn + 1]


def keep_copy(file: SegmentFile, folder: Path) -> None:
    """Copy a segment, unless that was done before a crash: what is kept is never written over."""
    target = folder / file.path.name
    if not os.path.exists(target):
        publish(target, file.path.read_bytes())


def move_snapshots(store: Path, lsn: int, folder: Path, *, but: str = "") -> None:
    """Move the snapshots from behind an LSN away: they are of the other history. `but` stays."""
    for file in list_snapshots(store / names.SNAPSHOTS):
        if file.lsn > lsn and file.name != but:
            make_directory(folder)
            move_if_there(file.path, folder / file.name)


def newest_snapshots(store: Path) -> list[int]:
    """The LSNs of a store's newest snapshots."""
    return [file.lsn for file in list_snapshots(store / names.SNAPSHOTS)[-SNAPSHOTS_MAX:]]


def state_lsn(store: Path) -> int:
    """Where the state in the store's files stands; 0 if it will be made anew, or each process has its own."""
    identity = read_identity(store)
    if not shares_state(identity.backend):
        return 0
    if not inspect_state(store, identity.backend, identity.cluster_id, read_boot_id()).is_trusted:
        return 0
    try:
        backend = open_backend(identity.backend, names.state_path(store) / identity.backend)
    except PerdureError:
        return 0  # whoever opens the store makes it anew
    try:
        return backend.refresh().lsn
    finally:
        backend.close()
