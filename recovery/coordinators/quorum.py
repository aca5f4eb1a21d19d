"""The coordinator `quorum`: the nodes themselves, by heartbeats and promises; no other service is needed."""

from __future__ import annotations

from collections.abc import Sequence

from ...shipping.detection import PeerHealth
from ..election import Action, Draw, Election, ElectionOptions, Own


class Quorum:
    """Stands when the election says so."""

    name = "quorum"

    def __init__(self, options: ElectionOptions, draw: Draw) -> None:
        self._election = Election(options, draw)

    def look(self, now_ms: int, own: Own, peers: Sequence[PeerHealth], unmonitored: frozenset[str]) -> Action:
        return self._election.look(now_ms, own, peers, unmonitored)

    def claim(self, own: Own) -> int:
        return 0

    def won(self, epoch: int) -> None:
        return None

    def lost(self, now_ms: int) -> None:
        self._election.lost(now_ms)

    def close(self) -> None:
        return None
