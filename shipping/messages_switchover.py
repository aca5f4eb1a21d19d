"""Messages of a switchover: what the node that carries it out asks the primary and the node that takes over.

Owns their fields; what they mean is recovery's. Pure.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from .wire_types import Count, Hash64, NodeName, NodeNameOrNone, WireEpoch, WirePosition, WireState

SAMPLES_MAX: Final = 16
Key: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=1024)]
Samples: TypeAlias = Annotated[list[tuple[Key, Hash64]], msgspec.Meta(max_length=SAMPLES_MAX)]
"""(key, hash of its record; 0: there is none)."""


class SwitchAsk(msgspec.Struct, frozen=True, omit_defaults=True):
    """How is this node, as far as a switchover is concerned?

    `snapshot_ms` > 0: a snapshot is taken first unless one is younger.
    """

    snapshot_ms: Count = 0


class SwitchReply(msgspec.Struct, frozen=True):
    """What a node says of itself."""

    node: NodeName
    is_primary: bool
    end: WireState
    """Where its log ends, on disk."""
    committed_lsn: Count
    folded_lsn: Count
    promise_epoch: WireEpoch
    promise_candidate: NodeNameOrNone
    voters: tuple[NodeName, ...]
    witnesses: tuple[NodeName, ...]
    sync_replicas: Count
    drained_ms: Count
    """For how long its writers are held back, 0: they are not."""
    has_shipper: bool
    """A shipper runs, or waits for the node to become primary."""
    snapshot_age_ms: int
    """Of the newest snapshot; -1: there is none."""
    fault: str


class DrainAsk(msgspec.Struct, frozen=True):
    """Hold the writers back for so long at most, for the switchover of this number."""

    number: Hash64
    timeout_ms: Count


class Drained(msgspec.Struct, frozen=True):
    """They are held back: the log ends here, on disk, and holds these records among others."""

    end: WireState
    samples: Samples


class UndrainAsk(msgspec.Struct, frozen=True):
    """The writers of this switchover may go on."""

    number: Hash64


class Undrained(msgspec.Struct, frozen=True):
    """`was_drained`: they were held back until now."""

    was_drained: bool


class TakeOverAsk(msgspec.Struct, frozen=True):
    """Become primary: the one before, `primary`, holds its writers back, and its log ends at `end`."""

    primary: NodeName
    end: WireState
    samples: Samples
    wait_ms: Count
    """Wait so long for the rest of the log."""


class TookOver(msgspec.Struct, frozen=True):
    """It is primary."""

    epoch: WireEpoch
    start: WirePosition
    before: WirePosition
    """Where its log ended: what it began with."""
    is_committed: bool
    waited_ms: Count
    """For the rest of the log."""
    promotion_ms: Count


SwitchoverMessage: TypeAlias = (
    SwitchAsk | SwitchReply | DrainAsk | Drained | UndrainAsk | Undrained | TakeOverAsk | TookOver
)

KINDS: Final[dict[int, type]] = {
    52: SwitchAsk,
    53: SwitchReply,
    54: DrainAsk,
    55: Drained,
    56: UndrainAsk,
    57: Undrained,
    58: TakeOverAsk,
    59: TookOver,
}
WITH_PAYLOAD: Final[frozenset[int]] = frozenset()
