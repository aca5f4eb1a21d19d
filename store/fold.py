"""The fold: what a run of events makes of the sessions. Pure: values in, values out.

Owns the record (hash and stored session), the state digest, and the effect of every kind of event.
The digest is the sum modulo 2^64 of xxh3_64(value, seed = xxh3_64(key)) over all sessions; a record
carries its own term in front, which is checked on every read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import xxhash

from .errors import CorruptError
from .event import KEY_BYTES_MAX, Event, Kind
from .ids import MASK64
from .ports import Change, Deadline, Record
from .session import HEADER_BYTES, NEVER_MS, expiry_of, with_accessed

HASH_BYTES = 8
xxh3_64 = xxhash.xxh3_64_intdigest

_PUT = int(Kind.PUT)
_TOUCH = int(Kind.TOUCH)
_DELETE = int(Kind.DELETE)
_EXPIRE = int(Kind.EXPIRE)
_RENAME = int(Kind.RENAME)
_MISSING = b""
"""No record: they have at least 8 bytes. Told from one by identity."""

Lookup = Callable[[bytes], Record | None]


def hash_of(key: bytes, value: bytes) -> int:
    """A session's term of the state digest."""
    return xxh3_64(value, xxh3_64(key))


def record_of(key: bytes, value: bytes) -> Record:
    """What a back end keeps for a session: its hash, then the stored session."""
    return xxh3_64(value, xxh3_64(key)).to_bytes(8, "little") + value


def value_of(key: bytes, record: Record) -> bytes:
    """The stored session in a record. Raises CorruptError if the record does not match its hash."""
    value = record[HASH_BYTES:]
    if xxh3_64(value, xxh3_64(key)) != int.from_bytes(record[:HASH_BYTES], "little"):
        raise CorruptError(
            f"the state's record of session {key!r} does not match its hash",
            hint="The state is damaged; it can be rebuilt from snapshot and log.",
        )
    return value


def unreadable(error: Exception) -> CorruptError:
    """The error for a state whose engine refuses to read."""
    return CorruptError(
        f"the state cannot be read: {error}",
        hint="It can be rebuilt from snapshot and log: close the store everywhere and move its state away.",
    )


class Fold:
    """Accumulates the effect of events over a base that `lookup` reads.

    `changes` holds the last record of each changed key (None: removed); `digest` and `session_count`
    follow. Raises CorruptError for events that cannot be right: a TOUCH or RENAME of what is not
    there, or a value that is no stored session.
    """

    __slots__ = ("_lookup", "changes", "digest", "session_count")

    def __init__(self, lookup: Lookup, digest: int = 0, session_count: int = 0) -> None:
        self._lookup = lookup
        self.changes: dict[bytes, Record | None] = {}
        self.digest = digest
        self.session_count = session_count

    def current(self, key: bytes) -> Record | None:
        """The record of a key after all that was applied."""
        changes = self.changes
        return changes[key] if key in changes else self._lookup(key)

    def apply(self, events: Iterable[Event]) -> None:
        """Apply events in their order."""
        changes, missing = self.changes, _MISSING
        for kind, _reason, _operation_id, key, value in events:
            if kind == _PUT:
                if len(value) < HEADER_BYTES:
                    raise CorruptError(f"the stored session {key!r} is cut short")
                # As _set(), in place: a replay does little else.
                old = changes.get(key, missing)
                if old is missing:
                    old = self._lookup(key)
                new = xxh3_64(value, xxh3_64(key))
                if old is None:
                    self.session_count += 1
                    self.digest = (self.digest + new) & MASK64
                else:
                    self.digest = (self.digest + new - int.from_bytes(old[:HASH_BYTES], "little")) & MASK64
                changes[key] = new.to_bytes(8, "little") + value
            elif kind == _TOUCH:
                self._set(key, touched(key, self.current(key), value))
            elif kind in (_DELETE, _EXPIRE):
                self._remove(key)
            elif kind == _RENAME:
                record = self.current(key)
                if record is None or not 0 < len(value) <= KEY_BYTES_MAX:
                    raise CorruptError(f"a rename of session {key!r}, which is not there")
                self._remove(key)
                self._set(value, record[HASH_BYTES:])

    def _set(self, key: bytes, value: bytes) -> None:
        changes = self.changes
        old = changes[key] if key in changes else self._lookup(key)
        new = xxh3_64(value, xxh3_64(key))
        if old is None:
            self.session_count += 1
            self.digest = (self.digest + new) & MASK64
        else:
            self.digest = (self.digest + new - int.from_bytes(old[:HASH_BYTES], "little")) & MASK64
        changes[key] = new.to_bytes(8, "little") + value

    def _remove(self, key: bytes) -> None:
        old = self.current(key)
        if old is not None:
            self.session_count -= 1
            self.digest = (self.digest - int.from_bytes(old[:HASH_BYTES], "little")) & MASK64
        self.changes[key] = None


def touched(key: bytes, record: Record | None, accessed: bytes) -> bytes:
    """The stored session after a TOUCH with these eight bytes."""
    if record is None or len(accessed) != 8:
        raise CorruptError(f"a touch of session {key!r}, which is not there")
    return with_accessed(record[HASH_BYTES:], accessed)


def plan_deadlines(changes: Iterable[Change], lookup: Lookup) -> list[Deadline]:
    """The deadlines to arm for changes that are about to be folded over what `lookup` reads.

    Every session that can expire has an armed deadline at or before its expiry; one that moves later
    keeps its old deadline, and the sweeper re-arms it when it meets it too early.
    """
    armed: list[Deadline] = []
    for key, record in changes:
        if record is None:
            continue
        expiry = expiry_of(record, HASH_BYTES)
        if expiry >= NEVER_MS:
            continue
        old = lookup(key)
        if old is None or expiry_of(old, HASH_BYTES) > expiry:
            armed.append((expiry, key))
    return armed
