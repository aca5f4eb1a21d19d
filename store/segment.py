"""Segments: files that hold one stretch of the log, of one epoch.

Owns the bytes of a segment's header and footer. Frames stand between them; a segment without a
footer is the tail, or waits to be sealed.

    header, 160 bytes                           footer, once sealed
    offset  size  field                         offset  size  field
    0       8     magic "PDRSEG01"              0       8     magic "PDRFOOT1"
    8       2     format version (1)            8       8     last LSN
    10      2     shard                         16      8     end chain
    12      4     epoch                         24      8     digest at the end
    16      16    cluster id                    32      8     session count at the end
    32      32    node that wrote the file      40      8     end of the frames, offset
    64      32    primary of the epoch          48      8     xxh3_64 of the file up to there
    96      8     first LSN                     56      4     index entries
    104     8     previous chain                60      4     epoch
    112     4     previous epoch                64      24*n  index: LSN, offset, time (ms)
    116     4     reserved (0)                  ...     8     xxh3_64 of the footer up to here
    120     8     digest before                 ...     4     length of the footer, bytes
    128     8     session count before          ...     4     "PDRE"
    136     8     created, ms
    144     8     reserved (0)
    152     8     xxh3_64 of the header up to here
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import msgspec
import xxhash

from .errors import CorruptError, ForeignError, FormatVersionError
from .files import pread_exactly
from .ids import LSN_LIMIT, StatePosition

FORMAT_VERSION = 1
HEADER_MAGIC = b"PDRSEG01"
FOOTER_MAGIC = b"PDRFOOT1"
END_MAGIC = b"PDRE"

HEADER = struct.Struct("<8sHHI16s32s32sQQIIQQQQQ")
HEADER_BYTES = 160
FOOTER_HEAD = struct.Struct("<8sQQQQQQII")
INDEX_ENTRY = struct.Struct("<QQQ")
FOOTER_END = struct.Struct("<QI4s")
assert HEADER.size == HEADER_BYTES and FOOTER_HEAD.size == 64

INDEX_STEP_BYTES = 64 << 10
INDEX_ENTRIES_MAX = 1 << 16
FOOTER_BYTES_MAX = FOOTER_HEAD.size + INDEX_ENTRY.size * INDEX_ENTRIES_MAX + FOOTER_END.size
HASH_STEP_BYTES = 1 << 20


class SegmentHeader(msgspec.Struct, frozen=True):
    """What a segment says of itself before its first frame."""

    cluster_id: bytes
    shard: int
    epoch: int
    node: str
    """Node that wrote the file."""
    primary: str
    """Primary of the epoch: `flushed` in the frames speaks of its disk."""
    first_lsn: int
    previous: StatePosition
    """Where the log stood before the first frame."""
    created_ms: int


class IndexEntry(msgspec.Struct, frozen=True):
    """A frame that starts at `offset` (bytes) with `lsn`, written at `time_ms`."""

    lsn: int
    offset: int
    time_ms: int


class SegmentFooter(msgspec.Struct, frozen=True):
    """What a sealed segment says of its frames."""

    end: StatePosition
    frames_end: int
    """Offset (bytes) behind the last frame: where the footer starts."""
    file_hash: int
    index: tuple[IndexEntry, ...]


def encode_header(header: SegmentHeader) -> bytes:
    body = HEADER.pack(
        HEADER_MAGIC,
        FORMAT_VERSION,
        header.shard,
        header.epoch,
        header.cluster_id,
        header.node.encode(),
        header.primary.encode(),
        header.first_lsn,
        header.previous.chain,
        header.previous.epoch,
        0,
        header.previous.digest,
        header.previous.session_count,
        header.created_ms,
        0,
        0,
    )[:-8]
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def decode_header(data: bytes, *, path: str) -> SegmentHeader:
    """The header at the start of `data`.

    Raises FormatVersionError for a newer format, ForeignError for what is no segment at all, and
    CorruptError for a damaged or cut header.
    """
    if len(data) < HEADER_BYTES:
        raise CorruptError("a segment ends inside its header", path=path, offset=len(data))
    (
        magic,
        version,
        shard,
        epoch,
        cluster_id,
        node,
        primary,
        first_lsn,
        previous_chain,
        previous_epoch,
        reserved,
        digest,
        session_count,
        created_ms,
        reserved2,
        check,
    ) = HEADER.unpack_from(data)
    good = xxhash.xxh3_64_intdigest(data[: HEADER_BYTES - 8]) == check
    if magic != HEADER_MAGIC:
        if not any(data[:HEADER_BYTES]):
            raise CorruptError("a segment's header is all zeros", path=path, offset=0)
        raise ForeignError("not a segment of perdure: its first bytes are wrong", path=path, offset=0)
    if good and version > FORMAT_VERSION:
        raise FormatVersionError(
            f"segment format {version} is newer than {FORMAT_VERSION}, the newest known here",
            path=path,
            hint="Use the version of perdure that wrote it, or a later one.",
        )
    if not good or version != FORMAT_VERSION or reserved or reserved2 or not 0 < first_lsn < LSN_LIMIT:
        raise CorruptError("a segment's header does not match its check", path=path, offset=0)
    try:
        names = node.rstrip(b"\0").decode("ascii"), primary.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise CorruptError("a segment's header names no node", path=path, offset=32) from error
    return SegmentHeader(
        cluster_id,
        shard,
        epoch,
        names[0],
        names[1],
        first_lsn,
        StatePosition(previous_epoch, first_lsn - 1, previous_chain, digest, session_count),
        created_ms,
    )


def encode_footer(footer: SegmentFooter) -> bytes:
    end = footer.end
    parts = [
        FOOTER_HEAD.pack(
            FOOTER_MAGIC,
            end.lsn,
            end.chain,
            end.digest,
            end.session_count,
            footer.frames_end,
            footer.file_hash,
            len(footer.index),
            end.epoch,
        )
    ]
    parts += [INDEX_ENTRY.pack(entry.lsn, entry.offset, entry.time_ms) for entry in footer.index]
    body = b"".join(parts)
    size = len(body) + FOOTER_END.size
    return body + FOOTER_END.pack(xxhash.xxh3_64_intdigest(body), size, END_MAGIC)


def decode_footer(data: bytes, *, path: str, offset: int) -> SegmentFooter:
    """The footer that `data` is, as a whole; it starts at `offset` (bytes) of the file.

    Raises CorruptError if it is none, is damaged, or does not start where it says.
    """
    least = FOOTER_HEAD.size + FOOTER_END.size
    damaged = CorruptError("a segment's footer is damaged", path=path, offset=offset)
    if len(data) < least or len(data) > FOOTER_BYTES_MAX:
        raise damaged
    check, size, magic = FOOTER_END.unpack_from(data, len(data) - FOOTER_END.size)
    head = FOOTER_HEAD.unpack_from(data)
    entries = head[7]
    if (
        magic != END_MAGIC
        or size != len(data)
        or head[0] != FOOTER_MAGIC
        or entries > INDEX_ENTRIES_MAX
        or size != least + entries * INDEX_ENTRY.size
        or head[5] != offset
        or xxhash.xxh3_64_intdigest(data[: -FOOTER_END.size]) != check
    ):
        raise damaged
    index = tuple(
        IndexEntry(*INDEX_ENTRY.unpack_from(data, FOOTER_HEAD.size + number * INDEX_ENTRY.size))
        for number in range(entries)
    )
    end = StatePosition(head[8], head[1], head[2], head[3], head[4])
    return SegmentFooter(end, head[5], head[6], index)


def read_header(descriptor: int, *, path: str) -> SegmentHeader:
    """The header of an open segment; errors as decode_header."""
    return decode_header(pread_exactly(descriptor, HEADER_BYTES, 0), path=path)


def read_footer(descriptor: int, *, path: str) -> SegmentFooter | None:
    """The footer of an open segment, None if its last bytes are no footer's end.

    Raises CorruptError if the file ends like a sealed one and its footer is damaged.
    """
    size = os.fstat(descriptor).st_size
    if size < HEADER_BYTES + FOOTER_HEAD.size + FOOTER_END.size:
        return None
    _, footer_bytes, magic = FOOTER_END.unpack(
        pread_exactly(descriptor, FOOTER_END.size, size - FOOTER_END.size)
    )
    if magic != END_MAGIC:
        return None
    if not FOOTER_HEAD.size + FOOTER_END.size <= footer_bytes <= min(FOOTER_BYTES_MAX, size - HEADER_BYTES):
        raise CorruptError("a segment's footer has an impossible length", path=path, offset=size - 8)
    start = size - footer_bytes
    return decode_footer(pread_exactly(descriptor, footer_bytes, start), path=path, offset=start)


def hash_file(descriptor: int, size: int) -> int:
    """xxh3_64 of the first `size` bytes of an open file."""
    state = xxhash.xxh3_64()
    at = 0
    while at < size:
        data = pread_exactly(descriptor, min(HASH_STEP_BYTES, size - at), at)
        if not data:
            break
        state.update(data)
        at += len(data)
    return state.intdigest()


def seek(index: Sequence[IndexEntry], lsn: int) -> int:
    """Offset (bytes) of the last indexed frame that starts at or before `lsn`; HEADER_BYTES if none."""
    low, high = 0, len(index)
    while low < high:
        middle = (low + high) // 2
        if index[middle].lsn <= lsn:
            low = middle + 1
        else:
            high = middle
    return index[low - 1].offset if low else HEADER_BYTES
