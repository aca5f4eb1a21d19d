"""The window: the newest runs of the log, on disk, kept in memory for replicas that follow closely.

Owns a bounded number of runs, so that each frame is read and checked once, whatever number of replicas
it is sent to. Only what is on this node's disk gets in here, and only what is in here, or behind it in
the log, is ever sent.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ..store.cursor import Run
from ..store.ids import Position

WINDOW_BYTES_MAX = 16 << 20
_new = tuple.__new__


class WindowRun(NamedTuple):
    """A run with the place before it."""

    after: Position
    end: Position
    raw: bytes
    time_ms: int


class Window:
    """Runs in their order, numbered on from 0; the oldest go when it is full."""

    def __init__(self, at: Position) -> None:
        self.end = at
        """Everything up to here is on disk and may be sent."""
        self.first = 0
        """Number of the oldest run that is held."""
        self.next = 0
        """Number of the run that will be added next."""
        self._runs: deque[WindowRun] = deque()
        self._bytes = 0

    def add(self, run: Run) -> None:
        """Take a run that follows `end` and is on disk."""
        offset, last = run.frames[-1]
        raw = run.raw if offset else run.data[: last.size_bytes]
        end = last.position
        self._runs.append(_new(WindowRun, (self.end, end, raw, last.time_ms)))
        self._bytes += len(raw)
        self.end = end
        self.next += 1
        while self._bytes > WINDOW_BYTES_MAX and len(self._runs) > 1:
            self._bytes -= len(self._runs.popleft().raw)
            self.first += 1

    def get(self, number: int) -> WindowRun | None:
        """The run of that number; None if it is not there yet. Numbers below `first` are gone."""
        index = number - self.first
        return self._runs[index] if 0 <= index < len(self._runs) else None

    def number_after(self, position: Position) -> int | None:
        """Number of the run that follows a position, None if no run that is held begins there."""
        if position.lsn == self.end.lsn:
            return self.next
        low, high = 0, len(self._runs)
        while low < high:
            middle = (low + high) // 2
            if self._runs[middle].after.lsn < position.lsn:
                low = middle + 1
            else:
                high = middle
        if low < len(self._runs) and self._runs[low].after.lsn == position.lsn:
            return self.first + low
        return None

    @property
    def start_lsn(self) -> int:
        """LSN before the oldest run that is held."""
        return self._runs[0].after.lsn if self._runs else self.end.lsn
