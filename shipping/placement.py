"""Placement: where a replica stands in the primary's log, and what follows from that.

Owns the look at the log that the decision (see rejoin_plan) needs before it is carried out: what the epochs
tell is held against the chain. It reads in bounded steps, so that no other replica waits for it, and
sends nothing.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ..store import names
from ..store.cursor import LogCursor, list_segments
from ..store.ids import Position
from .bootstrap import log_sizes
from .messages import ShipWelcome
from .progress import Common
from .reign import Reign
from .rejoin_facts import accepted_losses, replica_facts
from .rejoin_plan import (
    Bootstrap,
    Follow,
    PrimaryFacts,
    Refuse,
    TakeKeys,
    Truncate,
    bytes_behind,
    decide_rejoin,
)
from .sender import Search


class StreamFrom(msgspec.Struct, frozen=True):
    """The replica's end is in the log: frames follow. The cursor stands behind it."""

    after: Position
    cursor: LogCursor


class CutTo(msgspec.Struct, frozen=True):
    """The replica has more than the primary; none of it was committed, or in its state."""

    position: Position
    is_open: bool
    """The segment goes on behind it."""
    is_accepted: bool
    """Whatever was committed behind it may go."""


class GiveKeys(msgspec.Struct, frozen=True):
    """The replica's state holds what stands behind the fork: it takes these keys from the primary's."""

    fork: Position


class NeedsSnapshot(msgspec.Struct, frozen=True):
    """A snapshot replaces what the replica has."""

    why: str
    parted_lsn: int
    """Behind this LSN the replica has another history, -1 if none is known."""


class HasDiverged(msgspec.Struct, frozen=True):
    """The replica has another history, and nothing may be taken from it now."""

    why: str
    is_fault: bool


Verdict: TypeAlias = "StreamFrom | CutTo | GiveKeys | NeedsSnapshot | HasDiverged"


class Placement:
    """The search for one replica's place."""

    def __init__(self, reign: Reign, welcome: ShipWelcome) -> None:
        self._reign = reign
        self._facts = replica_facts(welcome)
        self._search: Search | None = None
        self._wanted: Follow | Truncate | TakeKeys | None = None
        self._is_accepted = welcome.is_forced

    def step(self) -> Verdict | None:
        """Search on a little; None as long as it goes on. Raises as LogCursor.read."""
        if self._search is None:
            return self._begin()
        found = self._search.step()
        if found is None:
            return None
        if not isinstance(self._wanted, Follow):
            return self._compare(self._search.cursor.at.position)
        if not found:
            at = self._search.cursor.at.position
            self.close()
            return HasDiverged(f"two histories under one position: {self._facts.end} there, {at} here", True)
        search, self._search = self._search, None
        return StreamFrom(self._facts.end, search.cursor)

    def close(self) -> None:
        if self._search is not None:
            self._search.cursor.close()
            self._search = None

    def _begin(self) -> Verdict | None:
        facts = self._primary_facts()
        decided = decide_rejoin(self._facts, facts)
        if isinstance(decided, Refuse) and decided.is_fault:
            losses = accepted_losses(self._reign.node)
            decided = decide_rejoin(self._facts, msgspec.structs.replace(facts, losses=losses))
            self._is_accepted = True
        if isinstance(decided, Refuse):
            return HasDiverged(decided.why, decided.is_fault)
        if isinstance(decided, Bootstrap):
            fork_lsn = decided.fork.lsn if decided.fork else 0
            return NeedsSnapshot(decided.why, fork_lsn if decided.has_parted else -1)
        self._wanted = decided
        fork = self._fork()
        place = decided.after if isinstance(decided, Follow) else Position(fork.epoch, fork.lsn, 0)
        self._search = Search(self._reign.node.cursor(), place)
        return None

    def _primary_facts(self) -> PrimaryFacts:
        reign = self._reign
        segments = tuple(log_sizes(reign.node.log.cursor.log))
        may_exceed = bytes_behind(segments, 0) > reign.slot_budget_bytes
        snapshot = reign.find_snapshot() if may_exceed else None
        place = names.parse_snapshot_name(snapshot.name) if snapshot is not None else None
        return PrimaryFacts(
            end=reign.window.end,
            epochs=tuple(reign.node.all_epochs()),
            oldest_lsn=reign.node.oldest_lsn(),
            segments=segments,
            slot_budget_bytes=reign.slot_budget_bytes,
            committed_lsn=reign.node.committed_lsn(),
            snapshot_lsn=place[0] if place is not None else 0,
        )

    def _compare(self, found: Position) -> Verdict:
        """What the epochs say is in common was looked for: it is here, as far as this log can tell."""
        self.close()
        wanted, fork = self._wanted, self._fork()
        if (found.epoch, found.lsn) != (fork.epoch, fork.lsn):
            return NeedsSnapshot(f"the log has no frame that ends at LSN {fork.lsn}", fork.lsn)
        if isinstance(wanted, TakeKeys):
            return GiveKeys(found)
        starts = {file.first_lsn for file in list_segments(self._reign.node.log.cursor.log)}
        is_open = fork.lsn + 1 not in starts and fork.lsn < self._reign.window.end.lsn
        return CutTo(found, is_open, self._is_accepted)

    def _fork(self) -> Common:
        wanted = self._wanted
        return wanted.fork if isinstance(wanted, (Truncate, TakeKeys)) else Common(0, 0)
