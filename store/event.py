"""Events: what one change to a session looks like inside a frame.

Owns the bytes of an event. An event is an effect: no clock, condition or randomness is left in it,
so that a replay gives exactly the same state.

    offset  size  field
    0       1     kind
    1       1     reason
    2       2     key length, bytes (u16)
    4       4     value length, bytes (u32)
    8       16    operation id
    24      ...   key, then value
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TypeAlias

from .errors import CorruptError

HEADER = struct.Struct("<BBHI16s")
HEADER_BYTES = 24
assert HEADER.size == HEADER_BYTES

KEY_BYTES_MAX = 1024
VALUE_BYTES_MAX = 8 << 20
NO_OPERATION = bytes(16)
EVENTS_LIMIT = 1 << 16


class Kind(IntEnum):
    """What an event does."""

    PUT = 1
    """Set key to value: the whole stored session."""
    TOUCH = 2
    """Set last_accessed of key: eight bytes, milliseconds."""
    DELETE = 3
    EXPIRE = 4
    RENAME = 5
    """Move the session from key to the key in value."""
    EPOCH_START = 64
    """A primary's reign begins; value names it."""
    CONFIG = 65
    """The voters and sync_replicas from here on."""


class Reason(IntEnum):
    """Why an event came to be."""

    NONE = 0
    CREATED = 1
    REPLACED = 2
    UPDATED = 3
    TOUCHED = 4
    DELETED = 5
    EXPIRED = 6
    EVICTED = 7
    RENAMED = 8
    RECONCILED = 9
    CONTROL = 10
    GROUP = 11
    """Deleted or touched with its group."""
    ORPHANED = 12
    """Deleted because its home node is no member."""
    ADOPTED = 13
    """Given another home node for that."""
    IMPORTED = 14
    REKEYED = 15
    """Compressed or encrypted anew; nothing else changed."""


Event: TypeAlias = "tuple[int, int, bytes, bytes, bytes]"
"""(kind, reason, operation id, key, value); a bare tuple, because the follow loop makes millions."""

KINDS = frozenset(int(kind) for kind in Kind)
REASONS = frozenset(int(reason) for reason in Reason)

pack_header = HEADER.pack
_unpack_from = HEADER.unpack_from


def encode_event(kind: int, reason: int, operation_id: bytes, key: bytes, value: bytes) -> bytes:
    """The event's bytes. Sizes are the caller's to check (KEY_BYTES_MAX, VALUE_BYTES_MAX)."""
    return pack_header(kind, reason, len(key), len(value), operation_id) + key + value


def decode_events(payload: bytes, event_count: int) -> list[Event]:
    """All events of a frame's payload.

    Raises CorruptError (with `offset` inside the payload) unless the payload is exactly
    `event_count` well-formed events.
    """
    events: list[Event] = []
    at = 0
    end = len(payload)
    for _ in range(event_count):
        if at + HEADER_BYTES > end:
            raise CorruptError("a frame's payload ends inside an event", offset=at)
        kind, reason, key_bytes, value_bytes, operation_id = _unpack_from(payload, at)
        key_at = at + HEADER_BYTES
        value_at = key_at + key_bytes
        at = value_at + value_bytes
        if (
            at > end
            or kind not in KINDS
            or reason not in REASONS
            or key_bytes > KEY_BYTES_MAX
            or value_bytes > VALUE_BYTES_MAX
            or (key_bytes == 0 and kind < Kind.EPOCH_START)
        ):
            raise CorruptError("a frame holds an event that is not one", offset=key_at - HEADER_BYTES)
        events.append((kind, reason, operation_id, payload[key_at:value_at], payload[value_at:at]))
    if at != end:
        raise CorruptError("a frame's payload has bytes behind its last event", offset=at)
    return events
