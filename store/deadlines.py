"""Runs of deadlines: how a back end packs the deadline index. Pure: values in, values out.

Owns the bytes of a run: deadlines that one fold armed close together, in any order. Little-endian:

    size      field
    2         count n
    n * 8     deadlines, ms
    n * 2     key lengths, bytes
    ...       keys

A run is stored under a time that none of its deadlines is before, nor more than RUN_SPAN_MS after, and
four of them fit into a page of 4 KiB: 4,096 creates cost some 180 puts next to each other, and removing a
few deadlines rewrites little. A run that shrinks stays where it is.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Final

from .errors import CorruptError
from .ports import Deadline

RUN_SPAN_MS: Final = 16_000
RUN_BYTES_MAX: Final = 1_000
UNSORTED_SPAN_MS: Final = 1_000
"""Deadlines of one fold that are this close are packed as they come: sorting them costs more."""
ENTRY_BYTES: Final = 10
_COUNT = struct.Struct("<H")
_DEADLINE = itemgetter(0)


def runs_of(armed: Sequence[Deadline]) -> Iterator[tuple[int, bytes]]:
    """(time to store it under, run) for each run that `armed` makes."""
    if not armed:
        return
    deadlines, keys = _columns(armed)
    first = min(deadlines)
    is_close = max(deadlines) - first <= UNSORTED_SPAN_MS
    if not is_close and sorted(deadlines) != deadlines:
        deadlines, keys = _columns(sorted(armed, key=_DEADLINE))
    lengths = [*map(len, keys)]
    packed, packed_lengths = _pack_columns(deadlines, lengths)
    size = max(1, (RUN_BYTES_MAX - _COUNT.size) // (ENTRY_BYTES + max(lengths)))
    start = 0
    while start < len(keys):
        end = min(start + size, len(keys))
        if not is_close:
            first = deadlines[start]
            end = bisect_right(deadlines, first + RUN_SPAN_MS, start, end)
        head = _COUNT.pack(end - start) + packed[8 * start : 8 * end]
        yield first, head + packed_lengths[2 * start : 2 * end] + b"".join(keys[start:end])
        start = end


def pack_run(entries: Sequence[Deadline]) -> bytes:
    """The run of `entries`."""
    return _pack(*_columns(entries))


def unpack_run(run: bytes | memoryview, until_ms: int | None = None) -> list[Deadline]:
    """The entries of a run; with `until_ms` only those that are at or before it.

    Raises CorruptError if the bytes are no run.
    """
    try:
        count: int = _COUNT.unpack_from(run)[0]
        deadlines = struct.unpack_from(f"<{count}Q", run, 2)
        lengths = struct.unpack_from(f"<{count}H", run, 2 + 8 * count)
    except struct.error as error:
        raise CorruptError("a run of the deadline index is cut short") from error
    offset = 2 + ENTRY_BYTES * count
    if offset + sum(lengths) != len(run):
        raise CorruptError("a run of the deadline index does not have the length that it states")
    if until_ms is not None and count and min(deadlines) > until_ms:
        return []
    run = bytes(run)
    keys = [run[start:end] for start, end in pairwise(accumulate(lengths, initial=offset))]
    entries = list(zip(deadlines, keys, strict=True))
    if until_ms is None or not count or max(deadlines) <= until_ms:
        return entries
    return [entry for entry in entries if entry[0] <= until_ms]


def _columns(armed: Sequence[Deadline]) -> tuple[list[int], list[bytes]]:
    return [deadline for deadline, _ in armed], [key for _, key in armed]


def _pack(deadlines: Sequence[int], keys: Sequence[bytes]) -> bytes:
    return b"".join((_COUNT.pack(len(keys)), *_pack_columns(deadlines, [*map(len, keys)]), *keys))


def _pack_columns(deadlines: Sequence[int], lengths: Sequence[int]) -> tuple[bytes, bytes]:
    count = len(lengths)
    return struct.pack(f"<{count}Q", *deadlines), struct.pack(f"<{count}H", *lengths)
