"""File names: to and fro, and what is no name of ours."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from perdure.store import names
from tests.support.fuzz import fuzz


@fuzz(100, lsn=st.integers(0, (1 << 64) - 1), epoch=st.integers(0, 0xFFFFFFFF))
def test_name_of_a_segment_or_snapshot_when_read_gives_its_numbers(lsn: int, epoch: int) -> None:
    assert names.parse_segment_name(names.segment_name(lsn, epoch)) == (lsn, epoch)
    assert names.parse_snapshot_name(names.snapshot_name(lsn, epoch)) == (lsn, epoch)


@fuzz(60, pairs=st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFFFFFF)), min_size=2))
def test_names_when_sorted_as_text_are_in_the_order_of_lsn_then_epoch(pairs: list[tuple[int, int]]) -> None:
    in_order = [names.segment_name(*pair) for pair in sorted(pairs)]
    assert sorted(names.segment_name(*pair) for pair in pairs) == in_order


SEGMENT = "00000000000000000001-0000000a.seg"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "identity",
        "0000000000000000001-0000000a.seg",
        "000000000000000000001-0000000a.seg",
        "00000000000000000001-0000000A.seg",
        "00000000000000000001-0000000a.seg.tmp",
        "00000000000000000001-0000000a.seg\n",
        "x00000000000000000001-0000000a.seg",
        "00000000000000000001_0000000a.seg",
        "0000000000000000000\u0661-0000000a.seg",
        "-0000000000000000001-0000000a.seg",
        "00000000000000000001-0000000a.snap",
    ],
)
def test_name_when_it_is_not_a_segments_is_not_taken_for_one(name: str) -> None:
    assert names.parse_segment_name(SEGMENT) == (1, 10)
    assert names.parse_segment_name(name) is None
    assert names.parse_snapshot_name(name.replace(".snap", ".seg")) is None


@pytest.mark.parametrize("node", ["a", "0", "alpha", "node-1.example_x", "a" * 32])
def test_node_name_when_it_is_good_makes_a_slot_name_and_comes_back(node: str) -> None:
    assert names.is_node_name(node)
    assert names.parse_slot_name(names.slot_name(node)) == node


@pytest.mark.parametrize("node", ["", "A", "-a", ".", "..", "a/b", "a b", "a\n", "a" * 33, "\u00e4", "a\0"])
def test_node_name_when_it_is_bad_is_refused_and_its_slot_name_too(node: str) -> None:
    assert not names.is_node_name(node)
    assert names.parse_slot_name(names.slot_name(node)) is None


@fuzz(100, name=st.text(max_size=50))
def test_name_when_it_is_arbitrary_is_ours_only_if_it_can_be_written_again(name: str) -> None:
    segment = names.parse_segment_name(name)
    assert segment is None or names.segment_name(*segment) == name
    snapshot = names.parse_snapshot_name(name)
    assert snapshot is None or names.snapshot_name(*snapshot) == name
    node = names.parse_slot_name(name)
    assert node is None or names.slot_name(node) == name
