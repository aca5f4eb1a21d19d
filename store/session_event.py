"""Session events: what a listener is told of one change to a session.

Owns how an event of the log becomes a SessionEvent, in one place for feeds and subscribers. Control
events of the log (EPOCH_START, CONFIG) change no session, and are none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from .errors import CorruptError, UsageError
from .event import Event, Kind, Reason
from .frame import Frame
from .ids import Position
from .session import FORMAT, HEADER_BYTES, VERSION_OFFSET, Session

OpenSession: TypeAlias = Callable[[bytes, bytes], "tuple[str, bytes]"]
"""(key, stored session, empty where the event carries none) -> (id, the stored session in plain)."""

_CONTROL = int(Kind.EPOCH_START)
_PUT = int(Kind.PUT)
_RENAME = int(Kind.RENAME)
_unpack_version = struct.Struct("<Q").unpack_from


class EventKind(StrEnum):
    """What happened to a session."""

    CREATED = "created"
    """It is there anew: the version is 1. One that had expired under this id is over with it."""
    UPDATED = "updated"
    TOUCHED = "touched"
    """Its life was extended, and nothing else changed."""
    RENAMED = "renamed"
    """It goes on under `new_id`."""
    DELETED = "deleted"
    EXPIRED = "expired"


EVERYTHING = frozenset(EventKind)
REASONS = {int(reason): reason.name.lower() for reason in Reason}
_KINDS = {
    int(Kind.TOUCH): EventKind.TOUCHED,
    int(Kind.RENAME): EventKind.RENAMED,
    int(Kind.DELETE): EventKind.DELETED,
    int(Kind.EXPIRE): EventKind.EXPIRED,
}


class SessionEvent(msgspec.Struct, frozen=True, eq=False):
    """One committed change to one session. Times are milliseconds since 1970.

    `lsn` is the event's own: unique, and higher than that of every event before it. `position` is the
    end of its frame, which is one commit: the events of a batch share it.
    """

    kind: EventKind
    reason: str
    """Why: a name of event.Reason in lower case, such as created, replaced, deleted, expired, evicted."""
    id: str
    lsn: int
    position: Position
    time_ms: int
    """Of the commit, on the clock of the node that was primary."""
    operation_id: str
    """Of the call that made it, 32 hexadecimal characters; zeros for none."""
    session: Session | None = None
    """As it is from here on, where the event carries it: created and updated."""
    new_id: str = ""
    """Of a renamed session."""

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, for output."""
        return {
            "lsn": self.lsn,
            "kind": str(self.kind),
            "reason": self.reason,
            "id": self.id,
            "new_id": self.new_id or None,
            "time_ms": self.time_ms,
            "operation_id": self.operation_id,
            "position": str(self.position),
            "session": self.session.to_dict() if self.session is not None else None,
        }


def open_plain(key: bytes, value: bytes) -> tuple[str, bytes]:
    """The OpenSession of a store that keeps its sessions as they are."""
    return key.decode(), value


def decode_session_events(
    events: Iterable[Event],
    frame: Frame,
    first_lsn: int,
    kinds: frozenset[EventKind],
    open_session: OpenSession,
) -> list[SessionEvent]:
    """The session events of a frame from `first_lsn` on that are of these kinds.

    Raises CorruptError, naming the LSN, for what is no session of a format that is known.
    """
    found: list[SessionEvent] = []
    position, time_ms = frame.position, frame.time_ms
    lsn = frame.first_lsn - 1
    for kind, reason, operation_id, key, value in events:
        lsn += 1
        if lsn < first_lsn or kind >= _CONTROL:
            continue
        happened = _happened(value, lsn) if kind == _PUT else _KINDS[kind]
        if happened not in kinds:
            continue
        try:
            id, plain = open_session(key, value if kind == _PUT else b"")
            new_id = open_session(value, b"")[0] if kind == _RENAME else ""
        except UnicodeDecodeError as error:
            raise CorruptError("the id of a session event is no text", lsn=lsn) from error
        found.append(
            SessionEvent(
                happened,
                REASONS[reason],
                id,
                lsn,
                position,
                time_ms,
                operation_id.hex(),
                Session(id, plain) if kind == _PUT else None,
                new_id,
            )
        )
    return found


def parse_kinds(kinds: Iterable[str] | str | None) -> frozenset[EventKind]:
    """The kinds that are asked for, all of them for None or "*". Raises UsageError for another name."""
    if kinds is None or kinds == "*":
        return EVERYTHING
    try:
        chosen = frozenset(EventKind(kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{kinds!r} names no kind of event", hint=f"They are {', '.join(EventKind)}, or '*' for all."
        ) from error
    if not chosen:
        raise UsageError("no kind of event is asked for", hint="Name at least one, or '*' for all.")
    return chosen


def _happened(value: bytes, lsn: int) -> EventKind:
    if len(value) < HEADER_BYTES or value[0] != FORMAT:
        raise CorruptError(
            "a session event has a format that this version does not know",
            lsn=lsn,
            hint="A newer perdure wrote it: read it with that one.",
        )
    return EventKind.CREATED if _unpack_version(value, VERSION_OFFSET)[0] == 1 else EventKind.UPDATED
