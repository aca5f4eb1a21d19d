"""When replicas hear of a commit LSN that no frames carry: at once, or with the frames that follow. Pure.

Owns that decision. With sync_replicas a frame is committed when its acknowledgement comes; a message of its
own to say so costs each of the two processes about half of what the frame did. While writers follow one
another closely the next frame carries the news; who writes now and then has it told at once.
"""

from __future__ import annotations

from typing import Final

LINGER_NS: Final = 5_000_000
"""The news waits at most so long for frames that carry it."""
CLOSE_MIN: Final = 4
"""So often in a row frames must have come in time before any news waits."""
CLOSE_MAX: Final = 1024
"""So often at most, where news waited in vain again and again: who writes next waits for it, perhaps."""


class Announcing:
    """What one shipper knows of how its writers follow one another. Times are monotonic, ns."""

    def __init__(self) -> None:
        self._since_ns = 0
        """When the oldest news that waits came; 0 if none does."""
        self._committed_ns = 0
        self._close = 0
        """So often in a row frames came in time."""
        self._needed = CLOSE_MIN

    def committed(self, now_ns: int) -> None:
        """The commit LSN moved."""
        self._committed_ns = now_ns

    def appended(self, now_ns: int) -> None:
        """Frames came."""
        if now_ns - self._committed_ns >= LINGER_NS:
            self._close = 0
        elif self._close < CLOSE_MAX:
            self._close += 1

    def told(self) -> None:
        """Frames have told every replica."""
        if self._since_ns:
            self._since_ns = 0
            self._needed = CLOSE_MIN

    def is_due(self, now_ns: int) -> bool:
        """Is what some replica has not heard to be told now? Who is answered True tells it."""
        if self._close < self._needed:
            self._since_ns = 0
            return True
        if not self._since_ns:
            self._since_ns = now_ns
        elif now_ns - self._since_ns >= LINGER_NS:
            self._since_ns = self._close = 0
            self._needed = min(2 * self._needed, CLOSE_MAX)
            return True
        return False
