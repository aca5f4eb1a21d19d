"""The audit file: a line for everything that was done to a node's sessions outside their log.

Owns the file `audit.log` in a store's directory: JSON lines, each with its time, what was done and to what.
It is appended to and synced before what it speaks of is done, so that it may say what a crash then kept
from being done, and never keeps silent. At FILE_BYTES_MAX it becomes `audit.log.1`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.files import FILE_MODE, translated

FILE_BYTES_MAX: Final = 8 << 20


class AuditLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was done."""

    time: str
    """ISO 8601, UTC."""
    node: str
    action: str
    """reconciled (one record), rebuilt (the whole state), began, ended."""
    what: str
    lsn: int = 0
    """Where the state stood."""
    key: str = ""
    source: str = ""
    """The node that the right record came from."""
    before: str = ""
    """The record's hash before, empty if there was none."""
    after: str = ""


def append_audit(store: Path, lines: Iterable[AuditLine]) -> None:
    """Add lines, durably. Raises StorageError."""
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    path = store / names.AUDIT
    with translated("cannot write the audit file", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            if os.fstat(descriptor).st_size + len(data) > FILE_BYTES_MAX:
                os.replace(path, store / names.AUDIT_BEFORE)
                os.close(descriptor)
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def read_audit(store: Path, limit: int = 1000) -> list[AuditLine]:
    """The newest lines, oldest first; a line that a crash cut short is left out. Raises StorageError."""
    path = store / names.AUDIT
    with translated("cannot read the audit file", path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
    found: list[AuditLine] = []
    for line in data.splitlines()[-limit:]:
        try:
            found.append(msgspec.json.decode(line, type=AuditLine))
        except msgspec.DecodeError:
            continue
    return found


def last_recovery(store: Path) -> AuditLine | None:
    """The newest line that says how a repair ended. Raises StorageError."""
    ends = [line for line in read_audit(store) if line.action in ("ended", "rebuilt")]
    return ends[-1] if ends else None


def now_text() -> str:
    """The wall clock, as the audit file writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
