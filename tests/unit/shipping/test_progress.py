"""The commit rule and the last common position, against tables and against the plain definition."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from perdure.shipping.progress import (
    Common,
    Electorate,
    commit_lsn,
    epoch_ends,
    last_common,
    voters_connected,
)
from perdure.store.ids import Position
from tests.support.fuzz import fuzz

NODES = ("n1", "n2", "n3", "n4", "n5")


def electorate(k: int, voters: tuple[str, ...] = ("n1", "n2", "n3"), start: int = 10) -> Electorate:
    return Electorate("n1", frozenset(voters), k, 2, start)


def at(lsn: int, epoch: int = 2) -> Position:
    return Position(epoch, lsn, lsn)


@pytest.mark.parametrize(
    ("k", "acked", "flushed", "before", "expected"),
    [
        (1, {}, 50, 0, 0),
        (1, {"n2": at(40)}, 50, 0, 40),
        (1, {"n2": at(40), "n3": at(45)}, 50, 0, 45),
        (2, {"n2": at(40), "n3": at(45)}, 50, 0, 40),
        (2, {"n2": at(40)}, 50, 0, 0),
        (1, {"n2": at(60)}, 50, 0, 50),  # never above what the primary has on disk
        (1, {"n9": at(40)}, 50, 0, 0),  # no voter
        (1, {"n1": at(40)}, 50, 0, 0),  # the primary does not confirm itself
        (1, {"n2": at(9, 1)}, 50, 0, 0),  # before the reign began: figure 8
        (1, {"n2": at(9)}, 50, 0, 0),
        (1, {"n2": at(10)}, 9, 0, 0),  # the EPOCH_START itself is not on the primary's disk
        (1, {"n2": at(10)}, 50, 0, 10),
        (1, {"n2": at(20)}, 50, 30, 30),  # it never goes back
        (0, {}, 50, 0, 50),
        (0, {"n2": at(10)}, 50, 60, 60),
    ],
)
def test_the_commit_lsn_is_the_kth_highest_acknowledged_position(
    k: int, acked: dict[str, Position], flushed: int, before: int, expected: int
) -> None:
    assert commit_lsn(electorate(k), acked, flushed, before) == expected


@fuzz(
    300,
    k=st.integers(1, 4),
    acked=st.dictionaries(st.sampled_from(NODES), st.tuples(st.integers(1, 2), st.integers(0, 60))),
    flushed=st.integers(0, 60),
    before=st.integers(0, 60),
    voters=st.sets(st.sampled_from(NODES)),
)
def test_what_is_committed_is_on_enough_disks(
    k: int, acked: dict[str, tuple[int, int]], flushed: int, before: int, voters: set[str]
) -> None:
    positions = {node: at(lsn, epoch) for node, (epoch, lsn) in acked.items()}
    who = electorate(k, tuple(voters))
    committed = commit_lsn(who, positions, flushed, before)
    assert committed >= before
    if committed > before:
        holders = [
            node
            for node, position in positions.items()
            if node in voters and node != "n1" and position.epoch == 2 and position.lsn >= committed
        ]
        assert len(holders) >= k
        assert 10 <= committed <= flushed
    more = {**positions, "n2": at(60)}
    assert commit_lsn(who, more, flushed, before) >= committed


def test_only_voters_besides_the_primary_are_counted_as_connected() -> None:
    assert voters_connected(electorate(1), ["n1", "n2", "n3", "n4"]) == 2
    assert voters_connected(electorate(0, ()), ["n2", "n4"]) == 2


@pytest.mark.parametrize(
    ("ours", "our_end", "theirs", "their_end", "expected"),
    [
        ([(1, 1)], at(50, 1), [], at(0, 0), Common(0, 0)),
        ([(1, 1)], at(50, 1), [(1, 1)], at(40, 1), Common(1, 40)),
        ([(1, 1), (2, 91)], at(95), [(1, 1)], at(100, 1), Common(1, 90)),
        ([(1, 1), (2, 91)], at(95), [(1, 1), (2, 91)], at(99), Common(2, 95)),
        ([(1, 1), (3, 91)], at(95, 3), [(1, 1), (2, 81)], at(85), Common(1, 80)),
        ([(3, 91)], at(95, 3), [(2, 1)], at(95, 2), None),
    ],
)
def test_two_logs_agree_up_to_the_shorter_end_of_their_newest_shared_epoch(
    ours: list[tuple[int, int]],
    our_end: Position,
    theirs: list[tuple[int, int]],
    their_end: Position,
    expected: Common | None,
) -> None:
    assert last_common(ours, our_end, theirs, their_end) == expected


def test_an_epoch_that_has_no_frame_has_no_end() -> None:
    assert epoch_ends([(1, 1), (2, 51)], at(50, 1)) == {1: 50}
    assert epoch_ends([(1, 1), (2, 51)], at(52, 2)) == {1: 50, 2: 52}
