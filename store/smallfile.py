"""Small files that are replaced as a whole: identity, promise, slot, poison, state marker.

Owns their common frame: a magic of the file's own, a version, a checked MessagePack body. Decoders are
bounded and say what is wrong. Little-endian:

    offset  size  field
    0       8     magic
    8       2     format version
    10      2     reserved (0)
    12      4     body length, bytes
    16      8     xxh3_64(body; seed = xxh3_64(bytes 0..16))
    24      ...   body
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TypeVar

import msgspec
import xxhash

from .errors import DECODE_ERRORS, CorruptError, ForeignError, FormatVersionError
from .files import publish, read_small

HEADER = struct.Struct("<8sHHIQ")
HEADER_BYTES = 24
SIZE_BYTES_MAX = 64 << 10
assert HEADER.size == HEADER_BYTES

T = TypeVar("T", bound=msgspec.Struct)


def encode_small(magic: bytes, version: int, value: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(value)
    head = HEADER.pack(magic, version, 0, len(body), 0)[:16]
    check = xxhash.xxh3_64_intdigest(body, xxhash.xxh3_64_intdigest(head))
    return head + struct.pack("<Q", check) + body


def decode_small(data: bytes, magic: bytes, version: int, kind: type[T], *, path: str | Path) -> T:
    """The value in `data`.

    Raises ForeignError for another kind of file, FormatVersionError for a newer one, CorruptError for
    a damaged or cut one.
    """
    what = magic.decode("ascii", "replace").rstrip("0123456789")
    if len(data) < HEADER_BYTES or len(data) > SIZE_BYTES_MAX:
        raise CorruptError(f"a {what} file has an impossible length", path=path, offset=len(data))
    found, found_version, reserved, size, check = HEADER.unpack_from(data)
    body = data[HEADER_BYTES:]
    good = xxhash.xxh3_64_intdigest(body, xxhash.xxh3_64_intdigest(data[:16])) == check
    if good and found != magic:
        raise ForeignError(f"not a {what} file", path=path, offset=0)
    if good and found_version > version:
        raise FormatVersionError(
            f"format {found_version} is newer than {version}, the newest known here",
            path=path,
            hint="Use the version of perdure that wrote it, or a later one.",
        )
    if not good or reserved or size != len(body) or found_version != version:
        raise CorruptError(f"a {what} file does not match its check", path=path, offset=0)
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except DECODE_ERRORS as error:
        raise CorruptError(f"a {what} file does not decode", path=path, offset=HEADER_BYTES) from error


def publish_small(path: Path, magic: bytes, version: int, value: msgspec.Struct) -> None:
    """Replace the file durably (see files.publish)."""
    publish(path, encode_small(magic, version, value))


def read_small_file(path: Path, magic: bytes, version: int, kind: type[T]) -> T | None:
    """The value in a file, None if there is no such file; errors as decode_small."""
    data = read_small(path, SIZE_BYTES_MAX)
    return None if data is None else decode_small(data, magic, version, kind, path=path)
