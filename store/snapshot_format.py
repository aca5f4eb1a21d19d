"""The bytes of a snapshot file: head, chunks, trailer. Pure: bytes in, values out.

Owns the three codecs; which file they stand in, and how one is published, is `snapshot`'s. A snapshot
is portable between back ends: it holds every session's key and stored session in key order, not a
back end's pages. Little-endian:

    head, 128 bytes                       chunk, 32 bytes and its entries
    offset  size  field                   offset  size  field
    0       8     magic "PDRSNAP1"        0       8     chain of chunks (see below)
    8       2     format version (1)      8       4     magic "PDC1"
    10      2     shard                   12      4     chunk number, from 0
    12      4     epoch                   16      4     entry count
    16      16    cluster id              20      4     raw bytes of the entries
    32      32    node that took it       24      4     stored bytes of the entries
    64      8     LSN                     28      4     reserved (0)
    72      8     chain                   32      ...   entries, as zstd if the head says so
    80      8     digest
    88      8     session count           trailer, 56 bytes
    96      8     time of the log, ms     0       8     magic "PDRSNAPE"
    104     8     created, ms             8       4     chunk count
    112     4     flags (1: zstd)         12      4     reserved (0)
    116     4     reserved (0)            16      8     session count
    120     8     xxh3_64 up to here      24      8     digest
                                          32      8     chain of the last chunk
    entry                                 40      8     xxh3_64 of the file before the trailer
    0       2     key length, bytes       48      8     xxh3_64 of the trailer up to here
    2       4     value length, bytes
    6       ...   key, then stored session

A chunk's chain is xxh3_64(its bytes 8.. ; seed = the chain before XOR cluster key); before the first
stands the head's check. So a chunk that is swapped, doubled, missing or from another file is found
at that chunk, while the file is still arriving. Keys increase strictly over the whole file.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import xxhash

from . import zstd
from .errors import CorruptError, ForeignError, FormatVersionError
from .event import KEY_BYTES_MAX, VALUE_BYTES_MAX
from .ids import LSN_LIMIT, StatePosition
from .session import HEADER_BYTES as STORED_BYTES_MIN

FORMAT_VERSION: Final = 1
HEAD_MAGIC: Final = b"PDRSNAP1"
CHUNK_MAGIC: Final = 0x31434450
TRAILER_MAGIC: Final = b"PDRSNAPE"
FLAG_ZSTD: Final = 1

HEAD = struct.Struct("<8sHHI16s32sQQQQQQIIQ")
CHUNK = struct.Struct("<QIIIIII")
ENTRY = struct.Struct("<HI")
TRAILER = struct.Struct("<8sIIQQQQQ")
CHECK = struct.Struct("<Q")
HEAD_BYTES: Final = 128
CHUNK_HEADER_BYTES: Final = 32
ENTRY_HEADER_BYTES: Final = 6
TRAILER_BYTES: Final = 56
CHECK_BYTES: Final = 8
assert HEAD.size == HEAD_BYTES and CHUNK.size == CHUNK_HEADER_BYTES
assert ENTRY.size == ENTRY_HEADER_BYTES and TRAILER.size == TRAILER_BYTES

CHUNK_RAW_BYTES: Final = 1 << 20
"""A chunk is closed by the first entry that makes it this large."""
CHUNK_RAW_BYTES_MAX: Final = CHUNK_RAW_BYTES + ENTRY_HEADER_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX
CHUNK_STORED_BYTES_MAX: Final = CHUNK_RAW_BYTES_MAX + (CHUNK_RAW_BYTES_MAX >> 8) + 1024
"""What does not compress grows by less than this."""

Entry = tuple[bytes, bytes]
"""(key, stored session)."""

xxh3_64 = xxhash.xxh3_64_intdigest
pack_entry = ENTRY.pack
unpack_entry = ENTRY.unpack_from


class SnapshotHead(msgspec.Struct, frozen=True):
    """What a snapshot says of itself before its first chunk."""

    cluster_id: bytes
    shard: int
    node: str
    """Node that took it."""
    at: StatePosition
    """Where the log stood, and what the sessions must add up to."""
    log_time_ms: int
    """Time of the frame that ends at the position."""
    created_ms: int
    is_compressed: bool


class ChunkHeader(msgspec.Struct, frozen=True):
    """What a chunk says of itself; not yet checked against its bytes."""

    chain: int
    number: int
    entry_count: int
    raw_bytes: int
    stored_bytes: int

    @property
    def size_bytes(self) -> int:
        return CHUNK_HEADER_BYTES + self.stored_bytes


class Trailer(msgspec.Struct, frozen=True):
    """What a snapshot says of itself behind its last chunk."""

    chunk_count: int
    session_count: int
    digest: int
    chain: int
    file_hash: int


def encode_head(head: SnapshotHead) -> bytes:
    at = head.at
    body = HEAD.pack(
        HEAD_MAGIC,
        FORMAT_VERSION,
        head.shard,
        at.epoch,
        head.cluster_id,
        head.node.encode(),
        at.lsn,
        at.chain,
        at.digest,
        at.session_count,
        head.log_time_ms,
        head.created_ms,
        FLAG_ZSTD if head.is_compressed else 0,
        0,
        0,
    )[:-CHECK_BYTES]
    return body + CHECK.pack(xxh3_64(body))


def decode_head(data: bytes, *, path: str) -> SnapshotHead:
    """The head at the start of `data`.

    Raises FormatVersionError for a newer format, ForeignError for what is no snapshot at all, and
    CorruptError for a damaged or cut head.
    """
    if len(data) < HEAD_BYTES:
        raise CorruptError("a snapshot ends inside its head", path=path, offset=len(data))
    magic, version, shard, epoch, cluster_id, node, *numbers, flags, reserved, check = HEAD.unpack_from(data)
    if magic != HEAD_MAGIC:
        if not any(data[:HEAD_BYTES]):
            raise CorruptError("a snapshot's head is all zeros", path=path, offset=0)
        raise ForeignError("not a snapshot of perdure: its first bytes are wrong", path=path, offset=0)
    good = xxh3_64(data[: HEAD_BYTES - CHECK_BYTES]) == check
    if good and version > FORMAT_VERSION:
        raise FormatVersionError(
            f"snapshot format {version} is newer than {FORMAT_VERSION}, the newest known here",
            path=path,
            hint="Use the version of perdure that wrote it, or a later one.",
        )
    if not good or version != FORMAT_VERSION or reserved or flags & ~FLAG_ZSTD:
        raise CorruptError("a snapshot's head does not match its check", path=path, offset=0)
    try:
        name = node.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise CorruptError("a snapshot's head names no node", path=path, offset=32) from error
    lsn, chain, digest, session_count, log_time_ms, created_ms = numbers
    if lsn >= LSN_LIMIT:
        raise CorruptError("a snapshot's head has an impossible LSN", path=path, offset=64)
    at = StatePosition(epoch, lsn, chain, digest, session_count)
    return SnapshotHead(cluster_id, shard, name, at, log_time_ms, created_ms, bool(flags))


def first_chain(head: SnapshotHead) -> int:
    """What stands before the first chunk's chain: the head's check."""
    check: int = CHECK.unpack_from(encode_head(head), HEAD_BYTES - CHECK_BYTES)[0]
    return check


def encode_chunk(
    raw: bytes, entry_count: int, number: int, *, previous_chain: int, key: int, compress: bool
) -> tuple[bytes, int]:
    """(a chunk's bytes, its chain). `raw` is its entries, `key` the cluster key."""
    stored = zstd.compress(raw) if compress else raw
    header = CHUNK.pack(0, CHUNK_MAGIC, number, entry_count, len(raw), len(stored), 0)
    body = header[CHECK_BYTES:] + stored
    chain = xxh3_64(body, previous_chain ^ key)
    return CHECK.pack(chain) + body, chain


def decode_chunk_header(data: bytes, number: int, *, path: str, offset: int) -> ChunkHeader:
    """The header of the chunk with `number`, which is to stand at `offset` (bytes) of the file.

    Raises CorruptError if it is another chunk, none, or announces more than a chunk may have.
    """
    if len(data) < CHUNK_HEADER_BYTES:
        raise CorruptError("a snapshot ends inside a chunk", path=path, offset=offset)
    chain, magic, found, entry_count, raw_bytes, stored_bytes, reserved = CHUNK.unpack_from(data)
    if magic != CHUNK_MAGIC or reserved or found != number:
        raise CorruptError(
            f"chunk {number} of a snapshot is not where it should be", path=path, offset=offset
        )
    if (
        not 0 < raw_bytes <= CHUNK_RAW_BYTES_MAX
        or not 0 < stored_bytes <= CHUNK_STORED_BYTES_MAX
        or not 0 < entry_count * (ENTRY_HEADER_BYTES + 1 + STORED_BYTES_MIN) <= raw_bytes
    ):
        raise CorruptError(f"chunk {number} of a snapshot has an impossible size", path=path, offset=offset)
    return ChunkHeader(chain, number, entry_count, raw_bytes, stored_bytes)


def check_chunk(
    data: bytes, header: ChunkHeader, *, previous_chain: int, key: int, path: str, offset: int
) -> None:
    """Check a whole chunk against its chain. Raises CorruptError."""
    if len(data) != header.size_bytes:
        raise CorruptError(
            f"a snapshot ends inside chunk {header.number}", path=path, offset=offset + len(data)
        )
    if xxh3_64(data[CHECK_BYTES:], previous_chain ^ key) != header.chain:
        raise CorruptError(
            f"chunk {header.number} of a snapshot is damaged, or does not follow the one before it",
            path=path,
            offset=offset,
        )


def decode_entries(
    data: bytes, header: ChunkHeader, previous_key: bytes, *, is_compressed: bool, path: str, offset: int
) -> list[Entry]:
    """The entries of a chunk that was checked.

    Raises CorruptError unless it holds exactly the entries announced, in strictly increasing key order
    from above `previous_key`.
    """
    try:
        raw = data[CHUNK_HEADER_BYTES:]
        if is_compressed:
            raw = zstd.decompress(raw, header.raw_bytes)
        if len(raw) != header.raw_bytes:
            raise CorruptError("its entries are not as long as announced")
        return _split(raw, header.entry_count, previous_key)
    except CorruptError as error:
        message = f"chunk {header.number} of a snapshot does not decode: {error.message}"
        raise CorruptError(message, path=path, offset=offset) from error


def _split(raw: bytes, entry_count: int, previous: bytes) -> list[Entry]:
    entries: list[Entry] = []
    end = len(raw)
    at = 0
    for _ in range(entry_count):
        if at + ENTRY_HEADER_BYTES > end:
            raise CorruptError("it ends inside an entry")
        key_bytes, value_bytes = unpack_entry(raw, at)
        key_at = at + ENTRY_HEADER_BYTES
        value_at = key_at + key_bytes
        at = value_at + value_bytes
        key = raw[key_at:value_at]
        if at > end or key_bytes > KEY_BYTES_MAX or not STORED_BYTES_MIN <= value_bytes <= VALUE_BYTES_MAX:
            raise CorruptError("an entry has an impossible size")
        if key <= previous:
            raise CorruptError(f"key {key!r} is not above the key before it, {previous!r}")
        previous = key
        entries.append((key, raw[value_at:at]))
    if at != end:
        raise CorruptError("it has bytes behind its last entry")
    return entries


def encode_trailer(trailer: Trailer) -> bytes:
    body = TRAILER.pack(
        TRAILER_MAGIC,
        trailer.chunk_count,
        0,
        trailer.session_count,
        trailer.digest,
        trailer.chain,
        trailer.file_hash,
        0,
    )[:-CHECK_BYTES]
    return body + CHECK.pack(xxh3_64(body))


def decode_trailer(data: bytes, head: SnapshotHead, *, path: str, offset: int) -> Trailer:
    """The trailer that `data` (the file's last bytes, from `offset`) is.

    Raises CorruptError if the file does not end with one, it is damaged, or it disagrees with the head.
    """
    if len(data) != TRAILER_BYTES or data[:8] != TRAILER_MAGIC:
        ending = "ends with zeros" if data and not any(data[-CHECK_BYTES:]) else "is cut short or damaged"
        raise CorruptError(f"a snapshot {ending}: its trailer is not at its end", path=path, offset=offset)
    _, chunk_count, reserved, session_count, digest, chain, file_hash, check = TRAILER.unpack(data)
    if reserved or xxh3_64(data[:-CHECK_BYTES]) != check:
        raise CorruptError("a snapshot's trailer does not match its check", path=path, offset=offset)
    if session_count != head.at.session_count or digest != head.at.digest:
        raise CorruptError("a snapshot's trailer is not of its head", path=path, offset=offset)
    return Trailer(chunk_count, session_count, digest, chain, file_hash)
