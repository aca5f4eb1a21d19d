"""Messages of a witness: recording which nodes hold every acknowledged write. Promises are asked as of any
voter."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from .wire_types import NODES_MAX, Count, NodeName, WireEpoch

Nodes: TypeAlias = Annotated[tuple[NodeName, ...], msgspec.Meta(max_length=NODES_MAX)]


class InSyncAsk(msgspec.Struct, frozen=True):
    """The primary of an epoch says which nodes hold every acknowledged write, if what is recorded is still
    the record that it names. Without nodes it asks what is, so that what it said before comes too late."""

    epoch: WireEpoch
    primary: NodeName
    expected_epoch: WireEpoch
    expected_number: Count
    nodes: Nodes


class InSyncReply(msgspec.Struct, frozen=True):
    """What is recorded now, durably; the primary's epoch is promised to it."""

    epoch: WireEpoch
    number: Count
    nodes: Nodes


WitnessMessage: TypeAlias = InSyncAsk | InSyncReply

KINDS: Final[dict[int, type]] = {46: InSyncAsk, 47: InSyncReply}
WITH_PAYLOAD: Final[frozenset[int]] = frozenset()
