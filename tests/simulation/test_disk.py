"""What a power cut leaves of files on the simulated disks."""

from __future__ import annotations

from tests.simulation.disk import PAGE_BYTES, apply_writes, pages_of


def test_blocks_allocated_ahead_are_zeros_and_make_no_file_shorter() -> None:
    data = bytearray(b"abc")
    apply_writes(data, [(5, b""), (4, b"x"), (2, b"")])
    assert data == b"abc\0x"
    apply_writes(data, [(2, None), (4, b"")])
    assert data == b"ab\0\0"


def test_a_write_is_lost_page_by_page() -> None:
    start = PAGE_BYTES - 3
    written = bytes(range(1, 256)) * 40
    pieces = pages_of(start, written)
    assert [offset for offset, _ in pieces] == [start, PAGE_BYTES, 2 * PAGE_BYTES, 3 * PAGE_BYTES]
    data = bytearray()
    apply_writes(data, pieces)
    assert data == bytes(start) + written
    assert pages_of(PAGE_BYTES, written[:PAGE_BYTES]) == [(PAGE_BYTES, written[:PAGE_BYTES])]
    assert [pages_of(9, unwritten) for unwritten in (None, b"")] == [[(9, None)], [(9, b"")]]
