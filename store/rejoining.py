"""A rejoin that is under way, as whoever opens or reads the store meets it.

Owns the waiting: while the plan stands, log and state are of two histories, and only the receiver, which
holds the write lock meanwhile, or finishes it after a crash, may look at both.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from . import names
from .errors import StoreInUseError

POLL_S: Final = 0.002


def is_rejoining(store: Path) -> bool:
    """Does a rejoin go on, or was one left half done?"""
    return (store / names.REJOIN_PLAN).exists()


def wait_until_rejoined(store: Path, timeout_ms: int) -> None:
    """Return once there is no plan. Raises StoreInUseError past the deadline."""
    deadline = time.monotonic() + timeout_ms / 1000
    while is_rejoining(store):
        if time.monotonic() >= deadline:
            raise StoreInUseError(
                "this node is going over to another primary's history",
                path=store / names.REJOIN_PLAN,
                hint="Its receiver completes that: `perdure node DIR` or `perdure receive DIR`.",
            )
        time.sleep(POLL_S)
