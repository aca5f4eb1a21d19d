"""Who a store is: cluster, node, shard. Written once, by init; everything else names it.

Owns the file `identity` in a store's directory.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from . import names
from .errors import ForeignError, StoreMissingError, UsageError
from .files import make_directory, translated
from .smallfile import publish_small, read_small_file

MAGIC = b"PDRIDEN1"
VERSION = 1
CLUSTER_ID_BYTES = 16


class Identity(msgspec.Struct, frozen=True):
    """What a node's directory says of itself."""

    cluster_id: bytes
    node: str
    shard: int
    created_ms: int
    backend: str
    is_cache: bool = False
    """Asked for by name when it was made: its log is kept no longer than until it is folded."""
    is_first: bool = False
    """Made to be the first primary of its cluster: if its log is empty, that was broken off."""


def new_cluster_id() -> bytes:
    return os.urandom(CLUSTER_ID_BYTES)


def write_identity(store: Path, identity: Identity) -> None:
    """Make the directories of a store and publish its identity, the last step.

    Raises UsageError for a bad node name, ForeignError if something else is in the directory.
    """
    if not names.is_node_name(identity.node):
        raise UsageError(f"{identity.node!r} is no node name: 1 to 32 of a-z, 0-9, '.', '-', '_'")
    if len(identity.cluster_id) != CLUSTER_ID_BYTES:
        raise UsageError(f"a cluster id has {CLUSTER_ID_BYTES} bytes")
    with translated("cannot make a store", store):
        store.mkdir(parents=True, exist_ok=True)
        strange = [name for name in os.listdir(store) if not _is_ours(name)]
        if strange:
            raise ForeignError(
                f"the directory holds other files ({strange[0]!r}, ...)",
                path=store,
                hint="Give an empty directory, or one that does not exist yet.",
            )
        for name in (names.LOG, names.SNAPSHOTS, names.SLOTS, names.ASIDE, names.DIVERGED):
            make_directory(store / name)
    publish_small(store / names.IDENTITY, MAGIC, VERSION, identity)


def read_identity(store: Path) -> Identity:
    """The identity of the store at `store`.

    Raises StoreMissingError if there is none, FormatError if the file is damaged or newer.
    """
    identity = read_small_file(store / names.IDENTITY, MAGIC, VERSION, Identity)
    if identity is None:
        if (store / names.WITNESS).exists():
            raise StoreMissingError(
                "here is a witness, which keeps no sessions",
                path=store,
                hint="Ask a node of its cluster: `perdure status DIR` tells of its witnesses, too.",
            )
        raise StoreMissingError("there is no store here", path=store, hint="`perdure init DIR` makes one.")
    return identity


def change_backend(store: Path, identity: Identity, backend: str) -> None:
    """Name another back end in the identity, the rest as it was. The caller holds the write lock."""
    changed = msgspec.structs.replace(identity, backend=backend)
    publish_small(store / names.IDENTITY, MAGIC, VERSION, changed)


def has_identity(store: Path) -> bool:
    return (store / names.IDENTITY).exists()


_OURS = frozenset(
    {
        names.LOG,
        names.SNAPSHOTS,
        names.SLOTS,
        names.ASIDE,
        names.DIVERGED,
        names.WRITE_LOCK,
        names.IDENTITY + names.TEMPORARY_SUFFIX,
        names.CONFIG_FILE,
        "lost+found",
    }
)


def _is_ours(name: str) -> bool:
    return name in _OURS
