"""What a file holds, with its zeros at the end kept as a number: sparse files may claim gigabytes.

Owns the representation of file contents in traces and images. Invariant: never holds more than
CONTENT_BYTES_MAX; a file that really has more cannot be explored, and says so.
"""

from __future__ import annotations

import os
from pathlib import Path

CONTENT_BYTES_MAX = 64 << 20


class ContentTooLargeError(Exception):
    """A file has more data than an image may hold."""


class Content:
    """`data`, then zeros up to `size`. Changed in place; `copy` before a change if it is shared."""

    __slots__ = ("data", "size")

    def __init__(self, data: bytes | bytearray = b"", size: int | None = None) -> None:
        self.data = bytearray(data)
        self.size = len(data) if size is None else size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Content):
            return NotImplemented
        return self.size == other.size and self.data.rstrip(b"\0") == other.data.rstrip(b"\0")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Content({len(self.data)} B of {self.size})"

    def copy(self) -> Content:
        return Content(self.data, self.size)

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; a gap before it is zeros. Raises ContentTooLargeError."""
        have = self.data
        if len(have) < offset:
            if offset > CONTENT_BYTES_MAX:
                raise ContentTooLargeError(f"{offset} bytes; an image holds {CONTENT_BYTES_MAX} of a file")
            have.extend(bytes(offset - len(have)))
        have[offset : offset + len(data)] = data
        self.size = max(self.size, len(have))

    def resize(self, size: int) -> None:
        """As ftruncate."""
        del self.data[size:]
        self.size = size

    def grow(self, size: int) -> None:
        """Make it at least so long."""
        self.size = max(self.size, size)

    def part(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start`."""
        size = max(0, min(size, self.size - start))
        return bytes(self.data[start : start + size]).ljust(size, b"\0")

    def whole(self) -> bytes:
        """All of it. Raises ContentTooLargeError."""
        if self.size > CONTENT_BYTES_MAX:
            raise ContentTooLargeError(f"{self.size} bytes; an image holds {CONTENT_BYTES_MAX} of a file")
        return bytes(self.data).ljust(self.size, b"\0")

    def save(self, path: str) -> None:
        """Write it to a new file, sparse at its end."""
        with open(path, "wb", buffering=0) as file:
            file.write(self.data)
            if self.size > len(self.data):
                file.truncate(self.size)

    @classmethod
    def load(cls, path: Path) -> Content:
        """Read a file without its holes. Raises ContentTooLargeError."""
        found = cls()
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            at = 0
            while at < size:
                try:
                    start = os.lseek(descriptor, at, os.SEEK_DATA)
                except OSError:
                    break  # nothing but a hole up to the end
                at = os.lseek(descriptor, start, os.SEEK_HOLE)
                if at > CONTENT_BYTES_MAX:
                    raise ContentTooLargeError(f"{path}: data up to {at} B, over {CONTENT_BYTES_MAX}")
                found.write(start, os.pread(descriptor, at - start, start))
            found.grow(size)
        finally:
            os.close(descriptor)
        return found
