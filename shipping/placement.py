"""Placement: where a replica stands in the primary's log, and what follows from that.

Owns the decision between streaming, cutting, a snapshot and refusing. It reads the log in bounded
steps, so that no other replica waits for it, and sends nothing.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ..store.cursor import LogCursor
from ..store.ids import Position
from .bootstrap import log_bytes_behind
from .messages import ShipWelcome
from .progress import last_common
from .reign import Reign
from .sender import Search


class StreamFrom(msgspec.Struct, frozen=True):
    """The replica's end is in the log: frames follow. The cursor stands behind it."""

    after: Position
    cursor: LogCursor


class CutTo(msgspec.Struct, frozen=True):
    """The replica has more than the primary; none of it was committed."""

    position: Position


class NeedsSnapshot(msgspec.Struct, frozen=True):
    """The log no longer reaches the replica, or no longer has to."""


class HasDiverged(msgspec.Struct, frozen=True):
    """The replica has another history, and nothing may be taken from it without being asked."""

    why: str


Verdict: TypeAlias = "StreamFrom | CutTo | NeedsSnapshot | HasDiverged"


class Placement:
    """The search for one replica's place."""

    def __init__(self, reign: Reign, welcome: ShipWelcome) -> None:
        self._reign = reign
        self._welcome = welcome
        self._end = Position(*welcome.end)
        self._search: Search | None = None
        self._seeks_common = False

    def step(self) -> Verdict | None:
        """Search on a little; None as long as it goes on. Raises as LogCursor.read."""
        if self._search is None:
            return self._begin()
        found = self._search.step()
        if found is None:
            return None
        if self._seeks_common:
            return self._compare(self._search.cursor.at.position)
        if found:
            search, self._search = self._search, None
            return StreamFrom(self._end, search.cursor)
        return self._seek_common()

    def close(self) -> None:
        if self._search is not None:
            self._search.cursor.close()
            self._search = None

    def _begin(self) -> Verdict | None:
        reign, end = self._reign, self._end
        if end.lsn + 1 < reign.node.oldest_lsn() or self._is_over_budget():
            return NeedsSnapshot()
        if end.lsn > reign.window.end.lsn:
            return self._seek_common()
        self._search = Search(reign.node.cursor(), end)
        return None

    def _is_over_budget(self) -> bool:
        reign = self._reign
        behind = log_bytes_behind(reign.node.log.cursor.log, self._end.lsn)
        return behind > reign.slot_budget_bytes and reign.find_snapshot() is not None

    def _seek_common(self) -> Verdict | None:
        """The replica's end is not in the log: look for the last position that both have."""
        reign, end = self._reign, self._end
        self.close()
        common = last_common(reign.node.epochs(), reign.window.end, self._welcome.epochs, end)
        if common is not None and common.lsn + 1 >= reign.node.oldest_lsn():
            self._search = Search(reign.node.cursor(), Position(common.epoch, common.lsn, 0))
            self._seeks_common = True
            return None
        if reign.electorate.sync_replicas:
            return NeedsSnapshot()
        return HasDiverged(f"its log ends at {end}, and the two logs have nothing in common")

    def _compare(self, common: Position) -> Verdict:
        end = self._end
        self.close()
        if common.lsn == end.lsn:
            return HasDiverged(f"two histories under one position: {end} there, {common} here")
        if self._reign.electorate.sync_replicas == 0:
            return HasDiverged(f"its log ends at {end}; the last position in common is {common}")
        return CutTo(common)
