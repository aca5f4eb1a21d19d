"""The stored session: to and fro, deadlines, and what is refused on either way."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from perdure.store.errors import CorruptError, InvalidIdError, MetadataError, UsageError
from perdure.store.event import KEY_BYTES_MAX
from perdure.store.session import (
    FORMAT,
    HEADER_BYTES,
    NEVER_MS,
    REFRESH_WINDOW_MS_MAX,
    TIMEOUT_MS_MAX,
    Priority,
    Session,
    check_id,
    check_timeout,
    deadline_of,
    encode_session,
    expiry_of,
    pack_header,
    stored_bytes,
    unpack_header,
    with_accessed,
    with_stamps,
)
from tests.support.fuzz import cuts, damaged, flips, fuzz

U63 = st.integers(0, NEVER_MS)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
metadatas = st.dictionaries(st.text(max_size=8), values, max_size=5)


def stored(
    home: bytes = b"", group: bytes = b"", tags: bytes = b"", metadata: bytes = b"\x80", priority: int = 2
) -> bytes:
    """A stored session of raw parts."""
    header = pack_header(FORMAT, 0, priority, len(home), len(group), len(tags), 1, 2, 3, 4, 5)
    return header + home + group + tags + metadata


def encode(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "version": 1,
        "created_ms": 1000,
        "accessed_ms": 2000,
        "timeout_ms": 600_000,
        "cap_ms": 0,
        "metadata": {"user": 7},
    }
    return encode_session(**{**fields, **changes})


@fuzz(
    100,
    numbers=st.tuples(U63, U63, U63, st.integers(0, TIMEOUT_MS_MAX), U63),
    priority=st.sampled_from(Priority),
    labels=st.tuples(st.text(max_size=60), st.text(max_size=60)),
    tags=st.lists(st.text(max_size=20), max_size=5),
    metadata=metadatas,
)
def test_session_when_encoded_and_read_has_every_field(
    numbers: tuple[int, int, int, int, int],
    priority: Priority,
    labels: tuple[str, str],
    tags: list[str],
    metadata: dict[str, Any],
) -> None:
    version, created, accessed, timeout, cap = numbers
    value = encode_session(
        version=version,
        created_ms=created,
        accessed_ms=accessed,
        timeout_ms=timeout,
        cap_ms=cap,
        priority=priority,
        home_node=labels[0],
        group=labels[1],
        tags=tuple(tags),
        metadata=metadata,
    )
    session = Session("id", value)
    assert stored_bytes(session) == value
    assert (session.version, session.created_at, session.last_accessed) == (version, created, accessed)
    assert (session.timeout_ms, session.max_expires_at) == (timeout or None, cap or None)
    assert (session.priority, session.home_node, session.group) == (priority, *labels)
    assert session.tags == tuple(tags)
    assert session.metadata == metadata
    assert session == Session("id", value)
    assert hash(session) == hash(Session("id", value))
    assert session != Session("other", value)
    assert session.to_dict()["metadata"] == metadata


def test_session_when_it_is_assigned_to_refuses() -> None:
    session = Session("id", encode())
    with pytest.raises(AttributeError):
        session.id = "other"  # type: ignore[misc]


def test_session_when_merged_or_replaced_gives_a_changed_copy() -> None:
    session = Session("id", encode(metadata={"a": 1, "b": 2}, group="g", tags=("t",)))
    merged = session.merge({"b": 3, "c": 4})
    assert merged.metadata == {"a": 1, "b": 3, "c": 4}
    assert session.metadata == {"a": 1, "b": 2}
    assert (merged.id, merged.created_at, merged.group, merged.tags) == ("id", 1000, "g", ("t",))
    replaced = session.replace(timeout_ms=None, priority=Priority.HIGH, group="", tags=[], metadata={})
    assert replaced.timeout_ms is None
    assert replaced.priority is Priority.HIGH
    assert (replaced.group, replaced.tags, replaced.metadata) == ("", (), {})
    assert session.replace().metadata == session.metadata


def test_with_stamps_and_with_accessed_when_applied_change_only_those_fields() -> None:
    value = encode(group="g", tags=("a", "b"))
    changed = Session("id", with_stamps(value, 9, 1000, 77))
    assert (changed.version, changed.last_accessed, changed.created_at) == (9, 77, 1000)
    assert (changed.timeout_ms, changed.max_expires_at) == (
        Session("id", value).timeout_ms,
        Session("id", value).max_expires_at,
    )
    assert (changed.group, changed.tags, changed.metadata) == ("g", ("a", "b"), {"user": 7})
    touched = with_accessed(value, (77).to_bytes(8, "little"))
    assert touched == with_stamps(value, 1, 1000, 77)


@pytest.mark.parametrize(
    ("timeout", "cap", "deadline", "expiry"),
    [
        (0, 0, NEVER_MS, NEVER_MS),
        (0, 5000, 5000, 5000),
        (100, 0, 2100, 2110),
        (599_999, 0, 601_999, 661_998),
        (600_000, 0, 602_000, 662_000),
        (600_001, 0, 602_001, 662_001),
        (3_600_000, 0, 3_602_000, 3_662_000),
        (600_000, 602_000, 602_000, 602_000),
        (600_000, 630_000, 602_000, 630_000),
        (600_000, 100, 100, 100),
    ],
)
def test_deadlines_when_computed_are_last_access_plus_timeout_plus_window_and_at_most_the_cap(
    timeout: int, cap: int, deadline: int, expiry: int
) -> None:
    value = encode(timeout_ms=timeout, cap_ms=cap)
    assert deadline_of(unpack_header(value)) == deadline
    assert expiry_of(value) == expiry
    assert Session("id", value).expires_at == (None if deadline == NEVER_MS else deadline)


@fuzz(100, accessed=U63, timeout=st.integers(1, TIMEOUT_MS_MAX), cap=U63)
def test_expiry_when_computed_is_never_before_the_deadline_and_at_most_a_window_after_it(
    accessed: int, timeout: int, cap: int
) -> None:
    value = encode(accessed_ms=accessed, timeout_ms=timeout, cap_ms=cap)
    deadline = deadline_of(unpack_header(value))
    assert deadline <= expiry_of(value) <= deadline + min(timeout // 10, REFRESH_WINDOW_MS_MAX)


@pytest.mark.parametrize(
    ("metadata", "where"),
    [
        ({"a": object()}, r"metadata\['a'\]"),
        ({"a": {"b": [1, 2, object()]}}, r"metadata\['a'\]\['b'\]\[2\]"),
        ({"a": 1 << 64}, r"metadata\['a'\]"),
        ({"a": "\ud800"}, r"metadata\['a'\]"),
        ({"a": {"b": {1j}}}, r"metadata\['a'\]\['b'\]"),
        ({1: "a"}, "keys are text, not 1"),
        ({"a": 1, None: 2}, "keys are text, not None"),
        ({b"a": 1}, "keys are text, not b'a'"),
        ({"a": {1: 2}}, r"metadata\['a'\]: keys are text, not 1"),
        ({"a": [{"b": {1, 2}}]}, r"metadata\['a'\]\[0\]\['b'\]: set is none of"),
        ({"a": datetime(2026, 1, 1)}, r"metadata\['a'\]: a datetime needs a time zone"),
        ({"a": date(2026, 1, 1)}, r"metadata\['a'\]: date is none of"),
        ({"a": Priority.HIGH}, r"metadata\['a'\]: Priority is none of"),
        ({"a": Session("id", b"")}, r"metadata\['a'\]: Session is none of"),
        ({"a": msgspec.Raw(b"\x01")}, r"metadata\['a'\]: Raw is none of"),
        ({"a": msgspec.msgpack.Ext(5, b"")}, r"metadata\['a'\]: Ext is none of"),
        (["a"], "must be a mapping, not list"),
        ("text", "must be a mapping, not str"),
        (7, "must be a mapping, not int"),
        (None, "must be a mapping, not NoneType"),
    ],
)
def test_metadata_when_they_cannot_be_stored_are_refused_with_the_path_to_what_is_wrong(
    metadata: Any, where: str
) -> None:
    with pytest.raises(MetadataError, match=where):
        encode(metadata=metadata)


def test_metadata_come_back_as_they_were_stored() -> None:
    metadata = {
        "none": None,
        "numbers": [True, -(1 << 63), (1 << 64) - 1, 0.1, float("inf")],
        "text": "ä\U0001f600",
        "bytes": b"\0\xff",
        "time": datetime(2026, 1, 1, 12, 0, 0, 5, tzinfo=UTC),
        "maps": {"a": {"b": [{}, [], ""]}},
    }
    assert Session("id", encode_session(1, 0, 0, 0, 0, metadata)).metadata == metadata
    assert Session("id", encode_session(1, 0, 0, 0, 0, MappingProxyType(metadata))).metadata == metadata


def test_metadata_when_nested_without_end_are_refused() -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(MetadataError):
        encode(metadata=endless)


@pytest.mark.parametrize(
    "changes", [{"home_node": "x" * 256}, {"group": "\u00e4" * 128}, {"tags": ("x" * 4100,)}]
)
def test_labels_when_they_are_too_long_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at most 255 bytes, all tags 4096"):
        encode(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"home_node": "\ud800"},
        {"group": 7},
        {"group": b"x"},
        {"tags": (7,)},
        {"tags": ("\ud800",)},
        {"tags": (None,)},
    ],
)
def test_labels_when_they_are_not_text_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="are text"):
        encode(**changes)


@pytest.mark.parametrize("id", ["a", "x" * KEY_BYTES_MAX, "\u00e4" * (KEY_BYTES_MAX // 2), "\0", "a b/c"])
def test_id_when_it_is_good_gives_its_key(id: str) -> None:
    assert check_id(id) == id.encode()


@pytest.mark.parametrize("id", ["", "x" * (KEY_BYTES_MAX + 1), "\u00e4" * 513, "\ud800", b"bytes", 7, None])
def test_id_when_it_is_bad_is_refused(id: Any) -> None:
    with pytest.raises(InvalidIdError):
        check_id(id)


def test_timeout_when_checked_takes_whole_milliseconds_up_to_a_century() -> None:
    assert check_timeout(None) == 0
    assert check_timeout(1) == 1
    assert check_timeout(TIMEOUT_MS_MAX) == TIMEOUT_MS_MAX
    for bad in (0, -1, TIMEOUT_MS_MAX + 1, 1.5, "1000", object()):
        with pytest.raises(UsageError, match="whole number of milliseconds"):
            check_timeout(bad)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        bytes(HEADER_BYTES - 1),
        bytes(HEADER_BYTES),
        b"\2" + stored()[1:],
        b"\1\1" + stored()[2:],
        pack_header(FORMAT, 0, 2, 1, 0, 0, 1, 2, 3, 4, 5),
        pack_header(FORMAT, 0, 2, 0, 0xFFFF, 0xFFFF, 1, 2, 3, 4, 5) + b"\x80",
    ],
)
def test_value_when_it_is_no_stored_session_is_refused_when_it_is_read(value: bytes) -> None:
    for field in ("version", "metadata", "tags", "expires_at"):
        with pytest.raises(CorruptError, match="'id'"):
            getattr(Session("id", value), field)
    with pytest.raises(CorruptError, match="'id'"):
        Session("id", value).merge({"a": 1})


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (stored(priority=4), "priority"),
        (stored(home=b"\xff"), "home_node"),
        (stored(group=b"\xff"), "group"),
        (stored(tags=b"\xff"), "tags"),
        (stored(tags=b"\x91\xa1\xff"), "tags"),
        (stored(tags=b"\x91\x07"), "tags"),
        (stored(metadata=b""), "metadata"),
        (stored(metadata=b"\x90"), "metadata"),
        (stored(metadata=b"\x80\x80"), "metadata"),
        (stored(metadata=b"\x81\xa1\xff\x01"), "metadata"),
        (stored(metadata=b"\x81\x01\x01"), "metadata"),
        (stored(metadata=b"\x81\xa1a" + b"\x91" * 100_000), "metadata"),
        (stored(metadata=b"\x81\xa1a\xdd\xff\xff\xff\xff"), "metadata"),
        (stored(metadata=b"\xdf\xff\xff\xff\xff"), "metadata"),
        (stored(metadata=b"\x81\xa1a\xd7\xff" + b"\xff" * 8), "metadata"),
    ],
)
def test_field_when_its_bytes_do_not_decode_raises_corrupt_and_names_the_session(
    value: bytes, field: str
) -> None:
    with pytest.raises(CorruptError, match="'id'"):
        getattr(Session("id", value), field)


def read_everything(value: bytes) -> Session:
    session = Session("id", value)
    session.to_dict()
    return session


def test_value_when_any_byte_is_changed_or_it_is_cut_is_read_or_refused() -> None:
    """The stored session carries no hash of its own; its record and its frame do."""
    good = encode(group="group", tags=("a", "b"), metadata={"key": "value", "list": [1, 2.5, None]})
    for bad in [*(data for _, data in flips(good)), *cuts(good)]:
        try:
            read_everything(bad)
        except CorruptError:
            continue


@fuzz(120, data=st.binary(max_size=200), tail=st.binary(max_size=100))
def test_value_when_it_is_arbitrary_bytes_is_read_or_refused(data: bytes, tail: bytes) -> None:
    for value in (data, stored()[:HEADER_BYTES] + data, stored(group=data[:200], tags=tail, metadata=tail)):
        try:
            read_everything(value)
        except CorruptError:
            continue


def test_value_when_it_is_damaged_at_random_is_read_or_refused(seed: int) -> None:
    source = random.Random(seed)
    good = encode(group="group", tags=("a", "b"), metadata={"key": {"value": [1, {"x": "y"}]}, "n": -5})
    for _ in range(1000):
        try:
            read_everything(damaged(good, source))
        except CorruptError:
            continue


def test_metadata_when_changed_by_the_reader_change_nothing_that_is_stored() -> None:
    value = encode(metadata={"list": [1]})
    session = Session("id", value)
    session.metadata["list"].append(2)
    assert stored_bytes(session) == value
    assert msgspec.msgpack.decode(value[HEADER_BYTES:]) == {"list": [1]}
    assert Session("id", value).metadata == {"list": [1]}
