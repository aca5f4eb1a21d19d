"""Forwarded changes: what a node that is not the primary sends in place of writing. Pure.

A change is evaluated here, over the local view; what it read is recorded, key by key, with what stood there.
The primary looks, under its write lock, whether all of that still stands, and then appends the events
(optimistic certification). Owns the record of reads, the bytes of a forwarded change, and that check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from .errors import DECODE_ERRORS, CorruptError, PerdureError, UsageError
from .event import KEY_BYTES_MAX, Event, Kind, Reason, decode_events
from .fold import HASH_BYTES
from .ports import Record
from .session import ACCESSED
from .session import HEADER_BYTES as SESSION_BYTES_MIN
from .stage import Stage
from .view import View

ABSENT: Final = b""
READ_BYTES: Final = 16
"""What a read takes besides its key, at most."""
CHANGE_BYTES_MAX: Final = 15 << 20
"""A message takes 16 MiB."""
TOUCHES_MAX: Final = 10_000
CONFLICT_BYTES_MAX: Final = 4 << 20
"""So much of the records that stand in the way is told; for the rest the local state has to catch up."""
ACCESSED_BYTES: Final = ACCESSED.size


class ForwardedChange(msgspec.Struct, frozen=True, array_like=True):
    """The events of one change, and what they rest on."""

    reads: list[tuple[bytes, bytes]]
    """(key, the hash that its record begins with), or ABSENT where there was none."""
    event_count: int
    events: bytes


class RecordingStage(Stage):
    """A stage over the local view of a node that is not the primary, which remembers what was read."""

    __slots__ = ("_overlay", "_reach", "reads")

    def __init__(self, view: View, overlay: dict[bytes, Record | None], reach: Callable[[], object]) -> None:
        """`overlay` are records that the primary told, which the local state may not have yet; `reach` waits
        until the local state is as far as the primary's.
        """
        super().__init__(view)
        self._overlay = overlay
        self._reach = reach
        self.reads: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> Record | None:
        found = self.entries.get(key)
        if found is not None:
            return found[1]
        record = self._overlay[key] if key in self._overlay else self._view.newest(key)
        self.reads.setdefault(key, ABSENT if record is None else record[:HASH_BYTES])
        return record

    def reach(self) -> None:
        self._reach()

    def discard(self) -> None:
        """Of a change that broke off only what it read counts."""
        self.parts, self.entries = [], {}
        self.size_bytes = self.event_count = 0

    def change(self) -> ForwardedChange:
        """What is to be sent. Raises UsageError if it is too much for one frame, or one message."""
        size = self.size_bytes + sum(map(len, self.reads)) + READ_BYTES * len(self.reads)
        if self.is_too_large() or size > CHANGE_BYTES_MAX:
            raise self.too_large()
        return ForwardedChange(list(self.reads.items()), self.event_count, b"".join(self.parts))


class Conflict(PerdureError):
    """What a forwarded change rests on has changed. Never leaves the primary: it is an answer, no error."""

    def __init__(self, records: list[tuple[bytes, Record | None]], *, is_whole: bool) -> None:
        super().__init__("what the change rests on has changed")
        self.records = records
        self.is_whole = is_whole
        """Are these all that have changed?"""


def encode_change(change: ForwardedChange) -> bytes:
    return msgspec.msgpack.encode(change)


def decode_change(data: bytes) -> tuple[ForwardedChange, list[Event]]:
    """A change and its events. Raises CorruptError for bytes that are none, or that no frame may hold."""
    try:
        change = msgspec.msgpack.decode(data, type=ForwardedChange)
    except DECODE_ERRORS as error:
        raise CorruptError("a forwarded change does not decode") from error
    events = decode_events(change.events, change.event_count)
    for kind, _reason, operation_id, key, value in events:
        if not _is_sound(kind, operation_id, key, value):
            raise CorruptError("a forwarded change holds an event that it may not")
    return change, events


def _is_sound(kind: int, operation_id: bytes, key: bytes, value: bytes) -> bool:
    if not key or len(operation_id) != 16:
        return False
    if kind == Kind.PUT:
        return len(value) >= SESSION_BYTES_MIN
    if kind == Kind.TOUCH:
        return len(value) == ACCESSED_BYTES
    if kind == Kind.RENAME:
        return 0 < len(value) <= KEY_BYTES_MAX
    return kind in (Kind.DELETE, Kind.EXPIRE) and not value


def apply_change(stage: Stage, change: ForwardedChange, events: list[Event]) -> None:
    """Put the events on the primary's stage, if all that they rest on still stands. Raises Conflict."""
    _certify(stage, change.reads, events)
    for kind, reason, operation_id, key, value in events:
        if kind == Kind.PUT:
            stage.put(key, value, Reason(reason), operation_id)
        elif kind == Kind.TOUCH:
            stage.touch(key, value, operation_id, Reason(reason))
        elif kind == Kind.RENAME:
            stage.rename(key, value, operation_id)
        else:
            stage.remove(key, Kind(kind), Reason(reason), operation_id)


def _certify(stage: Stage, reads: Iterable[tuple[bytes, bytes]], events: list[Event]) -> None:
    """Raise Conflict unless each key has the record that was read, and each new key has none."""
    wanted = dict(reads)
    for kind, reason, _operation_id, key, value in events:
        if kind == Kind.PUT and reason == Reason.CREATED:
            wanted.setdefault(key, ABSENT)
        elif kind == Kind.RENAME:
            wanted.setdefault(value, ABSENT)
    changed: list[tuple[bytes, Record | None]] = []
    size, is_whole = 0, True
    for key, hashed in wanted.items():
        record = stage.get(key)
        if (ABSENT if record is None else record[:HASH_BYTES]) == hashed:
            continue
        size += len(key) + len(record or b"")
        if size <= CONFLICT_BYTES_MAX:
            changed.append((key, record))
        else:
            is_whole = False
    if changed or not is_whole:
        raise Conflict(changed, is_whole=is_whole)


def encode_records(records: list[tuple[bytes, Record | None]]) -> bytes:
    """Records as a conflict tells them."""
    return msgspec.msgpack.encode(records)


def decode_records(data: bytes) -> dict[bytes, Record | None]:
    """Raises CorruptError."""
    try:
        return dict(msgspec.msgpack.decode(data, type=list[tuple[bytes, bytes | None]]))
    except DECODE_ERRORS as error:
        raise CorruptError("the records of a conflict do not decode") from error


def encode_touches(touches: dict[bytes, int]) -> bytes:
    """Refreshes (key, when it was used, ms) as they are sent to the primary."""
    return msgspec.msgpack.encode(touches)


def decode_touches(data: bytes) -> dict[bytes, int]:
    """Raises CorruptError, and UsageError for more than TOUCHES_MAX."""
    try:
        touches = msgspec.msgpack.decode(data, type=dict[bytes, int])
    except DECODE_ERRORS as error:
        raise CorruptError("refreshes do not decode") from error
    if len(touches) > TOUCHES_MAX or any(not 0 <= ms < 1 << 63 for ms in touches.values()):
        raise UsageError(f"at most {TOUCHES_MAX} refreshes are taken at once")
    return touches
