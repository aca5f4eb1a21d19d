"""Candidacies of one node, one at a time: its elector, a switchover and a person may want it promoted.

Owns the lock that says so. Nothing is unsafe without it, because each promotion begins with a promise of its
own, and changes the log only while that is in force; but the second promise takes the epoch away from the
first promotion just before it begins. So who promotes holds the lock from before the first promise until the
epoch has begun, and an elector that sees it taken waits for how that ends. It goes with its process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..shipping.nodelog import is_running
from ..store import names
from ..store.identity import read_identity
from ..store.lock import FileLock
from .promote import Step

TURN_MS: Final = 5_000
"""How long a candidacy waits for the one before it."""


@contextmanager
def candidacy(store: Path) -> Iterator[Step]:
    """Hold the lock, until promote() calls what is yielded (its `on_step`) as the epoch has begun.

    Raises LockTimeoutError if another candidacy of this node is not over in time, StoreMissingError.
    """
    read_identity(store)  # no lock file is left where there is no store
    lock = FileLock(store / names.CANDIDACY_LOCK)

    def on_step(step: str) -> None:
        if step == "commit":
            lock.release()

    try:
        lock.acquire(TURN_MS, "another promotion of this node")
        yield on_step
    finally:
        lock.close()


def is_candidate(store: Path) -> bool:
    """Is a promotion of this node under way in some process?"""
    return is_running(store, names.CANDIDACY_LOCK)
