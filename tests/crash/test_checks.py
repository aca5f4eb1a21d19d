"""The seven checks find each kind of loss, and allow everything that a history leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tests.support.faults.checks import Event, Recovered, Violation, check_all
from tests.support.faults.ledger import ANY_KEY, FOREVER, Attempt, History, Item

A, B, C = Item("put", "a", "1"), Item("update", "a", "2"), Item("put", "b", "3")
DELETE = Item("delete", "a")


def history(*rows: tuple[str, Sequence[Item], str], overlapping: bool = False) -> History:
    """Attempts one after the other (or all at once), each with its result."""
    attempts: dict[str, Attempt] = {}
    for index, (op, items, result) in enumerate(rows):
        began = index if overlapping else index * 10
        ended = FOREVER if result == "unknown" else began + (1000 if overlapping else 5)
        attempts[op] = Attempt(op, "w", tuple(items), began, ended, result)
    return History(attempts)


def log(*rows: tuple[str, Item], first: int = 1) -> list[Event]:
    return [
        Event(lsn, op, item.kind, item.key, item.digest) for lsn, (op, item) in enumerate(rows, start=first)
    ]


ACK = "acknowledged"
TWO = history(("1", [A], ACK), ("2", [B], ACK))
OPEN = history(("1", [A], ACK), ("2", [B], "unknown"))
DELETED = history(("1", [A], ACK), ("2", [DELETE], ACK))
BATCH = history(("1", [A, C], "unknown"))


@pytest.mark.parametrize(
    ("known", "state", "events"),
    [
        (history(), {}, []),
        (TWO, {"a": "2"}, log(("1", A), ("2", B))),
        (OPEN, {"a": "1"}, log(("1", A))),
        (OPEN, {"a": "2"}, log(("1", A), ("2", B))),
        (DELETED, {}, log(("1", A), ("2", DELETE))),
        (BATCH, {}, []),
        (BATCH, {"a": "1", "b": "3"}, log(("1", A), ("1", C))),
        (history(("1", [A], ACK), ("2", [B], "refused")), {"a": "1"}, log(("1", A))),
        # Two calls at once: either may be the later one.
        (history(("1", [A], ACK), ("2", [B], ACK), overlapping=True), {"a": "2"}, log(("1", A), ("2", B))),
        (
            history(("2", [DELETE], ACK), ("1", [A], ACK), overlapping=True),
            {"a": "1"},
            log(("2", DELETE), ("1", A)),
        ),
        # A batch that puts and deletes one key.
        (history(("1", [A, DELETE], ACK)), {}, log(("1", A), ("1", DELETE))),
        # A sweep may end what it likes.
        (history(("1", [A], ACK), ("s", [Item("expire", ANY_KEY)], ACK)), {}, None),
    ],
)
def test_what_a_history_leaves_open_is_allowed(
    known: History, state: Mapping[str, str], events: list[Event] | None
) -> None:
    recovered = Recovered(state, events)
    assert check_all(known, recovered, again=Recovered(state, events)) == []


@pytest.mark.parametrize(
    ("number", "known", "state", "events"),
    [
        pytest.param(1, TWO, {"a": "1"}, log(("1", A)), id="the last write is gone"),
        pytest.param(1, TWO, {"a": "1"}, None, id="the last write is gone, as the state alone shows"),
        pytest.param(1, TWO, {}, None, id="the key is gone"),
        pytest.param(1, TWO, {"a": "2"}, log(("2", B)), id="an overwritten write is gone from the log"),
        pytest.param(2, TWO, {"a": "2", "z": "9"}, None, id="a key that nobody wrote"),
        pytest.param(2, TWO, {"a": "9"}, None, id="a value that nobody wrote"),
        pytest.param(2, TWO, {"a": "2"}, log(("1", A), ("2", B), ("9", C)), id="an event that nobody made"),
        pytest.param(2, TWO, {"a": "2"}, log(("1", A), ("2", DELETE)), id="an event of another kind"),
        pytest.param(2, history(("1", [A], "refused")), {"a": "1"}, log(("1", A)), id="refused, yet there"),
        pytest.param(3, TWO, {"a": "2"}, log(("1", A), ("2", B), first=2), id="the log starts late"),
        pytest.param(3, TWO, {"a": "2"}, [*log(("1", A)), *log(("2", B), first=3)], id="a hole"),
        pytest.param(3, TWO, {"a": "2"}, log(("1", A), ("2", B), ("1", A)), id="a repeat"),
        pytest.param(3, TWO, {"a": "1"}, log(("2", B), ("1", A)), id="out of order"),
        pytest.param(3, BATCH, {"a": "1"}, log(("1", A)), id="half a batch"),
        pytest.param(4, DELETED, {"a": "1"}, None, id="deleted, yet there"),
        pytest.param(4, DELETED, {"a": "1"}, log(("1", A)), id="deleted, yet there with its log"),
        pytest.param(4, OPEN, {"a": "2"}, log(("2", B)), id="an update of nothing"),
        pytest.param(6, TWO, {"a": "1"}, log(("1", A), ("2", B)), id="the state is behind the log"),
        pytest.param(6, OPEN, {"a": "2"}, log(("1", A)), id="the state is ahead of the log"),
    ],
)
def test_a_broken_check_is_named(
    number: int, known: History, state: Mapping[str, str], events: list[Event] | None
) -> None:
    assert number in {v.check for v in check_all(known, Recovered(state, events))}


def test_a_second_recovery_that_differs_breaks_check_5() -> None:
    first = Recovered({"a": "2"}, log(("1", A), ("2", B)))
    for second in (
        Recovered({}, first.events),
        Recovered(first.state, log(("1", A))),
        Recovered(error="Gone"),
    ):
        assert {v.check for v in check_all(TWO, first, again=second)} == {5}


def test_recovery_that_is_slow_or_ends_unnamed_breaks_check_7() -> None:
    assert [v.check for v in check_all(TWO, Recovered({"a": "2"}, seconds=11), limit_s=10)] == [7]
    assert [v.check for v in check_all(TWO, Recovered(error="KeyError"))] == [7]
    assert check_all(TWO, Recovered(error="Corrupt"), named_errors=frozenset({"Corrupt"})) == []


def test_an_acknowledged_position_is_held_to() -> None:
    known = history(("1", [A], ACK))
    known.attempts["1"].lsn = 7
    assert [v.check for v in check_all(known, Recovered({"a": "1"}, log(("1", A))))] == [3]


def test_a_known_order_must_be_kept_as_a_prefix() -> None:
    known = history(("1", [A], "unknown"), ("2", [C], "unknown"), overlapping=True)
    state = {"a": "1", "b": "3"}
    assert check_all(known, Recovered(state, log(("2", C), ("1", A))), order=["2", "1"]) == []
    found = check_all(known, Recovered(state, log(("1", A), ("2", C))), order=["2", "1"])
    assert found == [Violation(3, "not a prefix of the commit order: 1 where 2 belongs")]


def test_a_log_on_top_of_a_snapshot_is_judged_from_there() -> None:
    base = Recovered({"a": "2"}, log(("2", B), first=2), base_lsn=1, base_state={"a": "1"})
    assert check_all(TWO, base) == []
    lost = Recovered({"a": "1"}, [], base_lsn=1, base_state={"a": "1"})
    assert [v.check for v in check_all(TWO, lost)] == [1]


def test_the_stores_own_expirations_need_no_ledger() -> None:
    events = [*log(("1", A)), Event(2, "own", "expire", "a"), Event(3, "", "control", "")]
    known = history(("1", [A], ACK))
    assert check_all(known, Recovered({}, events), own_kinds=frozenset({"expire"})) == []
    assert {v.check for v in check_all(known, Recovered({}, events))} == {1, 2}
