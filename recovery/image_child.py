"""The child that reads a state's copy: `python -m perdure.recovery.image_child BACKEND DIRECTORY`.

Owns the writing side of the pipe that `image` describes. It may crash: its parent expects that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from ..store.backends import open_backend
from ..store.errors import FormatError, PerdureError
from ..store.fold import hash_of, unreadable
from ..store.ids import MASK64
from ..store.labels import USED, terms_of_record
from ..store.ports import Backend, Labelled, Record, Scan
from .image import END, ENTRY, KEY_BYTES_LIMIT, RECORD_BYTES_LIMIT, Line

FLUSH_BYTES = 256 << 10
PAIRS_AT_ONCE = 1000


def main(backend_name: str, directory: str) -> None:
    """Write where the state stands, every record of it, then how that ended."""
    out = sys.stdout.buffer
    try:
        backend = open_backend(backend_name, Path(directory))
        scan = backend.scan()
        at = scan.position
        line = Line((at.epoch, at.lsn, at.chain, at.digest, at.session_count))
        write_line(out, line)
        line = msgspec.structs.replace(line, index_error=write_records(out, scan, backend))
    except PerdureError as error:
        line = Line(error=error.message, is_damage=isinstance(error, FormatError))
    write_line(out, line)


def write_records(out: BinaryIO, scan: Scan, backend: Backend) -> str:
    """Every record of the scan; each is looked up by its key, too. Says what is wrong with the index.

    Readers find a session through the tree's upper pages, which a scan passes by: damage there hides
    sessions that a scan still sees.
    """
    made = _Sum()
    parts: list[bytes] = []
    size = hidden = 0
    backend.refresh()
    try:
        for key, record in scan:
            if not 0 < len(key) <= KEY_BYTES_LIMIT or len(record) > RECORD_BYTES_LIMIT:
                raise FormatError(f"a record with a key of {len(key)} and a value of {len(record)} bytes")
            hidden += _look_up(backend, key) != record
            made.add((term, key) for term in terms_of_record(record))
            parts.append(ENTRY.pack(len(key), len(record)) + key + record)
            size += len(parts[-1])
            if size >= FLUSH_BYTES:
                out.write(b"".join(parts))
                parts, size = [], 0
    finally:
        out.write(b"".join(parts) + END)
    if hidden:
        raise FormatError(f"{hidden} sessions are there, but are not found by their ids")
    there = _Sum()
    for first, last in ((b"", USED), (USED + b"\xff", b"\xff")):
        above: Labelled = (first, b"")
        while pairs := backend.find(above, last, PAIRS_AT_ONCE):
            there.add(pair for pair in pairs if pair[0] != USED)
            above = pairs[-1]
    if (made.pairs, made.digest) == (there.pairs, there.digest):
        return ""
    return f"its sessions make {made.pairs} pairs of the index, and it holds {there.pairs}, not the same"


class _Sum:
    """Pairs of the index, counted and summed in any order."""

    def __init__(self) -> None:
        self.pairs = self.digest = 0

    def add(self, pairs: Iterable[Labelled]) -> None:
        for term, key in pairs:
            self.pairs += 1
            self.digest = (self.digest + hash_of(term, key)) & MASK64


def _look_up(backend: Backend, key: bytes) -> Record | None:
    try:
        return backend.get(key)
    except backend.engine_errors as error:
        raise unreadable(error) from error


def write_line(out: BinaryIO, line: Line) -> None:
    out.write(msgspec.json.encode(line) + b"\n")
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
