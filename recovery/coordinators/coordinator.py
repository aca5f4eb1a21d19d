"""The port Coordinator. It only chooses who tries; whether a try succeeds, promises decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...shipping.detection import PeerHealth
from ..election import Action, Own


class Coordinator(Protocol):
    """One node's way to know whether it should stand. Not for two threads at once."""

    @property
    def name(self) -> str:
        """One word for it."""
        ...

    def look(self, now_ms: int, own: Own, peers: Sequence[PeerHealth], unmonitored: frozenset[str]) -> Action:
        """What to do now; called again and again, and never waits. `now_ms` is the monitor's clock."""
        ...

    def claim(self, own: Own) -> int:
        """This node is about to stand: take what says so to all. Answers the least epoch that it may begin,
        0 if any will do. Raises PerdureError if it must not stand after all; it may wait for a second.
        """
        ...

    def won(self, epoch: int) -> None:
        """The node is primary of this epoch."""
        ...

    def lost(self, now_ms: int) -> None:
        """The candidacy failed: wait before the next one."""
        ...

    def close(self) -> None: ...
