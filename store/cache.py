"""Cache mode: a store that keeps no log, chosen by name when the store is made.

Owns what is different there. Writes go through the log as in any store, because that is how processes tell
each other; but what is folded is dropped, so nothing is left to make the state anew from. After a loss of
power, or where the state's files are damaged or gone, the store begins anew, empty.

Invariant: a segment is dropped only when the state, which all processes share, holds all of it.
"""

from __future__ import annotations

import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Final

from . import names
from .backends import backend_kind
from .commit import Durability
from .cursor import list_segments
from .errors import StorageError, UsageError
from .files import make_directory, translated
from .identity import Identity
from .state import inspect_state

SEGMENT_BYTES: Final = 8 << 20
KEEP_S: Final = 10.0
"""A segment stays for so long after it was left: other processes read it from memory that they follow. One
that was stopped for longer goes on from the state."""


def check_cache(identity: Identity, durability: Durability, store: Path) -> None:
    """Raise UsageError if a store is asked for more, or less, than it was made for."""
    if identity.is_cache and durability > Durability.OS:
        raise UsageError(
            f"the store is a cache: it cannot give durability {durability.name.lower()!r}",
            path=store,
            hint="Make another store without durability='cache'.",
        )
    if durability is Durability.CACHE and not identity.is_cache:
        raise UsageError(
            "the store keeps its log: it cannot be opened as a cache",
            path=store,
            hint="A cache is chosen when a store is made. Export the sessions and import them into one.",
        )


def check_cache_backend(backend: str) -> None:
    """Raise UsageError for a back end that is filled from the log at each opening."""
    if not backend_kind(backend).is_shared:
        raise UsageError(
            f"a cache cannot keep its state in {backend!r}: that is made from the log, which it has not",
            hint="Take lmdb.",
        )


def refuse_cache(identity: Identity, store: Path) -> None:
    """Raise UsageError where a state is to be made from snapshot and log, which a cache does not have."""
    if identity.is_cache:
        raise UsageError(
            "the store is a cache: it keeps no log to make another state from",
            path=store,
            hint="Export its sessions; a damaged one begins anew by itself at its next opening.",
        )


def empty_if_lost(store: Path, identity: Identity, boot_id: str) -> str:
    """Begin anew if the state cannot be trusted; says why, empty if it can be.

    Nobody else has the store open.
    """
    verdict = inspect_state(store, identity.backend, identity.cluster_id, boot_id)
    if verdict.is_trusted or not list_segments(names.log_path(store)):
        return ""
    with translated("cannot empty the cache", store):
        for name in (names.LOG, names.STATE, names.SNAPSHOTS, names.FEEDS):
            if (store / name).exists():
                shutil.rmtree(store / name)
        for name in (names.LOG, names.SNAPSHOTS):
            make_directory(store / name)
        for name in (names.MARK, names.CONTROL_PAGE):
            (store / name).unlink(missing_ok=True)
    return verdict.reason


def drop_folded(log: Path, folded_lsn: int) -> int:
    """Remove the segments that the state holds; answers how many. The caller holds the fold lock."""
    files = list_segments(log)
    dropped = 0
    for file, following in pairwise(files):
        if following.first_lsn > folded_lsn + 1:
            break
        try:
            if time.time() - file.path.stat().st_mtime < KEEP_S:
                break
            file.path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"cannot drop a segment: {error}", path=file.path) from error
        dropped += 1
    return dropped


def what_can_be_lost(durability: Durability, *, is_cache: bool, interval_ms: int, sync_replicas: int) -> str:
    """What a loss of power takes with it, in words, for status."""
    if is_cache:
        return "every session: this store is a cache and keeps no log"
    if sync_replicas:
        return f"nothing that was acknowledged, while one of the {sync_replicas + 1} copies of each is left"
    if durability is Durability.DISK:
        return "nothing that was acknowledged"
    if durability is Durability.INTERVAL:
        return f"what was acknowledged within the last {interval_ms} ms"
    return "what the kernel has not written yet; nothing by the death of a process"
