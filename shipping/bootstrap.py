"""Bootstrapping a replica from a snapshot: the primary's side.

Owns which bytes of a snapshot, and of the log's segment before it, go to a replica. The replica gets
the snapshot file as it is, and the frames from the start of the segment that holds the snapshot's
position: so its log begins where a segment of the primary does, with the control frame that every
segment begins with. Both parts can be resumed at any offset.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..store import names
from ..store.ahead import bytes_of
from ..store.cursor import LogCursor, list_segments
from ..store.errors import DivergedError, PerdureError, PositionGoneError, StoreMissingError, WireError
from ..store.files import pread_exactly, translated
from ..store.segment import HEADER_BYTES
from ..store.snapshot import list_snapshots, read_head
from .messages import Piece, PieceAck, SnapshotOffer, SnapshotWant, pack_payload
from .nodelog import NodeLog, monotonic_ms
from .rejoin_plan import bytes_behind

logger = logging.getLogger(__name__)

PIECE_BYTES: Final = 1 << 20
PIECE_BYTES_MIN: Final = 4096
PIECES_PER_S: Final = 20
"""Under a limit: many small pieces, so that the rate is even."""
LATE_MS: Final = 100
CREDIT_BYTES: Final = 8 << 20
SNAPSHOT_PART: Final = 0
LOG_PART: Final = 1
SNAPSHOT_RETRY_MS: Final = 1_000

MakeSnapshot = Callable[[], Path]
"""Takes a snapshot of the store and says where it is. Called in a thread of its own."""


def log_bytes_behind(log: Path, lsn: int) -> int:
    """About how many bytes of log (whole segments) stand behind an LSN."""
    return bytes_behind(log_sizes(log), lsn)


def log_sizes(log: Path) -> list[tuple[int, int]]:
    """(first LSN, bytes) of the segments, oldest first."""
    sizes: list[tuple[int, int]] = []
    files = list_segments(log)
    for file in files:
        with suppress(FileNotFoundError, StoreMissingError):  # dropped meanwhile
            size = bytes_of(file.path) if file is files[-1] else os.stat(file.path).st_size
            sizes.append((file.first_lsn, size))
    return sizes


def newest_usable_snapshot(node: NodeLog, snapshots: Path) -> Path | None:
    """The newest snapshot whose position is in this log, so that frames can follow it."""
    oldest, end = node.oldest_lsn(), node.log.cursor.at.lsn
    for file in reversed(list_snapshots(snapshots)):
        if oldest <= file.lsn + 1 <= end + 1 and is_usable(node, file.path):
            return file.path
    return None


def is_usable(node: NodeLog, path: Path) -> bool:
    """Is the position of a snapshot in this log?"""
    cursor = node.cursor()
    try:
        head = read_head(path, node.identity.cluster_id)
        cursor.seek(head.at.lsn)
        return cursor.at.position == head.at.position
    except PerdureError:
        return False
    finally:
        cursor.close()


class SnapshotSender:
    """One snapshot on its way to one replica."""

    def __init__(
        self,
        node: NodeLog,
        path: Path,
        *,
        compress: bool,
        parted_lsn: int = -1,
        bytes_per_s: int = 0,
        clock_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        """`bytes_per_s`: send no more in a second; 0 is no limit."""
        self._bytes_per_s = bytes_per_s
        self._clock_ms = clock_ms
        self._due_ms = 0.0
        self._compress = compress
        self._under_way: list[int] = [0, 0]
        self._acked: list[int] = [0, 0]
        self._is_wanted = False
        self._cursor: LogCursor = node.cursor()
        head = read_head(path, node.identity.cluster_id)
        try:
            self._cursor.seek(head.at.lsn)
            if self._cursor.at.position != head.at.position or self._cursor.header is None:
                raise DivergedError(
                    "the snapshot is of another history than the log", path=path, lsn=head.at.lsn
                )
            header = self._cursor.header
            with translated("cannot open a snapshot", path):
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self._cursor.close()
            raise
        self._sizes = [os.fstat(self._descriptor).st_size, self._cursor.offset - HEADER_BYTES]
        self.offer = SnapshotOffer(
            name=path.name,
            at=head.at,
            snapshot_bytes=self._sizes[SNAPSHOT_PART],
            segment_lsn=header.first_lsn,
            segment_epoch=header.epoch,
            segment_primary=header.primary,
            segment_previous=header.previous,
            log_bytes=self._sizes[LOG_PART],
            parted_lsn=parted_lsn,
        )

    def want(self, want: SnapshotWant) -> None:
        """The replica says what it has already. Raises WireError for impossible offsets."""
        wanted = [want.snapshot_offset, want.log_offset]
        if any(offset > size for offset, size in zip(wanted, self._sizes, strict=True)):
            raise WireError("the replica wants a snapshot from behind its end")
        self._under_way, self._acked, self._is_wanted = wanted[:], wanted[:], True

    def acked(self, ack: PieceAck) -> None:
        self._acked = [ack.snapshot_offset, ack.log_offset]

    def next_message(self) -> tuple[Piece, bytes] | None:
        """The next piece; None if all is under way, or the credits are used up. Raises StorageError."""
        if self._bytes_per_s and self._clock_ms() < self._due_ms:
            return None
        if not self._is_wanted or sum(self._under_way) - sum(self._acked) >= CREDIT_BYTES:
            return None
        part = SNAPSHOT_PART if self._under_way[0] < self._sizes[0] else LOG_PART
        offset, left = self._under_way[part], self._sizes[part] - self._under_way[part]
        if not left:
            return None
        descriptor = self._descriptor if part == SNAPSHOT_PART else self._cursor.descriptor
        start = offset if part == SNAPSHOT_PART else offset + HEADER_BYTES
        raw = pread_exactly(descriptor, min(self._piece_bytes(), left), start)
        if not raw:
            raise PositionGoneError("the snapshot or the log became shorter while it was sent")
        self._under_way[part] = offset + len(raw)
        if self._bytes_per_s:
            # What was not sent in time is not made up for, but for a moment that the loop was late.
            due_ms = max(self._due_ms, self._clock_ms() - LATE_MS)
            self._due_ms = due_ms + len(raw) * 1000 / self._bytes_per_s
        payload, compressed = pack_payload(raw, self._compress and part == LOG_PART)
        return Piece(part, offset, len(raw), compressed), payload

    def progress(self) -> tuple[int, int]:
        """(bytes that the replica has, bytes in all) of both parts."""
        return sum(self._acked), sum(self._sizes)

    def _piece_bytes(self) -> int:
        if not self._bytes_per_s:
            return PIECE_BYTES
        return max(PIECE_BYTES_MIN, min(PIECE_BYTES, self._bytes_per_s // PIECES_PER_S))

    def close(self) -> None:
        self._cursor.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SnapshotFinder:
    """Finds a snapshot for a replica, and has one made if there is none."""

    def __init__(self, node: NodeLog, make: MakeSnapshot | None) -> None:
        self._node = node
        self._make = make
        self._thread: threading.Thread | None = None
        self._found: Path | None = None
        self._seen: list[Path] = []
        self._tried_ms = -SNAPSHOT_RETRY_MS

    def named(self, name: str) -> Path | None:
        """The snapshot of that name, if it is here and the log reaches it: a replica has a part of it."""
        if names.parse_snapshot_name(name) is None:
            return None
        path = self._node.store / names.SNAPSHOTS / name
        return path if self._is_reached(path) and is_usable(self._node, path) else None

    def find(self) -> Path | None:
        """The newest snapshot that this log reaches; looking is not cheap, so what was found is kept."""
        directory = self._node.store / names.SNAPSHOTS
        newest = [file.path for file in list_snapshots(directory)][-1:]
        if self._found is None or newest != self._seen or not self._is_reached(self._found):
            self._found = newest_usable_snapshot(self._node, directory)
            self._seen = newest
        if self._found is None and self._make is not None:
            self._begin()
        return self._found

    def _is_reached(self, path: Path) -> bool:
        numbers = names.parse_snapshot_name(path.name)
        return numbers is not None and path.exists() and numbers[0] + 1 >= self._node.oldest_lsn()

    def _begin(self) -> None:
        at_ms = monotonic_ms()
        if self._thread is not None and self._thread.is_alive():
            return
        if at_ms - self._tried_ms < SNAPSHOT_RETRY_MS:
            return
        self._tried_ms = at_ms
        self._thread = threading.Thread(target=self._take, name="perdure-snapshot", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        if self._make is None:
            return
        try:
            logger.info("took a snapshot for a replica: path=%s", self._make())
        except (PerdureError, OSError) as error:
            logger.error("cannot take a snapshot for a replica: error=%s", error)
