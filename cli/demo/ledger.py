"""A writer's own record of what it attempted and what it was answered, kept outside the store.

Owns the ledger files. Judges nothing (that is `audit`) and knows no store. Invariant: an attempt is in the
file before its call begins, an answer only after the call returned. A kill -9 of the writer can therefore
lose an answer, which turns an acknowledged write into an unknown one and makes the audit milder by that one
write, but it can never invent one. And it cannot lose an attempt whose call began, so whatever the store
holds was attempted by somebody's record: what is in no ledger is a phantom.

An answer goes to the file together with the next attempt, in one write(), since it is cheap to lose (as said)
and by then no further call has begun. Files are written with write() and not synced: the page cache
survives the death of any process, and a ledger is evidence about processes that die, not about power loss.

The file, little-endian: a header (magic 8 bytes, version u16, 0 u16, writer u32), then records:
  tag u8 (0xA7), kind u8, bytes of key u8, bytes of new key u8, verdict u8, existed u8, 0 u16,
  sequence u32, counter u32, answered attempt u32, epoch u32, content hash u64, lsn u64, chain u64,
  operation id 16 bytes, key, new key, check u32 (xxh32 of all before it).
A record holds an answer (verdict not 0), an attempt (kind not 0), or first one and then the other.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeAlias

import msgspec
import xxhash

from ...store import (
    ForeignError,
    FormatError,
    FormatVersionError,
    PerdureError,
    StorageError,
    StorageFullError,
    UsageError,
)
from .operations import Kind

KEY_BYTES_MAX = 255
NO_OPERATION = bytes(16)
VERSION = 1

_MAGIC = b"PRDLEDGR"
_HEADER = struct.Struct("<8sHHI")
_RECORD = struct.Struct("<6BH4I3Q16s")
_CHECK = struct.Struct("<I")
_TAG = 0xA7
_REGENERATE = Kind.REGENERATE
_NO_ANSWER = (0, False, 0, 0, 0, 0)
_READ_BYTES = 1 << 20
_RECORD_BYTES_MAX = _RECORD.size + 2 * KEY_BYTES_MAX + _CHECK.size

assert _HEADER.size == 16 and _RECORD.size == 64

_pack = _RECORD.pack
_pack_check = _CHECK.pack
_hash = xxhash.xxh32_intdigest


class LedgerError(FormatError):
    """A ledger that is damaged other than by its writer's death, or that contradicts another one."""


class Verdict(IntEnum):
    """What the store answered to an attempt. No answer at all is a third case: not known."""

    ACKNOWLEDGED = 1
    REFUSED = 2


_KINDS: tuple[Kind, ...] = (
    Kind.CREATE,
    *Kind,
)  # by number, the first for no attempt: many times faster than Kind(number)
_VERDICTS: tuple[Verdict, ...] = (Verdict.ACKNOWLEDGED, *Verdict)


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """A write that is about to be called.

    `number` counts the attempts of one file from 0; `sequence` is the operation's place in its writer's
    stream, so that a driver can resume there; `content_hash` is that of the content that the session then
    has, 0 when it ends; `operation_id` is NO_OPERATION when the caller does not know it before the call.
    """

    number: int
    kind: Kind
    key: str
    new_key: str
    sequence: int
    counter: int
    content_hash: int
    operation_id: bytes


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the store said to an attempt; `position` is (epoch, lsn, chain) where the caller learnt it."""

    number: int
    verdict: Verdict
    existed: bool
    position: tuple[int, int, int] | None


Entry: TypeAlias = Attempt | Answer


class Progress(msgspec.Struct, frozen=True):
    """Where a writer's ledger ends: the next operation of its stream, and attempts that nobody answered."""

    next_sequence: int
    unanswered: tuple[Attempt, ...]


class Ledger:
    """One writer's ledger, open for appending. Used by one thread; make one with `Ledger.open`."""

    def __init__(self, descriptor: int, path: Path, *, next_number: int, end_bytes: int) -> None:
        self._descriptor = descriptor
        self._path = path
        self._end_bytes = end_bytes
        self._next_number = next_number
        self._answer = _NO_ANSWER  # verdict, existed, attempt, epoch, lsn, chain

    @classmethod
    def open(cls, path: str | Path, *, writer: int = 0) -> Ledger:
        """Open a ledger to append to, making it if there is none.

        A record that the last writer's death tore is cut: the call that it would have announced never began.
        Raises LedgerError, ForeignError, FormatVersionError, StorageError.
        """
        path = Path(path)
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            attempts, end = _resume(descriptor, path, writer)
            if end < os.fstat(descriptor).st_size:
                os.ftruncate(descriptor, end)
            ledger = cls(descriptor, path, next_number=attempts, end_bytes=end)
            if end == 0:
                ledger._write(_HEADER.pack(_MAGIC, VERSION, 0, writer))
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise _translated(error, path) from error
        except PerdureError:
            os.close(descriptor)
            raise
        return ledger

    def attempt(
        self,
        kind: Kind,
        key: str,
        *,
        new_key: str = "",
        sequence: int = 0,
        counter: int = 0,
        content_hash: int = 0,
        operation_id: bytes = NO_OPERATION,
    ) -> int:
        """Put on file that this write is about to be called; return the attempt's number for its answer.

        `new_key` belongs to a REGENERATE, and only there; `content_hash` to every kind that leaves a session.
        On return the attempt survives a kill -9. Raises UsageError for what the file has no room for, and
        StorageError when it cannot be written: then the call must not be made.
        """
        verdict, existed, answered, epoch, lsn, chain = self._answer
        if not key or (kind == _REGENERATE) != bool(new_key) or len(operation_id) != 16:
            raise UsageError(
                f"{kind.name} of {key[:80]!r} to {new_key[:80]!r}: keys or operation id are wrong"
            )
        raw, new_raw = key.encode(), new_key.encode()
        try:
            # fmt: off
            record = _pack(
                _TAG, kind, len(raw), len(new_raw), verdict, existed, 0,
                sequence, counter, answered, epoch, content_hash, lsn, chain, operation_id,
            ) + raw + new_raw
            # fmt: on
        except struct.error as error:
            raise UsageError(
                f"an attempt on {key[:80]!r}, or the answer before it, does not fit the ledger: {error}"
            ) from error
        self._write(record + _pack_check(_hash(record)))
        self._answer = _NO_ANSWER
        number = self._next_number
        self._next_number = number + 1
        return number

    def acknowledge(
        self, number: int, *, existed: bool = True, position: tuple[int, int, int] | None = None
    ) -> None:
        """Note that the store acknowledged the attempt; `existed` is what a delete answered.

        It reaches the file with the next attempt, or with `flush`: call that before a pause.
        """
        self._note(number, Verdict.ACKNOWLEDGED, existed, position or (0, 0, 0))

    def refuse(self, number: int) -> None:
        """Note that the store refused the attempt for certain: an error that says nothing was written."""
        self._note(number, Verdict.REFUSED, False, (0, 0, 0))

    def flush(self) -> None:
        """Put the answer that is held back on file, if there is one."""
        verdict, existed, answered, epoch, lsn, chain = self._answer
        if verdict:
            try:
                record = _pack(
                    _TAG, 0, 0, 0, verdict, existed, 0, 0, 0, answered, epoch, 0, lsn, chain, NO_OPERATION
                )
            except struct.error as error:
                raise UsageError(f"an answer does not fit the ledger: {error}") from error
            self._write(record + _pack_check(_hash(record)))
            self._answer = _NO_ANSWER

    def close(self) -> None:
        """Flush and close. Idempotent."""
        if self._descriptor < 0:
            return
        try:
            self.flush()
        finally:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, number: int, verdict: Verdict, existed: bool, position: tuple[int, int, int]) -> None:
        if not 0 <= number < self._next_number:
            raise UsageError(f"there is no attempt {number}; the ledger has {self._next_number}")
        if self._answer[0]:
            self.flush()
        self._answer = (verdict, existed, number, *position)

    def _write(self, data: bytes) -> None:
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):  # the disk is nearly full, or a signal came
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            self._take_back()
            raise _translated(error, self._path) from error
        self._end_bytes += written

    def _take_back(self) -> None:
        """Cut what a failed write left, or half a record would stand before the next one."""
        try:
            os.ftruncate(self._descriptor, self._end_bytes)
        except OSError:  # then the next reader finds the damage and says so
            pass


def read_ledger(path: str | Path) -> Iterator[Entry]:
    """Yield a ledger's entries in order, up to a record that its writer's death tore off at the end.

    Memory is bounded. Raises LedgerError at a damaged record, ForeignError, FormatVersionError, StorageError.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if _read_header(file.read(_HEADER.size), path) is not None:
                yield from (entry for entry, _ in _entries(file, path))
    except OSError as error:
        raise _translated(error, path) from error


def progress_of(entries: Iterable[Entry]) -> Progress:
    """Return where a writer takes up its stream again, and what it has to find out first.

    Attempts are numbered along; memory holds the unanswered ones.
    """
    unanswered: dict[int, Attempt] = {}
    next_sequence = 0
    for entry in entries:
        if isinstance(entry, Attempt):
            unanswered[entry.number] = entry
            next_sequence = max(next_sequence, entry.sequence + 1)
        else:
            unanswered.pop(entry.number, None)
    return Progress(next_sequence, tuple(unanswered.values()))


def _resume(descriptor: int, path: Path, writer: int) -> tuple[int, int]:
    """Return how many attempts an existing ledger holds and where its last whole record ends."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        owner = _read_header(file.read(_HEADER.size), path)
        if owner is None:
            return 0, 0
        if owner != writer:
            raise LedgerError(f"the ledger of writer {owner}, not of writer {writer}", path=path)
        attempts, end = 0, _HEADER.size
        for entry, record_end in _entries(file, path):
            attempts += isinstance(entry, Attempt)
            end = record_end
    return attempts, end


def _read_header(raw: bytes, path: Path) -> int | None:
    """Return the writer of a ledger, None when its writer died before the header was whole."""
    if len(raw) < _HEADER.size:
        if _MAGIC.startswith(raw[: len(_MAGIC)]):
            return None
        raise ForeignError("this is no ledger", path=path, offset=0)
    magic, version, _, writer = _HEADER.unpack(raw)
    if magic != _MAGIC:
        raise ForeignError("this is no ledger", path=path, offset=0)
    if version != VERSION:
        raise FormatVersionError(
            f"ledger version {version}; this program reads {VERSION}", path=path, offset=8
        )
    return int(writer)


def _entries(file: BinaryIO, path: Path) -> Iterator[tuple[Entry, int]]:
    """Yield each entry after the header, with the offset where its record ends."""
    data = b""
    base, at, attempts = _HEADER.size, 0, 0
    while True:
        if len(data) - at < _RECORD_BYTES_MAX and (more := file.read(_READ_BYTES)):
            base, data, at = base + at, data[at:] + more, 0
        left_bytes = len(data) - at
        size = _RECORD.size + _CHECK.size
        if left_bytes >= size:
            size += data[at + 2] + data[at + 3]
        if left_bytes < size and (not left_bytes or data[at] == _TAG):
            return  # a kill -9 leaves a beginning of the last record, never anything else
        answer, attempt = _record_at(data, at, size, attempts) if left_bytes >= size else (None, None)
        if answer is None and attempt is None:
            raise LedgerError(
                "a damaged record", path=path, offset=base + at, hint="A kill can only cut a ledger's end."
            )
        at += size
        if answer is not None:
            yield answer, base + at
        if attempt is not None:
            attempts += 1
            yield attempt, base + at


def _record_at(data: bytes, at: int, size: int, attempts: int) -> tuple[Answer | None, Attempt | None]:
    """Return what a record holds: two times None when it does not check, or holds what cannot be."""
    end = at + size - _CHECK.size
    kind: int
    verdict: int
    # fmt: off
    (tag, kind, key_bytes, _, verdict, existed, _, sequence, counter, answered, epoch,
        content_hash, lsn, chain, operation_id) = _RECORD.unpack_from(data, at)
    # fmt: on
    is_whole = tag == _TAG and _hash(data[at:end]) == _CHECK.unpack_from(data, end)[0]
    if not is_whole or kind >= len(_KINDS) or verdict >= len(_VERDICTS) or (verdict and answered >= attempts):
        return None, None
    answer = attempt = None
    if verdict:
        answer = Answer(answered, _VERDICTS[verdict], existed != 0, (epoch, lsn, chain) if lsn else None)
    if kind:
        keys_at = at + _RECORD.size
        try:
            key = data[keys_at : keys_at + key_bytes].decode()
            new_key = data[keys_at + key_bytes : end].decode()
        except UnicodeDecodeError:
            return None, None
        attempt = Attempt(attempts, _KINDS[kind], key, new_key, sequence, counter, content_hash, operation_id)
    return answer, attempt


def _translated(error: OSError, path: Path) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError("no space left for the ledger", path=path, hint="Free some space.")
    return StorageError(f"the ledger: {error.strerror}", path=path)
