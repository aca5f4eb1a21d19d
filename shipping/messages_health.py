"""Messages between monitors, and with those who ask them. Owns their kinds; the codec is messages.

A heartbeat is small and bounded, whatever a cluster holds: names of nodes are at most 32 bytes.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from .wire_types import Count, NodeName, NodeNameOrNone, WireEpoch, WireTime


class Beat(msgspec.Struct, frozen=True):
    """A node is there, and says of itself what an election needs to know."""

    node: NodeName
    is_primary: bool
    epoch: WireEpoch
    """Of the end of its log."""
    lsn: Count
    """On its disk."""
    promise_epoch: WireEpoch
    promise_candidate: NodeNameOrNone
    hears: NodeNameOrNone
    """The primary that it hears, itself where it is one; empty if it hears none."""
    hears_epoch: WireEpoch
    is_failing: bool
    """Its own disk stalls, or a sync has failed: as a primary it gives up."""
    is_fit: bool
    """It has a log that may become the history of all."""
    state: str
    """One of the words of node states."""
    unmonitored: tuple[str, ...] = ()
    """Nodes whose failure is to have no consequence."""
    unmonitored_ms: WireTime = 0
    """When that was decided (wall clock): the newest decision counts everywhere."""


class HealthAsk(msgspec.Struct, frozen=True):
    """How are the nodes, as seen from here?"""


class HealthRow(msgspec.Struct, frozen=True):
    """One node as the monitor that was asked sees it. Times in ms."""

    node: str
    verdict: str
    silence_ms: Count
    failures: Count
    last_seen_ms: Count
    is_monitored: bool
    role: str
    epoch: Count
    lsn: Count
    hears: str
    is_failing: bool
    state: str


class HealthReply(msgspec.Struct, frozen=True):
    """The asked node first, then its peers by name."""

    nodes: list[HealthRow]
    coordinator: str
    """What decides about promotions there; empty while nothing does."""
    why: str
    """What its elector thinks at the moment, in words."""


class StandAsk(msgspec.Struct, frozen=True):
    """Become the primary, by the promises of the others."""

    reason: str
    accept_data_loss: bool = False


class StandReply(msgspec.Struct, frozen=True):
    """It is primary of this epoch. If it could not become primary, the answer is Failed."""

    epoch: Count
    was_primary: bool


HealthMessage: TypeAlias = Beat | HealthAsk | HealthReply | StandAsk | StandReply

KINDS: Final[dict[int, type]] = {70: Beat, 71: HealthAsk, 72: HealthReply, 73: StandAsk, 74: StandReply}
WITH_PAYLOAD: Final[frozenset[int]] = frozenset()
