"""Space that the tail segment's file has ahead of its frames: zeros, up to the end of the file.

A write that waits for the disk is quicker where the file does not grow by it. So whoever syncs what it
appends has blocks allocated ahead of the frames, in steps; they read as zeros. Owns those steps, and
how the end of a file's bytes is found in front of them.

Invariant: such space stands only in a segment that no other follows and that has no footer. It is cut
off before either comes to be.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from .files import translated

STEP_BYTES: Final = 1 << 20
"""So much is allocated at a time."""
_LOOK_BYTES: Final = 4096
_READ_BYTES: Final = 1 << 20


def allocate_ahead(descriptor: int, offset: int, end: int) -> bool:
    """Allocate blocks from `offset`, where the frames end, up to `end`.

    The caller holds the write lock. False if there are none, or the file system does not do that: the
    file then ends at `offset` again. Survives a crash: the file as it was, or with zeros at its end.
    """
    try:
        os.posix_fallocate(descriptor, offset, end - offset)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, offset)  # a part of it may have been allocated
        return False
    return True


def cut_ahead(descriptor: int, offset: int) -> bool:
    """Let a file end at `offset`, where its frames do, if only zeros stand behind; says whether they did.

    The caller holds the write lock.
    """
    if os.fstat(descriptor).st_size <= offset or end_of_bytes(descriptor, offset) > offset:
        return False
    os.ftruncate(descriptor, offset)
    return True


def end_of_bytes(descriptor: int, start: int) -> int:
    """Where the zeros up to the end of the file begin, at or behind `start`."""
    end, size = os.fstat(descriptor).st_size, _LOOK_BYTES
    while end > start:
        begin = max(start, end - size)
        data = os.pread(descriptor, end - begin, begin)
        used = data.rstrip(b"\0")
        if used:
            return begin + len(used)
        end, size = begin, _READ_BYTES
    return start


def bytes_of(path: Path) -> int:
    """Bytes of a file without the zeros at its end. Raises StorageError."""
    with translated("cannot look at a segment", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return end_of_bytes(descriptor, 0)
        finally:
            os.close(descriptor)
