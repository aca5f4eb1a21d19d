"""Messages by which a command on any node has the primary's server change the cluster's members.

Owns their fields; what they mean is recovery's. Pure.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Final, TypeAlias

import msgspec

from .wire_types import Count, NodeName, NodeNameOrNone

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=300)]


class MemberStep(Enum):
    """One step of a change; each is whole in itself."""

    MEMBER = "member"
    """`node` keeps a copy, and its receiver is at `address`."""
    FOLLOW = "follow"
    """Wait a moment until `node` follows closely."""
    VOTE = "vote"
    """`node`, which is a member, votes."""
    WITNESS = "witness"
    """`node`, at `address`, keeps promises only."""
    REMOVE = "remove"
    SYNC = "sync"
    """`sync_replicas` confirm each write; none: a majority of the cluster."""
    POLICY = "policy"


class MemberAsk(msgspec.Struct, frozen=True, omit_defaults=True):
    """Take this step, as the primary."""

    step: MemberStep
    node: NodeNameOrNone = ""
    address: Text = ""
    sync_replicas: Count | None = None
    policy: Text = ""
    wait_ms: Count | None = None
    """FOLLOW: wait no longer than this; none: as long as the server waits at most."""


class MemberReply(msgspec.Struct, frozen=True):
    """It is taken, and committed; the members as they are now are in the payload."""

    node: NodeName


MemberMessage: TypeAlias = MemberAsk | MemberReply

KINDS: Final[dict[int, type]] = {48: MemberAsk, 49: MemberReply}
WITH_PAYLOAD: Final[frozenset[int]] = frozenset({49})
