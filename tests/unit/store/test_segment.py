"""Segments: header and footer to and fro, every byte of them guarded, and clear words for what is wrong."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import strategies as st

from perdure.store.errors import CorruptError, ForeignError, FormatVersionError
from perdure.store.frame import xxh3_64
from perdure.store.ids import LSN_LIMIT, StatePosition
from perdure.store.segment import (
    FOOTER_BYTES_MAX,
    FOOTER_END,
    FOOTER_HEAD,
    HEADER_BYTES,
    INDEX_ENTRIES_MAX,
    IndexEntry,
    SegmentFooter,
    SegmentHeader,
    decode_footer,
    decode_header,
    encode_footer,
    encode_header,
    hash_file,
    read_footer,
    read_header,
    seek,
)
from tests.format.worked_example import CLUSTER_ID, example_header, example_segment
from tests.support.fuzz import cuts, damaged, flips, fuzz

U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, (1 << 64) - 1)
node_names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,31}", fullmatch=True)


@contextmanager
def opened(data: bytes) -> Generator[int]:
    """A file with this content, in memory: there are thousands of them."""
    descriptor = os.memfd_create("segment")
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)


def with_check(data: bytes) -> bytes:
    """A header whose check fits what stands before it."""
    return data[: HEADER_BYTES - 8] + struct.pack("<Q", xxh3_64(data[: HEADER_BYTES - 8]))


@fuzz(
    80,
    cluster_id=st.binary(min_size=16, max_size=16),
    shard=st.integers(0, 0xFFFF),
    names=st.tuples(node_names, node_names),
    epochs=st.tuples(U32, U32),
    first_lsn=st.integers(1, LSN_LIMIT - 1),
    numbers=st.tuples(U64, U64, U64, U64),
)
def test_header_when_encoded_and_decoded_is_the_same(
    cluster_id: bytes,
    shard: int,
    names: tuple[str, str],
    epochs: tuple[int, int],
    first_lsn: int,
    numbers: tuple[int, int, int, int],
) -> None:
    previous = StatePosition(epochs[1], first_lsn - 1, *numbers[:3])
    header = SegmentHeader(cluster_id, shard, epochs[0], *names, first_lsn, previous, numbers[3])
    data = encode_header(header)
    assert len(data) == HEADER_BYTES
    assert decode_header(data + b"frames", path="x") == header


@fuzz(
    60,
    end=st.builds(StatePosition, U32, U64, U64, U64, U64),
    frames_end=U64,
    file_hash=U64,
    index=st.lists(st.builds(IndexEntry, U64, U64, U64), max_size=20),
)
def test_footer_when_encoded_and_decoded_is_the_same(
    end: StatePosition, frames_end: int, file_hash: int, index: list[IndexEntry]
) -> None:
    footer = SegmentFooter(end, frames_end, file_hash, tuple(index))
    assert decode_footer(encode_footer(footer), path="x", offset=frames_end) == footer


def test_footer_when_its_index_is_as_long_as_allowed_is_read_and_one_more_entry_is_refused() -> None:
    entry = IndexEntry(1, 2, 3)
    end = StatePosition(1, 2, 3, 4, 5)
    largest = SegmentFooter(end, HEADER_BYTES, 7, (entry,) * INDEX_ENTRIES_MAX)
    data = encode_footer(largest)
    assert len(data) == FOOTER_BYTES_MAX
    with opened(bytes(HEADER_BYTES) + data) as descriptor:
        assert read_footer(descriptor, path="x") == largest
    too_long = msgspec.structs.replace(largest, index=(entry,) * (INDEX_ENTRIES_MAX + 1))
    with pytest.raises(CorruptError):
        decode_footer(encode_footer(too_long), path="x", offset=HEADER_BYTES)


def test_header_when_any_byte_is_changed_is_refused_with_path_and_offset() -> None:
    good = encode_header(example_header())
    for offset, bad in flips(good):
        with pytest.raises((CorruptError, ForeignError)) as caught:
            decode_header(bad, path="the.seg")
        assert isinstance(caught.value, ForeignError) == (offset < 8)
        assert (caught.value.path, caught.value.offset) == ("the.seg", 0)


def test_header_when_it_is_cut_anywhere_is_refused_where_it_ends() -> None:
    for cut in cuts(encode_header(example_header())):
        with pytest.raises(CorruptError, match="ends inside its header") as caught:
            decode_header(cut, path="the.seg")
        assert caught.value.offset == len(cut)
    with opened(b"") as descriptor, pytest.raises(CorruptError, match="ends inside its header"):
        read_header(descriptor, path="the.seg")


def test_segment_when_any_byte_of_its_footer_is_changed_is_refused_or_counts_as_unsealed() -> None:
    good = example_segment()
    start = good.index(b"PDRFOOT1")
    for offset, bad in flips(good):
        if offset < start:
            continue
        with opened(bad) as descriptor:
            if offset >= len(good) - 4:
                # Without its last four bytes it looks like a tail with bytes behind its frames; those
                # are judged like any other bytes that are no frame.
                assert read_footer(descriptor, path="x") is None
                continue
            with pytest.raises(CorruptError, match="footer") as caught:
                read_footer(descriptor, path="the.seg")
            assert caught.value.path == "the.seg"
            assert caught.value.offset is not None


def test_segment_when_a_byte_of_its_frames_is_changed_does_not_have_its_hash() -> None:
    good = example_segment()
    start = good.index(b"PDRFOOT1")
    for offset, bad in flips(good):
        if offset >= start:
            break
        with opened(bad) as descriptor:
            footer = read_footer(descriptor, path="x")
            assert footer is not None
            assert hash_file(descriptor, footer.frames_end) != footer.file_hash
    with opened(good) as descriptor:
        footer = read_footer(descriptor, path="x")
        assert footer is not None
        assert hash_file(descriptor, footer.frames_end) == footer.file_hash


def test_segment_when_it_is_cut_anywhere_has_no_footer() -> None:
    for cut in cuts(example_segment()):
        with opened(cut) as descriptor:
            assert read_footer(descriptor, path="x") is None


@pytest.mark.parametrize("zeros", [1, 8, 4096])
def test_segment_when_zeros_follow_its_footer_has_none(zeros: int) -> None:
    with opened(example_segment() + bytes(zeros)) as descriptor:
        assert read_footer(descriptor, path="x") is None


def test_footer_when_it_stands_elsewhere_than_it_says_is_refused() -> None:
    good = example_segment()
    start = good.index(b"PDRFOOT1")
    with (
        opened(good[:start] + b"\0" + good[start:]) as descriptor,
        pytest.raises(CorruptError, match="footer is damaged"),
    ):
        read_footer(descriptor, path="x")


@pytest.mark.parametrize("size", [0, 1, 79, 500, FOOTER_BYTES_MAX + 1, 0xFFFFFFFF])
def test_footer_when_its_length_is_impossible_is_refused(size: int) -> None:
    data = encode_header(example_header()) + bytes(100) + FOOTER_END.pack(1, size, b"PDRE")
    with (
        opened(data) as descriptor,
        pytest.raises(CorruptError, match=r"impossible length|damaged"),
    ):
        read_footer(descriptor, path="x")


def test_header_when_it_is_of_a_newer_format_says_which() -> None:
    newer = bytearray(encode_header(example_header()))
    newer[8:10] = (2).to_bytes(2, "little")
    with pytest.raises(FormatVersionError, match="format 2 is newer than 1") as caught:
        decode_header(with_check(bytes(newer)), path="the.seg")
    assert caught.value.path == "the.seg"
    assert "version of perdure" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ((0, bytes(HEADER_BYTES)), CorruptError, "all zeros"),
        ((0, b"SQLite format 3\0"), ForeignError, "not a segment"),
        ((8, b"\0\0"), CorruptError, "check"),
        ((116, b"\1"), CorruptError, "check"),
        ((144, b"\1"), CorruptError, "check"),
        ((96, bytes(8)), CorruptError, "check"),
        ((96, b"\xff" * 8), CorruptError, "check"),
        ((32, b"\xff"), CorruptError, "names no node"),
    ],
)
def test_header_when_it_says_what_cannot_be_is_refused_though_its_check_fits(
    change: tuple[int, bytes], error: type[Exception], words: str
) -> None:
    offset, new = change
    data = bytearray(encode_header(example_header()))
    data[offset : offset + len(new)] = new
    made = bytes(data) if not any(data) else with_check(bytes(data))
    with pytest.raises(error, match=words):
        decode_header(made, path="x")


def test_header_when_it_is_read_says_whose_it_is() -> None:
    with opened(example_segment()) as descriptor:
        header = read_header(descriptor, path="x")
    assert header.cluster_id == CLUSTER_ID
    assert header == example_header()


@fuzz(100, data=st.binary(max_size=400))
def test_header_and_footer_when_given_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((CorruptError, ForeignError)):
        decode_header(data, path="x")
    with pytest.raises(CorruptError):
        decode_footer(data, path="x", offset=0)


def test_header_and_footer_when_damaged_are_refused_or_unchanged(seed: int) -> None:
    source = random.Random(seed)
    header = encode_header(example_header())
    whole = example_segment()
    start = whole.index(b"PDRFOOT1")
    footer = whole[start:]

    def header_of(data: bytes) -> SegmentHeader:
        return decode_header(data, path="x")

    def footer_of(data: bytes) -> SegmentFooter:
        return decode_footer(data, path="x", offset=start)

    for _ in range(1000):
        bad = damaged(header, source)
        assert_refused_or_same(bad[:HEADER_BYTES], header, header_of)
        bad = damaged(footer, source)
        assert_refused_or_same(bad, footer, footer_of)


def assert_refused_or_same(bad: bytes, good: bytes, decode: Callable[[bytes], object]) -> None:
    try:
        decode(bad)
    except (CorruptError, ForeignError, FormatVersionError):
        return
    assert bad == good


def test_read_when_a_file_of_random_damage_is_opened_gives_the_footer_or_none_or_refuses(seed: int) -> None:
    source = random.Random(seed)
    good = example_segment()
    with opened(good) as descriptor:
        whole = read_footer(descriptor, path="x")
    for _ in range(500):
        with opened(damaged(good, source)) as descriptor:
            try:
                footer = read_footer(descriptor, path="x")
            except CorruptError:
                continue
            assert footer is None or footer == whole


def test_seek_when_every_lsn_is_tried_gives_the_last_entry_at_or_before_it(seed: int) -> None:
    source = random.Random(seed)
    for size in (0, 1, 2, 7, 100):
        lsns = sorted(source.sample(range(1, 400), size))
        index = [IndexEntry(lsn, 1000 + lsn, 0) for lsn in lsns]
        for lsn in range(401):
            before = [entry.offset for entry in index if entry.lsn <= lsn]
            assert seek(index, lsn) == (before[-1] if before else HEADER_BYTES)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_hash_when_a_file_is_larger_than_one_step_is_that_of_its_bytes(size: int) -> None:
    data = random.Random(size).randbytes(size)
    with opened(data) as descriptor:
        assert hash_file(descriptor, size) == xxh3_64(data)
        assert hash_file(descriptor, size + 10) == xxh3_64(data)


def test_sizes_when_measured_are_those_of_the_structs() -> None:
    assert FOOTER_HEAD.size + 24 * INDEX_ENTRIES_MAX + FOOTER_END.size == FOOTER_BYTES_MAX
