"""Checking and folding consecutive frames in one pass. Pure: bytes and a fold in, a verdict out.

Owns the loop in which a replay and a replica's folder spend their time. Each frame is checked as
scan_frames() checks it, its events are applied from where they stand, and what the sessions then come
to is held against the digest and count in its header, before the next one is looked at.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final, NamedTuple

import xxhash

from .errors import DivergedError
from .event import HEADER_BYTES as EVENT_HEADER_BYTES
from .event import KEY_BYTES_MAX, REASONS, VALUE_BYTES_MAX, Kind, decode_events
from .fold import MISSING, Fold, pack_hash, unpack_hash
from .frame import CHAIN_BYTES, EVENTS_MAX, FRAME_BYTES_MAX, HEADER_BYTES, MAGIC, Frame, Verdict, decode_frame
from .ids import LSN_LIMIT, MASK64
from .session import HEADER_BYTES as VALUE_BYTES_MIN

_EVENT: Final = "HHI16x"
"""An event's header as read here: kind and reason are one word, the operation id is passed over."""
_FRAME: Final = "<QQQIIQQQ8xQQ"
"""A frame's: magic, flags and shard are one word, epoch and reserved another; `flushed` is passed over."""
FIRST_EVENT_BYTES: Final = HEADER_BYTES + EVENT_HEADER_BYTES
"""What every frame has at least: its header and that of an event, read as one."""
PAYLOAD_BYTES_MAX: Final = FRAME_BYTES_MAX - HEADER_BYTES
assert struct.calcsize("<" + _EVENT) == EVENT_HEADER_BYTES
assert struct.calcsize(_FRAME + _EVENT) == FIRST_EVENT_BYTES

_PUTS: Final = frozenset(int(Kind.PUT) | reason << 8 for reason in REASONS)
_unpack_first = struct.Struct(_FRAME + _EVENT).unpack_from
_unpack_event = struct.Struct("<" + _EVENT).unpack_from
_xxh3_64 = xxhash.xxh3_64_intdigest


class Folded(NamedTuple):
    """How far fold_frames() came. Offsets are in bytes of `data`."""

    end: int
    """Behind the last frame folded."""
    last: int
    """Where that one begins, -1 if none was."""
    frame: Frame | None
    """That one."""
    frames: int
    verdict: Verdict
    """What stands at `end`; OK if it is a frame behind the target."""


def fold_frames(  # noqa: PLR0912, PLR0915 - one loop: a call a frame or an event would cost a tenth of its speed
    data: bytes,
    fold: Fold,
    *,
    key: int,
    shard: int,
    epoch: int,
    lsn: int,
    chain: int,
    upto_lsn: int,
    upto_ms: int,
    path: Path,
) -> Folded:
    """Fold the frames of one epoch at the start of `data`, up to an LSN and a time in ms, both included.

    The first must follow `lsn` and `chain`, and `fold` stand there. Raises DivergedError at the first
    frame whose digest or count does not come out, in the segment at `path`; CorruptError for a frame
    that verifies, and holds events that cannot be right. Never raises on other bytes.
    """
    changes, lookup = fold.changes, fold.lookup
    changed, unknown = changes.get, fold.unknown
    digest, session_count = fold.digest, fold.session_count
    size, head_expected = len(data), MAGIC | shard << 48
    offset, last, frames, verdict = 0, -1, 0, Verdict.END
    while True:
        if size - offset < FIRST_EVENT_BYTES:
            verdict = _verdict_on_rest(data, offset, key)
            break
        (
            own,
            previous,
            head,
            payload_bytes,
            event_count,
            frame_epoch,
            time_ms,
            first_lsn,
            digest_after,
            count_after,
            kind_reason,
            key_bytes,
            value_bytes,
        ) = _unpack_first(data, offset)
        payload = offset + HEADER_BYTES
        end = payload + payload_bytes
        if (
            previous != chain
            or first_lsn != lsn + 1
            or first_lsn >= LSN_LIMIT
            or head != head_expected
            or frame_epoch != epoch
            or not 0 < event_count <= EVENTS_MAX
            or payload_bytes > PAYLOAD_BYTES_MAX
        ):
            verdict = Verdict.BAD
            break
        if end > size:
            verdict = Verdict.SHORT
            break
        if _xxh3_64(data[offset + CHAIN_BYTES : end], chain ^ key) != own:
            verdict = Verdict.BAD
            break
        lsn_after = lsn + event_count
        if lsn_after > upto_lsn or time_ms > upto_ms:
            verdict = Verdict.OK
            break
        key_at, left = offset + FIRST_EVENT_BYTES, event_count
        at = payload
        while True:
            value_at = key_at + key_bytes
            next_at = value_at + value_bytes
            if (
                kind_reason not in _PUTS
                or next_at > end
                or not 0 < key_bytes <= KEY_BYTES_MAX
                or not VALUE_BYTES_MIN <= value_bytes <= VALUE_BYTES_MAX
            ):
                break
            id, value = data[key_at:value_at], data[value_at:next_at]
            old = changed(id, unknown)
            if old is MISSING:
                old = lookup(id)
                if old is not None:
                    fold.note_base(id, old)
            new = _xxh3_64(value, _xxh3_64(id))
            if old is None:
                session_count += 1
                digest += new
            else:
                digest += new - unpack_hash(old)[0]
            changes[id] = pack_hash(new) + value
            at = next_at
            left -= 1
            key_at = at + EVENT_HEADER_BYTES
            if not left or key_at > end:
                break
            kind_reason, key_bytes, value_bytes = _unpack_event(data, at)
        digest &= MASK64
        if left or at != end:  # an event of another kind, or none at all: from here on the long way
            events = decode_events(data[payload:end], event_count)
            fold.digest, fold.session_count = digest, session_count
            fold.apply(events[event_count - left :])
            digest, session_count = fold.digest, fold.session_count
        if digest != digest_after or session_count != count_after:
            raise _other_digest((digest, session_count), (digest_after, count_after), path, lsn_after)
        last, offset, lsn, chain = offset, end, lsn_after, own
        frames += 1
    fold.digest, fold.session_count = digest, session_count
    frame = decode_frame(data, last, key)[1] if frames else None
    return Folded(offset, last, frame, frames, verdict)


def _verdict_on_rest(data: bytes, offset: int, key: int) -> Verdict:
    """On bytes that are too few for a frame with an event in it."""
    verdict, frame = decode_frame(data, offset, key)
    return verdict if frame is None else Verdict.BAD


def _other_digest(found: tuple[int, int], said: tuple[int, int], path: Path, lsn: int) -> DivergedError:
    return DivergedError(
        f"after this frame the sessions have digest {found[0]:016x} and count {found[1]}, "
        f"the frame says {said[0]:016x} and {said[1]}",
        path=path,
        lsn=lsn,
        hint="The base of the replay is not what the log was written on.",
    )
