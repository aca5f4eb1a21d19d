"""Messages of a rejoin: what a primary and a replica whose histories differ say to each other.

Owns their fields, and the bytes of keys and records in their payloads; what they mean is rejoin's. Pure.
A replica pulls: after KeysOffer it asks for frames (FetchAsk) and for records (KeysAsk), one at a time, and
ends with another ShipWelcome.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from ..store.errors import WireError
from ..store.event import KEY_BYTES_MAX, VALUE_BYTES_MAX
from ..store.fold import HASH_BYTES, RECORD_BYTES_MIN
from .wire_types import Count, WirePosition, WireState

KEYS_AT_ONCE: Final = 4096
KEY_BYTES_AT_ONCE: Final = 256 << 10
SEGMENTS_TOLD: Final = 1024
RECORD_BYTES_AT_ONCE: Final = 2 << 20
"""A reply is closed behind the record that passes this; so it has at least one."""
RECORD_BYTES_MAX: Final = VALUE_BYTES_MAX + HASH_BYTES
_KEY_HEAD: Final = struct.Struct("<H")
_RECORD_HEAD: Final = struct.Struct("<I")


class Parted(msgspec.Struct, frozen=True):
    """The replica has another history, and nothing is taken from it now: why not. The connection ends."""

    why: str
    is_fault: bool
    """It must not become primary before a person has looked: two primaries have committed."""


class KeysOffer(msgspec.Struct, frozen=True):
    """The replica's state holds what stands behind the fork; here is one at `at` to take those keys from."""

    fork: WirePosition
    at: WireState


class KeysAsk(msgspec.Struct, frozen=True):
    """What are the records of the keys in the payload, at the offered position?"""

    count: Count


class KeysReply(msgspec.Struct, frozen=True):
    """The records of the first `count` keys that were asked for, in the payload."""

    count: Count


class FactsAsk(msgspec.Struct, frozen=True):
    """What does a replica's way back depend on, on this node's side?"""


class FactsReply(msgspec.Struct, frozen=True):
    """See PrimaryFacts: of the newest epochs and segments, as many as go into a message."""

    node: str
    is_primary: bool
    end: WirePosition
    epochs: list[tuple[Count, Count]]
    oldest_lsn: Count
    segments: list[tuple[Count, Count]]
    committed_lsn: Count
    losses: list[tuple[Count, Count]]
    snapshot_lsn: Count


RejoinMessage: TypeAlias = Parted | KeysOffer | KeysAsk | KeysReply | FactsAsk | FactsReply

KINDS: Final[dict[int, type]] = {
    14: Parted,
    15: KeysOffer,
    16: KeysReply,
    17: FactsReply,
    34: KeysAsk,
    35: FactsAsk,
}
WITH_PAYLOAD: Final[frozenset[int]] = frozenset({16, 34})


def pack_keys(keys: Iterable[bytes]) -> bytes:
    """Each key behind its length (u16)."""
    return b"".join(_KEY_HEAD.pack(len(key)) + key for key in keys)


def unpack_keys(payload: bytes, count: int) -> list[bytes]:
    """What pack_keys was given. Raises WireError unless the payload is exactly `count` keys."""
    if count > KEYS_AT_ONCE:
        raise WireError(f"{count} keys are asked for at once")
    keys: list[bytes] = []
    at = 0
    for _ in range(count):
        if at + _KEY_HEAD.size > len(payload):
            raise WireError("a list of keys is cut short")
        size = _KEY_HEAD.unpack_from(payload, at)[0]
        at += _KEY_HEAD.size
        if not 0 < size <= KEY_BYTES_MAX or at + size > len(payload):
            raise WireError("a list of keys holds what is none")
        keys.append(payload[at : at + size])
        at += size
    if at != len(payload):
        raise WireError("a list of keys has bytes behind its last one")
    return keys


def pack_records(records: Sequence[bytes | None]) -> bytes:
    """Each record behind its length (u32), 0 for a key that has none."""
    return b"".join(_RECORD_HEAD.pack(len(record or b"")) + (record or b"") for record in records)


def unpack_records(payload: bytes, count: int) -> list[bytes | None]:
    """What pack_records was given. Raises WireError unless the payload is exactly `count` records."""
    if count > KEYS_AT_ONCE:
        raise WireError(f"{count} records come at once")
    records: list[bytes | None] = []
    at = 0
    for _ in range(count):
        if at + _RECORD_HEAD.size > len(payload):
            raise WireError("a list of records is cut short")
        size = _RECORD_HEAD.unpack_from(payload, at)[0]
        at += _RECORD_HEAD.size
        if at + size > len(payload) or (size and not RECORD_BYTES_MIN <= size <= RECORD_BYTES_MAX):
            raise WireError("a list of records holds what is none")
        records.append(payload[at : at + size] if size else None)
        at += size
    if at != len(payload):
        raise WireError("a list of records has bytes behind its last one")
    return records
