"""Checking and folding in one pass does what decoding frame by frame and applying the events does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import strategies as st

from perdure.store.cursor import EVERYTHING
from perdure.store.errors import CorruptError, DivergedError
from perdure.store.event import HEADER, Event, Kind, Reason, decode_events, encode_event
from perdure.store.fold import Fold, record_of
from perdure.store.fold_frames import Folded, fold_frames
from perdure.store.frame import HEADER_BYTES, Verdict, cluster_key, decode_frame, encode_frame
from perdure.store.ports import Record
from perdure.store.session import encode_session, expiry_of
from tests.support.fuzz import fuzz

KEY = cluster_key(bytes(range(16)))
SEGMENT = Path("a.seg")
KEYS = [b"a", b"bb", b"c" * 600, b"d"]


def stored(number: int) -> bytes:
    return encode_session(
        version=1, created_ms=1, accessed_ms=number, timeout_ms=600_000, cap_ms=0, metadata={"number": number}
    )


def event(kind: Kind, key: bytes, data: bytes = b"") -> bytes:
    return encode_event(kind, Reason.UPDATED, bytes(16), key, data)


class Log:
    """Frames of one epoch, over the sessions of `base`."""

    def __init__(self, base: dict[bytes, Record] | None = None) -> None:
        self.base = dict(base or {})
        digest = sum(int.from_bytes(record[:8], "little") for record in self.base.values()) % 2**64
        self.fold = Fold(self.base.get, digest, len(self.base))
        self.before = (digest, len(self.base))
        self.data, self.chain, self.lsn = b"", 0, 0

    def add(self, payload: bytes, event_count: int, *, digest: int = 0, session_count: int = 0) -> None:
        """A frame that is wrong by so much in its digest and count; its payload is taken as it is."""
        frame, self.chain = encode_frame(
            payload,
            event_count,
            key=KEY,
            previous_chain=self.chain,
            shard=3,
            epoch=2,
            time_ms=1000 + self.lsn,
            first_lsn=self.lsn + 1,
            flushed_lsn=0,
            digest=(self.fold.digest + digest) % 2**64,
            session_count=self.fold.session_count + session_count,
        )
        self.data += frame
        self.lsn += event_count

    def write(self, *events: bytes) -> None:
        payload = b"".join(events)
        self.fold.apply(decode_events(payload, len(events)))
        self.add(payload, len(events))


def random_log(seed: int, frames: int) -> Log:
    source = random.Random(seed)
    base = {key: record_of(key, stored(source.randrange(100))) for key in KEYS if source.random() < 0.5}
    log = Log(base)
    for _ in range(frames):
        events: list[bytes] = []
        for _ in range(source.choice([1, 1, 1, 2, 5])):
            key = source.choice(KEYS)
            kinds = [Kind.PUT, Kind.PUT, Kind.PUT, Kind.DELETE, Kind.EXPIRE, Kind.CONFIG]
            if (
                not events and log.fold.current(key) is not None
            ):  # only the first one's key is known to be there
                kinds += [Kind.TOUCH, Kind.RENAME]
            kind = source.choice(kinds)
            values = {
                Kind.PUT: stored(source.randrange(1000)),
                Kind.TOUCH: source.randbytes(8),
                Kind.RENAME: source.choice(KEYS),
            }
            events.append(event(kind, key, values.get(kind, b"")))
        log.write(*events)
    return log


def fresh(log: Log) -> Fold:
    return Fold(log.base.get if log.base else None, *log.before)


def run(data: bytes, fold: Fold, upto_lsn: int = EVERYTHING, upto_ms: int = EVERYTHING) -> Folded:
    return fold_frames(
        data,
        fold,
        key=KEY,
        shard=3,
        epoch=2,
        lsn=0,
        chain=0,
        upto_lsn=upto_lsn,
        upto_ms=upto_ms,
        path=SEGMENT,
    )


def one_by_one(data: bytes, fold: Fold, upto_lsn: int = EVERYTHING) -> tuple[int, int]:
    """(where it ends, frames) as decoding every frame and every event says."""
    offset = lsn = chain = frames = 0
    while True:
        frame = decode_frame(data, offset, KEY)[1]
        if frame is None or frame.last_lsn > upto_lsn:
            return offset, frames
        if (frame.first_lsn, frame.previous_chain, frame.epoch, frame.shard) != (lsn + 1, chain, 2, 3):
            return offset, frames
        payload = data[offset + HEADER_BYTES : offset + frame.size_bytes]
        events: list[Event] = decode_events(payload, frame.event_count)
        fold.apply(events)
        offset += frame.size_bytes
        lsn, chain, frames = frame.last_lsn, frame.chain, frames + 1


def holds(fold: Fold) -> tuple[object, ...]:
    return fold.changes, fold.digest, fold.session_count, fold.base_expiries, fold.moved_bytes


@fuzz(
    300,
    seed=st.integers(0, 1 << 32),
    frames=st.integers(0, 8),
    at=st.integers(0, 1 << 16),
    flip=st.sampled_from([0, 0, 1, 128]),
    cut=st.integers(0, 400),
    upto_lsn=st.sampled_from([EVERYTHING, EVERYTHING, 1, 3, 5]),
)
def test_frames_when_folded_in_one_pass_give_what_they_give_one_by_one(
    seed: int, frames: int, at: int, flip: int, cut: int, upto_lsn: int
) -> None:
    log = random_log(seed, frames)
    data = bytearray(log.data)
    if data:
        data[at % len(data)] ^= flip
    if cut % 2:
        del data[len(data) - cut :]
    fold, expected = fresh(log), fresh(log)
    folded = run(bytes(data), fold, upto_lsn)
    assert (folded.end, folded.frames) == one_by_one(bytes(data), expected, upto_lsn)
    assert holds(fold) == holds(expected)
    assert folded.frame == (decode_frame(bytes(data), folded.last, KEY)[1] if folded.frames else None)
    if not flip and not cut % 2 and upto_lsn == EVERYTHING:
        assert (folded.end, folded.verdict) == (len(data), Verdict.END)


@pytest.mark.parametrize(("digest", "session_count"), [(1, 0), (0, 1), (0, -1)])
def test_frame_when_its_digest_or_count_does_not_come_out_is_named(digest: int, session_count: int) -> None:
    log = Log()
    log.write(event(Kind.PUT, b"a", stored(1)))
    payload = event(Kind.PUT, b"b", stored(2))
    log.fold.apply(decode_events(payload, 1))
    log.add(payload, 1, digest=digest, session_count=session_count)
    with pytest.raises(DivergedError) as raised:
        run(log.data, fresh(log))
    assert (raised.value.lsn, raised.value.path) == (2, str(SEGMENT))


@pytest.mark.parametrize(
    ("payload", "event_count"),
    [
        (b"", 1),
        (b"\1" * 23, 1),
        (event(Kind.PUT, b"a", stored(1)), 2),
        (event(Kind.PUT, b"a", stored(1)) * 2, 1),
        (event(Kind.PUT, b"a", stored(1)) + b"\0", 1),
        (event(Kind.PUT, b"a", stored(1))[:-1], 1),
        (event(Kind.PUT, b"a", bytes(47)), 1),
        (event(Kind.PUT, b"", stored(1)), 1),
        (event(Kind.PUT, b"k" * 1025, stored(1)), 1),
        (event(Kind.TOUCH, b"gone", bytes(8)), 1),
        (HEADER.pack(1, 1, 1, 0xFFFFFFFF, bytes(16)) + b"a", 1),
        (HEADER.pack(1, 99, 1, 48, bytes(16)) + b"a" + bytes(48), 1),
        (HEADER.pack(99, 1, 1, 48, bytes(16)) + b"a" + bytes(48), 1),
    ],
)
def test_frame_when_it_verifies_but_its_events_cannot_be_right_is_refused(
    payload: bytes, event_count: int
) -> None:
    log = Log()
    log.write(event(Kind.PUT, b"z", stored(3)))
    log.add(payload, event_count)
    with pytest.raises(CorruptError):
        run(log.data + bytes(24), fresh(log))


@pytest.mark.parametrize("payload", [b"", b"\1" * 23])
def test_frame_when_it_is_the_last_and_too_short_for_an_event_is_not_taken(payload: bytes) -> None:
    log = Log()
    log.write(event(Kind.PUT, b"z", stored(3)))
    end = len(log.data)
    log.add(payload, 1)
    folded = run(log.data, fresh(log))
    assert (folded.end, folded.verdict) == (end, Verdict.BAD)


def test_frames_when_a_target_is_given_are_folded_up_to_the_last_one_not_behind_it() -> None:
    log = Log()
    for number in range(4):
        log.write(event(Kind.PUT, b"a", stored(number)), event(Kind.PUT, b"b", stored(number)))
    ends = [
        (folded.frames, folded.frame.last_lsn if folded.frame else 0, folded.verdict)
        for folded in (
            run(log.data, fresh(log), 1),
            run(log.data, fresh(log), 5),
            run(log.data, fresh(log), EVERYTHING, 999),
            run(log.data, fresh(log), EVERYTHING, 1002),
            run(log.data, fresh(log), 8, 1006),
        )
    ]
    assert ends == [
        (0, 0, Verdict.OK),
        (2, 4, Verdict.OK),
        (0, 0, Verdict.OK),
        (2, 4, Verdict.OK),
        (4, 8, Verdict.END),
    ]


@fuzz(300, data=st.binary(max_size=300), good=st.booleans())
def test_bytes_that_are_no_frames_never_raise(data: bytes, good: bool) -> None:
    log = Log()
    if good:
        log.write(event(Kind.PUT, b"a", stored(1)))
    folded = run(log.data + data, fresh(log))
    assert folded.end == len(log.data)


def test_a_key_that_the_base_holds_is_noted_with_its_expiry_there() -> None:
    record = record_of(b"a", stored(5))
    log = Log({b"a": record})
    log.write(event(Kind.PUT, b"a", stored(9)))
    log.write(event(Kind.PUT, b"a", stored(10)), event(Kind.PUT, b"b", stored(11)))
    fold = fresh(log)
    run(log.data, fold)
    assert fold.base_expiries == {b"a": expiry_of(record, 8)}


def test_a_record_of_the_base_that_is_cut_short_is_damage() -> None:
    log = Log({b"a": record_of(b"a", stored(5))})
    log.write(event(Kind.PUT, b"a", stored(9)))
    with pytest.raises(CorruptError, match="cut short"):
        run(log.data, Fold(lambda _key: bytes(20), *log.before))
