"""Failovers as a node remembers those in which it took over: how long each part took, and how many there were.

Owns the file `failovers`: durable, bounded to the newest ones; totals go on counting.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.errors import FormatError
from ..store.smallfile import publish_small, read_small_file

MAGIC: Final = b"PDRFAIL1"
VERSION: Final = 1
KEPT_MAX: Final = 32


class Failover(msgspec.Struct, frozen=True):
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


class FailoverRecord(msgspec.Struct, frozen=True):
    """What a node remembers. Totals count all, `newest` holds a named number of them, oldest first."""

    failovers: int = 0
    failed: int = 0
    """Candidacies that came to nothing."""
    newest: tuple[Failover, ...] = ()


NONE: Final = FailoverRecord()


def read_failovers(store: str | os.PathLike[str]) -> FailoverRecord:
    """What the node of a store remembers; nothing if the file is not there or damaged."""
    path = Path(store) / names.FAILOVERS
    try:
        return read_small_file(path, MAGIC, VERSION, FailoverRecord) or NONE
    except FormatError:
        return NONE  # a statistic: the next failover begins it anew


def record_failover(store: Path, failover: Failover) -> FailoverRecord:
    """Write one more down, durably. Raises StorageError."""
    held = read_failovers(store)
    return _publish(
        store,
        FailoverRecord(held.failovers + 1, held.failed, (*held.newest, failover)[-KEPT_MAX:]),
    )


def record_failure(store: Path) -> FailoverRecord:
    """Count a candidacy that came to nothing."""
    held = read_failovers(store)
    return _publish(store, msgspec.structs.replace(held, failed=held.failed + 1))


def _publish(store: Path, record: FailoverRecord) -> FailoverRecord:
    publish_small(store / names.FAILOVERS, MAGIC, VERSION, record)
    return record
