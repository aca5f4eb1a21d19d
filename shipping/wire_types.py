"""Types that messages are made of. Owns their limits; the messages themselves are beside it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
"""A number that is never below 0; MessagePack itself keeps it below 2^64."""

WirePosition: TypeAlias = tuple[Count, Count, Count]
"""(epoch, LSN, chain)."""

WireState: TypeAlias = tuple[Count, Count, Count, Count, Count]
"""(epoch, LSN, chain, digest, session count)."""
