"""Sessions: the public value, and the bytes in which one is stored.

Owns the stored session: what a PUT event carries and a back end keeps. Little-endian:

    offset  size  field
    0       1     format (1)
    1       1     flags (0; see sealed)
    2       1     priority
    3       1     home node length, bytes
    4       2     group length, bytes
    6       2     tags length, bytes
    8       8     version
    16      8     created, ms
    24      8     last accessed, ms
    32      8     lifetime word: idle timeout, ms (0: none); from bit 48 on refresh window, ms, plus 1
    40      8     expires at the latest, ms (0: never)
    48      ...   home node, group, tags (MessagePack list), metadata (MessagePack map)

The id is not part of it, so that a rename leaves the bytes as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import IntEnum
from typing import Any, Final

import msgspec

from .errors import DECODE_ERRORS, CorruptError, InvalidIdError, MetadataError, UsageError
from .event import KEY_BYTES_MAX

FORMAT: Final = 1
HEADER = struct.Struct("<BBBBHHQQQQQ")
HEADER_BYTES: Final = 48
VERSION_OFFSET: Final = 8
ACCESSED_OFFSET: Final = 24
TIMEOUT_OFFSET: Final = 32
CAP_OFFSET: Final = 40
ACCESSED = struct.Struct("<Q")
CAP = struct.Struct("<Q")
assert HEADER.size == HEADER_BYTES

NESTING_MAX: Final = 32
NEVER_MS: Final = (1 << 63) - 1
DEFAULT_TIMEOUT_MS: Final = int("3600000")
"""An object of its own: it stands for the store's default_timeout_ms, told by identity."""
TIMEOUT_MS_MAX: Final = 100 * 366 * 86_400_000
REFRESH_WINDOW_MS_MAX: Final = 60_000
WINDOW_SHIFT: Final = 48
WINDOWED: Final = 1 << WINDOW_SHIFT
"""A lifetime word below it has no refresh window of its own: that is a tenth of the timeout, at most
REFRESH_WINDOW_MS_MAX. From it on the bits above say what it is: the window, ms, plus 1."""
_TIMEOUT_MASK: Final = WINDOWED - 1
LABEL_BYTES_MAX: Final = 255
TAGS_BYTES_MAX: Final = 4096

encode_metadata = msgspec.msgpack.Encoder().encode
_decode_metadata = msgspec.msgpack.Decoder(dict[str, Any]).decode
decode_tags = msgspec.msgpack.Decoder(tuple[str, ...]).decode
pack_header = HEADER.pack
unpack_header = HEADER.unpack_from
unpack_lifetime = struct.Struct("<QQQ").unpack_from
unpack_record = struct.Struct("<7Q").unpack_from
"""Of a record (see fold): hash, HEAD word, version, created, last accessed, idle timeout, latest expiry."""
_pack_stamps = struct.Struct("<QQQ").pack
HEAD_MASK: Final = 0xFFFF
"""The part of the HEAD word (the first eight bytes of a stored session) that says how to read it: format
and flags."""
HEAD_LABELS_SHIFT: Final = 24
"""What is above in the HEAD word is the lengths of the labels: 0 if it has none."""
_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes, bytearray, memoryview})
"""Types whose values are stored as they are (the last two come back as bytes)."""
_are_scalars = _SCALARS.issuperset
_MISSING: Final = object()


class Priority(IntEnum):
    """How early a session is recovered."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


PRIORITY_MAX: Final = int(max(Priority))


class Session(msgspec.Struct, eq=False, repr_omit_defaults=True):
    """One session, as it was when it was read. Immutable; what it holds is decoded when first looked at.

    Times are milliseconds since 1970. `merge` and `replace` give a changed copy, for an update
    function to return. A property raises CorruptError, naming the session, if its bytes are none of a
    stored session.
    """

    _id: str
    _value: bytes
    """The stored session; update() gives it its new version and time."""
    _start: int = 0
    """Offset (bytes) of the metadata in it; 0 as long as nobody has looked at its header."""
    _header: tuple[Any, ...] = ()
    _metadata: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        return self._id

    @property
    def priority(self) -> Priority:
        return Priority(self._fields[2])

    @property
    def home_node(self) -> str:
        return self._text(HEADER_BYTES, self._fields[3])

    @property
    def group(self) -> str:
        return self._text(HEADER_BYTES + self._fields[3], self._fields[4])

    @property
    def tags(self) -> tuple[str, ...]:
        size = self._fields[5]
        if not size:
            return ()
        start = HEADER_BYTES + self._fields[3] + self._fields[4]
        try:
            return decode_tags(self._value[start : start + size])
        except DECODE_ERRORS as error:
            raise CorruptError(f"the tags of session {self.id!r} do not decode") from error

    @property
    def version(self) -> int:
        """1 when created; one more with each change, not with each access."""
        version: int = self._fields[6]
        return version

    @property
    def created_at(self) -> int:
        created: int = self._fields[7]
        return created

    @property
    def last_accessed(self) -> int:
        accessed: int = self._fields[8]
        return accessed

    @property
    def timeout_ms(self) -> int | None:
        """Idle timeout; None is infinite."""
        return self._fields[9] & _TIMEOUT_MASK or None

    @property
    def refresh_window_ms(self) -> int | None:
        """By how much later than `expires_at` it is idle for too long, and how much a get may leave
        unwritten; None without an idle timeout.
        """
        timeout, window = split_lifetime(self._fields[9])
        return window if timeout else None

    @property
    def max_expires_at(self) -> int | None:
        """Expires then at the latest, however often it is used; None is never."""
        return self._fields[10] or None

    @property
    def expires_at(self) -> int | None:
        """When it expires if nobody uses it; None is never."""
        deadline = deadline_of(self._fields)
        return None if deadline == NEVER_MS else deadline

    @property
    def metadata(self) -> dict[str, Any]:
        """The application's data. Changing this dict changes nothing that is stored."""
        found = self._metadata
        if found is None:
            start = self._start or self.check()
            try:
                found = self._metadata = _decode_metadata(self._value[start:])
            except DECODE_ERRORS as error:
                raise CorruptError(f"the metadata of session {self.id!r} do not decode") from error
        return found

    @property
    def _fields(self) -> tuple[Any, ...]:
        """The header, decoded and checked once."""
        fields = self._header
        if not fields:
            try:
                fields = unpack_header(self._value)
            except struct.error as error:
                raise CorruptError(f"the stored session {self._id!r} is cut short") from error
            if (
                fields[0] != FORMAT
                or fields[1]
                or fields[2] > PRIORITY_MAX
                or HEADER_BYTES + fields[3] + fields[4] + fields[5] > len(self._value)
            ):
                raise CorruptError(f"the stored session {self._id!r} has an unknown format")
            self._header = fields
        return fields

    def check(self) -> int:
        """Raise CorruptError unless the header is that of a stored session; says where the metadata begin."""
        fields = self._fields
        start: int = HEADER_BYTES + fields[3] + fields[4] + fields[5]
        self._start = start
        return start

    def merge(self, changes: Mapping[str, Any]) -> Session:
        """A copy whose metadata has these keys set."""
        start = self._start or self.check()
        merged = {**self.metadata, **changes}
        return Session(self._id, self._value[:start] + encode_merged(merged, changes), start)

    def replace(
        self,
        *,
        metadata: Mapping[str, Any] | None = None,
        timeout_ms: int | object | None = _MISSING,
        refresh_window_ms: int | object | None = _MISSING,
        priority: Priority | None = None,
        group: str | None = None,
        tags: Iterable[str] | None = None,
        home_node: str | None = None,
    ) -> Session:
        """A copy with other fields. id and created_at are fixed.

        Another timeout leaves the refresh window as it is; a window of None is that of the default formula.
        Raises MetadataError or UsageError for what cannot be stored.
        """
        value = encode_session(
            version=self._fields[6],
            created_ms=self._fields[7],
            accessed_ms=self._fields[8],
            timeout_ms=_changed_lifetime(self._fields[9], timeout_ms, refresh_window_ms),
            cap_ms=self._fields[10],
            priority=self._fields[2] if priority is None else int(Priority(priority)),
            home_node=self.home_node if home_node is None else home_node,
            group=self.group if group is None else group,
            tags=self.tags if tags is None else tags_of(tags),
            metadata=self.metadata if metadata is None else metadata,
        )
        return Session(self.id, value)

    def _text(self, start: int, size: int) -> str:
        try:
            return self._value[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise CorruptError(f"a label of session {self.id!r} is not text") from error

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, for output."""
        return {
            "id": self.id,
            "created_at": self.created_at,
            "last_accessed": self.last_accessed,
            "timeout_ms": self.timeout_ms,
            "refresh_window_ms": self.refresh_window_ms,
            "expires_at": self.expires_at,
            "max_expires_at": self.max_expires_at,
            "version": self.version,
            "home_node": self.home_node,
            "priority": self.priority.name.lower(),
            "group": self.group,
            "tags": list(self.tags),
            "metadata": self.metadata,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Session) and self.id == other.id and self._value == other._value

    def __hash__(self) -> int:
        return hash((self.id, self._value))

    def __repr__(self) -> str:
        return f"Session(id={self.id!r}, version={self.version}, metadata={self.metadata!r})"


def stored_bytes(session: Session) -> bytes:
    """The stored form of a session."""
    return session._value


def tags_of(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags that a caller gives. Raises UsageError for one text, of which each character would be a tag."""
    listed = () if isinstance(tags, str) else tuple(tags)
    if isinstance(tags, str) or "" in listed:
        raise UsageError(f"tags are a list of texts that are not empty, not {tags!r}")
    return listed


def encode_session(
    version: int,
    created_ms: int,
    accessed_ms: int,
    timeout_ms: int,
    cap_ms: int,
    metadata: Mapping[str, Any],
    priority: Any = 2,
    *,
    home_node: str = "",
    group: str = "",
    tags: tuple[str, ...] = (),
) -> bytes:
    """The stored form. `timeout_ms` is a lifetime word (see with_window); it and `cap_ms` are 0 for none.

    Raises MetadataError if the metadata cannot be stored, UsageError for labels that are too long.
    """
    try:
        "".join(metadata)  # see encode_checked: every key must be text
        for child in metadata.values():  # as _are_plain(), in place: most need no call
            kind = type(child)
            if kind in _SCALARS or (kind is list and _are_scalars(map(type, child))):
                continue
            if not _are_plain((child,)):
                data = b""
                break
        else:
            data = encode_metadata(metadata)
    except (AttributeError, TypeError, OverflowError, RecursionError, ValueError):
        data = b""
    if not data or not (data[0] & 0xF0 == 0x80 or data[0] in (0xDE, 0xDF)):
        data = encode_checked(metadata)
    if not isinstance(priority, int) or not 0 <= priority <= PRIORITY_MAX:
        raise UsageError(f"a priority is one of {', '.join(Priority.__members__)}, not {priority!r}")
    if not (home_node or group or tags):
        return (
            pack_header(FORMAT, 0, priority, 0, 0, 0, version, created_ms, accessed_ms, timeout_ms, cap_ms)
            + data
        )
    try:
        home, grouped = home_node.encode(), group.encode()
        "".join(tags)  # raises TypeError unless every tag is text
        tagged = encode_metadata(tags) if tags else b""
    except (TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"home node, group and tags are text: {error}") from error
    if len(home) > LABEL_BYTES_MAX or len(grouped) > LABEL_BYTES_MAX or len(tagged) > TAGS_BYTES_MAX:
        raise UsageError(
            f"home node and group take at most {LABEL_BYTES_MAX} bytes, all tags {TAGS_BYTES_MAX}",
            hint="Shorten them; nothing was written.",
        )
    header = pack_header(
        FORMAT,
        0,
        priority,
        len(home),
        len(grouped),
        len(tagged),
        version,
        created_ms,
        accessed_ms,
        timeout_ms,
        cap_ms,
    )
    return header + home + grouped + tagged + data


def with_stamps(value: bytes, version: int, created_ms: int, accessed_ms: int) -> bytes:
    """The stored session with another version, time of creation and last access."""
    return value[:VERSION_OFFSET] + _pack_stamps(version, created_ms, accessed_ms) + value[TIMEOUT_OFFSET:]


def with_cap(value: bytes, cap_ms: int) -> bytes:
    """The stored session with another latest expiry, ms (0: never)."""
    return value[:CAP_OFFSET] + CAP.pack(cap_ms) + value[CAP_OFFSET + CAP.size :]


def with_accessed(value: bytes, accessed: bytes) -> bytes:
    """The stored session with another last access, as eight bytes: what a TOUCH does."""
    return value[:ACCESSED_OFFSET] + accessed + value[ACCESSED_OFFSET + 8 :]


def encode_merged(merged: dict[str, Any], changes: Mapping[str, Any]) -> bytes:
    """encode_checked() of stored metadata with changes: what was stored is known to be right."""
    try:
        "".join(changes)
        if _are_scalars(map(type, changes.values())) or _are_plain(changes.values()):
            return encode_metadata(merged)
    except (AttributeError, TypeError, OverflowError, RecursionError, ValueError):
        pass  # said below, with the path
    return encode_checked(merged)


def encode_checked(metadata: Mapping[str, Any]) -> bytes:
    """Metadata as MessagePack; MetadataError with the path to what cannot be stored."""
    try:
        "".join(metadata)  # raises TypeError unless every key is text: another one could never be read
        if _are_scalars(map(type, metadata.values())) or _are_plain(metadata.values()):
            return encode_metadata(metadata)
    except (AttributeError, TypeError, OverflowError, RecursionError, ValueError):
        pass  # said below, with the path
    if not isinstance(metadata, Mapping):
        raise MetadataError(f"metadata must be a mapping, not {type(metadata).__name__}")
    try:
        _check_values(metadata, "metadata", 0)
        return encode_metadata(dict(metadata))
    except (TypeError, OverflowError, RecursionError, UnicodeEncodeError) as error:
        where = _path_to_offender(metadata)
        raise MetadataError(f"metadata cannot be stored at {where}: {error}") from error


def _are_plain(values: Iterable[object]) -> bool:
    """Is there surely nothing among them, however deep, that _check_values() would refuse? Quick.

    Raises TypeError for some of it, and RecursionError for what has no end.
    """
    for value in values:
        kind = type(value)
        if kind in _SCALARS:
            continue
        inner: Any = value
        if kind is dict:
            "".join(inner)
            inner = inner.values()
        elif kind is not list:
            return False
        if not _are_scalars(map(type, inner)) and not _are_plain(inner):
            return False
    return True


def _check_values(value: Mapping[Any, Any] | Iterable[Any], path: str, depth: int) -> None:
    """Raise MetadataError unless all that a container holds comes back as it is stored.

    The encoder takes more: it would store a set as a list, an Enum as its value, a dataclass as a map.
    """
    if depth > NESTING_MAX:
        raise MetadataError(
            f"metadata cannot be stored at {path}: it is nested deeper than {NESTING_MAX} levels"
        )
    if isinstance(value, Mapping):
        for key, child in value.items():
            if not isinstance(key, str):
                raise MetadataError(f"metadata cannot be stored at {path}: keys are text, not {key!r}")
            if type(child) not in _SCALARS:
                _check_child(child, f"{path}[{key!r}]", depth)
        return
    for number, child in enumerate(value):
        if type(child) not in _SCALARS:
            _check_child(child, f"{path}[{number}]", depth)


def _check_child(child: object, path: str, depth: int) -> None:
    if isinstance(child, (dict, list, tuple)):
        _check_values(child, path, depth + 1)
    elif isinstance(child, datetime):
        if child.tzinfo is None:
            raise MetadataError(f"metadata cannot be stored at {path}: a datetime needs a time zone")
    else:
        raise MetadataError(
            f"metadata cannot be stored at {path}: {type(child).__name__} is none of None, bool, int, float, "
            "str, bytes, datetime, list, and map with text as keys"
        )


def _path_to_offender(value: object, path: str = "metadata", depth: int = 0) -> str:
    if depth > NESTING_MAX:
        return path
    children: Iterable[tuple[str, object]] = ()
    if isinstance(value, Mapping):
        children = [(f"{path}[{key!r}]", child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)):
        children = [(f"{path}[{number}]", child) for number, child in enumerate(value)]
    for where, child in children:
        try:
            encode_metadata(child)
        except (TypeError, OverflowError, RecursionError, ValueError):
            return _path_to_offender(child, where, depth + 1)
    return path


def deadline_of(fields: tuple[Any, ...]) -> int:
    """When a stored session expires if nobody uses it, ms; NEVER_MS for never."""
    timeout: int = fields[9] & _TIMEOUT_MASK
    cap: int = fields[10]
    deadline: int = fields[8] + timeout if timeout else NEVER_MS
    return min(deadline, cap) if cap else deadline


def expiry_at(accessed_ms: int, timeout_ms: int, cap_ms: int) -> int:
    """When a session with these fields counts as expired: its deadline plus the refresh window, ms.

    `timeout_ms` is a lifetime word (see with_window); it and `cap_ms` are 0 for none; NEVER_MS is never.
    """
    if timeout_ms < 600_000:
        window = timeout_ms // 10
    elif timeout_ms < WINDOWED:
        window = REFRESH_WINDOW_MS_MAX
    else:
        timeout_ms, window = split_lifetime(timeout_ms)
    if not timeout_ms:
        return cap_ms or NEVER_MS
    expiry = accessed_ms + timeout_ms + window
    return cap_ms if 0 < cap_ms < expiry else expiry


def expiry_of(value: bytes, start: int = 0) -> int:
    """expiry_at() of the stored session that begins at `start` (bytes)."""
    accessed, timeout, cap = unpack_lifetime(value, start + ACCESSED_OFFSET)
    return expiry_at(accessed, timeout, cap)


def with_window(timeout_ms: int, refresh_window_ms: int | None) -> int:
    """The lifetime word: a timeout (0: none) with the refresh window that it was given, None for none."""
    if refresh_window_ms is None or not timeout_ms:
        return timeout_ms
    return timeout_ms | (refresh_window_ms + 1) << WINDOW_SHIFT


def split_lifetime(word: int) -> tuple[int, int]:
    """(idle timeout, 0 for none, refresh window) of a lifetime word, ms."""
    if word >= WINDOWED:
        return word & _TIMEOUT_MASK, (word >> WINDOW_SHIFT) - 1
    return word, min(word // 10, REFRESH_WINDOW_MS_MAX)


def _changed_lifetime(word: int, timeout_ms: object, refresh_window_ms: object) -> int:
    timeout = word & _TIMEOUT_MASK if timeout_ms is _MISSING else check_timeout(timeout_ms)
    if refresh_window_ms is not _MISSING:
        return with_window(timeout, check_window(refresh_window_ms))
    return with_window(timeout, split_lifetime(word)[1] if word >= WINDOWED else None)


def check_window(refresh_window_ms: object) -> int | None:
    """A refresh window, None for the default formula. Raises UsageError for anything but 0 to 60,000 ms."""
    if refresh_window_ms is None:
        return None
    if isinstance(refresh_window_ms, int) and 0 <= refresh_window_ms <= REFRESH_WINDOW_MS_MAX:
        return refresh_window_ms
    raise UsageError(
        f"refresh_window_ms is a whole number from 0 to {REFRESH_WINDOW_MS_MAX}, or None for the default,"
        f" not {refresh_window_ms!r}"
    )


def check_timeout(timeout_ms: object) -> int:
    """A timeout as stored: 0 for None (infinite). Raises UsageError for anything but 1 ms to 100 years."""
    if timeout_ms is None:
        return 0
    if isinstance(timeout_ms, int) and 0 < timeout_ms <= TIMEOUT_MS_MAX:
        return timeout_ms
    raise UsageError(
        f"a timeout is a whole number of milliseconds from 1 to {TIMEOUT_MS_MAX}, or None for infinite,"
        f" not {timeout_ms!r}"
    )


def check_id(id: str) -> bytes:
    """The key of a session id. Raises InvalidIdError."""
    if not isinstance(id, str):
        raise InvalidIdError(f"a session id is text, not {type(id).__name__}")
    try:
        key = id.encode()
    except UnicodeEncodeError as error:
        raise InvalidIdError("a session id must be valid Unicode") from error
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise InvalidIdError(f"a session id takes 1 to {KEY_BYTES_MAX} bytes of UTF-8, not {len(key)}")
    return key
