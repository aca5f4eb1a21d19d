"""When it is sure that no later epoch had a primary: replicas that echoed count as those that acknowledge."""

from __future__ import annotations

import pytest

from perdure.shipping.progress import Electorate, confirmed_us
from perdure.store.control import Electors


def electorate(k: int, voters: str = "abc", **more: object) -> Electorate:
    settings: dict[str, object] = {"epoch": 2, "epoch_start_lsn": 10, **more}
    return Electorate(primary="a", voters=frozenset(voters), sync_replicas=k, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("k", "echoed", "confirmed"),
    [
        (1, {}, 0),
        (1, {"b": 5}, 5),
        (1, {"b": 5, "c": 9}, 9),
        (2, {"b": 5, "c": 9}, 5),
        (2, {"b": 5}, 0),
        (1, {"x": 9, "b": 5}, 5),
        (1, {"a": 9}, 0),
        (0, {"b": 9}, 0),
    ],
)
def test_the_kth_newest_echo_of_a_voter_counts(k: int, echoed: dict[str, int], confirmed: int) -> None:
    assert confirmed_us(electorate(k), echoed, 10) == confirmed


def test_a_witness_confirms_nothing() -> None:
    assert confirmed_us(electorate(1, witnesses=frozenset("c")), {"b": 5, "c": 9}, 10) == 5


def test_nothing_is_confirmed_before_the_own_beginning_is_committed() -> None:
    assert confirmed_us(electorate(1), {"b": 5}, 9) == 0


def test_while_voters_change_both_sets_have_to_confirm() -> None:
    before = Electors(voters=("a", "b"), sync_replicas=1)
    changing = electorate(1, "abc", before=before, changed_lsn=20)
    assert confirmed_us(changing, {"c": 9}, 15) == 0
    assert confirmed_us(changing, {"c": 9, "b": 5}, 15) == 5
    assert confirmed_us(changing, {"c": 9}, 20) == 9
