"""The coordinator `manual`: a person promotes (`perdure promote`, `perdure failover`); nobody else does."""

from __future__ import annotations

from collections.abc import Sequence

from ...shipping.detection import PeerHealth
from ..election import Action, Election, ElectionOptions, Kind, Own


class Manual:
    """Says what it sees, and stands never. A primary whose disk stalls gives up all the same."""

    name = "manual"

    def __init__(self, options: ElectionOptions) -> None:
        self._election = Election(options, lambda _most: 0)

    def look(self, now_ms: int, own: Own, peers: Sequence[PeerHealth], unmonitored: frozenset[str]) -> Action:
        action = self._election.look(now_ms, own, peers, unmonitored)
        if action.kind is not Kind.STAND:
            return action
        return Action(Kind.HOLD_BACK, f"{action.why}; a person decides", action.suspect)

    def claim(self, own: Own) -> int:
        return 0

    def won(self, epoch: int) -> None:
        return None

    def lost(self, now_ms: int) -> None:
        return None

    def close(self) -> None:
        return None
