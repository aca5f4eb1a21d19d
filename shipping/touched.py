"""Which sessions a log that has parted changed, and what the new history makes of all others. Pure but for
reading the log.

Owns the rule that makes the exchange of single keys exact. T are the keys of all events behind the fork in
the old history, and every key that a rename of the new history ties to one of them. The state at the fork
and the old state agree on every key outside T; so the new history up to L, applied to these alone, and the
records at L of those in T, are the state at L.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..store.cursor import LogCursor
from ..store.errors import PositionGoneError
from ..store.event import NO_OPERATION, Event, Kind, Reason, decode_events
from ..store.fold import HASH_BYTES, Fold
from ..store.frame import HEADER_BYTES, decode_frame
from ..store.ports import Record

_RENAME = int(Kind.RENAME)
_CONTROL = int(Kind.EPOCH_START)


class TooMuchError(PositionGoneError):
    """More was written behind the fork than is taken key by key."""


def touched_keys(cursor: LogCursor, fork_lsn: int, *, key_bytes_max: int, log_bytes_max: int) -> set[bytes]:
    """The keys of all events behind the fork, renames' new ones included, up to the end of the log.

    Raises TooMuchError past either limit, and as LogCursor.seek and read.
    """
    cursor.seek(fork_lsn)
    found: set[bytes] = set()
    key_bytes = log_bytes = 0
    for run in cursor.runs():
        log_bytes += len(run.raw)
        for offset, frame in run.frames:
            for kind, _, _, key, value in run.events(offset, frame):
                if kind >= _CONTROL:
                    continue
                for one in (key, value) if kind == _RENAME else (key,):
                    if one not in found:
                        found.add(one)
                        key_bytes += len(one)
        if key_bytes > key_bytes_max or log_bytes > log_bytes_max:
            raise TooMuchError(f"{len(found)} sessions were changed behind the fork", lsn=fork_lsn)
    return found


def events_of(raw: bytes, key: int) -> Iterator[list[Event]]:
    """The events of consecutive frames that were checked before, frame by frame. `key`: the cluster's."""
    at = 0
    while at < len(raw):
        frame = decode_frame(raw, at, key)[1]
        if frame is None:
            return
        payload = raw[at + HEADER_BYTES : at + frame.size_bytes]
        yield decode_events(payload, frame.event_count)
        at += frame.size_bytes


def renames_of(events: Iterable[Event]) -> list[tuple[bytes, bytes]]:
    """(old key, new key) of every rename."""
    return [(key, value) for kind, _, _, key, value in events if kind == _RENAME]


def tied(touched: set[bytes], renames: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """`touched`, and every key that renames tie to one of them, over others, too."""
    neighbours: dict[bytes, list[bytes]] = {}
    for old, new in renames:
        neighbours.setdefault(old, []).append(new)
        neighbours.setdefault(new, []).append(old)
    found = set(touched)
    open_ = [key for key in neighbours if key in found]
    while open_:
        for other in neighbours[open_.pop()]:
            if other not in found:
                found.add(other)
                open_.append(other)
    return found


def fold_over(
    fold: Fold, records: Iterable[tuple[bytes, Record | None]], history: Iterable[list[Event]]
) -> None:
    """Make the fold, which stands on the old state, the state at L: see above. Raises as Fold.apply."""
    taken: set[bytes] = set()
    for key, record in records:
        taken.add(key)
        if record is None:
            fold.apply([(int(Kind.DELETE), int(Reason.RECONCILED), NO_OPERATION, key, b"")])
        else:
            value = record[HASH_BYTES:]
            fold.apply([(int(Kind.PUT), int(Reason.RECONCILED), NO_OPERATION, key, value)])
    for events in history:
        fold.apply(event for event in events if event[3] not in taken)
