"""A reign as a shipper holds it: what all its peers share, and how it ends.

The shipper writes these values, peers read them and report acknowledgements. Owns no decision.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..store.ids import Position
from .credentials import Secret
from .lookup import Lookup
from .messages import UNASKED_US, Heartbeat, ShipHello
from .nodelog import NodeLog
from .progress import Electorate
from .window import Window

SILENCE_MS: Final = 5_000
"""A replica that answers nothing for so long is disconnected."""
SLOT_BUDGET_BYTES: Final = 4 << 30
"""A replica that lacks more log than this gets a snapshot."""


class Fenced(Exception):
    """A replica has promised a higher epoch: this primary's time is over. Caught by the shipper."""

    def __init__(self, epoch: int, candidate: str) -> None:
        super().__init__(epoch, candidate)
        self.epoch = epoch
        self.candidate = candidate


@dataclass
class Reign:
    """What all peers of one shipper share."""

    node: NodeLog
    secret: Secret
    window: Window
    electorate: Electorate
    selector: selectors.BaseSelector
    lookup: Lookup = field(default_factory=Lookup)
    """Where the hosts are that have names."""
    compress: bool = True
    slot_budget_bytes: int = SLOT_BUDGET_BYTES
    silence_ms: int = SILENCE_MS
    snapshot_bytes_per_s: int = 0
    """To one replica; 0 is no limit."""
    named_snapshot: Callable[[str], Path | None] = lambda name: None
    """The snapshot of that name, if the log reaches it."""
    find_snapshot: Callable[[], Path | None] = lambda: None
    """The newest snapshot that the log reaches; None while there is none (one may be under way)."""
    committed_lsn: int = 0
    acked: dict[str, Position] = field(default_factory=dict[str, Position])
    echoed: dict[str, int] = field(default_factory=dict[str, int])
    """The time (us) of the newest heartbeat that each replica has answered."""
    has_echo: bool = False
    """One of them is new."""
    has_news: bool = False
    """An acknowledgement came: the commit LSN may move."""

    def hello(self) -> ShipHello:
        """What a replica is told first."""
        end = self.window.end
        return ShipHello(
            node=self.node.node,
            shard=self.node.identity.shard,
            epoch=self.electorate.epoch,
            alone=self.node.log.promise.alone,
            end=end,
            committed_lsn=self.committed_lsn,
            epochs=self.node.epochs(),
            voters=tuple(sorted(self.electorate.voters)),
            sync_replicas=self.electorate.sync_replicas,
        )

    def heartbeat(self) -> Heartbeat:
        """What a replica is told all the time, and answers."""
        return Heartbeat(
            self.committed_lsn, self.window.end.lsn, self.node.log.now_ms(), time.monotonic_ns() // 1000
        )

    def announcement(self) -> Heartbeat:
        """What a replica is told in between, and does not answer."""
        return Heartbeat(self.committed_lsn, self.window.end.lsn, self.node.log.now_ms(), UNASKED_US)
