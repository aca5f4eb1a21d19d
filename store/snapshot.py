"""Snapshot files: written as a whole, published by rename, read in bounded memory.

Owns the directory of snapshots: how one is written, listed, read and checked. The bytes are
`snapshot_format`'s; when to take one, of what, and when to drop it is not decided here. A file under a
snapshot's name was complete, and had the digest and count of its head, when it got that name.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec
import xxhash

from . import names
from .errors import CorruptError, ForeignError, StoreInUseError, UsageError
from .files import FILE_MODE, pread_exactly, sync_directory, translated
from .fold import HASH_BYTES
from .frame import cluster_key
from .ids import MASK64, StatePosition
from .ports import Record
from .snapshot_format import (
    CHUNK_HEADER_BYTES,
    HEAD_BYTES,
    TRAILER_BYTES,
    ChunkHeader,
    Entry,
    SnapshotHead,
    Trailer,
    check_chunk,
    decode_chunk_header,
    decode_entries,
    decode_head,
    decode_trailer,
    first_chain,
)
from .snapshot_writer import Progress, SnapshotWriter

__all__ = [
    "ChunkRange",
    "Progress",
    "SnapshotFile",
    "SnapshotHead",
    "SnapshotReader",
    "list_snapshots",
    "read_head",
    "remove_unfinished",
    "verify_snapshot",
    "write_snapshot",
]

xxh3_64 = xxhash.xxh3_64_intdigest


class SnapshotFile(msgspec.Struct, frozen=True):
    """A snapshot as its name says; nothing of its content was read."""

    lsn: int
    epoch: int
    path: Path
    size_bytes: int

    @property
    def name(self) -> str:
        return self.path.name


class ChunkRange(msgspec.Struct, frozen=True):
    """A chunk as it stands in the file: `size_bytes` from `offset`; `chain` covers all up to its end."""

    number: int
    offset: int
    size_bytes: int
    chain: int


def write_snapshot(
    directory: Path,
    head: SnapshotHead,
    records: Iterable[tuple[bytes, Record]],
    *,
    compress: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Write a snapshot of `records` (in key order) and publish it in `directory`; says where.

    `compress` decides the head's `is_compressed`. Steps: write a temporary file, fsync it, rename it,
    fsync the directory. Survives a crash: after the last step the snapshot, before the rename nothing
    but a temporary file (see remove_unfinished). A snapshot of the same name is replaced as a whole.

    Raises CorruptError, naming the key, if a record does not match its hash, is out of order, or if all
    of them do not have the head's digest and count; StorageFullError and other StorageErrors;
    StoreInUseError if another process is writing the same snapshot. Nothing is left behind then.
    """
    if not names.is_node_name(head.node) or len(head.cluster_id) != 16:
        raise UsageError(f"a snapshot's head needs a node name and a cluster id, not {head.node!r}")
    head = msgspec.structs.replace(head, is_compressed=compress)
    path = directory / names.snapshot_name(head.at.lsn, head.at.epoch)
    temporary = path.with_name(path.name + names.TEMPORARY_SUFFIX)
    with translated("cannot write a snapshot", temporary):
        descriptor = _open_alone(temporary)
        try:
            SnapshotWriter(descriptor, head, temporary, progress).write(records)
            os.fsync(descriptor)
            os.rename(temporary, path)
        except BaseException:
            # Removed while its lock is held: whoever opens the name next makes a file of its own.
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        sync_directory(directory)
    return path


def list_snapshots(directory: Path) -> list[SnapshotFile]:
    """The published snapshots of a directory by LSN, then epoch; none if it is not there."""
    found: list[SnapshotFile] = []
    with translated("cannot list the snapshots", directory):
        try:
            entries = os.listdir(directory)
        except FileNotFoundError:
            return []
        for name in entries:
            numbers = names.parse_snapshot_name(name)
            if numbers is None:
                continue
            try:
                size = os.stat(directory / name).st_size
            except FileNotFoundError:
                continue  # pruned by another process since the directory was read
            found.append(SnapshotFile(numbers[0], numbers[1], directory / name, size))
    return sorted(found, key=lambda file: (file.lsn, file.epoch))


def read_head(path: Path, cluster_id: bytes | None = None) -> SnapshotHead:
    """A snapshot's head; errors as SnapshotReader, but of what is behind the head nothing is read."""
    with translated("cannot read a snapshot", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _checked_head(pread_exactly(descriptor, HEAD_BYTES, 0), path, cluster_id)
        finally:
            os.close(descriptor)


def verify_snapshot(
    path: Path, cluster_id: bytes | None = None, progress: Progress | None = None
) -> StatePosition:
    """Read all of a snapshot, and recompute count and digest. Errors as SnapshotReader."""
    with SnapshotReader(path, cluster_id) as reader:
        done = 0
        for entries in reader.checked_entries():
            done += len(entries)
            if progress:
                progress(done)
        return reader.head.at


def remove_unfinished(directory: Path) -> list[Path]:
    """Remove temporary files of snapshots that nobody is writing any more; says which."""
    removed: list[Path] = []
    with translated("cannot remove an unfinished snapshot", directory):
        for name in sorted(os.listdir(directory)):
            stem = name.removesuffix(names.TEMPORARY_SUFFIX)
            if stem == name or names.parse_snapshot_name(stem) is None:
                continue
            path = directory / name
            with suppress(FileNotFoundError, BlockingIOError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                    removed.append(path)
                finally:
                    os.close(descriptor)
    return removed


class SnapshotReader:
    """A snapshot open for reading, front to back, a chunk in memory at a time.

    Iterating gives (key, stored session) in key order; `records()` gives (key, record), as a back end
    keeps it. Each chunk is checked before anything of it is given out; count, digest and the hash of
    the file when the last one was. `chunks()` gives byte ranges, for shipping.

    Everything raises CorruptError with path and offset (bytes) for what is damaged or cut short.
    Opening also raises FormatVersionError for a newer format, ForeignError for what is no snapshot or
    one of another cluster than `cluster_id`, and StorageError for what the file system refuses.
    With `is_partial` the file may end anywhere: only `chunks()` is of use then.
    """

    def __init__(self, path: Path, cluster_id: bytes | None = None, *, is_partial: bool = False) -> None:
        self.path = path
        self.size_bytes = 0
        with translated("cannot open a snapshot", path):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.size_bytes = os.fstat(self._descriptor).st_size
                self.head = _checked_head(self._read(0, HEAD_BYTES), path, cluster_id)
                self._trailer = None if is_partial else self._read_trailer()
            except BaseException:
                os.close(self._descriptor)
                raise
        self._key = cluster_key(self.head.cluster_id)

    def __enter__(self) -> SnapshotReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __iter__(self) -> Iterator[Entry]:
        """(key, stored session), in key order."""
        for entries in self.checked_entries():
            yield from entries

    def records(self) -> Iterator[tuple[bytes, Record]]:
        """(key, record), in key order: what a back end loads."""
        for entries in self.checked_entries():
            for key, value in entries:
                yield key, xxh3_64(value, xxh3_64(key)).to_bytes(HASH_BYTES, "little") + value

    def checked_entries(self) -> Iterator[list[Entry]]:
        """The entries chunk by chunk; the last is followed by the checks of the whole file."""
        if self._trailer is None:
            raise UsageError("a partial snapshot has no sessions to give", path=self.path)
        where = str(self.path)
        file_hash = xxhash.xxh3_64(self._read(0, HEAD_BYTES))
        previous_key = b""
        digest = count = 0
        for chunk, header, data in self._walk():
            file_hash.update(data)
            entries = decode_entries(
                data,
                header,
                previous_key,
                is_compressed=self.head.is_compressed,
                path=where,
                offset=chunk.offset,
            )
            previous_key = entries[-1][0]
            count += len(entries)
            for key, value in entries:
                digest += xxh3_64(value, xxh3_64(key))
            digest &= MASK64
            yield entries
        self._check_whole(self._trailer, count, digest, file_hash.intdigest())

    def chunks(self) -> Iterator[ChunkRange]:
        """Every chunk's place in the file, each checked by its chain.

        The head stands before the first, the trailer behind the last. Of a partial file the ranges are
        what of it is good; it ends with CorruptError where it is cut, unless between two chunks.
        """
        for chunk, _, _ in self._walk():
            yield chunk

    def _walk(self) -> Iterator[tuple[ChunkRange, ChunkHeader, bytes]]:
        where = str(self.path)
        trailer = self._trailer
        end = self.size_bytes - TRAILER_BYTES if trailer else self.size_bytes
        at = HEAD_BYTES
        chain = first_chain(self.head)
        number = 0
        with translated("cannot read a snapshot", self.path):
            while at < end:
                header_bytes = self._read(at, min(CHUNK_HEADER_BYTES, end - at))
                header = decode_chunk_header(header_bytes, number, path=where, offset=at)
                data = self._read(at, min(header.size_bytes, end - at))
                check_chunk(data, header, previous_chain=chain, key=self._key, path=where, offset=at)
                chain = header.chain
                yield ChunkRange(number, at, header.size_bytes, chain), header, data
                at += header.size_bytes
                number += 1
        if trailer and (trailer.chunk_count != number or trailer.chain != chain):
            raise CorruptError(
                f"a snapshot has {number} chunks, its trailer says {trailer.chunk_count}: some are missing",
                path=self.path,
                offset=end,
            )

    def _check_whole(self, trailer: Trailer, count: int, digest: int, file_hash: int) -> None:
        at = self.head.at
        if count != at.session_count or digest != at.digest:
            raise CorruptError(
                f"a snapshot holds {count} sessions with digest {digest:016x}, "
                f"its head says {at.session_count} with {at.digest:016x}",
                path=self.path,
                offset=0,
                lsn=at.lsn,
            )
        if file_hash != trailer.file_hash:
            raise CorruptError("a snapshot does not have the hash in its trailer", path=self.path, offset=0)

    def _read_trailer(self) -> Trailer:
        offset = max(self.size_bytes - TRAILER_BYTES, HEAD_BYTES)
        return decode_trailer(
            self._read(offset, TRAILER_BYTES), self.head, path=str(self.path), offset=offset
        )

    def _read(self, offset: int, size: int) -> bytes:
        return pread_exactly(self._descriptor, size, offset)


def _open_alone(path: Path) -> int:
    """Open a temporary file, empty, with a lock on it that ends with the process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                is_named = os.path.samestat(os.fstat(descriptor), os.stat(path))
            except FileNotFoundError:
                is_named = False
            if is_named:
                os.ftruncate(descriptor, 0)
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise StoreInUseError(
                "another process is writing this snapshot", path=path, hint="Wait until it is done."
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # published or removed between open and lock: open a file of our own


def _checked_head(data: bytes, path: Path, cluster_id: bytes | None) -> SnapshotHead:
    head = decode_head(data, path=str(path))
    if cluster_id is not None and head.cluster_id != cluster_id:
        raise ForeignError(
            f"the snapshot belongs to cluster {head.cluster_id.hex()}, not to {cluster_id.hex()}",
            path=path,
            hint="Give a snapshot of this cluster.",
        )
    numbers = names.parse_snapshot_name(path.name)
    if numbers is not None and numbers != (head.at.lsn, head.at.epoch):
        raise CorruptError(
            f"the snapshot is of LSN {head.at.lsn} in epoch {head.at.epoch}, its name says otherwise",
            path=path,
            offset=0,
            lsn=numbers[0],
            hint="Was it renamed or copied over another?",
        )
    return head
