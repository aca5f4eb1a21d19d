"""Who may write to a log: the primary of its epoch, as header and promise say. Pure.

Owns that rule and the errors that say why not. A promise of a later epoch fences the old primary, its
local writers included.
"""

from __future__ import annotations

from .errors import FencedError, NotPrimaryError
from .promise import Promise
from .segment import SegmentHeader


def is_primary(header: SegmentHeader | None, at_epoch: int, promise: Promise, node: str) -> bool:
    """Is `node` the primary of a log with this tail segment, whose last frame is of `at_epoch`?

    A crash may have left the segment of a new epoch without its EPOCH_START: its node is not primary yet.
    """
    return (
        header is not None
        and header.primary == node
        and promise.epoch == header.epoch
        and promise.candidate == node
        and at_epoch == header.epoch
    )


def why_not_primary(header: SegmentHeader | None, promise: Promise, node: str) -> NotPrimaryError:
    """The error for a node that may not write to the log with this tail segment."""
    if header is not None and header.primary == node and promise.epoch > header.epoch:
        return FencedError(
            f"epoch {promise.epoch} was promised to {promise.candidate}; "
            f"this node was primary in epoch {header.epoch}",
            node=node,
            hint=f"Write on {promise.candidate}, the node that was promoted.",
        )
    if header is not None and header.primary == node:
        return NotPrimaryError(
            "this primary was restarted after a power loss or lost part of its log; "
            "it needs a new epoch before it writes",
            node=node,
            hint="`perdure promote` on the node with the furthest log begins one.",
        )
    primary = header.primary if header else promise.candidate
    return NotPrimaryError(
        "this node is a replica and accepts no writes",
        node=node,
        hint=f"Write on {primary or 'the primary'}, or `perdure promote` this node.",
    )
