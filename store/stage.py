"""The stage: the events of one frame while it is made, and what they do to the tail map.

Owns how each kind of change becomes an event, a tail map entry, and a step of digest and count. It
reads what it builds on from the view; nothing is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import xxhash

from .errors import UsageError
from .event import EVENTS_LIMIT, NO_OPERATION, Kind, Reason, encode_event
from .event import pack_header as pack_event
from .fold import HASH_BYTES, value_of
from .frame import FRAME_BYTES_MAX
from .ids import MASK64
from .ports import Record
from .session import expiry_at, unpack_record, with_accessed
from .tail_map import NEW_MS, UNKNOWN_MS, Entry, arm_after
from .view import View

_HEADROOM_BYTES = 4096
_PUT = int(Kind.PUT)
_CREATED = int(Reason.CREATED)
_EXPIRE = int(Kind.EXPIRE)
_EXPIRED = int(Reason.EXPIRED)
xxh3_64 = xxhash.xxh3_64_intdigest


class Stage:
    """The events of one frame while it is made, over what the view holds."""

    __slots__ = ("_view", "digest", "entries", "event_count", "lsn", "parts", "session_count", "size_bytes")

    def __init__(self, view: View) -> None:
        at = view.log.cursor.at
        self._view = view
        self.digest = at.digest
        self.session_count = at.session_count
        self.lsn = at.lsn + 1
        """Of the frame's first event: what the entries carry."""
        self.parts: list[bytes] = []
        self.size_bytes = 0
        self.event_count = 0
        self.entries: dict[bytes, Entry] = {}

    def get(self, key: bytes) -> Record | None:
        """The newest record of a key, this frame's own changes included."""
        found = self.entries.get(key)
        return found[1] if found is not None else self._view.newest(key)

    def value(self, key: bytes) -> bytes | None:
        """The stored session of a key, checked against its hash."""
        record = self.get(key)
        return None if record is None else value_of(key, record)

    def reach(self) -> None:
        """Called before keys are looked up by a label: all that is committed must be there to be found."""

    def put(self, key: bytes, value: bytes, reason: Reason, operation_id: bytes) -> None:
        is_new = reason is Reason.CREATED
        old = None if is_new else self.get(key)
        self._set(key, value, old, NEW_MS if is_new else self._arm(key))
        self._emit(Kind.PUT, reason, operation_id, key, value)

    def create(self, sessions: Iterable[tuple[bytes, bytes, int]], operation_id: bytes) -> None:
        """As put with the reason CREATED, of (key, value, deadline to arm: ms or NEW_MS), keys never used."""
        parts, entries, lsn = self.parts, self.entries, self.lsn
        size, digest, count = self.size_bytes, self.digest, len(entries)
        for key, value, arm_ms in sessions:
            hashed = xxh3_64(value, xxh3_64(key))
            entries[key] = (lsn, hashed.to_bytes(8, "little") + value, arm_ms)
            digest += hashed
            event = pack_event(_PUT, _CREATED, len(key), len(value), operation_id) + key + value
            parts.append(event)
            size += len(event)
        count = len(entries) - count
        self.size_bytes, self.digest = size, digest
        self.session_count += count
        self.event_count += count

    def touch(
        self, key: bytes, accessed: bytes, operation_id: bytes, reason: Reason = Reason.TOUCHED
    ) -> None:
        old = self.get(key)
        if old is not None:
            self._set(key, with_accessed(old[HASH_BYTES:], accessed), old, self._arm(key))
            self._emit(Kind.TOUCH, reason, operation_id, key, accessed)

    def remove(self, key: bytes, kind: Kind, reason: Reason, operation_id: bytes) -> None:
        old = self.get(key)
        if old is not None:
            self.digest = (self.digest - int.from_bytes(old[:HASH_BYTES], "little")) & MASK64
            self.session_count -= 1
        self.entries[key] = (self.lsn, None, UNKNOWN_MS)
        self._emit(kind, reason, operation_id, key, b"")

    def expire(self, keys: Sequence[bytes], now_ms: int) -> int:
        """Remove those of these sessions whose time is over, by an EXPIRE event each; answers how many."""
        entries, parts, entry = self.entries, self.parts, (self.lsn, None, UNKNOWN_MS)
        digest, size, count = self.digest, self.size_bytes, len(parts)
        for key, newest in zip(keys, self._view.newest_of(keys), strict=True):
            record = found[1] if (found := entries.get(key)) else newest
            if record is None:
                continue
            value_of(key, record)  # raises if it is damaged
            hashed, _, _, _, accessed, timeout, cap = unpack_record(record)
            if expiry_at(accessed, timeout, cap) >= now_ms:
                continue
            digest -= hashed
            entries[key] = entry
            event = pack_event(_EXPIRE, _EXPIRED, len(key), 0, NO_OPERATION) + key
            parts.append(event)
            size += len(event)
        count = len(parts) - count
        self.digest, self.size_bytes = digest & MASK64, size
        self.session_count -= count
        self.event_count += count
        return count

    def rename(self, key: bytes, new_key: bytes, operation_id: bytes) -> None:
        """The session of `key` goes on under `new_key`, which must be free."""
        old = self.get(key)
        if old is not None:
            self.digest = (self.digest - int.from_bytes(old[:HASH_BYTES], "little")) & MASK64
            self.session_count -= 1
            self.entries[key] = (self.lsn, None, UNKNOWN_MS)
            self._set(new_key, old[HASH_BYTES:], None, UNKNOWN_MS)
            self._emit(Kind.RENAME, Reason.RENAMED, operation_id, key, new_key)

    def _set(self, key: bytes, value: bytes, old: Record | None, arm_ms: int) -> None:
        new = xxh3_64(value, xxh3_64(key))
        if old is None:
            self.session_count += 1
            self.digest = (self.digest + new) & MASK64
        else:
            self.digest = (self.digest + new - int.from_bytes(old[:HASH_BYTES], "little")) & MASK64
        self.entries[key] = (self.lsn, new.to_bytes(8, "little") + value, arm_ms)

    def _arm(self, key: bytes) -> int:
        view = self._view
        found = self.entries.get(key) or view.pending.get(key) or view.tail.get(key)
        return arm_after(found, UNKNOWN_MS)

    def _emit(self, kind: int, reason: int, operation_id: bytes, key: bytes, value: bytes) -> None:
        event = encode_event(kind, reason, operation_id, key, value)
        self.parts.append(event)
        self.size_bytes += len(event)
        self.event_count += 1

    def is_too_large(self) -> bool:
        return self.size_bytes > FRAME_BYTES_MAX - _HEADROOM_BYTES or self.event_count > EVENTS_LIMIT

    def too_large(self) -> UsageError:
        """The error for a stage that no frame can take."""
        return UsageError(
            f"{self.event_count} changes of {self.size_bytes} bytes do not fit into one frame",
            hint=f"Commit at most {EVENTS_LIMIT} changes and {FRAME_BYTES_MAX >> 20} MiB at once.",
        )
