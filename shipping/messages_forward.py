"""Messages by which a node asks the primary's server on behalf of its own clients."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from .wire_types import WirePosition


class PositionAsk(msgspec.Struct, frozen=True):
    """Where do readers of this node stand?"""


class PositionReply(msgspec.Struct, frozen=True):
    """The last position that readers of the node see: with sync_replicas what is committed."""

    node: str
    is_primary: bool
    position: WirePosition


ForwardMessage: TypeAlias = PositionAsk | PositionReply

KINDS: Final[dict[int, type]] = {61: PositionAsk, 62: PositionReply}
WITH_PAYLOAD: Final[frozenset[int]] = frozenset()
