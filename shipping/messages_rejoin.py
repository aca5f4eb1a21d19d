"""Messages of a rejoin: what a primary and a replica whose histories differ say to each other.

Owns their fields; what they mean is rejoin's. Pure.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec


class Parted(msgspec.Struct, frozen=True):
    """The replica has another history, and nothing is taken from it now: why not. The connection ends."""

    why: str
    is_fault: bool
    """It must not become primary before a person has looked: two primaries have committed."""


RejoinMessage: TypeAlias = Parted

KINDS: Final[dict[int, type]] = {14: Parted}
WITH_PAYLOAD: Final[frozenset[int]] = frozenset()
