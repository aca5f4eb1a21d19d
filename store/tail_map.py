"""The tail map: for each key that frames behind the state changed, what they come to. Pure.

Owns its entries, and the loop that puts the frames of other processes into it. That loop takes only what
is plain: whole and right frames of PUT, DELETE and EXPIRE events. Whatever else stands there it leaves
to LogCursor.read(), which says what it is.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

import xxhash

from .event import HEADER_BYTES as EVENT_HEADER_BYTES
from .event import KEY_BYTES_MAX, REASONS, VALUE_BYTES_MAX, Kind, Reason
from .frame import CHAIN_BYTES, EVENTS_MAX, FRAME_BYTES_MAX, HEADER_BYTES, MAGIC, Frame, Verdict, decode_frame
from .ids import LSN_LIMIT
from .ports import Record
from .session import HEADER_BYTES as VALUE_BYTES_MIN

Entry: TypeAlias = "tuple[int, Record | None, int]"
"""(an LSN of the frame, record or None, deadline to arm at the fold: ms, or one of the words below)."""

KEPT_MS: Final = 0
"""Nothing to arm or to index: the state has the session, with a deadline at or before the expiry (unless it
never expires) and with the same labels."""
NEW_MS: Final = -1
"""Arm at its expiry: the key is new to the state."""
UNKNOWN_MS: Final = -2
"""Arm at its expiry, unless the state has the session with one that is not later."""

_EVENT: Final = "HHI16x"
"""An event's header as read here: kind and reason are one word, the operation id is passed over."""
_FRAME: Final = "<QQQIIQ8xQ24x"
"""A frame's, as scan_frames() reads it."""
_FIRST_BYTES: Final = HEADER_BYTES + EVENT_HEADER_BYTES
assert struct.calcsize(_FRAME + _EVENT) == _FIRST_BYTES

_unpack_first = struct.Struct(_FRAME + _EVENT).unpack_from
_unpack_event = struct.Struct("<" + _EVENT).unpack_from
_xxh3_64 = xxhash.xxh3_64_intdigest
_CREATED: Final = int(Kind.PUT) | int(Reason.CREATED) << 8
_PUTS: Final = frozenset(int(Kind.PUT) | reason << 8 for reason in REASONS)
_REMOVALS: Final = frozenset(
    int(kind) | reason << 8 for kind in (Kind.DELETE, Kind.EXPIRE) for reason in REASONS
)


def arm_after(before: Entry | None, arm_ms: int) -> int:
    """What is left to arm once a change that asks for `arm_ms` follows an entry of the tail map. Pure.

    To arm a deadline that is not needed is safe, and only makes the index longer; KEPT_MS needs proof.
    """
    if before is None:
        return arm_ms
    if arm_ms == KEPT_MS:
        return before[2]
    return NEW_MS if before[2] > 0 or before[2] == NEW_MS else arm_ms


def follow_frames(
    data: bytes,
    tail: dict[bytes, Entry],
    *,
    key: int,
    shard: int,
    epoch: int,
    lsn: int,
    chain: int,
    upto_lsn: int,
    folded_lsn: int,
) -> tuple[Frame | None, int]:
    """Take the plain frames of one epoch at the start of `data` into `tail`, up to `upto_lsn`.

    The first must follow `lsn` and `chain`; those up to `folded_lsn` are checked and passed over. Answers
    the last frame taken (None if there is none) and its offset in bytes. Of a frame that is not plain,
    its first events may be in the map already when it is met; taking it anew puts them there again. Never
    raises on any bytes.
    """
    known = tail.get
    size, head_expected = len(data), MAGIC | shard << 48
    offset, last = 0, -1
    while size - offset >= _FIRST_BYTES:
        (
            own,
            previous,
            head,
            payload_bytes,
            event_count,
            frame_epoch,
            first_lsn,
            word,
            key_bytes,
            value_bytes,
        ) = _unpack_first(data, offset)
        end = offset + HEADER_BYTES + payload_bytes
        lsn_after = lsn + event_count
        if (
            previous != chain
            or first_lsn != lsn + 1
            or lsn_after >= LSN_LIMIT
            or head != head_expected
            or frame_epoch != epoch
            or not 0 < event_count <= EVENTS_MAX
            or end - offset > FRAME_BYTES_MAX
            or end > size
            or lsn_after > upto_lsn
            or _xxh3_64(data[offset + CHAIN_BYTES : end], chain ^ key) != own
        ):
            break
        if lsn_after > folded_lsn:
            key_at, left = offset + _FIRST_BYTES, event_count
            while True:
                value_at = key_at + key_bytes
                next_at = value_at + value_bytes
                if next_at > end or not 0 < key_bytes <= KEY_BYTES_MAX:
                    break
                id = data[key_at:value_at]
                if word in _PUTS:
                    if not VALUE_BYTES_MIN <= value_bytes <= VALUE_BYTES_MAX:
                        break
                    value = data[value_at:next_at]
                    record = _xxh3_64(value, _xxh3_64(id)).to_bytes(8, "little") + value
                    arm_ms = NEW_MS if word == _CREATED else UNKNOWN_MS
                    before = known(id)
                    tail[id] = (lsn_after, record, arm_after(before, arm_ms) if before else arm_ms)
                elif word in _REMOVALS:
                    tail[id] = (lsn_after, None, UNKNOWN_MS)
                else:
                    break
                left -= 1
                if not left:
                    break
                if next_at + EVENT_HEADER_BYTES > end:
                    break
                word, key_bytes, value_bytes = _unpack_event(data, next_at)
                key_at = next_at + EVENT_HEADER_BYTES
            if left or next_at != end:
                break
        last, offset, lsn, chain = offset, end, lsn_after, own
    if last < 0:
        return None, 0
    verdict, frame = decode_frame(data, last, key)
    return (frame, last) if verdict is Verdict.OK else (None, 0)
