"""The mark: two slots in turn, and no damage that goes unseen."""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from perdure.store.frame import cluster_key
from perdure.store.ids import Position
from perdure.store.mark import (
    FILE_BYTES,
    SLOT_BYTES,
    Mark,
    MarkFile,
    SlotVerdict,
    decode_marks,
    decode_slot,
    encode_slot,
    read_marks,
)
from tests.support.fuzz import cuts, damaged, flips, fuzz

KEY = cluster_key(b"c" * 16)
U64 = st.integers(0, (1 << 64) - 1)
OK, EMPTY, BAD = SlotVerdict.OK, SlotVerdict.EMPTY, SlotVerdict.BAD


def mark(sequence: int) -> Mark:
    """The mark with that number; number 0 is the first one's copy."""
    written = max(1, sequence)
    return Mark(Position(1, written * 10, written), written, sequence)


def slot(sequence: int) -> bytes:
    return encode_slot(mark(sequence), KEY)


def written(sequence: int) -> bytes:
    """The file after that many marks."""
    slots = [slot(0), slot(1)]
    for number in range(2, sequence + 1):
        slots[number % 2] = slot(number)
    return b"".join(slots)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@fuzz(100, epoch=st.integers(0, 0xFFFFFFFF), numbers=st.tuples(U64, U64, U64, U64), key=U64)
def test_slot_when_encoded_and_decoded_is_the_same(
    epoch: int, numbers: tuple[int, int, int, int], key: int
) -> None:
    lsn, chain, committed, sequence = numbers
    given = Mark(Position(epoch, lsn, chain), committed, sequence)
    data = encode_slot(given, key)
    assert len(data) == SLOT_BYTES
    assert decode_slot(data, key) == (OK, given)


def test_file_when_marks_are_written_in_turn_always_holds_the_last_two(path: Path) -> None:
    file = MarkFile(path, KEY)
    for sequence in range(1, 6):
        file.write(Position(1, sequence * 10, sequence), sequence)
        assert path.read_bytes() == written(sequence)
        assert read_marks(path, KEY)[0] == Mark(Position(1, sequence * 10, sequence), sequence, sequence)
    file.sync()
    file.close()
    again = MarkFile(path, KEY)
    again.write(Position(2, 60, 6), 6)
    assert read_marks(path, KEY) == (Mark(Position(2, 60, 6), 6, 6), [OK, OK])
    again.close()


def test_file_when_it_is_missing_or_empty_says_nothing(path: Path) -> None:
    assert read_marks(path, KEY) == (None, [EMPTY, EMPTY])
    MarkFile(path, KEY).close()
    assert read_marks(path, KEY) == (None, [EMPTY, EMPTY])


def test_file_when_only_one_mark_was_ever_written_holds_it_twice() -> None:
    assert decode_marks(written(1), KEY) == (mark(1), [OK, OK])
    assert decode_slot(written(1)[:SLOT_BYTES], KEY) == (OK, mark(0))


@pytest.mark.parametrize("sequence", [1, 2, 3])
def test_file_when_any_byte_is_changed_says_which_slot_and_gives_no_other_mark(sequence: int) -> None:
    good = written(sequence)
    marks = {mark(number) for number in range(sequence + 1)}
    for offset, bad in flips(good):
        newest, verdicts = decode_marks(bad, KEY)
        assert verdicts[offset // SLOT_BYTES] is BAD, offset
        assert newest is None or newest in marks


@pytest.mark.parametrize("sequence", [1, 2, 3])
def test_file_when_it_is_cut_anywhere_says_so(sequence: int) -> None:
    for cut in cuts(written(sequence)):
        newest, verdicts = decode_marks(cut, KEY)
        assert BAD in verdicts or (not cut and newest is None), len(cut)


@pytest.mark.parametrize("sequence", [1, 2, 3])
@pytest.mark.parametrize("number", [0, 1])
def test_file_when_a_slot_is_zeroed_says_so(sequence: int, number: int) -> None:
    data = bytearray(written(sequence))
    data[number * SLOT_BYTES : (number + 1) * SLOT_BYTES] = bytes(SLOT_BYTES)
    assert decode_marks(bytes(data), KEY)[1][number] is BAD


def test_file_when_its_slots_are_swapped_or_doubled_says_so() -> None:
    good = written(3)
    first, second = good[:SLOT_BYTES], good[SLOT_BYTES:]
    assert decode_marks(second + first, KEY)[1] == [BAD, BAD]
    assert decode_marks(first + first, KEY)[1] == [OK, BAD]


@pytest.mark.parametrize("tail", [b"\0", bytes(64), b"x" * 5000])
def test_file_when_something_follows_the_slots_says_so(path: Path, tail: bytes) -> None:
    path.write_bytes(written(4) + tail)
    newest, verdicts = read_marks(path, KEY)
    assert newest is not None
    assert verdicts == [OK, OK, BAD]


def test_file_when_it_is_all_zeros_says_nothing_and_of_another_cluster_is_bad() -> None:
    assert decode_marks(bytes(FILE_BYTES), KEY) == (None, [EMPTY, EMPTY])
    assert decode_marks(written(3), cluster_key(b"d" * 16)) == (None, [BAD, BAD])


def test_file_when_the_newer_slot_is_damaged_is_written_on_from_the_older(path: Path) -> None:
    data = bytearray(written(3))
    data[SLOT_BYTES + 20] ^= 1
    path.write_bytes(data)
    file = MarkFile(path, KEY)
    file.write(Position(1, 30, 30), 0)
    file.close()
    newest, verdicts = read_marks(path, KEY)
    assert newest == Mark(Position(1, 30, 30), 0, 3)
    assert verdicts == [OK, OK]


@fuzz(120, data=st.binary(max_size=300))
def test_decode_when_given_arbitrary_bytes_gives_no_mark(data: bytes) -> None:
    newest, verdicts = decode_marks(data, KEY)
    assert newest is None
    assert OK not in verdicts


def test_decode_when_good_bytes_are_damaged_gives_a_mark_that_was_written_or_none(seed: int) -> None:
    source = random.Random(seed)
    good = written(3)
    marks = [mark(2), mark(3)]
    for _ in range(1000):
        bad = damaged(good, source)
        newest, verdicts = decode_marks(bad, KEY)
        assert newest is None or newest in marks
        if bad != good and verdicts == [OK, OK]:
            pytest.fail(f"damage went unseen: {bad.hex()}")


@pytest.fixture
def size_limit() -> Iterator[None]:
    """Files may not grow: a write of a slot is cut short, then fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SLOT_BYTES + 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_write_when_the_slot_does_not_fit_raises_and_the_slot_is_bad(path: Path, size_limit: None) -> None:
    file = MarkFile(path, KEY)
    with pytest.raises(OSError, match="No space"):
        file.write(Position(1, 1, 1), 0)
    file.close()
    assert os.stat(path).st_size == SLOT_BYTES + 10
    newest, verdicts = read_marks(path, KEY)
    assert newest == Mark(Position(1, 1, 1), 0, 0)
    assert verdicts == [OK, BAD, BAD]
