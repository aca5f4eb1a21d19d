"""Types that messages are made of. Owns their limits; the messages themselves are beside it.

A number or name that is out of these limits never gets past the decoder, whoever sent it.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from ..store.ids import EPOCH_MAX, LSN_LIMIT
from ..store.names import NODE_NAME_BYTES_MAX

NODES_MAX: Final = 128
"""So many nodes are told of at once, and remembered."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=LSN_LIMIT)]
"""A number of bytes, events, ms or the like, or an LSN: never below 0, and below 2^62, as LSNs are."""

Hash64: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
"""A hash; MessagePack itself keeps it below 2^64."""

TIME_MS_LIMIT: Final = 1 << 48
"""No session time gets this far (year 10889); what is computed from one below it fits a 64-bit word."""

WireTime: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=TIME_MS_LIMIT)]

WireEpoch: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=EPOCH_MAX)]

NodeName: TypeAlias = Annotated[
    str, msgspec.Meta(max_length=NODE_NAME_BYTES_MAX, pattern="\\A[a-z0-9][a-z0-9._-]*\\Z")
]
"""The name of a node: it goes into file names and small files."""

NodeNameOrNone: TypeAlias = Annotated[
    str, msgspec.Meta(max_length=NODE_NAME_BYTES_MAX, pattern="\\A([a-z0-9][a-z0-9._-]*)?\\Z")
]
"""As NodeName; empty for nobody."""

WirePosition: TypeAlias = tuple[WireEpoch, Count, Hash64]
"""(epoch, LSN, chain)."""

WireState: TypeAlias = tuple[WireEpoch, Count, Hash64, Hash64, Count]
"""(epoch, LSN, chain, digest, session count)."""
