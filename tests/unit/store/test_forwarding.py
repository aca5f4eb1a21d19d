"""Forwarded changes: what was read is remembered, and certified before anything is appended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from perdure.store import CorruptError, SessionStore, UsageError
from perdure.store.event import EVENTS_LIMIT, Kind, Reason, encode_event
from perdure.store.fold import HASH_BYTES
from perdure.store.forwarding import (
    ABSENT,
    TOUCHES_MAX,
    Conflict,
    ForwardedChange,
    RecordingStage,
    apply_change,
    decode_change,
    decode_records,
    decode_touches,
    encode_change,
    encode_records,
    encode_touches,
)
from perdure.store.ids import MASK64
from perdure.store.ports import Record
from perdure.store.session import ACCESSED, encode_session
from perdure.store.stage import Stage
from perdure.store.tail_map import NEW_MS
from tests.support.fuzz import cuts, flips, fuzz

OPERATION = bytes(range(16))


def value(number: int) -> bytes:
    return encode_session(1, 1, 1, 0, 0, {"n": number})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "s", backend="memory") as store:
        yield store


def recording(store: SessionStore, overlay: dict[bytes, Record | None] | None = None) -> RecordingStage:
    return RecordingStage(store._view, overlay if overlay is not None else {}, lambda: None)


def carried(stage: RecordingStage) -> tuple[ForwardedChange, list[object]]:
    change, events = decode_change(encode_change(stage.change()))
    return change, list(events)


def applied(store: SessionStore, stage: RecordingStage) -> Stage:
    """The change of a stage on the stage of the primary, here the same store."""
    change, events = decode_change(encode_change(stage.change()))
    there = Stage(store._view)
    apply_change(there, change, events)
    return there


def test_reads_are_remembered_with_what_stood_there(store: SessionStore) -> None:
    store.put("a", {})
    stage = recording(store)
    record = stage.get(b"a")
    assert record is not None
    assert stage.get(b"b") is None
    assert stage.reads == {b"a": record[:HASH_BYTES], b"b": ABSENT}


def test_what_the_change_itself_has_written_is_no_read(store: SessionStore) -> None:
    stage = recording(store)
    stage.put(b"a", value(1), Reason.CREATED, OPERATION)
    assert stage.get(b"a") is not None
    assert stage.reads == {}


def test_a_record_that_the_primary_told_goes_before_the_local_one(store: SessionStore) -> None:
    store.put("a", {})
    stage = recording(store, {b"a": None, b"b": b"12345678" + value(2)})
    assert stage.get(b"a") is None
    assert stage.get(b"b") == b"12345678" + value(2)
    assert stage.reads == {b"a": ABSENT, b"b": b"12345678"}


def test_a_change_arrives_as_it_was_evaluated(store: SessionStore) -> None:
    for key in ("a", "b", "c", "d"):
        store.put(key, {"old": True})
    stage = recording(store)
    stage.put(b"a", value(1), Reason.UPDATED, OPERATION)
    stage.touch(b"b", ACCESSED.pack(77), OPERATION, Reason.GROUP)
    stage.remove(b"c", Kind.DELETE, Reason.DELETED, OPERATION)
    stage.rename(b"d", b"e", OPERATION)
    stage.create([(b"f", value(2), NEW_MS), (b"g", value(3), NEW_MS)], OPERATION)
    there = applied(store, stage)
    assert there.parts == stage.parts
    assert (there.digest & MASK64, there.session_count) == (stage.digest & MASK64, stage.session_count)


def test_a_change_whose_reads_no_longer_stand_is_a_conflict_with_what_stands_now(store: SessionStore) -> None:
    store.put("a", {"n": 1})
    stage = recording(store)
    stage.get(b"a")
    stage.get(b"new")
    stage.put(b"x", value(1), Reason.REPLACED, OPERATION)
    store.put("a", {"n": 2})
    store.put("new", {})
    with pytest.raises(Conflict) as caught:
        applied(store, stage)
    now = dict(caught.value.records)
    assert now == {b"a": store._view.newest(b"a"), b"new": store._view.newest(b"new")}
    assert caught.value.is_whole
    assert decode_records(encode_records(caught.value.records)) == now


@pytest.mark.parametrize("kind", ["create", "rename"])
def test_a_new_key_that_is_taken_is_a_conflict(store: SessionStore, kind: str) -> None:
    store.put("old", {})
    stage = recording(store)
    if kind == "create":
        stage.put(b"taken", value(1), Reason.CREATED, OPERATION)
    else:
        stage.rename(b"old", b"taken", OPERATION)
    store.put("taken", {})
    with pytest.raises(Conflict):
        applied(store, stage)


def test_a_conflict_of_more_than_a_message_takes_says_that_it_is_not_whole(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.forwarding.CONFLICT_BYTES_MAX", 100)
    stage = recording(store)
    for key in (b"a", b"b", b"c"):
        stage.get(key)
        store.put(key.decode(), {})
    with pytest.raises(Conflict) as caught:
        applied(store, stage)
    assert not caught.value.is_whole
    assert len(caught.value.records) < 3


def test_of_a_change_that_broke_off_only_the_reads_are_sent(store: SessionStore) -> None:
    stage = recording(store)
    stage.put(b"a", value(1), Reason.REPLACED, OPERATION)
    stage.discard()
    change, events = carried(stage)
    assert (events, change.event_count, change.reads) == ([], 0, [(b"a", ABSENT)])


def test_a_change_that_no_frame_takes_is_refused_before_it_is_sent(store: SessionStore) -> None:
    stage = recording(store)
    stage.create([(str(n).encode(), value(n), NEW_MS) for n in range(EVENTS_LIMIT + 1)], OPERATION)
    with pytest.raises(UsageError):
        stage.change()


@pytest.mark.parametrize(
    "event",
    [
        encode_event(Kind.CONFIG, Reason.CONTROL, OPERATION, b"k", b"v"),
        encode_event(Kind.PUT, Reason.CREATED, OPERATION, b"k", b"short"),
        encode_event(Kind.TOUCH, Reason.TOUCHED, OPERATION, b"k", b"123"),
        encode_event(Kind.DELETE, Reason.DELETED, OPERATION, b"k", b"v"),
        encode_event(Kind.RENAME, Reason.RENAMED, OPERATION, b"k", b""),
    ],
    ids=["control", "put", "touch", "delete", "rename"],
)
def test_events_that_a_client_cannot_make_are_refused(event: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_change(encode_change(ForwardedChange([], 1, event)))


GOOD = encode_change(
    ForwardedChange(
        [(b"k", b"12345678")], 1, encode_event(Kind.PUT, Reason.CREATED, OPERATION, b"k", value(1))
    )
)


@fuzz(300, data=st.binary(max_size=300))
def test_any_bytes_are_a_change_or_a_corrupt_error(data: bytes) -> None:
    with contextlib.suppress(CorruptError):
        decode_change(data)


def test_a_damaged_change_is_one_or_a_corrupt_error() -> None:
    for bad in [*cuts(GOOD), *(data for _, data in flips(GOOD))]:
        with contextlib.suppress(CorruptError):
            decode_change(bad)


def test_refreshes_come_back_as_they_were() -> None:
    touches = {b"a": 1, b"\xff\x00": 1_700_000_000_000}
    assert decode_touches(encode_touches(touches)) == touches
    for bad in (encode_touches({b"a": -1}), b"\xc1", b""):
        with pytest.raises((CorruptError, UsageError)):
            decode_touches(bad)
    with pytest.raises(UsageError):
        decode_touches(encode_touches({str(n).encode(): 1 for n in range(TOUCHES_MAX + 1)}))
