"""Messages by which a node asks the primary's server on behalf of its own clients."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from .wire_types import Count, WirePosition


class PositionAsk(msgspec.Struct, frozen=True):
    """Where do readers of this node stand?"""

    is_confirmed: bool = False
    """Only if it is the primary, and sync_replicas confirm that from now on."""
    timeout_ms: Count = 0


class PositionReply(msgspec.Struct, frozen=True):
    """The last position that readers of the node see: with sync_replicas what is committed."""

    node: str
    is_primary: bool
    position: WirePosition


class ForwardAsk(msgspec.Struct, frozen=True):
    """Certify and append the change in the payload (see store/forwarding.py)."""

    operation_id: bytes
    attempt: Count
    """Submissions of one operation count from 1."""
    epoch: Count
    """Only in this epoch."""
    is_durable: bool
    """Also on the primary's disk."""


class ForwardReply(msgspec.Struct, frozen=True):
    """The position of its frame; or, where readers stand, if nothing was written."""

    position: WirePosition
    is_conflict: bool = False
    """What it rests on has changed; the payload says to what."""
    is_whole: bool = True
    """The payload has all of that."""


class OutcomeAsk(msgspec.Struct, frozen=True):
    """What became of a write? Submissions of it up to `attempt` are given up from now on."""

    operation_id: bytes
    base: WirePosition
    """Its frame is behind this."""
    attempt: Count
    position: WirePosition | None = None
    timeout_ms: Count = 0


class OutcomeReply(msgspec.Struct, frozen=True):
    """committed, pending, lost or unknown."""

    outcome: str


class RefreshAsk(msgspec.Struct, frozen=True):
    """Write the refreshes in the payload, of sessions that were used on another node."""


class RefreshReply(msgspec.Struct, frozen=True):
    """How many were taken."""

    taken: Count


class SweepAsk(msgspec.Struct, frozen=True):
    """Expire what is due, at most so many (0: all)."""

    limit: Count


class SweepReply(msgspec.Struct, frozen=True):
    """How many have expired, and where readers then stand."""

    expired: Count
    position: WirePosition


ForwardMessage: TypeAlias = (
    PositionAsk
    | PositionReply
    | ForwardAsk
    | ForwardReply
    | OutcomeAsk
    | OutcomeReply
    | RefreshAsk
    | RefreshReply
    | SweepAsk
    | SweepReply
)

KINDS: Final[dict[int, type]] = {
    61: PositionAsk,
    62: PositionReply,
    63: ForwardAsk,
    64: ForwardReply,
    65: OutcomeAsk,
    66: OutcomeReply,
    67: RefreshAsk,
    68: RefreshReply,
    69: SweepAsk,
    100: SweepReply,
}
WITH_PAYLOAD: Final[frozenset[int]] = frozenset({63, 64, 67})
