"""What a driver of sessions is told to do: one frozen record for each operation.

Owns the records and the one canonical hash of a session's content. Knows neither where operations come
from (an access log, a generator) nor how a store carries them out. Invariant: an operation is complete.
It names its session by a key that its maker chose and, when it writes, the whole content that the session
has afterwards; so the same operation carried out twice leaves the same content.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeAlias

import msgspec
import xxhash

KEY_BYTES_MAX = 64

Content: TypeAlias = dict[str, "int | str | list[str]"]
"""A session's metadata. Always holds `hits`, which grows with each change of one session."""


class Kind(IntEnum):
    """The operations that change what a store holds; the numbers are those of the ledger files."""

    CREATE = 1
    UPDATE = 2
    REGENERATE = 3
    DELETE = 4
    EXPIRE = 5


class Create(msgspec.Struct, frozen=True, gc=False):
    """Put a new session under `key` with this content."""

    key: str
    time_ms: int
    counter: int
    content: Content


class Get(msgspec.Struct, frozen=True, gc=False):
    """Read and refresh; the session must be there and have `counter` hits."""

    key: str
    time_ms: int
    counter: int


class Peek(msgspec.Struct, frozen=True, gc=False):
    """Read without a refresh; the session must be there and have `counter` hits."""

    key: str
    time_ms: int
    counter: int


class Touch(msgspec.Struct, frozen=True, gc=False):
    """Refresh without reading; the session must be there."""

    key: str
    time_ms: int


class Update(msgspec.Struct, frozen=True, gc=False):
    """Read, change and write: the session must end with `counter` hits and this content."""

    key: str
    time_ms: int
    counter: int
    content: Content


class Regenerate(msgspec.Struct, frozen=True, gc=False):
    """Move the session from `key` to `new_key` in one atomic step; this is its content there."""

    key: str
    new_key: str
    time_ms: int
    counter: int
    content: Content


class Delete(msgspec.Struct, frozen=True, gc=False):
    """End the session on request; it must be there and have `counter` hits."""

    key: str
    time_ms: int
    counter: int


class Expire(msgspec.Struct, frozen=True, gc=False):
    """End the session because its idle time passed in the log's own time.

    `time_ms` is the last instant at which it still lived. The session must be there and have `counter` hits.
    """

    key: str
    time_ms: int
    counter: int


Operation: TypeAlias = Create | Get | Peek | Touch | Update | Regenerate | Delete | Expire

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def content_hash(content: Mapping[str, object]) -> int:
    """Return the 64-bit xxh3 of a session's metadata in one canonical form.

    The form is MessagePack with the keys of every map in order, so that it depends on the content alone:
    not on the order in which a back end returns the keys, nor on whether a sequence is a list or a tuple.
    """
    return xxhash.xxh3_64_intdigest(_encode(content))
