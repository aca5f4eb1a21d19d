"""What the store room needs from others, as protocols: clock, back end, commit gate, forwarder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from .ids import Position, StatePosition

Record: TypeAlias = bytes
"""What a back end keeps for a key: 8 bytes of hash (see fold.record_of), then the stored session."""

Change: TypeAlias = "tuple[bytes, Record | None]"
"""(key, its record from now on, or None to remove it)."""

Deadline: TypeAlias = "tuple[int, bytes]"
"""(milliseconds since 1970, key): look at this session then."""


Labelled: TypeAlias = "tuple[bytes, bytes]"
"""(term, key): a pair of the index. A term (see labels.py) is 1 to 64 bytes of UTF-8 without NUL."""


class Clock(Protocol):
    """Where session time comes from. Both in milliseconds."""

    def now_ms(self) -> int:
        """Session time, since 1970."""
        ...

    def monotonic_ms(self) -> int: ...


class Scan(Protocol):
    """One consistent image of a back end, read in key order.

    Iterating gives (key, record). It pins old pages until it is closed: do not keep it for long.
    """

    @property
    def position(self) -> StatePosition: ...

    def __iter__(self) -> Iterator[tuple[bytes, Record]]: ...

    def close(self) -> None: ...


@runtime_checkable
class KeyScan(Scan, Protocol):
    """A scan that can give the keys alone, at less cost. Of one that cannot the pairs are read."""

    def next_keys(self, limit: int) -> list[bytes]:
        """The next up to `limit` keys, in order; fewer only at the end. Of a scan that is not iterated."""
        ...


class Backend(Protocol):
    """Where the fold of the log is kept. Not for two threads at once, except scans.

    Keys are 1 to 1,024 bytes. Every record comes back exactly as it was given; whether its hash is
    right is the caller's to check. A change of sessions and of the position is one transaction.
    Errors of the engine are raised as CorruptError, StorageFullError or StorageError; only get() may
    raise the engine's own, which `engine_errors` names, because it is the hot path.
    """

    engine_errors: tuple[type[Exception], ...]
    has_labels: bool
    """Are there pairs in the index, as of the read view? If not, nobody looks for those to remove."""

    def refresh(self) -> StatePosition:
        """Begin (or renew) the read view at the newest state; says where that stands."""
        ...

    def release(self) -> None:
        """End the read view, so that it pins nothing. The next get needs a refresh."""
        ...

    def get(self, key: bytes) -> Record | None:
        """The record of a key in the read view."""
        ...

    def scan(self, after: bytes = b"") -> Scan:
        """An image of the newest state, from the first key above `after`."""
        ...

    def fold(
        self,
        changes: Sequence[Change],
        armed: Sequence[Deadline],
        disarmed: Sequence[Deadline],
        position: StatePosition,
        labelled: Sequence[Labelled] = (),
        unlabelled: Sequence[Labelled] = (),
    ) -> None:
        """One transaction: changes (in key order, no key twice), deadlines, pairs of the index, position.

        What is both disarmed and armed stays armed; no pair is both added and removed. An empty back end
        is filled by folds in key order at position NOWHERE, and one that sets the position.
        """
        ...

    def due(self, until_ms: int, limit: int) -> list[Deadline]:
        """Up to `limit` of the earliest deadlines that are at or before `until_ms`.

        The answer may hold deadlines of sessions that are gone or have moved; what is answered is
        answered again until fold() is given it as disarmed.
        """
        ...

    def find(self, above: Labelled, last_term: bytes, limit: int) -> list[Labelled]:
        """Up to `limit` pairs of the index in order, above `above`, with terms up to `last_term`.

        Reads in the read view.
        """
        ...

    def close(self) -> None: ...


class Submitted(msgspec.Struct, frozen=True):
    """What the primary made of a forwarded change."""

    position: Position
    """Of its frame; where readers of the primary stood, if nothing was written."""
    conflicts: Mapping[bytes, Record | None] | None = None
    """What stands now where something else was read; None: there was no conflict."""
    is_whole: bool = True
    """Are these all of them?"""


class Sought(msgspec.Struct, frozen=True):
    """A write whose answer was lost: how it is found in the log of the primary."""

    operation_id: bytes
    base: Position
    """Where readers stood before it was asked for: its frame is behind that."""
    attempt: int
    """Submissions up to this one are given up: if the answer is "lost", none of them may be carried out."""
    position: Position | None = None
    """Of its frame, where it is known."""


class Forwarder(Protocol):
    """The way to the primary, for a node that is none. Safe for threads.

    Every call finds the primary by itself, and gives up after `timeout_ms`. All raise WireError or
    NotPrimaryError if it could not be asked: nothing was done then.
    """

    def knows(self, members: Mapping[str, str]) -> bool:
        """Is there any other node to ask? `members` are the addresses that the log tells, by node.

        Raises PerdureError if there may be some, and what opens them is missing.
        """
        ...

    def submit(
        self, change: bytes, operation_id: bytes, attempt: int, is_durable: bool, timeout_ms: int
    ) -> Submitted:
        """Have a change certified and appended (see forwarding), as durable as the primary's store asks, and
        on its disk if `is_durable`. Attempts of one operation count from 1.

        Raises what the primary raises, and Indeterminate if its answer was lost.
        """
        ...

    def outcome(self, sought: Sought, timeout_ms: int) -> str:
        """What became of a write: a value of Outcome."""
        ...

    def position(self, *, is_confirmed: bool, timeout_ms: int) -> Position:
        """Where readers of the primary stand; with `is_confirmed` sync_replicas have confirmed since the call
        began that it still is the primary.
        """
        ...

    def refresh(self, touches: bytes, timeout_ms: int) -> int:
        """Write coalesced refreshes; answers how many."""
        ...

    def sweep(self, limit: int, timeout_ms: int) -> tuple[int, Position]:
        """Expire what is due, at most `limit` (0: all); answers how many, and where readers then stand."""
        ...

    def primary(self, timeout_ms: int) -> tuple[int, str]:
        """(epoch, node) of the newest primary that any node knows of; (0, "") if none was found.

        Raises nothing.
        """
        ...

    def close(self) -> None: ...


class CommitGate(Protocol):
    """The way to the replicas, for a writer with sync_replicas >= 1."""

    def poke(self, lsn: int) -> None:
        """Tell the shipper that the log reaches `lsn`. Never blocks, never raises."""
        ...

    def wait(self, position: Position, timeout_ms: int) -> bool:
        """Wake the shipper, and wait until the commit LSN covers the position; False when the time is up."""
        ...

    def confirm(self, timeout_ms: int) -> bool:
        """Have sync_replicas confirm, from now on, that this node is the primary; False past the timeout."""
        ...

    def confirmed_age_ms(self) -> int | None:
        """How long ago they have confirmed that; None: they have not."""
        ...

    def close(self) -> None: ...
