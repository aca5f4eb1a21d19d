"""Stored sessions whose metadata is compressed or sealed: their bytes. Pure, but for the cipher it is given.

Owns the flags of a stored session and what stands behind its labels when they are set. The header with
its times, and the labels, stay readable: expiry, sweeping, touching and shipping need no key. Behind the
labels of a sealed session (flag 2), little-endian, stands the seal, then the ciphertext and its tag:

    offset  size  field
    0       4     key id
    4       16    salt
    20      4     counter
    24      ...   ciphertext, tag (16)

What is sealed is the metadata, compressed or not. Where ids are hidden (flag 4) this stands before it,
and the labels of the header are keyed hashes:

    offset  size  field
    0       2     id length, bytes
    2       1     home node length, bytes
    3       2     group length, bytes
    5       2     tags length, bytes
    7       ...   id, home node, group, tags

Compressed metadata (flag 1) are their length and one zstd frame:

    offset  size  field
    0       4     length, bytes
    4       ...   frame

Bound to the ciphertext, so that none of it can be exchanged: the header but for the last access (which a
touch changes without a key), the labels, and the key that the session is stored under.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

import msgspec

from .errors import DECODE_ERRORS, CorruptError
from .event import VALUE_BYTES_MAX
from .session import (
    ACCESSED_OFFSET,
    FORMAT,
    HEADER_BYTES,
    PRIORITY_MAX,
    TIMEOUT_OFFSET,
    pack_header,
    unpack_header,
)
from .zstd import compress, decompress

COMPRESSED: Final = 1
SEALED: Final = 2
HIDDEN: Final = 4
KNOWN_FLAGS: Final = frozenset((0, COMPRESSED, SEALED, SEALED | COMPRESSED, SEALED | HIDDEN, 7))
"""Ids are hidden in sealed sessions only."""

SEAL = struct.Struct("<I16sI")
SEAL_BYTES: Final = 24
SALT_BYTES: Final = 16
TAG_BYTES: Final = 16
NONCE_BYTES: Final = 12
COUNTER_LIMIT: Final = 1 << 32
WITHIN = struct.Struct("<HBHH")
WITHIN_BYTES: Final = 7
SIZE = struct.Struct("<I")
SIZE_BYTES: Final = 4
NO_METADATA: Final = b"\x80"
assert SEAL.size == SEAL_BYTES and WITHIN.size == WITHIN_BYTES and SIZE.size == SIZE_BYTES


class Cipher(Protocol):
    """An AEAD under one subkey: AES-256-GCM or ChaCha20-Poly1305."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class Hidden(msgspec.Struct, frozen=True):
    """What a session with a hidden id keeps inside its ciphertext: id and labels, as they are stored."""

    id: bytes
    labels: bytes
    home_bytes: int
    group_bytes: int
    tags_bytes: int


def labels_end(stored: bytes) -> int:
    """Where the labels of a stored session end, bytes. Raises CorruptError for what is no stored session."""
    try:
        fields = unpack_header(stored)
    except struct.error as error:
        raise CorruptError("a stored session is cut short") from error
    end: int = HEADER_BYTES + fields[3] + fields[4] + fields[5]
    if fields[0] != FORMAT or fields[1] not in KNOWN_FLAGS or fields[2] > PRIORITY_MAX or end > len(stored):
        raise CorruptError(
            "a stored session has a format that this version does not know",
            hint="A newer perdure wrote it: read it with that one.",
        )
    return end


def with_flags(head: bytes, flags: int) -> bytes:
    return head[:1] + bytes((flags,)) + head[2:]


def outline(stored: bytes) -> bytes:
    """Header and labels of a stored session, whatever its flags, with empty metadata.

    It needs no key. Raises CorruptError.
    """
    return with_flags(stored[: labels_end(stored)], 0) + NO_METADATA


def pack_metadata(data: bytes) -> bytes:
    """Compressed metadata, as they are stored."""
    return SIZE.pack(len(data)) + compress(data)


def unpack_metadata(packed: bytes) -> bytes:
    """What pack_metadata() packed; memory stays within the largest session. Raises CorruptError."""
    if len(packed) < SIZE_BYTES:
        raise CorruptError("compressed metadata are cut short")
    size: int = SIZE.unpack_from(packed)[0]
    if size > VALUE_BYTES_MAX:
        raise CorruptError(
            f"{size} bytes of metadata are announced, more than {VALUE_BYTES_MAX} are never stored"
        )
    return decompress(memoryview(packed)[SIZE_BYTES:], size)


def decompressed(stored: bytes) -> bytes:
    """The plain form of a stored session that is not sealed. Raises CorruptError."""
    return with_metadata_unpacked(stored, labels_end(stored))


def with_metadata_unpacked(stored: bytes, end: int) -> bytes:
    """As decompressed(), with labels known to end at `end`."""
    if not stored[1] & COMPRESSED:
        return stored
    return with_flags(stored[:end], 0) + unpack_metadata(stored[end:])


def is_sealed(stored: bytes) -> bool:
    """Is this stored session sealed? Bytes that are none are not."""
    return len(stored) >= HEADER_BYTES and bool(stored[1] & SEALED)


def in_clear(stored: bytes) -> bytes:
    """What can be read of a stored session without any key, as a plain one: a sealed one has no metadata.

    Raises CorruptError.
    """
    return outline(stored) if is_sealed(stored) else decompressed(stored)


def seal_of(stored: bytes) -> tuple[int, bytes, int]:
    """(key id, salt, counter) of a sealed session. Raises CorruptError."""
    return seal_at(stored, labels_end(stored))


def seal_at(stored: bytes, end: int) -> tuple[int, bytes, int]:
    """As seal_of(), with labels known to end at `end`."""
    if len(stored) < end + SEAL_BYTES + TAG_BYTES:
        raise CorruptError("a sealed session is cut short")
    seal: tuple[int, bytes, int] = SEAL.unpack_from(stored, end)
    return seal


def associated(head: bytes, key: bytes) -> bytes:
    """What is bound to the ciphertext: header but for the last access, labels, the session's key."""
    return head[:ACCESSED_OFFSET] + head[TIMEOUT_OFFSET:] + key


def nonce_of(counter: int) -> bytes:
    return counter.to_bytes(NONCE_BYTES, "little")


def sealed(
    head: bytes, key: bytes, body: bytes, cipher: Cipher, key_id: int, salt: bytes, counter: int
) -> bytes:
    """A sealed session: `head` is header (its flags set) and labels, `body` what is to be encrypted."""
    return (
        head
        + SEAL.pack(key_id, salt, counter)
        + cipher.encrypt(nonce_of(counter), body, associated(head, key))
    )


def unsealed(stored: bytes, end: int, key: bytes, cipher: Cipher, counter: int) -> bytes:
    """What was encrypted behind the labels, which end at `end`. Raises what the cipher raises."""
    return cipher.decrypt(nonce_of(counter), stored[end + SEAL_BYTES :], associated(stored[:end], key))


def pack_hidden(id: bytes, head: bytes) -> bytes:
    """What stands before the metadata where ids are hidden, for a session with this id and plain head."""
    _, _, _, home, group, tags, *_ = unpack_header(head)
    return WITHIN.pack(len(id), home, group, tags) + id + head[HEADER_BYTES:]


def unpack_hidden(body: bytes) -> tuple[Hidden, bytes]:
    """What pack_hidden() packed, and what follows it. Raises CorruptError."""
    try:
        id_bytes, home, group, tags = WITHIN.unpack_from(body)
    except struct.error as error:
        raise CorruptError("a session with a hidden id is cut short") from error
    labels_at = WITHIN_BYTES + id_bytes
    end = labels_at + home + group + tags
    if end > len(body):
        raise CorruptError("a session with a hidden id is cut short")
    return Hidden(body[WITHIN_BYTES:labels_at], body[labels_at:end], home, group, tags), body[end:]


def with_labels(head: bytes, labels: bytes, home_bytes: int, group_bytes: int, tags_bytes: int) -> bytes:
    """Header and labels, with other labels."""
    format, flags, priority, _, _, _, *rest = unpack_header(head)
    return pack_header(format, flags, priority, home_bytes, group_bytes, tags_bytes, *rest) + labels


def revealed(head: bytes, hidden: Hidden) -> bytes:
    """A header with the labels that were hidden, its flags cleared."""
    bare = with_flags(head, 0)
    if not hidden.labels:
        return bare
    return with_labels(bare, hidden.labels, hidden.home_bytes, hidden.group_bytes, hidden.tags_bytes)


def text_of(id: bytes) -> str:
    """A hidden id as text. Raises CorruptError."""
    try:
        return id.decode()
    except DECODE_ERRORS as error:
        raise CorruptError("the hidden id of a session is not text") from error
