"""The fold: every kind of event against an independent model; digest, count and deadlines."""

from __future__ import annotations

import random
from typing import Any

import pytest
import xxhash
from hypothesis import strategies as st

from perdure.store.errors import CorruptError
from perdure.store.event import KEY_BYTES_MAX, NO_OPERATION, Event, Kind, Reason
from perdure.store.fold import Fold, hash_of, plan_deadlines, record_of, touched, value_of
from perdure.store.session import NEVER_MS, encode_session, expiry_of, pack_header
from tests.support.fuzz import fuzz

KEYS = [b"a", b"b", b"c", b"d"]


def value(number: int = 0, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "version": 1,
        "created_ms": 1,
        "accessed_ms": 1000,
        "timeout_ms": 600_000,
        "cap_ms": 0,
        "metadata": {"number": number},
    }
    return encode_session(**{**fields, **changes})


def event(kind: Kind, key: bytes, data: bytes = b"") -> Event:
    return (int(kind), int(Reason.NONE), NO_OPERATION, key, data)


def digest_by_hand(sessions: dict[bytes, bytes]) -> int:
    """The digest as docs/format.md states it."""
    terms = (
        xxhash.xxh3_64_intdigest(value, xxhash.xxh3_64_intdigest(key)) for key, value in sessions.items()
    )
    return sum(terms) % 2**64


def step(sessions: dict[bytes, bytes], source: random.Random) -> Event:
    """A random event that can be right, and its effect on a plain dict."""
    key, other = source.choice(KEYS), source.choice(KEYS)
    kinds = [Kind.PUT, Kind.DELETE, Kind.EXPIRE, Kind.CONFIG]
    if key in sessions:
        kinds += [Kind.TOUCH, Kind.RENAME]
    kind = source.choice(kinds)
    data = b""
    if kind is Kind.PUT:
        data = sessions[key] = value(source.randrange(1000))
    elif kind is Kind.TOUCH:
        data = source.randbytes(8)
        sessions[key] = sessions[key][:24] + data + sessions[key][32:]
    elif kind is Kind.RENAME:
        data = other
        sessions[other] = sessions.pop(key)
    elif kind is not Kind.CONFIG:
        sessions.pop(key, None)
    return event(kind, key, data)


@fuzz(80, seed=st.integers(0, 1 << 32), length=st.integers(0, 60), folded_at=st.integers(0, 60))
def test_fold_when_random_events_are_applied_in_two_parts_agrees_with_a_dict_and_the_digest_by_hand(
    seed: int, length: int, folded_at: int
) -> None:
    source = random.Random(seed)
    sessions: dict[bytes, bytes] = {}
    events = [step(sessions, source) for _ in range(length)]
    base: dict[bytes, bytes] = {}
    fold = Fold(base.get)
    fold.apply(events[:folded_at])
    for key, record in fold.changes.items():
        if record is None:
            base.pop(key, None)
        else:
            base[key] = record
    fold = Fold(base.get, fold.digest, fold.session_count)
    fold.apply(events[folded_at:])
    after = {key: fold.current(key) for key in KEYS}
    assert {key: value_of(key, record) for key, record in after.items() if record is not None} == sessions
    assert fold.session_count == len(sessions)
    assert fold.digest == digest_by_hand(sessions)


def test_fold_when_everything_is_removed_again_has_digest_zero() -> None:
    fold = Fold(lambda key: None)
    fold.apply([event(Kind.PUT, key, value()) for key in KEYS])
    assert fold.digest != 0
    fold.apply([event(Kind.EXPIRE, key) for key in KEYS])
    assert (fold.digest, fold.session_count) == (0, 0)
    assert fold.changes == dict.fromkeys(KEYS)


def test_fold_when_a_session_is_renamed_onto_itself_or_another_keeps_one() -> None:
    fold = Fold(lambda key: None)
    fold.apply([event(Kind.PUT, b"a", value(1)), event(Kind.RENAME, b"a", b"a")])
    assert (fold.session_count, fold.digest) == (1, hash_of(b"a", value(1)))
    fold.apply([event(Kind.PUT, b"b", value(2)), event(Kind.RENAME, b"a", b"b")])
    assert (fold.session_count, fold.digest) == (1, hash_of(b"b", value(1)))
    assert fold.current(b"a") is None


@pytest.mark.parametrize(
    "bad",
    [
        event(Kind.TOUCH, b"gone", bytes(8)),
        event(Kind.TOUCH, b"a", bytes(7)),
        event(Kind.TOUCH, b"a", bytes(9)),
        event(Kind.TOUCH, b"a"),
        event(Kind.RENAME, b"gone", b"new"),
        event(Kind.RENAME, b"a", b""),
        event(Kind.RENAME, b"a", b"x" * (KEY_BYTES_MAX + 1)),
        event(Kind.PUT, b"a", b""),
        event(Kind.PUT, b"a", bytes(47)),
    ],
)
def test_fold_when_an_event_cannot_be_right_refuses_it(bad: Event) -> None:
    fold = Fold(lambda key: None)
    fold.apply([event(Kind.PUT, b"a", value())])
    before = (dict(fold.changes), fold.digest, fold.session_count)
    with pytest.raises(CorruptError, match=repr(bad[3])):
        fold.apply([bad])
    assert (fold.changes, fold.digest, fold.session_count) == before


def test_record_when_made_and_read_gives_the_value_and_its_hash() -> None:
    record = record_of(b"key", value())
    assert value_of(b"key", record) == value()
    assert int.from_bytes(record[:8], "little") == hash_of(b"key", value())


def test_record_when_any_byte_is_changed_or_it_is_cut_or_of_another_key_is_refused() -> None:
    good = record_of(b"key", value())
    bad = [good[:at] + bytes([byte ^ 1]) + good[at + 1 :] for at, byte in enumerate(good)]
    bad += [good[:size] for size in range(len(good))]
    for record in bad:
        with pytest.raises(CorruptError, match="hash"):
            value_of(b"key", record)
    with pytest.raises(CorruptError, match="b'other'"):
        value_of(b"other", good)


def test_touched_when_given_eight_bytes_sets_the_last_access() -> None:
    assert touched(b"a", record_of(b"a", value()), (7).to_bytes(8, "little")) == value(accessed_ms=7)


def test_deadlines_when_planned_are_armed_for_what_is_new_or_expires_earlier() -> None:
    old = {
        b"later": record_of(b"later", value(accessed_ms=1000)),
        b"earlier": record_of(b"earlier", value(accessed_ms=9000)),
        b"same": record_of(b"same", value()),
        b"was never": record_of(b"was never", value(timeout_ms=0)),
        b"now never": record_of(b"now never", value()),
        b"removed": record_of(b"removed", value()),
    }
    new: dict[bytes, bytes | None] = {
        b"earlier": value(accessed_ms=5000),
        b"later": value(accessed_ms=5000),
        b"new": value(),
        b"never": value(timeout_ms=0),
        b"now never": value(timeout_ms=0),
        b"removed": None,
        b"same": value(metadata={"other": 1}),
        b"was never": value(),
    }
    changes = [(key, None if data is None else record_of(key, data)) for key, data in new.items()]
    armed = list(plan_deadlines(changes, {key: expiry_of(record, 8) for key, record in old.items()}))
    assert [key for _, key in armed] == [b"earlier", b"new", b"was never"]
    for deadline, key in armed:
        data = new[key]
        assert data is not None
        assert deadline == expiry_of(data)


@pytest.mark.parametrize("accessed", [NEVER_MS, (1 << 64) - 1])
def test_deadlines_when_an_expiry_is_beyond_all_time_are_not_armed(accessed: int) -> None:
    data = pack_header(1, 0, 2, 0, 0, 0, 1, 1, accessed, (1 << 64) - 1, 0) + b"\x80"
    assert list(plan_deadlines([(b"a", record_of(b"a", data))], {})) == []
