"""Sessions as JSON lines: what a line of an export looks like, and how it becomes a session again.

Owns the form of the lines. The first is the head, the last the end, each of the others one session:

    {"perdure": "export", "format": 1, "cluster_id": ..., "node": ..., "epoch": ..., "lsn": ..., ...}
    {"id": ..., "version": ..., "created_at": ..., "last_accessed": ..., ..., "metadata": {...}}
    {"perdure": "end", "sessions": COUNT, "expired": COUNT, "digest": 16 HEXADECIMAL DIGITS}

Times are milliseconds since 1970. What JSON has no value for stands as an object with one key: `$bytes`
(base64), `$datetime` (ISO 8601), `$float` (nan, inf, -inf, or the bits of another nan) and `$map` (a map
whose one key begins with a dollar sign). Metadata that this would not give back to the byte stand as
`$msgpack`.

The digest is the sum modulo 2^64 of xxh3_64(plain stored session; seed = xxh3_64(id)): that of the state,
where nothing is sealed or left out, and the same for a store with other keys or another compression.
Invariant: a session that went through a line has the same stored bytes.
"""

from __future__ import annotations

import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, cast

import msgspec

from .errors import DECODE_ERRORS, FormatVersionError, PerdureError, UsageError
from .session import (
    NEVER_MS,
    TIMEOUT_OFFSET,
    WINDOWED,
    Priority,
    Session,
    check_id,
    check_timeout,
    check_window,
    encode_checked,
    encode_session,
    stored_bytes,
    with_window,
)

FORMAT: Final = 1
LINE_BYTES_MAX: Final = 64 << 20
VERSION_MAX: Final = (1 << 63) - 1
_EMPTY: Final = b"\x80"
"""No metadata, as MessagePack."""
_DOUBLE = struct.Struct(">d")
_LIFETIME = struct.Struct("<Q")
_NAN: Final = _DOUBLE.pack(math.nan)
_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Head(msgspec.Struct, frozen=True, tag_field="perdure", tag="export"):
    """An export's first line: what it is of."""

    format: int
    cluster_id: str
    node: str
    epoch: int
    lsn: int
    exported_at: int
    sessions: int
    """In the whole state, what is left out included."""
    filter: dict[str, str] = {}


class End(msgspec.Struct, frozen=True, tag_field="perdure", tag="end"):
    """An export's last line: what was in it."""

    sessions: int
    expired: int
    """Left out, because they had expired."""
    digest: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One session."""

    id: str
    version: int
    created_at: int
    last_accessed: int
    timeout_ms: int | None
    refresh_window_ms: int | None
    """None for the default formula."""
    max_expires_at: int | None
    metadata: Any
    priority: str = "normal"
    home_node: str = ""
    group: str = ""
    tags: list[str] = []


_decode_line = msgspec.json.Decoder(_Line).decode
_frames: msgspec.json.Decoder[Head | End] = msgspec.json.Decoder(Head | End)
_decode_frame = _frames.decode
encode_line = msgspec.json.encode


def write_line(session: Session) -> bytes:
    """A session as one line, without its end. Raises CorruptError if its bytes are none of a session."""
    value = stored_bytes(session)
    data = value[session.check() :]
    line = _Line(
        id=session.id,
        version=session.version,
        created_at=session.created_at,
        last_accessed=session.last_accessed,
        timeout_ms=session.timeout_ms,
        refresh_window_ms=_own_window(session),
        max_expires_at=session.max_expires_at,
        metadata=_exact(session.metadata, data),
        priority=session.priority.name.lower(),
        home_node=session.home_node,
        group=session.group,
        tags=list(session.tags),
    )
    return encode_line(line)


def read_line(text: bytes) -> tuple[str, bytes]:
    """(id, plain stored session) of a line. Raises UsageError for a line that is none of a session."""
    try:
        line = _decode_line(text)
        raw = None
        metadata = line.metadata
        if isinstance(metadata, dict) and len(metadata) == 1 and "$msgpack" in metadata:
            raw = b64decode(metadata["$msgpack"], validate=True)
            _decode_map(raw)
            metadata = {}
        else:
            metadata = from_json(metadata)
    except (*DECODE_ERRORS, msgspec.ValidationError, TypeError, ValueError) as error:
        message = error.message if isinstance(error, PerdureError) else str(error)
        raise UsageError(f"not a session: {message}") from error
    fields = {name: getattr(line, name) for name in line.__struct_fields__} | {"metadata": metadata}
    id, value = stored_of(fields)
    return id, value if raw is None else value[: -len(_EMPTY)] + raw


def read_frame(text: bytes) -> Head | End | None:
    """The head or end that a line is, None if it is neither. Raises FormatVersionError for a newer format."""
    try:
        found = _decode_frame(text)
    except (*DECODE_ERRORS, msgspec.ValidationError):
        return None
    if isinstance(found, Head) and found.format > FORMAT:
        raise FormatVersionError(
            f"format {found.format} is newer than {FORMAT}, the newest known here",
            hint="Use the version of perdure that wrote it, or a later one.",
        )
    return found


def stored_of(fields: Mapping[str, Any]) -> tuple[str, bytes]:
    """(id, plain stored session) of fields by their names in a line, metadata as Python values.

    Times are ms since 1970. Raises UsageError, InvalidIdError or MetadataError for what cannot be stored.
    """
    id = fields["id"]
    check_id(id)
    cap, tags = fields["max_expires_at"], fields["tags"]
    if not isinstance(tags, (list, tuple, set, frozenset)):
        raise UsageError(f"tags are a list of texts, not {type(tags).__name__}")
    return id, encode_session(
        version=_bounded(fields, "version", 1),
        created_ms=_bounded(fields, "created_at", 0),
        accessed_ms=_bounded(fields, "last_accessed", 0),
        timeout_ms=with_window(
            check_timeout(fields["timeout_ms"]), check_window(fields["refresh_window_ms"])
        ),
        cap_ms=0 if cap is None else _bounded(fields, "max_expires_at", 1),
        metadata=fields["metadata"],
        priority=priority_of(fields["priority"]),
        home_node=fields["home_node"],
        group=fields["group"],
        tags=tuple(cast("Iterable[str]", tags)),
    )


def priority_of(value: object) -> int:
    """A priority by its name or number. Raises UsageError."""
    if isinstance(value, str) and value.upper() in Priority.__members__:
        return int(Priority[value.upper()])
    if isinstance(value, int) and not isinstance(value, bool) and value in tuple(Priority):
        return value
    raise UsageError(f"a priority is one of {', '.join(Priority.__members__).lower()}, not {value!r}")


def to_json(value: Any) -> Any:
    """A value of metadata as JSON can hold it (see above). Raises TypeError for what metadata cannot hold."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": _strange_float(value)}
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).decode()}
    if isinstance(value, datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return _map_to_json(value)
    raise TypeError(f"no metadata hold {type(value).__name__}")


def from_json(value: Any) -> Any:
    """The value that to_json() made of it. Raises ValueError or TypeError for a tag that holds nothing."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    table = cast("dict[str, Any]", value)
    if len(table) == 1:
        (name, inner), *_ = table.items()
        if name.startswith("$"):
            return _untagged(name, inner)
    return {name: from_json(inner) for name, inner in table.items()}


def _map_to_json(table: dict[str, Any]) -> dict[str, Any]:
    plain = {key: to_json(inner) for key, inner in table.items()}
    if len(plain) == 1 and next(iter(plain)).startswith("$"):
        return {"$map": plain}
    return plain


def _untagged(name: str, inner: Any) -> Any:
    match name:
        case "$bytes":
            return b64decode(inner, validate=True)
        case "$datetime":
            return datetime.fromisoformat(inner)
        case "$float" if inner in ("nan", "inf", "-inf"):
            return float(inner)
        case "$float" if isinstance(inner, str) and len(inner) == 16:
            (found,) = _DOUBLE.unpack(bytes.fromhex(inner))
            return found
        case "$map" if isinstance(inner, dict):
            return {key: from_json(item) for key, item in cast("dict[str, Any]", inner).items()}
        case _:
            raise ValueError(f"there is no tag {name!r} for {inner!r}")


def _strange_float(value: float) -> str:
    """inf, -inf and nan by name; another kind of nan by its bits."""
    bits = _DOUBLE.pack(value)
    return bits.hex() if math.isnan(value) and bits != _NAN else str(value)


def _own_window(session: Session) -> int | None:
    """The refresh window that a session was given, None for the default formula."""
    (word,) = _LIFETIME.unpack_from(stored_bytes(session), TIMEOUT_OFFSET)
    return session.refresh_window_ms if word >= WINDOWED else None


def _exact(metadata: dict[str, Any], data: bytes) -> Any:
    """Metadata for a line; as MessagePack where they would not come back to the byte."""
    try:
        if encode_checked(metadata) == data:
            return to_json(metadata)
    except (PerdureError, TypeError, RecursionError):
        pass
    return {"$msgpack": b64encode(data).decode()}


def _bounded(fields: Mapping[str, Any], name: str, least: int) -> int:
    value = fields[name]
    most = VERSION_MAX if name == "version" else NEVER_MS - 1
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{name} is a whole number from {least} to {most}, not {value!r}")
    return value
