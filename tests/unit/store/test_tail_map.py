"""Plain frames go into the tail map as the longer way would put them; all else is left alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from perdure.store.event import Kind, Reason, encode_event
from perdure.store.fold import record_of
from perdure.store.frame import HEADER_BYTES, Frame, cluster_key, encode_frame
from perdure.store.session import encode_session
from perdure.store.tail_map import KEPT_MS, NEW_MS, UNKNOWN_MS, Entry, follow_frames
from tests.support.fuzz import fuzz
from tests.support.machine import Clock, open_quietly

KEY = cluster_key(bytes(range(16)))
VALUE = encode_session(1, 1, 1, 600_000, 0, {"n": 1})
EPOCH = 2
SHARD = 3
FOR_EVER = 1 << 40


def put(key: bytes, reason: Reason = Reason.CREATED, value: bytes = VALUE) -> bytes:
    return encode_event(Kind.PUT, reason, bytes(16), key, value)


def removal(kind: Kind, key: bytes) -> bytes:
    return encode_event(kind, Reason.DELETED, bytes(16), key, b"")


def frames_of(*payloads: list[bytes], event_counts: list[int] | None = None) -> bytes:
    """Frames one behind the other from LSN 1, with these events."""
    data, chain, lsn = b"", 0, 0
    for number, events in enumerate(payloads):
        count = event_counts[number] if event_counts else len(events)
        frame, chain = encode_frame(
            b"".join(events),
            count,
            key=KEY,
            previous_chain=chain,
            shard=SHARD,
            epoch=EPOCH,
            time_ms=1000,
            first_lsn=lsn + 1,
            flushed_lsn=0,
            digest=7,
            session_count=1,
        )
        data += frame
        lsn += count
    return data


def follow(
    data: bytes, tail: dict[bytes, Entry], upto_lsn: int = FOR_EVER, folded_lsn: int = 0
) -> tuple[Frame | None, int]:
    return follow_frames(
        data,
        tail,
        key=KEY,
        shard=SHARD,
        epoch=EPOCH,
        lsn=0,
        chain=0,
        upto_lsn=upto_lsn,
        folded_lsn=folded_lsn,
    )


def test_plain_frames_are_taken_with_what_they_leave_to_arm() -> None:
    data = frames_of(
        [put(b"a"), put(b"b", Reason.REPLACED)],
        [put(b"a", Reason.UPDATED)],
        [removal(Kind.DELETE, b"b"), removal(Kind.EXPIRE, b"c")],
    )
    tail: dict[bytes, Entry] = {b"kept": (0, b"x", KEPT_MS)}
    frame, offset = follow(data, tail)
    assert frame is not None and (frame.first_lsn, frame.last_lsn) == (4, 5)
    assert offset + frame.size_bytes == len(data)
    assert tail == {
        b"kept": (0, b"x", KEPT_MS),
        b"a": (3, record_of(b"a", VALUE), NEW_MS),
        b"b": (5, None, UNKNOWN_MS),
        b"c": (5, None, UNKNOWN_MS),
    }


def test_frames_that_the_state_holds_are_passed_over() -> None:
    data = frames_of([put(b"a")], [put(b"b")])
    tail: dict[bytes, Entry] = {}
    frame, _ = follow(data, tail, folded_lsn=1)
    assert frame is not None and frame.last_lsn == 2
    assert list(tail) == [b"b"]


def test_a_frame_behind_the_target_is_left() -> None:
    data = frames_of([put(b"a")], [put(b"b"), put(b"c")])
    tail: dict[bytes, Entry] = {}
    frame, _ = follow(data, tail, upto_lsn=2)
    assert frame is not None and frame.last_lsn == 1
    assert list(tail) == [b"a"]


@pytest.mark.parametrize(
    "events",
    [
        [encode_event(Kind.TOUCH, Reason.TOUCHED, bytes(16), b"a", bytes(8))],
        [encode_event(Kind.RENAME, Reason.RENAMED, bytes(16), b"a", b"z")],
        [encode_event(Kind.CONFIG, Reason.CONTROL, bytes(16), b"", b"x")],
        [put(b"")],
        [put(b"k" * 1025)],
        [put(b"a", value=b"short")],
        [put(b"a") + b"more"],
        [put(b"a")[:-1]],
        [b"\\x01" + bytes([99]) + put(b"a")[2:]],
        [bytes([99]) + put(b"a")[1:]],
    ],
    ids=["touch", "rename", "control", "no key", "long key", "short", "more", "less", "reason", "kind"],
)
def test_a_frame_that_is_not_plain_is_left_with_all_behind_it(events: list[bytes]) -> None:
    tail: dict[bytes, Entry] = {}
    frame, offset = follow(frames_of([put(b"first")], events, [put(b"last")]), tail)
    assert frame is not None and (frame.last_lsn, offset) == (1, 0)
    assert b"first" in tail and b"last" not in tail


@pytest.mark.parametrize("count", [1, 3])
def test_a_frame_with_another_number_of_events_than_it_says_is_left(count: int) -> None:
    tail: dict[bytes, Entry] = {}
    frame, _ = follow(frames_of([put(b"a"), put(b"b")], event_counts=[count]), tail)
    assert frame is None


def test_a_frame_is_left_whichever_of_its_bytes_is_changed_or_missing() -> None:
    good = frames_of([put(b"a")], [put(b"b")])
    first = HEADER_BYTES + len(put(b"a"))
    for at in range(first, len(good)):
        for bad in (good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :], good[:at]):
            tail: dict[bytes, Entry] = {}
            frame, offset = follow(bad, tail)
            assert frame is not None and (frame.last_lsn, offset) == (1, 0), at
            assert list(tail) == [b"a"]


@fuzz(150, data=st.binary(max_size=400))
def test_arbitrary_bytes_are_left(data: bytes) -> None:
    tail: dict[bytes, Entry] = {}
    frame, _ = follow(frames_of([put(b"a")]) + data, tail)
    assert frame is not None and frame.last_lsn == 1
    assert list(tail) == [b"a"]


def test_both_ways_of_following_a_random_log_see_the_same(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    path = tmp_path / "store"
    options: dict[str, Any] = {"segment_bytes": 8000, "clock": Clock()}  # nothing expires between two reads
    with (
        open_quietly(path, **options) as writer,
        open_quietly(path, **options) as short,
        open_quietly(path, **options) as long,
    ):
        long._log.take_plain = None
        ids = [f"key-{number}" for number in range(12)]
        for step in range(300):
            id = source.choice(ids)
            what = source.randrange(6)
            if what <= 1:
                writer.put(id, {"step": step}, source.choice([None, 1000, 3_600_000]))
            elif what == 2:
                ids.append(writer.create({"step": step}))
            elif what == 3:
                writer.delete(id)
            elif writer.peek(id) is not None:
                if what == 4:
                    writer.touch(id)
                else:
                    ids.append(writer.regenerate_id(id))
            if source.random() < 0.1:
                for reader in (short, long):
                    assert {id: reader.peek(id) for id in ids} == {id: writer.peek(id) for id in ids}, seed
                assert short._view.visible == long._view.visible
            if source.random() < 0.03:
                source.choice([writer, short, long]).fold()
        assert len(list((path / "log").glob("*.seg"))) > 2
        assert short.count() == long.count() == writer.count()
        assert list(short.ids()) == list(long.ids()) == list(writer.ids())
