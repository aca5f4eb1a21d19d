"""Compression: to and fro, and bounded whatever the bytes claim."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import strategies as st

from perdure.store.errors import CorruptError
from perdure.store.zstd import SIZE_BYTES_MAX, compress, decompress
from tests.support.fuzz import cuts, damaged, flips, fuzz

GOOD = compress(b"all sessions look alike, " * 40)


@fuzz(80, data=st.binary(max_size=2000), level=st.sampled_from([-1, 1, 3, 9]))
def test_data_when_compressed_and_decompressed_are_the_same(data: bytes, level: int) -> None:
    assert decompress(compress(data, level), len(data)) == data
    assert decompress(memoryview(compress(memoryview(data), level)), len(data)) == data


@pytest.mark.parametrize("announced", [0, 1, 999, 1001, SIZE_BYTES_MAX])
def test_data_when_another_size_is_announced_are_refused(announced: int) -> None:
    assert len(decompress(GOOD, 1000)) == 1000
    with pytest.raises(CorruptError, match="do not hold"):
        decompress(GOOD, announced)


@pytest.mark.parametrize("announced", [-1, SIZE_BYTES_MAX + 1, 1 << 62])
def test_data_when_more_is_announced_than_is_ever_held_are_refused_at_once(announced: int) -> None:
    with pytest.raises(CorruptError, match="announced"):
        decompress(GOOD, announced)


@pytest.mark.parametrize("tail", [b"\0", GOOD])
def test_data_when_something_follows_them_are_refused(tail: bytes) -> None:
    with pytest.raises(CorruptError):
        decompress(GOOD + tail, 1000)
    with pytest.raises(CorruptError):
        decompress(GOOD + tail, 2000)


def test_data_when_cut_anywhere_are_refused() -> None:
    for cut in cuts(GOOD):
        with pytest.raises(CorruptError):
            decompress(cut, 1000)


def test_data_when_any_byte_is_changed_are_refused_or_as_long_as_announced() -> None:
    for _, bad in flips(GOOD):
        try:
            out = decompress(bad, 1000)
        except CorruptError:
            continue
        assert len(out) == 1000


def test_data_when_they_would_become_gigabytes_are_refused_within_the_announced_memory() -> None:
    bomb = compress(bytes(256 << 20), 19)
    assert len(bomb) < 64 << 10
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            decompress(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@fuzz(120, data=st.binary(max_size=200), announced=st.integers(0, 1000))
def test_arbitrary_bytes_when_decompressed_are_refused_or_as_announced(data: bytes, announced: int) -> None:
    for given in (data, b"\x28\xb5\x2f\xfd" + data):
        try:
            out = decompress(given, announced)
        except CorruptError:
            continue
        assert len(out) == announced


def test_damaged_bytes_when_decompressed_are_refused_or_as_announced(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(1000):
        try:
            out = decompress(damaged(GOOD, source), 1000)
        except CorruptError:
            continue
        assert len(out) == 1000
