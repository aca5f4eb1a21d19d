"""Frames: one commit, one write(), the unit of atomicity, checking, shipping and acknowledging.

Owns the bytes of a frame. Little-endian throughout; the chain stands first, so that one hash runs
over one slice.

    offset  size  field
    0       8     chain: xxh3_64(bytes 8.. of the frame; seed = previous chain XOR cluster key)
    8       8     previous chain
    16      4     magic "PDF1"
    20      2     flags (0)
    22      2     shard
    24      4     payload length, bytes
    28      4     event count
    32      4     epoch
    36      4     reserved (0)
    40      8     time, milliseconds since 1970 by the primary's session time, never decreasing
    48      8     LSN of the first event
    56      8     flushed: LSN on the writer's disk when this was written
    64      8     state digest after this frame
    72      8     session count after this frame
    80      ...   events

The cluster key is xxh3_64 of the 16-byte cluster id: a frame of another cluster never verifies.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import NamedTuple

import msgspec
import xxhash

from .event import EVENTS_LIMIT, Kind
from .ids import LSN_LIMIT, Position, StatePosition

MAGIC = 0x31464450
CHAIN = struct.Struct("<Q")
BODY_HEADER = struct.Struct("<QIHHIIIIQQQQQ")
HEADER = struct.Struct("<QQIHHIIIIQQQQQ")
HEADER_BYTES = 80
CHAIN_BYTES = 8
assert HEADER.size == HEADER_BYTES and BODY_HEADER.size == HEADER_BYTES - CHAIN_BYTES

FRAME_BYTES_MAX = 16 << 20
EVENTS_MAX = EVENTS_LIMIT
CONTROL_KIND = int(Kind.EPOCH_START)

_SCANNED = "<QQQIIQ8xQ24x"
"""The header as a scan reads it: magic, flags and shard are one word, epoch and reserved another."""
assert struct.calcsize(_SCANNED) == HEADER_BYTES

pack_body_header = BODY_HEADER.pack
pack_chain = CHAIN.pack
unpack_header = HEADER.unpack_from
_unpack_scanned = struct.Struct(_SCANNED).unpack_from
xxh3_64 = xxhash.xxh3_64_intdigest
_new = tuple.__new__


class Verdict(Enum):
    """What stands at an offset, before anyone acts on it."""

    OK = "ok"
    END = "end"
    """Nothing is there."""
    SHORT = "short"
    """The bytes end inside the frame."""
    BAD = "bad"
    """Complete, or claiming to be, and not a frame of this log."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A frame's header, as decoded and checked."""

    chain: int
    previous_chain: int
    shard: int
    payload_bytes: int
    event_count: int
    epoch: int
    time_ms: int
    first_lsn: int
    flushed_lsn: int
    digest: int
    session_count: int

    @property
    def last_lsn(self) -> int:
        return self.first_lsn + self.event_count - 1

    @property
    def size_bytes(self) -> int:
        return HEADER_BYTES + self.payload_bytes

    @property
    def position(self) -> Position:
        return _new(Position, (self.epoch, self.first_lsn + self.event_count - 1, self.chain))

    @property
    def state_position(self) -> StatePosition:
        lsn = self.first_lsn + self.event_count - 1
        return _new(StatePosition, (self.epoch, lsn, self.chain, self.digest, self.session_count))


def cluster_key(cluster_id: bytes) -> int:
    """What ties every chain to its cluster: xxh3_64 of the 16-byte cluster id."""
    return xxh3_64(cluster_id)


def encode_frame(  # noqa: PLR0913 - one argument a field of the format
    payload: bytes,
    event_count: int,
    *,
    key: int,
    previous_chain: int,
    shard: int,
    epoch: int,
    time_ms: int,
    first_lsn: int,
    flushed_lsn: int,
    digest: int,
    session_count: int,
) -> tuple[bytes, int]:
    """(the frame's bytes, its chain). `key` is the cluster key; sizes are the caller's to check."""
    body = (
        pack_body_header(
            previous_chain,
            MAGIC,
            0,
            shard,
            len(payload),
            event_count,
            epoch,
            0,
            time_ms,
            first_lsn,
            flushed_lsn,
            digest,
            session_count,
        )
        + payload
    )
    chain = xxh3_64(body, previous_chain ^ key)
    return pack_chain(chain) + body, chain


def decode_frame(data: bytes | memoryview, offset: int, key: int) -> tuple[Verdict, Frame | None]:
    """The frame at `offset` (bytes) of `data`, checked alone, by its own previous chain.

    Never raises on any bytes: SHORT if `data` ends inside it, BAD if it is no frame of the cluster
    that `key` (the cluster key) names, END if nothing is left. Whether it follows the frame before
    it is the reader's to check.
    """
    left = len(data) - offset
    if left <= 0:
        return Verdict.END, None
    if left < HEADER_BYTES:
        return Verdict.SHORT, None
    (
        chain,
        previous_chain,
        magic,
        flags,
        shard,
        payload_bytes,
        event_count,
        epoch,
        reserved,
        time_ms,
        first_lsn,
        flushed_lsn,
        digest,
        session_count,
    ) = unpack_header(data, offset)
    size = HEADER_BYTES + payload_bytes
    if (
        magic != MAGIC
        or flags
        or reserved
        or size > FRAME_BYTES_MAX
        or not 0 < event_count <= EVENTS_MAX
        or not 0 < first_lsn < LSN_LIMIT
    ):
        return Verdict.BAD, None
    if left < size:
        return Verdict.SHORT, None
    if xxh3_64(data[offset + CHAIN_BYTES : offset + size], previous_chain ^ key) != chain:
        return Verdict.BAD, None
    return Verdict.OK, Frame(
        chain,
        previous_chain,
        shard,
        payload_bytes,
        event_count,
        epoch,
        time_ms,
        first_lsn,
        flushed_lsn,
        digest,
        session_count,
    )


def frame_checked(data: bytes | memoryview, offset: int) -> Frame:
    """The frame at `offset` (bytes) of `data`, which scan_frames has found good."""
    header = unpack_header(data, offset)
    return Frame(*header[:2], *header[4:8], *header[9:])


class Scan(NamedTuple):
    """How far a scan of consecutive frames got."""

    end: int
    """Offset (bytes) behind the last good frame."""
    last: int
    """Offset (bytes) of the last good frame, -1 if there is none."""
    lsn: int
    chain: int
    verdict: Verdict
    """What stands at `end`; OK if it is a frame that ends behind `upto_lsn`."""


def scan_frames(
    data: bytes,
    offset: int,
    *,
    key: int,
    shard: int,
    epoch: int,
    lsn: int,
    chain: int,
    upto_lsn: int,
    stop_at_control: bool = False,
) -> Scan:
    """Check consecutive frames of one epoch as decode_frame does each, without decoding them.

    The first must follow `lsn` and `chain`. With `stop_at_control` the scan ends, with OK, before a
    frame behind the first one that begins with a control event. Never raises on any bytes.
    """
    view = memoryview(data)
    size = len(data)
    unpack = _unpack_scanned
    head_expected = MAGIC | shard << 48
    first, last = offset, -1
    while True:
        left = size - offset
        if left < HEADER_BYTES:
            return _new(Scan, (offset, last, lsn, chain, Verdict.SHORT if left > 0 else Verdict.END))
        own, previous, head, payload_bytes, event_count, frame_epoch, first_lsn = unpack(data, offset)
        end = offset + HEADER_BYTES + payload_bytes
        if (
            previous != chain
            or first_lsn != lsn + 1
            or head != head_expected
            or frame_epoch != epoch
            or not 0 < event_count <= EVENTS_MAX
            or end - offset > FRAME_BYTES_MAX
        ):
            return Scan(offset, last, lsn, chain, Verdict.BAD)
        if end > size:
            return Scan(offset, last, lsn, chain, Verdict.SHORT)
        if xxh3_64(view[offset + CHAIN_BYTES : end], chain ^ key) != own:
            return Scan(offset, last, lsn, chain, Verdict.BAD)
        if lsn + event_count > upto_lsn or (
            stop_at_control
            and offset > first
            and payload_bytes
            and data[offset + HEADER_BYTES] >= CONTROL_KIND
        ):
            return Scan(offset, last, lsn, chain, Verdict.OK)
        last, offset = offset, end
        lsn += event_count
        chain = own
