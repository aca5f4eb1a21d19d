"""The mark: how far the log is known to be on this node's disk.

Owns the bytes of the mark file: two slots of 64 bytes, written in turn, so that a torn write leaves
the other one; the first mark goes into both. It is written after the fdatasync that it speaks of and before that sync's
acknowledgement, and is itself synced within a second. Little-endian, a slot:

    offset  size  field
    0       8     magic "PDRMARK1"
    8       4     epoch
    12      4     reserved (0)
    16      8     LSN on disk
    24      8     chain
    32      8     LSN known committed (0 without sync_replicas)
    40      8     sequence number
    48      8     cluster key
    56      8     xxh3_64 of the slot up to here
"""  # noqa: E501 - the table is easier to read in one piece

from __future__ import annotations

import errno
import os
import struct
from enum import Enum
from pathlib import Path

import msgspec
import xxhash

from .files import FILE_MODE, pread_exactly, translated
from .ids import Position

MAGIC = b"PDRMARK1"
SLOT = struct.Struct("<8sIIQQQQQQ")
SLOT_BYTES = 64
FILE_BYTES = 2 * SLOT_BYTES
assert SLOT.size == SLOT_BYTES
_pack_body = struct.Struct("<8sIIQQQQQ").pack
_pack_check = struct.Struct("<Q").pack
xxh3_64 = xxhash.xxh3_64_intdigest


class SlotVerdict(Enum):
    OK = "ok"
    EMPTY = "empty"
    BAD = "bad"


class Mark(msgspec.Struct, frozen=True):
    """A position on disk, and the LSN known to be committed when it was written."""

    position: Position
    committed_lsn: int
    sequence: int


def encode_slot(mark: Mark, cluster_key: int) -> bytes:
    return _encoded(mark.position, mark.committed_lsn, mark.sequence, cluster_key)


def _encoded(position: Position, committed_lsn: int, sequence: int, cluster_key: int) -> bytes:
    epoch, lsn, chain = position
    body = _pack_body(MAGIC, epoch, 0, lsn, chain, committed_lsn, sequence, cluster_key)
    return body + _pack_check(xxh3_64(body))


def decode_slot(data: bytes, cluster_key: int) -> tuple[SlotVerdict, Mark | None]:
    """One slot. EMPTY if it is all zeros or missing, BAD if it is damaged or another cluster's."""
    if not any(data):
        return SlotVerdict.EMPTY, None
    if len(data) < SLOT_BYTES:
        return SlotVerdict.BAD, None
    magic, epoch, reserved, lsn, chain, committed, sequence, key, check = SLOT.unpack_from(data)
    good = xxh3_64(data[: SLOT_BYTES - 8]) == check
    if not good or magic != MAGIC or reserved or key != cluster_key:
        return SlotVerdict.BAD, None
    return SlotVerdict.OK, Mark(Position(epoch, lsn, chain), committed, sequence)


def decode_marks(data: bytes, cluster_key: int) -> tuple[Mark | None, list[SlotVerdict]]:
    """(the newest good mark or None, the verdict on each slot).

    A slot is BAD too if it is EMPTY beside a good one, or holds what belongs into the other one: the
    mark with sequence n is in slot n modulo 2. A third verdict, BAD, says that the file has a length
    that it never has.
    """
    found = [decode_slot(data[at : at + SLOT_BYTES], cluster_key) for at in (0, SLOT_BYTES)]
    verdicts = [verdict for verdict, _ in found]
    newest: Mark | None = None
    for number, (_, mark) in enumerate(found):
        if mark is None:
            continue
        if mark.sequence % 2 != number:
            verdicts[number] = SlotVerdict.BAD
        if verdicts[1 - number] is SlotVerdict.EMPTY:
            verdicts[1 - number] = SlotVerdict.BAD
        if newest is None or mark.sequence > newest.sequence:
            newest = mark
    if len(data) not in (0, FILE_BYTES):
        verdicts.append(SlotVerdict.BAD)
    return newest, verdicts


def read_marks(path: Path, cluster_key: int) -> tuple[Mark | None, list[SlotVerdict]]:
    """As decode_marks, of a file; (None, [EMPTY, EMPTY]) if it is missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, [SlotVerdict.EMPTY, SlotVerdict.EMPTY]
    try:
        return decode_marks(pread_exactly(descriptor, FILE_BYTES + 1, 0), cluster_key)
    finally:
        os.close(descriptor)


class MarkFile:
    """The mark of one log, open for writing. Its caller holds the sync lock. Opening raises StorageError."""

    def __init__(self, path: Path, cluster_key: int) -> None:
        self.path = path
        self._key = cluster_key
        with translated("cannot open the mark", path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)

    def read(self) -> Mark | None:
        return decode_marks(pread_exactly(self._descriptor, FILE_BYTES, 0), self._key)[0]

    def write(self, position: Position, committed_lsn: int, newest: int = 0) -> int:
        """Write the older slot; answers the new mark's sequence number.

        `newest` is the sequence number of the newest mark if the caller knows it, so that the file is not
        read. Survives the death of the process at once, power loss after sync(). Raises OSError: the mark
        then says what it said before, and the sync must not be acknowledged.
        """
        mark = None if newest else self.read()
        sequence = (mark.sequence if mark else newest) + 1
        data = _encoded(position, committed_lsn, sequence, self._key)
        offset = (sequence % 2) * SLOT_BYTES
        if sequence == 1 and mark is None:
            data = _encoded(position, committed_lsn, 0, self._key) + data
            offset = 0
        if os.pwrite(self._descriptor, data, offset) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return sequence

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)
