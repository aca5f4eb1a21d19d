"""The child that reads a state's copy: `python -m perdure.recovery.image_child BACKEND DIRECTORY`.

Owns the writing side of the pipe that `image` describes. It may crash: its parent expects that.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from ..store.backends import open_backend
from ..store.errors import FormatError, PerdureError
from ..store.fold import unreadable
from ..store.ports import Backend, Record, Scan
from .image import END, ENTRY, KEY_BYTES_LIMIT, RECORD_BYTES_LIMIT, Line

FLUSH_BYTES = 256 << 10


def main(backend_name: str, directory: str) -> None:
    """Write where the state stands, every record of it, then how that ended."""
    out = sys.stdout.buffer
    try:
        backend = open_backend(backend_name, Path(directory))
        scan = backend.scan()
        at = scan.position
        line = Line((at.epoch, at.lsn, at.chain, at.digest, at.session_count))
        write_line(out, line)
        write_records(out, scan, backend)
    except PerdureError as error:
        line = Line(error=error.message, is_damage=isinstance(error, FormatError))
    write_line(out, line)


def write_records(out: BinaryIO, scan: Scan, backend: Backend) -> None:
    """Every record of the scan; each is looked up by its key, too.

    Readers find a session through the tree's upper pages, which a scan passes by: damage there hides
    sessions that a scan still sees.
    """
    parts: list[bytes] = []
    size = hidden = 0
    backend.refresh()
    try:
        for key, record in scan:
            if not 0 < len(key) <= KEY_BYTES_LIMIT or len(record) > RECORD_BYTES_LIMIT:
                raise FormatError(f"a record with a key of {len(key)} and a value of {len(record)} bytes")
            hidden += _look_up(backend, key) != record
            parts.append(ENTRY.pack(len(key), len(record)) + key + record)
            size += len(parts[-1])
            if size >= FLUSH_BYTES:
                out.write(b"".join(parts))
                parts, size = [], 0
    finally:
        out.write(b"".join(parts) + END)
    if hidden:
        raise FormatError(f"{hidden} sessions are there, but are not found by their ids")


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
