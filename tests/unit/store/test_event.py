"""Events: their bytes, and what is refused as one."""

from __future__ import annotations

import random

import pytest
from hypothesis import strategies as st

from perdure.store.errors import CorruptError
from perdure.store.event import (
    HEADER,
    KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
    Event,
    Kind,
    Reason,
    decode_events,
    encode_event,
)
from tests.support.fuzz import cuts, damaged, fuzz

OPERATION_ID = bytes(range(16))

events = st.tuples(
    st.sampled_from([int(kind) for kind in Kind]),
    st.sampled_from([int(reason) for reason in Reason]),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=1, max_size=60),
    st.binary(max_size=300),
)


def encode(events: list[Event]) -> bytes:
    return b"".join(encode_event(*event) for event in events)


@fuzz(100, given=st.lists(events, min_size=1, max_size=8))
def test_events_when_encoded_and_decoded_are_the_same(given: list[Event]) -> None:
    assert decode_events(encode(given), len(given)) == given


@pytest.mark.parametrize("key_bytes", [1, KEY_BYTES_MAX])
@pytest.mark.parametrize("value_bytes", [0, 1, VALUE_BYTES_MAX])
def test_event_when_key_and_value_are_as_long_as_allowed_is_decoded(key_bytes: int, value_bytes: int) -> None:
    event = (int(Kind.PUT), int(Reason.CREATED), OPERATION_ID, b"k" * key_bytes, b"v" * value_bytes)
    assert decode_events(encode([event]), 1) == [event]


def test_event_when_it_is_a_control_event_may_have_no_key() -> None:
    event = (int(Kind.CONFIG), int(Reason.CONTROL), OPERATION_ID, b"", b"v")
    assert decode_events(encode([event]), 1) == [event]


@pytest.mark.parametrize(
    ("kind", "reason", "key", "value"),
    [
        (0, 1, b"k", b""),
        (6, 1, b"k", b""),
        (255, 1, b"k", b""),
        (1, 16, b"k", b""),
        (1, 1, b"", b"a session without a key"),
        (5, 1, b"", b"new"),
        (1, 1, b"k" * (KEY_BYTES_MAX + 1), b""),
        (1, 1, b"k", bytes(VALUE_BYTES_MAX + 1)),
    ],
)
def test_event_when_a_field_is_out_of_bounds_is_refused_at_its_offset(
    kind: int, reason: int, key: bytes, value: bytes
) -> None:
    before = encode_event(1, 1, OPERATION_ID, b"fine", b"fine")
    with pytest.raises(CorruptError) as caught:
        decode_events(before + encode_event(kind, reason, OPERATION_ID, key, value), 2)
    assert caught.value.offset == len(before)


def test_payload_when_bytes_follow_the_last_event_is_refused_there() -> None:
    payload = encode_event(1, 1, OPERATION_ID, b"k", b"v")
    with pytest.raises(CorruptError) as caught:
        decode_events(payload + b"\0", 1)
    assert caught.value.offset == len(payload)


def test_payload_when_it_is_cut_anywhere_is_refused() -> None:
    payload = encode([(1, 1, OPERATION_ID, b"key", b"value"), (3, 5, OPERATION_ID, b"key", b"")])
    for cut in cuts(payload):
        with pytest.raises(CorruptError):
            decode_events(cut, 2)


def test_payload_when_its_count_is_wrong_is_refused() -> None:
    payload = encode_event(1, 1, OPERATION_ID, b"key", b"value")
    for count in (0, 2, 65536):
        with pytest.raises(CorruptError):
            decode_events(payload, count)


def test_event_when_its_length_claims_four_gigabytes_is_refused_without_making_them() -> None:
    with pytest.raises(CorruptError):
        decode_events(HEADER.pack(1, 1, 3, 0xFFFFFFFF, OPERATION_ID) + b"key", 1)


@fuzz(120, payload=st.binary(max_size=400), count=st.integers(0, 70_000))
def test_payload_when_it_is_arbitrary_bytes_decodes_or_is_refused(payload: bytes, count: int) -> None:
    try:
        found = decode_events(payload, count)
    except CorruptError:
        return
    assert len(found) == count
    assert encode(found) == payload


def test_payload_when_good_bytes_are_damaged_decodes_or_is_refused(seed: int) -> None:
    source = random.Random(seed)
    good = encode([(1, 1, OPERATION_ID, b"key", b"value" * 20), (2, 4, OPERATION_ID, b"key", bytes(8))])
    for _ in range(1000):
        payload = damaged(good, source)
        try:
            found = decode_events(payload, 2)
        except CorruptError:
            continue
        assert encode(found) == payload
