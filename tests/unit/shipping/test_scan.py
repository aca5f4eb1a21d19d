"""The quick scan of frames says what decoding them one by one says, on good and on damaged bytes."""

from __future__ import annotations

from hypothesis import strategies as st

from perdure.store.cursor import EVERYTHING
from perdure.store.event import Kind, Reason, encode_event
from perdure.store.frame import Scan, Verdict, cluster_key, decode_frame, encode_frame, scan_frames
from tests.support.fuzz import fuzz

KEY = cluster_key(bytes(range(16)))


def frames(count: int, *, control_at: int = -1) -> bytes:
    data, chain = b"", 0
    for number in range(count):
        kind = Kind.CONFIG if number == control_at else Kind.PUT
        payload = encode_event(kind, Reason.CREATED, bytes(16), b"k%d" % number, b"v" * number)
        frame, chain = encode_frame(
            payload,
            1,
            key=KEY,
            previous_chain=chain,
            shard=3,
            epoch=2,
            time_ms=5,
            first_lsn=number + 1,
            flushed_lsn=0,
            digest=9,
            session_count=number,
        )
        data += frame
    return data


def scan(data: bytes, upto_lsn: int = EVERYTHING, *, stop_at_control: bool = False) -> Scan:
    return scan_frames(
        data,
        0,
        key=KEY,
        shard=3,
        epoch=2,
        lsn=0,
        chain=0,
        upto_lsn=upto_lsn,
        stop_at_control=stop_at_control,
    )


def decoded_one_by_one(data: bytes) -> tuple[int, int, Verdict]:
    """(end, LSN, verdict) as the decoder says, frame by frame."""
    offset, lsn, chain = 0, 0, 0
    while True:
        verdict, frame = decode_frame(data, offset, KEY)
        if frame is None:
            return offset, lsn, verdict
        if (frame.first_lsn, frame.previous_chain, frame.epoch, frame.shard) != (lsn + 1, chain, 2, 3):
            return offset, lsn, Verdict.BAD
        offset += frame.size_bytes
        lsn, chain = frame.last_lsn, frame.chain


@fuzz(
    300, count=st.integers(0, 6), at=st.integers(0, 2000), flip=st.integers(0, 255), cut=st.integers(0, 2000)
)
def test_a_scan_stops_where_decoding_stops(count: int, at: int, flip: int, cut: int) -> None:
    data = bytearray(frames(count))
    if data:
        data[at % len(data)] ^= flip
    damaged = bytes(data[: len(data) - cut % (len(data) + 1)])
    end, lsn, verdict = decoded_one_by_one(damaged)
    found = scan(damaged)
    assert (found.end, found.lsn) == (end, lsn)
    if verdict is Verdict.END:
        assert found.verdict is Verdict.END
    else:
        assert found.verdict in (Verdict.BAD, Verdict.SHORT)


def test_a_scan_stops_before_the_frame_that_ends_behind_its_target() -> None:
    found = scan(frames(5), 3)
    assert (found.lsn, found.verdict) == (3, Verdict.OK)


def test_a_scan_stops_before_a_control_frame_unless_it_is_the_first() -> None:
    assert scan(frames(5, control_at=3), stop_at_control=True).lsn == 3
    assert scan(frames(5, control_at=0), stop_at_control=True).lsn == 5
    assert scan(frames(5, control_at=3)).lsn == 5


@fuzz(300, data=st.binary(max_size=300))
def test_a_scan_never_raises(data: bytes) -> None:
    assert scan(data).lsn == 0
