"""Takeovers: the failovers in which this node became primary, how long each part took, how many there were.

Owns the file `takeovers`: durable, bounded to the newest ones; totals go on counting.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.errors import FormatError
from ..store.smallfile import publish_small, read_small_file

MAGIC: Final = b"PDRTAKE1"
VERSION: Final = 1
KEPT_MAX: Final = 32


class Takeover(msgspec.Struct, frozen=True):
    """One failover. Times in ms."""

    epoch: int
    at_ms: int
    """When this node became primary, wall clock."""
    before: str
    """The primary that was given up."""
    why: str
    detection_ms: int
    """From the last sign of the old primary to the decision to stand, without the drawn wait."""
    waiting_ms: int
    """The wait before the candidacy that succeeded: its turn, and tries that failed."""
    promotion_ms: int
    """Promises, and EPOCH_START on disk."""
    commit_ms: int
    """Until EPOCH_START was committed, so that writes were confirmed again."""

    @property
    def recovery_ms(self) -> int:
        """From the last sign of the old primary until writes were confirmed again."""
        return self.detection_ms + self.waiting_ms + self.promotion_ms + self.commit_ms


class TakeoverRecord(msgspec.Struct, frozen=True):
    """What a node remembers. Totals count all, `newest` holds a named number of them, oldest first."""

    takeovers: int = 0
    failed: int = 0
    """Candidacies that came to nothing."""
    newest: tuple[Takeover, ...] = ()


NONE: Final = TakeoverRecord()


def read_takeovers(store: str | os.PathLike[str]) -> TakeoverRecord:
    """What the node of a store remembers; nothing if the file is not there or damaged."""
    path = Path(store) / names.TAKEOVERS
    try:
        return read_small_file(path, MAGIC, VERSION, TakeoverRecord) or NONE
    except FormatError:
        return NONE  # a statistic: the next failover begins it anew


def record_takeover(store: Path, failover: Takeover) -> TakeoverRecord:
    """Write one more down, durably. Raises StorageError."""
    held = read_takeovers(store)
    return _publish(
        store,
        TakeoverRecord(held.takeovers + 1, held.failed, (*held.newest, failover)[-KEPT_MAX:]),
    )


def record_failure(store: Path) -> TakeoverRecord:
    """Count a candidacy that came to nothing."""
    held = read_takeovers(store)
    return _publish(store, msgspec.structs.replace(held, failed=held.failed + 1))


def _publish(store: Path, record: TakeoverRecord) -> TakeoverRecord:
    publish_small(store / names.TAKEOVERS, MAGIC, VERSION, record)
    return record
