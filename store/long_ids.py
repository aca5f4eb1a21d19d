"""Ids that are longer than an LMDB key may be. Pure.

Owns the key that such an id is stored under: its first 479 bytes, so that the order of ids is kept but
among those that begin alike, and a hash of all of it; and the value: the id (its length in 2 bytes
before it) and the record.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final

from .errors import CorruptError

ENGINE_KEY_BYTES_MAX: Final = 511
PREFIX_BYTES: Final = 479
HASH_BYTES: Final = 32
BEHIND_ALL_HASHES: Final = b"\xff" * HASH_BYTES
assert PREFIX_BYTES + HASH_BYTES == ENGINE_KEY_BYTES_MAX
_LENGTH = struct.Struct("<H")


def engine_key(key: bytes) -> bytes:
    """What the record of a long id is stored under."""
    return key[:PREFIX_BYTES] + blake2b(key, digest_size=HASH_BYTES).digest()


def pack_long(key: bytes, record: bytes) -> bytes:
    return _LENGTH.pack(len(key)) + key + record


def unpack_long(value: bytes, stored_under: bytes) -> tuple[bytes, bytes]:
    """(id, record). Raises CorruptError if the value is cut short or belongs to another id."""
    if len(value) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(value)[0]
        key = value[_LENGTH.size : end]
        if end <= len(value) and engine_key(key) == stored_under:
            return key, value[end:]
    raise CorruptError("the entry of a long id is damaged", hint="Rebuild the state from snapshot and log.")
