"""Detection of failures: from heartbeats that come or do not, to a verdict on each peer. Pure.

Owns how long a peer was silent, and what that means. No clock and no socket is in here: whoever watches
tells what it saw and when it looked. Invariant: time in which the watcher itself did not look (it was
stopped, or the machine was busy) counts as nobody's silence; so all that has arrived is to be told before
tick().
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

import msgspec

from .messages_health import Beat

HEARTBEAT_MS: Final = 100
SILENCE_MS: Final = 1_000
MISSED_MAX: Final = 3
"""So many heartbeats in a row may be missed before a peer is said to be late."""
RESTART_MS: Final = 10_000
"""So long a node that lives may take to start its monitor again."""
LOOK_MS_MAX: Final = 100
"""More than this between two looks is the watcher's own lateness."""


class Verdict(Enum):
    """How a peer is, as far as one can tell from here."""

    NEW = "new"
    """Nothing was heard of it yet, and not for long."""
    ALIVE = "alive"
    LATE = "late"
    """Some heartbeats are missing, too few to give it up."""
    SILENT = "silent"
    """Nothing was heard for the whole of silence_ms."""
    GONE = "gone"
    """It closed its connection, and refuses a new one: its process has ended."""

    @property
    def is_heard(self) -> bool:
        return self in (Verdict.ALIVE, Verdict.LATE)


class PeerHealth(msgspec.Struct, frozen=True):
    """One peer at the last look. Times in ms."""

    node: str
    verdict: Verdict
    silence_ms: int
    """Since it was heard, or since the watch began; without the watcher's own lateness."""
    failures: int
    """Heartbeats missed in a row."""
    last_seen_ms: int
    """Wall clock; 0 for never."""
    beat: Beat | None
    """What it said last."""


class _Watched:
    """What is remembered of one peer."""

    def __init__(self, clock_ms: int) -> None:
        self.heard_ms = clock_ms
        self.last_seen_ms = 0
        self.is_closed = False
        self.is_refused = False
        self.is_restarting = False
        """Its monitor has ended, and the node, which holds the port, lives and starts another one."""
        self.beat: Beat | None = None


class Detector:
    """The verdicts of one watcher. Times are milliseconds of one clock that never goes back."""

    def __init__(
        self,
        peers: Iterable[str],
        at_ms: int,
        *,
        heartbeat_ms: int = HEARTBEAT_MS,
        silence_ms: int = SILENCE_MS,
    ) -> None:
        self.clock_ms = 0
        """Time in which this watcher looked: what silence is measured with."""
        self._looked_ms = at_ms
        self._heartbeat_ms = heartbeat_ms
        self._silence_ms = silence_ms
        self._look_ms_max = max(LOOK_MS_MAX, heartbeat_ms)
        self._peers = {node: _Watched(0) for node in peers}

    def watch(self, nodes: Iterable[str]) -> None:
        """The peers are these from now on; what is known of those that stay is kept."""
        self._peers = {node: self._peers.get(node) or _Watched(self.clock_ms) for node in nodes}

    def tick(self, at_ms: int) -> None:
        """The watcher has looked: everything that had arrived by now was told before."""
        gap_ms = max(0, at_ms - self._looked_ms)
        self._looked_ms = at_ms
        self.clock_ms += min(gap_ms, self._look_ms_max)

    def heard(self, beat: Beat, now_ms: int) -> None:
        """A heartbeat came; `now_ms` is the wall clock. A peer that speaks has not gone."""
        peer = self._peers.get(beat.node)
        if peer is not None:
            peer.heard_ms, peer.last_seen_ms = self.clock_ms, now_ms
            peer.beat, peer.is_refused, peer.is_restarting = beat, False, False

    def accepted(self, node: str) -> None:
        """Its port took a connection again after one had ended; nobody has spoken on it yet."""
        peer = self._peers.get(node)
        if peer is not None and peer.is_closed:
            peer.is_refused, peer.is_restarting = False, True

    def connected(self, node: str) -> None:
        """It took a connection."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.is_closed = peer.is_refused = peer.is_restarting = False

    def closed(self, node: str) -> None:
        """A connection that it had taken has ended."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.is_closed = True

    def refused(self, node: str) -> None:
        """Nobody listens at its address. Alone that says nothing: it may not have begun yet."""
        peer = self._peers.get(node)
        if peer is not None and peer.is_closed:
            peer.is_refused, peer.is_restarting = True, False

    def verdict(self, node: str) -> Verdict:
        """NEW for a node that is not watched."""
        peer = self._peers.get(node)
        return Verdict.NEW if peer is None else self._judge(peer)

    def report(self) -> list[PeerHealth]:
        """All peers, by name."""
        return [
            PeerHealth(
                node,
                self._judge(peer),
                self.clock_ms - peer.heard_ms,
                (self.clock_ms - peer.heard_ms) // self._heartbeat_ms,
                peer.last_seen_ms,
                peer.beat,
            )
            for node, peer in sorted(self._peers.items())
        ]

    def _judge(self, peer: _Watched) -> Verdict:
        silence_ms = self.clock_ms - peer.heard_ms
        if peer.is_refused:
            return Verdict.GONE
        limit_ms = max(self._silence_ms, RESTART_MS) if peer.is_restarting else self._silence_ms
        if silence_ms >= limit_ms:
            return Verdict.SILENT
        if peer.beat is None:
            return Verdict.NEW
        return Verdict.LATE if silence_ms > MISSED_MAX * self._heartbeat_ms else Verdict.ALIVE
