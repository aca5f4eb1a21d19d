"""Control events: what EPOCH_START and CONFIG say. Owns the bytes of their values.

Every segment begins with a frame whose last event is a CONFIG, so that the newest voter set is found
at the start of the tail segment; a new epoch's first frame is EPOCH_START, CONFIG.
"""

from __future__ import annotations

import msgspec

from .errors import DECODE_ERRORS, CorruptError
from .event import NO_OPERATION, Event, Kind, Reason, encode_event


class EpochStart(msgspec.Struct, frozen=True):
    """A reign begins."""

    node: str
    reason: str = ""


class Config(msgspec.Struct, frozen=True):
    """Who votes, and how many replicas must hold a frame before it is committed."""

    voters: tuple[str, ...] = ()
    """Names of all nodes that vote, the primary included; empty for a store on its own."""
    sync_replicas: int = 0
    """How many replicas (voters besides the primary) must have a frame on disk before it is committed."""


ALONE = Config()


def control_payload(epoch_start: EpochStart | None, config: Config) -> tuple[bytes, int]:
    """(payload, event count) of a segment's first frame."""
    payload = encode_event(Kind.CONFIG, Reason.CONTROL, NO_OPERATION, b"", msgspec.msgpack.encode(config))
    if epoch_start is None:
        return payload, 1
    start = msgspec.msgpack.encode(epoch_start)
    return encode_event(Kind.EPOCH_START, Reason.CONTROL, NO_OPERATION, b"", start) + payload, 2


def config_of(events: list[Event]) -> Config | None:
    """The last CONFIG among events, None if there is none. CorruptError if it does not decode."""
    for kind, _reason, _operation_id, _key, value in reversed(events):
        if kind == Kind.CONFIG:
            try:
                return msgspec.msgpack.decode(value, type=Config)
            except DECODE_ERRORS as error:
                raise CorruptError("a CONFIG event does not decode") from error
    return None


def epoch_start_of(events: list[Event]) -> EpochStart | None:
    """The EPOCH_START among events, None if there is none. CorruptError if it does not decode."""
    for kind, _reason, _operation_id, _key, value in events:
        if kind == Kind.EPOCH_START:
            try:
                return msgspec.msgpack.decode(value, type=EpochStart)
            except DECODE_ERRORS as error:
                raise CorruptError("an EPOCH_START event does not decode") from error
    return None


def starts_segment(events_head: bytes) -> bool:
    """Does a payload begin with a control event, so that its frame opens a segment?"""
    return bool(events_head) and events_head[0] in (Kind.EPOCH_START, Kind.CONFIG)
