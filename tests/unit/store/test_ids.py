"""Positions: how they are written and read."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from perdure.store.ids import EPOCH_MAX, LSN_LIMIT, NOWHERE, Position, StatePosition, parse_position
from tests.support.fuzz import fuzz


@fuzz(
    100,
    epoch=st.integers(0, EPOCH_MAX),
    lsn=st.integers(0, LSN_LIMIT - 1),
    chain=st.integers(0, (1 << 64) - 1),
)
def test_position_when_written_and_read_is_the_same(epoch: int, lsn: int, chain: int) -> None:
    position = Position(epoch, lsn, chain)
    assert parse_position(str(position)) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1:2",
        "1:2:3",
        "1:2:00000000000000003",
        "1:2:000000000000000G",
        "-1:2:0000000000000003",
        "1:+2:0000000000000003",
        "1:2_0:0000000000000003",
        " 1:2:0000000000000003",
        "1:2:0000000000000003\n",
        "1:2:0x00000000000003",
        "4294967296:2:0000000000000003",
        "1:4611686018427387904:0000000000000003",
        "1:99999999999999999999999:0000000000000003",
        "\u0661:2:0000000000000003",
        "1:2:0000000000000003:4",
    ],
)
def test_text_when_it_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="position"):
        parse_position(text)


@fuzz(100, text=st.text(max_size=40))
def test_text_when_it_is_arbitrary_is_a_position_or_refused(text: str) -> None:
    try:
        position = parse_position(text)
    except ValueError:
        return
    assert str(position).endswith(text[-16:])


def test_state_position_when_asked_for_its_position_leaves_digest_and_count_out() -> None:
    assert StatePosition(1, 2, 3, 4, 5).position == Position(1, 2, 3)
    assert NOWHERE.position == Position(0, 0, 0)
