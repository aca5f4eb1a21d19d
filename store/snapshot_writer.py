"""Writing a snapshot's content: records in, head, chunks and trailer out.

Owns how records become chunks, and that they add up to the head's digest and count. The file itself
(its name, its temporary name, its rename) is `snapshot`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import xxhash

from .errors import CorruptError
from .event import KEY_BYTES_MAX, VALUE_BYTES_MAX
from .files import write_all
from .fold import HASH_BYTES
from .frame import cluster_key
from .ids import MASK64
from .ports import Record
from .session import HEADER_BYTES as STORED_BYTES_MIN
from .snapshot_format import (
    CHUNK_RAW_BYTES,
    SnapshotHead,
    Trailer,
    encode_chunk,
    encode_head,
    encode_trailer,
    first_chain,
    pack_entry,
)

Progress = Callable[[int], None]
"""Told how many sessions are done, once a chunk (about 1 MiB of sessions)."""

FLUSH_BYTES: Final = 32 << 20
"""Written data are flushed this often, so that the log's own syncs never queue behind gigabytes."""

xxh3_64 = xxhash.xxh3_64_intdigest


class SnapshotWriter:
    """Writes one snapshot into an open file, and counts what it holds."""

    def __init__(self, descriptor: int, head: SnapshotHead, path: Path, progress: Progress | None) -> None:
        self._descriptor = descriptor
        self._head = head
        self._path = path
        self._progress = progress
        self._key = cluster_key(head.cluster_id)
        self._chain = first_chain(head)
        self._chunks = 0
        self._hash = xxhash.xxh3_64()
        self._unflushed_bytes = 0

    def write(self, records: Iterable[tuple[bytes, Record]]) -> None:
        self._put(encode_head(self._head))
        count, digest = self._write_chunks(records)
        at = self._head.at
        if count != at.session_count or digest != at.digest:
            raise CorruptError(
                f"the state gave {count} sessions with digest {digest:016x} for a snapshot, "
                f"its position says {at.session_count} with {at.digest:016x}",
                path=self._path,
                lsn=at.lsn,
                hint="The state is damaged; it can be rebuilt from snapshot and log.",
            )
        self._put(encode_trailer(Trailer(self._chunks, count, digest, self._chain, self._hash.intdigest())))

    def _write_chunks(self, records: Iterable[tuple[bytes, Record]]) -> tuple[int, int]:
        parts: list[bytes] = []
        add = parts.append
        size = count = digest = in_chunk = 0
        previous = b""
        for key, record in records:
            value = record[HASH_BYTES:]
            term = xxh3_64(value, xxh3_64(key))
            if (
                term != int.from_bytes(record[:HASH_BYTES], "little")
                or key <= previous
                or len(key) > KEY_BYTES_MAX
                or not STORED_BYTES_MIN <= len(value) <= VALUE_BYTES_MAX
            ):
                raise self._refusal(key, previous, record)
            previous = key
            digest += term
            in_chunk += 1
            add(pack_entry(len(key), len(value)) + key + value)
            size += len(parts[-1])
            if size >= CHUNK_RAW_BYTES:
                count += in_chunk
                digest &= MASK64
                self._close_chunk(b"".join(parts), in_chunk, count)
                parts.clear()
                size = in_chunk = 0
        if in_chunk:
            count += in_chunk
            self._close_chunk(b"".join(parts), in_chunk, count)
        return count, digest & MASK64

    def _close_chunk(self, raw: bytes, entry_count: int, done: int) -> None:
        data, self._chain = encode_chunk(
            raw,
            entry_count,
            self._chunks,
            previous_chain=self._chain,
            key=self._key,
            compress=self._head.is_compressed,
        )
        self._chunks += 1
        self._put(data)
        if self._progress:
            self._progress(done)

    def _put(self, data: bytes) -> None:
        write_all(self._descriptor, data)
        self._hash.update(data)
        self._unflushed_bytes += len(data)
        if self._unflushed_bytes >= FLUSH_BYTES:
            os.fdatasync(self._descriptor)
            self._unflushed_bytes = 0

    def _refusal(self, key: bytes, previous: bytes, record: Record) -> CorruptError:
        if key <= previous:
            what = f"comes after {previous!r}"
        elif not STORED_BYTES_MIN <= len(record) - HASH_BYTES <= VALUE_BYTES_MAX or len(key) > KEY_BYTES_MAX:
            what = "has an impossible size"
        else:
            what = "does not match its hash"
        return CorruptError(
            f"the state's record of session {key!r} {what}; no snapshot was taken",
            path=self._path,
            lsn=self._head.at.lsn,
            hint="The state is damaged; it can be rebuilt from snapshot and log.",
        )
