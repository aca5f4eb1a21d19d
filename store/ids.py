"""The numbers that name a place in the log: LSN, epoch, chain, position.

Owns their types and the comparison of positions. Bare LSNs of different epochs are never compared.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NewType

Lsn = NewType("Lsn", int)
"""Dense number of an event in one log, from 1; 0 is "nothing"."""

Epoch = NewType("Epoch", int)
"""Number of one primary's reign, from 1; 0 is "none yet"."""

Chain = NewType("Chain", int)
"""64-bit hash that ties a frame to all frames before it."""

MASK64 = 0xFFFFFFFFFFFFFFFF
EPOCH_MAX = 0xFFFFFFFF
EPOCH_JUMP_MAX = 1 << 20
"""A node that knows an epoch takes none that is further ahead of it. Elections go up by one or a few: this
is one every minute for two years that a node was away. A peer gone mad would need 4,096 such leaps, each on
disk and in the log lines, to use up all epochs."""
LSN_LIMIT = 1 << 62
"""No log gets this far; whatever is computed from an LSN below it fits a signed 64-bit word."""

_new = tuple.__new__
_POSITION = re.compile(r"([0-9]{1,10}):([0-9]{1,20}):([0-9a-f]{16})\Z")


class Position(NamedTuple):
    """A place in one history. Equal (epoch, lsn) means equal chain."""

    epoch: int
    lsn: int
    chain: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.lsn}:{self.chain:016x}"


class StatePosition(NamedTuple):
    """A position, with what the fold of the log up to it must look like."""

    epoch: int
    lsn: int
    chain: int
    digest: int
    session_count: int

    @property
    def position(self) -> Position:
        return _new(Position, self[:3])


NOWHERE = StatePosition(0, 0, 0, 0, 0)
"""Before the first event of any log."""


def parse_position(text: str) -> Position:
    """Read what `str(position)` wrote.

    Raises ValueError for anything else.
    """
    match = _POSITION.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no position: epoch:lsn:chain, the chain as 16 hex digits")
    position = Position(int(match[1]), int(match[2]), int(match[3], 16))
    if position.epoch > EPOCH_MAX or position.lsn >= LSN_LIMIT:
        raise ValueError(f"{text!r} is no position: its epoch or LSN is too large")
    return position
