"""What a writer has done so far, in a few words of shared memory that survive its death.

Owns the file: 16 little-endian u64 words, mapped by the writer and by whoever watches it. One process writes
it. Invariant: each word only grows, so that a reader may see it a little old, never wrong.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from pathlib import Path

WORDS = 16
_BYTES = WORDS * 8


class Count(IntEnum):
    """The words of a gauge."""

    STAGE = 0
    SEQUENCE = 1
    """Operations of the stream that are behind the writer, those of an earlier life included."""
    OPERATIONS = 2
    READS = 3
    WRITES = 4
    """Writes that were acknowledged."""
    UNKNOWN = 5
    """Calls that could not say; most are settled by asking for their outcome."""
    REFUSED = 6
    """Calls that were refused before anything was written, and repeated."""
    MISMATCHES = 7
    """Answers that were not what the writer's own history implies."""
    SWEPT = 8
    """Sessions that a sweep expired."""
    SLOWEST_US = 9
    """The longest write so far."""


class Stage(IntEnum):
    """How far a writer is."""

    STARTING = 0
    RUNNING = 1
    STOPPED = 2
    """It was asked to stop, and everything that it began was answered."""
    FINISHED = 3
    """Its stream has ended."""
    FAILED = 4


class Gauge:
    """One writer's words. Made by whoever watches, filled by the writer."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < _BYTES:
                os.ftruncate(descriptor, _BYTES)
            self._map = mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
        self._words = memoryview(self._map).cast("Q")

    def __getitem__(self, word: Count) -> int:
        return self._words[word]

    def __setitem__(self, word: Count, value: int) -> None:
        self._words[word] = value

    def add(self, word: Count, count: int = 1) -> None:
        self._words[word] += count

    @property
    def stage(self) -> Stage:
        return Stage(self._words[Count.STAGE])

    def close(self) -> None:
        self._words.release()
        self._map.close()
