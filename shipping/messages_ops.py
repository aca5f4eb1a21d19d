"""Messages by which operators' commands ask a node's server: reports, where a change is held, comparisons.

What is long or of no fixed size (reports, keys, records, sums of buckets) is in the payload, as MessagePack
or as packed numbers; who asks and who answers agree on it in the recovery room.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from .wire_types import Count, WirePosition, WireState


class ReportAsk(msgspec.Struct, frozen=True):
    """What does this node say of itself? Brief: without lags that are measured in the log."""

    is_brief: bool


class ReportReply(msgspec.Struct, frozen=True):
    """The report is in the payload."""

    node: str


class LocateAsk(msgspec.Struct, frozen=True):
    """Is this position of the primary's log on this node's disk, and in its state?"""

    position: WirePosition


class LocateReply(msgspec.Struct, frozen=True):
    """What the node has."""

    node: str
    end: WirePosition
    """Of its log, on disk."""
    is_held: bool
    is_applied: bool
    why: str = ""
    """Why it is not held, where that is more than not having got so far."""


class PassAsk(msgspec.Struct, frozen=True):
    """Take an image of the sessions, to be compared with that of other nodes."""


class PassReply(msgspec.Struct, frozen=True):
    """The image; it is given up when it is not asked for a while."""

    token: bytes
    at: WireState


class AlignAsk(msgspec.Struct, frozen=True):
    """Take the image on to this position of the log."""

    token: bytes
    to: WireState


class AlignReply(msgspec.Struct, frozen=True):
    """Whether it stands there; not if this node's log does not reach it yet."""

    is_aligned: bool
    at: WireState
    """Where it stands; with the digest and count that the log's own frame says."""


class BucketsAsk(msgspec.Struct, frozen=True):
    """Sum up so many more records of the image."""

    token: bytes
    records: Count


class BucketsReply(msgspec.Struct, frozen=True):
    """The sums are in the payload once all were read; the image then begins anew."""

    records: Count
    """Read by now."""
    is_complete: bool


class KeysAsk(msgspec.Struct, frozen=True):
    """Read on in the image, and name what is in the buckets whose bits are set in the payload."""

    token: bytes
    records: Count


class KeysReply(msgspec.Struct, frozen=True):
    """(key, hash) pairs in key order, in the payload."""

    records: Count
    is_complete: bool


class RecordsAsk(msgspec.Struct, frozen=True):
    """The records of the keys in the payload, as they are in the image."""

    token: bytes


class RecordsReply(msgspec.Struct, frozen=True):
    """Records in the payload, in the order of the keys; those of the first `count` keys."""

    count: Count


class MendAsk(msgspec.Struct, frozen=True):
    """Put these records, which are right at this position of the log, in place of what the state has."""

    at: WireState
    source: str
    """The node that they come from."""


class MendReply(msgspec.Struct, frozen=True):
    """What was put right."""

    mended: Count
    unchanged: Count
    """Were right meanwhile."""


class PassEnd(msgspec.Struct, frozen=True):
    """The image is not needed any more; also the answer."""

    token: bytes


OpsMessage: TypeAlias = (
    ReportAsk
    | ReportReply
    | LocateAsk
    | LocateReply
    | PassAsk
    | PassReply
    | AlignAsk
    | AlignReply
    | BucketsAsk
    | BucketsReply
    | KeysAsk
    | KeysReply
    | RecordsAsk
    | RecordsReply
    | MendAsk
    | MendReply
    | PassEnd
)

KINDS: Final[dict[int, type]] = {
    80: ReportAsk,
    81: ReportReply,
    82: LocateAsk,
    83: LocateReply,
    84: PassAsk,
    85: PassReply,
    86: AlignAsk,
    87: AlignReply,
    88: BucketsAsk,
    89: BucketsReply,
    90: KeysAsk,
    91: KeysReply,
    92: RecordsAsk,
    93: RecordsReply,
    94: MendAsk,
    95: MendReply,
    96: PassEnd,
}
WITH_PAYLOAD: Final = frozenset({81, 89, 90, 91, 92, 93, 94})
