"""Frames: their bytes, their chain, and that no damaged byte passes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import strategies as st

from perdure.store.event import encode_event
from perdure.store.frame import (
    EVENTS_MAX,
    FRAME_BYTES_MAX,
    HEADER,
    HEADER_BYTES,
    Frame,
    Verdict,
    cluster_key,
    decode_frame,
    encode_frame,
    xxh3_64,
)
from perdure.store.ids import LSN_LIMIT, Position, StatePosition
from tests.support.fuzz import cuts, damaged, flips, fuzz

KEY = cluster_key(b"c" * 16)
U64 = st.integers(0, (1 << 64) - 1)
PAYLOAD = encode_event(1, 1, bytes(16), b"key", b"value" * 12)


def make(payload: bytes = PAYLOAD, event_count: int = 1, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "key": KEY,
        "previous_chain": 7,
        "shard": 0,
        "epoch": 3,
        "time_ms": 1_700_000_000_000,
        "first_lsn": 42,
        "flushed_lsn": 41,
        "digest": 99,
        "session_count": 5,
    }
    return encode_frame(payload, event_count, **{**fields, **changes})[0]


@fuzz(
    100,
    payload=st.binary(max_size=200),
    event_count=st.integers(1, EVENTS_MAX),
    shard=st.integers(0, 0xFFFF),
    epoch=st.integers(0, 0xFFFFFFFF),
    first_lsn=st.integers(1, LSN_LIMIT - 1),
    others=st.tuples(U64, U64, U64, U64, U64, U64),
    before=st.binary(max_size=20),
    behind=st.binary(max_size=20),
)
def test_frame_when_encoded_and_decoded_is_the_same_wherever_it_stands(
    payload: bytes,
    event_count: int,
    shard: int,
    epoch: int,
    first_lsn: int,
    others: tuple[int, int, int, int, int, int],
    before: bytes,
    behind: bytes,
) -> None:
    previous_chain, time_ms, flushed_lsn, digest, session_count, key = others
    data, chain = encode_frame(
        payload,
        event_count,
        key=key,
        previous_chain=previous_chain,
        shard=shard,
        epoch=epoch,
        time_ms=time_ms,
        first_lsn=first_lsn,
        flushed_lsn=flushed_lsn,
        digest=digest,
        session_count=session_count,
    )
    verdict, frame = decode_frame(before + data + behind, len(before), key)
    assert verdict is Verdict.OK
    assert frame == Frame(
        chain,
        previous_chain,
        shard,
        len(payload),
        event_count,
        epoch,
        time_ms,
        first_lsn,
        flushed_lsn,
        digest,
        session_count,
    )
    assert frame is not None
    assert decode_frame(memoryview(before + data + behind), len(before), key) == (verdict, frame)
    assert frame.size_bytes == len(data)
    assert frame.last_lsn == first_lsn + event_count - 1
    assert frame.position == Position(epoch, frame.last_lsn, chain)
    assert frame.state_position == StatePosition(epoch, frame.last_lsn, chain, digest, session_count)


def test_chain_when_computed_by_hand_from_the_documented_rule_is_the_frames() -> None:
    data = make(previous_chain=1234)
    assert int.from_bytes(data[:8], "little") == xxh3_64(data[8:], 1234 ^ xxh3_64(b"c" * 16))


def test_frame_when_any_byte_is_changed_is_never_accepted() -> None:
    good = make()
    for offset, bad in flips(good):
        verdict, frame = decode_frame(bad, 0, KEY)
        assert frame is None, f"the frame was accepted with byte {offset} changed"
        assert verdict in (Verdict.BAD, Verdict.SHORT)
        if verdict is Verdict.SHORT:
            assert 24 <= offset < 28, "only the payload's length can make it seem short"


def test_frame_when_it_is_cut_anywhere_is_short_and_nothing_is_its_end() -> None:
    good = make()
    for cut in cuts(good):
        assert decode_frame(cut, 0, KEY) == (Verdict.SHORT if cut else Verdict.END, None)
    assert decode_frame(good, len(good), KEY) == (Verdict.END, None)
    assert decode_frame(good, len(good) + 5, KEY) == (Verdict.END, None)


def test_frame_when_it_is_of_another_cluster_is_bad() -> None:
    assert decode_frame(make(), 0, cluster_key(b"d" * 16)) == (Verdict.BAD, None)


@pytest.mark.parametrize("size", [1, HEADER_BYTES - 1, HEADER_BYTES, 4096])
def test_zeros_when_they_stand_where_a_frame_should_are_no_frame(size: int) -> None:
    verdict, frame = decode_frame(bytes(size), 0, KEY)
    assert frame is None
    assert verdict is (Verdict.SHORT if size < HEADER_BYTES else Verdict.BAD)


@pytest.mark.parametrize("first_lsn", [0, LSN_LIMIT, (1 << 64) - 1])
def test_frame_when_its_lsn_is_impossible_is_bad_though_its_chain_fits(first_lsn: int) -> None:
    assert decode_frame(make(first_lsn=first_lsn), 0, KEY) == (Verdict.BAD, None)


def test_frame_when_its_counts_are_impossible_is_bad_though_its_chain_fits() -> None:
    assert decode_frame(make(event_count=0), 0, KEY) == (Verdict.BAD, None)
    assert decode_frame(make(event_count=EVENTS_MAX + 1), 0, KEY) == (Verdict.BAD, None)


def test_frame_when_it_claims_more_than_a_frame_may_have_is_bad_and_not_short() -> None:
    fields = list(HEADER.unpack_from(make()))
    for size, expected in (
        (FRAME_BYTES_MAX - HEADER_BYTES, Verdict.SHORT),
        (FRAME_BYTES_MAX - HEADER_BYTES + 1, Verdict.BAD),
        (0xFFFFFFFF, Verdict.BAD),
    ):
        fields[5] = size
        assert decode_frame(HEADER.pack(*fields), 0, KEY) == (expected, None)


def test_frame_when_it_is_as_large_as_allowed_is_accepted() -> None:
    data = make(bytes(FRAME_BYTES_MAX - HEADER_BYTES))
    assert len(data) == FRAME_BYTES_MAX
    assert decode_frame(data, 0, KEY)[0] is Verdict.OK


@fuzz(120, data=st.binary(max_size=300), offset=st.integers(0, 310))
def test_decode_when_given_arbitrary_bytes_gives_a_verdict_and_no_frame(data: bytes, offset: int) -> None:
    verdict, frame = decode_frame(data, offset, KEY)
    assert frame is None
    assert verdict is not Verdict.OK


def test_decode_when_good_bytes_are_damaged_never_gives_another_frame(seed: int) -> None:
    source = random.Random(seed)
    good = make()
    whole = decode_frame(good, 0, KEY)
    for _ in range(1500):
        bad = damaged(good, source)
        verdict, frame = decode_frame(bad, 0, KEY)
        if frame is not None:
            assert bad[: len(good)] == good
            assert (verdict, frame) == whole
