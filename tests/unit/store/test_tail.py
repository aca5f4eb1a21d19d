"""The tail verdict: every row of the table, and every combination of witnesses."""

from __future__ import annotations

import itertools

import pytest

from perdure.store import tail
from perdure.store.tail import TailVerdict, Witnesses, judge_tail

FAILING = 10
BELOW, AT, ABOVE = FAILING - 1, FAILING, FAILING + 1

Row = tuple[str, str, str, str, str, str]


def table() -> list[Row]:
    """The rows of the table in the module's docstring."""
    lines = [line.strip() for line in (tail.__doc__ or "").splitlines() if line.strip().startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [
        "durable witness covers b",
        "same boot",
        "valid frame behind",
        "state at or beyond b",
        "bytes at b",
        "verdict",
    ]
    return [(row[0], row[1], row[2], row[3], row[4], row[5]) for row in cells[2:]]


def all_witnesses() -> list[Witnesses]:
    """Every combination of what can be known, each number at, below and above the failing LSN."""
    numbers = (0, BELOW, AT, ABOVE)
    return [
        Witnesses(FAILING, has_bytes, mark, flushed, acked, same_boot, follower, state)
        for has_bytes, mark, flushed, acked, same_boot, follower, state in itertools.product(
            (False, True), numbers, numbers, numbers, (False, True), numbers, numbers
        )
    ]


def row_fits(row: Row, seen: Witnesses) -> bool:
    durable = max(seen.mark_lsn, seen.flushed_lsn_max, seen.acked_lsn_max) >= FAILING
    claims = {
        "mark, flushed word, peer ack": durable,
        "none": not durable,
    }
    facts = (
        seen.same_boot,
        # A frame counts as behind only above the failing LSN: at it would be the failing frame itself.
        seen.follower_lsn > FAILING,
        seen.state_lsn >= FAILING,
        seen.has_bytes,
    )
    return claims[row[0]] and all(
        said == "any" or (said == "yes") == fact for said, fact in zip(row[1:5], facts, strict=True)
    )


def stated_by_the_design(seen: Witnesses) -> TailVerdict:
    """The rule as prose states it, written without a look at the table.

    Corrupt if something durable covers b: the mark, a valid later frame's flushed word, a peer's
    acknowledgement; or, in the boot that wrote it, if a valid frame follows or the state is at or beyond
    b. Otherwise torn. A log that ends before the mark is corrupt; one that ends with a whole frame, and
    that nothing says should go on, is clean.
    """
    b = seen.failing_lsn
    is_covered = any(lsn >= b for lsn in (seen.mark_lsn, seen.flushed_lsn_max, seen.acked_lsn_max))
    was_read_in_this_boot = seen.same_boot and (seen.follower_lsn > b or seen.state_lsn >= b)
    if is_covered or was_read_in_this_boot:
        return TailVerdict.CORRUPT
    return TailVerdict.TORN if seen.has_bytes else TailVerdict.CLEAN


def test_verdict_when_every_combination_is_tried_is_that_of_the_first_row_that_fits() -> None:
    rows = table()
    decided: set[int] = set()
    for seen in all_witnesses():
        number, row = next((number, row) for number, row in enumerate(rows) if row_fits(row, seen))
        decided.add(number)
        assert judge_tail(seen).verdict.value == row[5], (row, seen)
    assert decided == set(range(len(rows))), "a row of the table never decides"


def test_table_when_every_combination_is_tried_has_exactly_one_row_for_each() -> None:
    for seen in all_witnesses():
        assert sum(row_fits(row, seen) for row in table()) == 1, seen


def test_verdict_when_every_combination_is_tried_is_what_the_design_states() -> None:
    for seen in all_witnesses():
        assert judge_tail(seen).verdict is stated_by_the_design(seen), seen


@pytest.mark.parametrize(
    ("seen", "because"),
    [
        (Witnesses(FAILING, False, mark_lsn=AT), "the mark says that LSN 10"),
        (Witnesses(FAILING, True, acked_lsn_max=ABOVE), "a peer holds LSN 11"),
        (Witnesses(FAILING, True, flushed_lsn_max=AT), "a later frame says that LSN 10"),
        (Witnesses(FAILING, True, same_boot=True, follower_lsn=ABOVE), "valid frame of LSN 11"),
        (Witnesses(FAILING, True, same_boot=True, state_lsn=AT), "the state holds LSN 10"),
        (Witnesses(FAILING, False), "ends with a whole frame"),
        (Witnesses(FAILING, True), "restarted since"),
        (Witnesses(FAILING, True, same_boot=True), "nothing follows"),
    ],
)
def test_judgement_when_a_witness_decides_names_it(seen: Witnesses, because: str) -> None:
    assert because in judge_tail(seen).because


def test_verdict_when_a_frame_follows_after_another_boot_is_torn() -> None:
    """Un-synced pages reach the disk in any order: a later page alone proves nothing."""
    seen = Witnesses(FAILING, True, mark_lsn=BELOW, follower_lsn=ABOVE, state_lsn=ABOVE)
    assert judge_tail(seen).verdict is TailVerdict.TORN


def test_verdict_when_a_copy_of_an_old_frame_follows_is_torn() -> None:
    """A frame with the failing LSN or a lower one is no follower: it may be left from before a cut."""
    for follower in (BELOW, AT):
        seen = Witnesses(FAILING, True, same_boot=True, follower_lsn=follower)
        assert judge_tail(seen).verdict is TailVerdict.TORN
