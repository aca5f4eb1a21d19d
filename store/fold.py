"""The fold: what a run of events makes of the sessions. Pure: values in, values out.

Owns the record (hash and stored session), the state digest, and the effect of every kind of event.
The digest is the sum modulo 2^64 of xxh3_64(value, seed = xxh3_64(key)) over all sessions; a record
carries its own term in front, which is checked on every read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

import xxhash

from .errors import CorruptError
from .event import KEY_BYTES_MAX, Event, Kind
from .ids import MASK64
from .labels import terms_of_record
from .ports import Change, Deadline, Record
from .session import (
    ACCESSED_OFFSET,
    HEADER_BYTES,
    NEVER_MS,
    REFRESH_WINDOW_MS_MAX,
    WINDOWED,
    expiry_at,
    expiry_of,
    unpack_lifetime,
    with_accessed,
)

HASH_BYTES = 8
REBUILD_HINT = "`perdure repair DIR` makes it anew from snapshot and log, while the store is in use."
RECORD_BYTES_MIN = HASH_BYTES + HEADER_BYTES
xxh3_64 = xxhash.xxh3_64_intdigest

_PUT = int(Kind.PUT)
_TOUCH = int(Kind.TOUCH)
_DELETE = int(Kind.DELETE)
_EXPIRE = int(Kind.EXPIRE)
_RENAME = int(Kind.RENAME)
MISSING = b""
"""Stands for a record that is still to be looked up: they have at least 8 bytes. Told by identity."""

_LIFETIME_AT = HASH_BYTES + ACCESSED_OFFSET
_HASH = struct.Struct("<Q")
pack_hash = _HASH.pack
unpack_hash = _HASH.unpack_from

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
            hint=REBUILD_HINT,
        )
    return value


def unreadable(error: Exception | str) -> CorruptError:
    """The error for a state whose engine refuses to read."""
    return CorruptError(
        f"the state cannot be read: {error}",
        hint=REBUILD_HINT,
    )


class Fold:
    """Accumulates the effect of events over a base that `lookup` reads, or over nothing if it is None.

    `changes` holds the last record of each changed key (None: removed), in the order in which the keys
    were first changed; `digest` and `session_count` follow. `base_expiries` has the expiry, ms, of each
    changed key that the base holds, `base_terms` the terms (see labels) of those that have any. Raises
    CorruptError for events that cannot be right: a TOUCH or RENAME of what is not there, or a value that
    is no stored session.
    """

    __slots__ = (
        "base_expiries",
        "base_terms",
        "changes",
        "digest",
        "lookup",
        "moved_bytes",
        "session_count",
        "unknown",
    )

    def __init__(self, lookup: Lookup | None, digest: int = 0, session_count: int = 0) -> None:
        self.lookup = lookup or _nothing
        self.unknown = MISSING if lookup else None
        """What a key stands for that has not changed: a record to be looked up, or none."""
        self.changes: dict[bytes, Record | None] = {}
        self.base_expiries: dict[bytes, int] = {}
        self.base_terms: dict[bytes, tuple[bytes, ...]] = {}
        self.digest = digest
        self.session_count = session_count
        self.moved_bytes = 0
        """Of records that events changed without carrying them: touched and renamed ones."""

    def current(self, key: bytes) -> Record | None:
        """The record of a key after all that was applied."""
        old = self.changes.get(key, self.unknown)
        if old is MISSING:
            old = self.lookup(key)
            if old is not None:
                self.note_base(key, old)
        return old

    def note_base(self, key: bytes, record: Record) -> None:
        """Take note of the base's record of a key that is about to change for the first time."""
        if len(record) < RECORD_BYTES_MIN:
            raise unreadable(f"the record of session {key!r} is cut short")
        self.base_expiries[key] = expiry_of(record, HASH_BYTES)
        if terms := terms_of_record(record):
            self.base_terms[key] = terms

    def apply(self, events: Iterable[Event]) -> None:
        """Apply events in their order."""
        for kind, _reason, _operation_id, key, value in events:
            if kind == _PUT:
                if len(value) < HEADER_BYTES:
                    raise CorruptError(f"the stored session {key!r} is cut short")
                self._set(key, self.current(key), value)
            elif kind == _TOUCH:
                record = self.current(key)
                self._set(key, record, touched(key, record, value))
                self.moved_bytes += len(record or b"")
            elif kind in (_DELETE, _EXPIRE):
                self._remove(key, self.current(key))
            elif kind == _RENAME:
                record = self.current(key)
                if record is None or not 0 < len(value) <= KEY_BYTES_MAX:
                    raise CorruptError(f"a rename of session {key!r}, which is not there")
                self._remove(key, record)
                self._set(value, self.current(value), record[HASH_BYTES:])
                self.moved_bytes += len(record)

    def _set(self, key: bytes, old: Record | None, value: bytes) -> None:
        new = xxh3_64(value, xxh3_64(key))
        if old is None:
            self.session_count += 1
            self.digest = (self.digest + new) & MASK64
        else:
            self.digest = (self.digest + new - unpack_hash(old)[0]) & MASK64
        self.changes[key] = pack_hash(new) + value

    def _remove(self, key: bytes, old: Record | None) -> None:
        if old is not None:
            self.session_count -= 1
            self.digest = (self.digest - unpack_hash(old)[0]) & MASK64
        self.changes[key] = None


def _nothing(_key: bytes) -> Record | None:
    return None


def totals_after(
    lookup: Lookup, digest: int, session_count: int, changes: Iterable[Change]
) -> tuple[int, int]:
    """Digest and count of a base, which has these now, once it holds these changes (no key twice)."""
    for key, record in changes:
        old = lookup(key)
        if old is not None:
            if len(old) < RECORD_BYTES_MIN:
                raise unreadable(f"the record of session {key!r} is cut short")
            digest -= unpack_hash(old)[0]
            session_count -= 1
        if record is not None:
            digest += unpack_hash(record)[0]
            session_count += 1
    return digest & MASK64, session_count


def touched(key: bytes, record: Record | None, accessed: bytes) -> bytes:
    """The stored session after a TOUCH with these eight bytes."""
    if record is None or len(accessed) != 8:
        raise CorruptError(f"a touch of session {key!r}, which is not there")
    return with_accessed(record[HASH_BYTES:], accessed)


def plan_deadlines(changes: Iterable[Change], base_expiries: Mapping[bytes, int]) -> Iterator[Deadline]:
    """The deadlines to arm for changes to a base in which their keys expire as `base_expiries` says, ms.

    Every session that can expire has an armed deadline at or before its expiry; one that moves later
    keeps its old deadline, and the sweeper re-arms it when it meets it too early.
    """
    base_expiry = base_expiries.get
    for key, record in changes:
        if record is None:
            continue
        accessed, timeout, cap = unpack_lifetime(record, _LIFETIME_AT)
        if timeout >= WINDOWED:
            expiry = expiry_at(accessed, timeout, cap)
        elif timeout:  # as expiry_of(), in place: a rebuild asks for every session there is
            expiry = accessed + timeout + (timeout // 10 if timeout < 600_000 else REFRESH_WINDOW_MS_MAX)
            if 0 < cap < expiry:
                expiry = cap
        else:
            expiry = cap or NEVER_MS
        if expiry < (base_expiry(key, NEVER_MS) if base_expiries else NEVER_MS):
            yield expiry, key
