"""The checker of histories: right ones pass, whatever the interleaving, and each kind of fault is found."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import msgspec
import pytest

from perdure.cli.demo import linearizability
from perdure.cli.demo.linearizability import Operation, UndecidedError, check_register, find_faults

START = "start"


def call(
    kind: linearizability.Kind,
    start: int,
    end: int | None,
    *,
    value: str = "",
    seen: str | None = None,
    client: str = "a",
    version: int = 0,
    is_plain: bool = False,
    was_there: bool = True,
) -> Operation:
    return Operation(
        client=client,
        kind=kind,
        key="k",
        start_ns=start,
        end_ns=end,
        value=value,
        seen=seen,
        version=version,
        is_plain=is_plain,
        was_there=was_there,
    )


SECOND_NS = 1_000_000_000  # so that no two moments are the same


class Register:
    """What a right store does: each call takes effect at one moment between its beginning and its end."""

    def __init__(self, seed: int, *, clients: int = 8, keys: int = 1, lost: float = 0.02) -> None:
        self._random = random.Random(seed)
        self._clients = clients
        self._keys = keys
        self._lost = lost
        self._held: dict[str, tuple[str | None, int]] = {}

    def run(self, calls: int) -> list[Operation]:
        clocks = [self._random.random() for _ in range(self._clients)]
        moments: list[tuple[float, float, float, int]] = []
        for number in range(calls):
            client = number % self._clients
            start = clocks[client] + self._random.random()
            effect = start + self._random.random() * 5
            end = effect + self._random.random() * 5
            clocks[client] = end
            moments.append((effect, start, end, client))
        return [
            self._one(number, start, end, client)
            for number, (_, start, end, client) in enumerate(sorted(moments))
        ]

    def _one(self, number: int, start: float, end: float, client: int) -> Operation:
        key = f"k{self._random.randrange(self._keys)}"
        state, version = self._held.get(key, (START, 1))
        kind = self._random.choices(["read", "update", "put", "delete"], [4, 4, 1, 0.5])[0]
        if state is None and kind == "update":
            kind = "create"
        value = f"v{number}"
        is_lost = self._random.random() < self._lost
        happens = not is_lost or self._random.random() < 0.5
        if kind != "read" and happens:
            self._held[key] = (None if kind == "delete" else value, version + 1)
        return Operation(
            client=f"c{client}",
            kind=kind,  # type: ignore[arg-type]
            key=key,
            start_ns=int(start * SECOND_NS),
            end_ns=None if is_lost else int(end * SECOND_NS),
            value="" if kind in {"read", "delete"} else value,
            seen=state if kind in {"read", "update"} and not is_lost else None,
            was_there=state is not None,
        )


def test_histories_of_a_right_store_are_linearizable(seed: int) -> None:
    for number in range(200):
        history = Register(seed + number, clients=1 + number % 9, keys=1 + number % 3).run(80)
        assert not find_faults(history, START)


def test_a_history_in_which_one_read_answers_another_value_is_not_linearizable(seed: int) -> None:
    """One client after the other: every change of an answer shows."""
    chooser = random.Random(seed)
    for number in range(100):
        history = Register(seed + number, clients=1, lost=0).run(60)
        reads = [place for place, one in enumerate(history) if one.kind == "read"]
        place = chooser.choice(reads)
        values = {one.value for one in history if one.value} | {START}
        wrong = chooser.choice(sorted(values - {history[place].seen or ""}))
        history[place] = msgspec.structs.replace(history[place], seen=wrong)
        assert check_register(history, START) is not None


def test_five_thousand_operations_are_checked_in_seconds() -> None:
    for keys in (1, 20):
        history = Register(1, keys=keys, lost=0.005).run(5_000)
        started_s = time.process_time()
        assert not find_faults(history, START)
        assert time.process_time() - started_s < 10.0  # a third of a second where nothing else runs


def test_a_lost_update_is_found() -> None:
    """Two updates that both built on the same value: one of them is gone."""
    history = [
        call("update", 0, 10, value="x", seen=START),
        call("update", 20, 30, value="y", seen=START, client="b"),
    ]
    assert check_register(history, START) is not None


def test_an_acknowledged_write_that_a_later_read_misses_is_found() -> None:
    history = [call("put", 0, 10, value="x"), call("read", 20, 30, seen=START, client="b")]
    fault = check_register(history, START)
    assert fault is not None
    assert fault.operation == history[1]


def test_a_read_during_a_write_may_see_either_value_but_not_the_old_one_after_the_new_one() -> None:
    write = call("put", 0, 100, value="x")
    new, old = call("read", 10, 20, seen="x", client="b"), call("read", 30, 40, seen=START, client="c")
    assert check_register([write, old], START) is None
    assert check_register([write, new], START) is None
    assert check_register([write, new, old], START) is not None


def test_a_value_that_nobody_wrote_is_found() -> None:
    faults = find_faults([call("read", 0, 10, seen="ghost", is_plain=True)], START)
    assert [fault.problem for fault in faults] == ["saw a value that nobody had begun to write"]
    assert check_register([call("read", 0, 10, seen="ghost")], START) is not None


def test_a_value_seen_before_its_write_began_is_found() -> None:
    history = [call("read", 0, 10, seen="x", is_plain=True), call("put", 20, 30, value="x", client="b")]
    assert find_faults(history, START)


def test_a_plain_read_may_be_stale() -> None:
    history = [call("put", 0, 10, value="x"), call("read", 20, 30, seen=START, client="b", is_plain=True)]
    assert not find_faults(history, START)


def test_a_handle_that_goes_back_is_found_and_another_handle_may_be_behind() -> None:
    newer = call("read", 20, 30, seen="x", version=2, is_plain=True)
    older = call("read", 40, 50, seen=START, version=1, is_plain=True)
    history = [call("put", 0, 10, value="x", version=2, client="w"), newer, older]
    assert [fault.problem for fault in find_faults(history, START)] == ["went back from version 2"]
    history[2] = msgspec.structs.replace(older, client="b")
    assert not find_faults(history, START)


def test_two_values_under_one_version_are_found() -> None:
    history = [
        call("update", 0, 10, value="x", seen=START, version=2),
        call("update", 0, 10, value="y", seen=START, version=2, client="b"),
    ]
    assert any("that version was" in fault.problem for fault in find_faults(history, START))


def test_a_write_without_an_answer_may_take_effect_late_or_never_but_not_twice() -> None:
    lost = call("update", 0, None, value="x")
    late = call("read", 100, 110, seen="x", client="b")
    before = call("read", 50, 60, seen=START, client="b")
    overwritten = [call("put", 120, 130, value="y", client="c"), call("read", 140, 150, seen="x", client="c")]
    assert check_register([lost, before, late], START) is None
    assert check_register([lost, before], START) is None
    assert check_register([lost, before, late, *overwritten], START) is not None


def test_a_write_without_an_answer_does_not_take_effect_before_it_began() -> None:
    history = [call("read", 0, 10, seen="x", client="b"), call("update", 20, None, value="x")]
    assert check_register(history, START) is not None


def test_a_delete_without_an_answer_may_have_happened() -> None:
    deleted = call("delete", 0, None)
    assert check_register([deleted, call("read", 10, 20, seen=None, client="b")], START) is None
    assert check_register([deleted, call("read", 10, 20, seen=START, client="b")], START) is None


def test_a_session_that_comes_back_after_its_deletion_is_found() -> None:
    history = [call("delete", 0, 10), call("read", 20, 30, seen=START, client="b")]
    assert check_register(history, START) is not None
    assert check_register([call("delete", 0, 10), call("delete", 20, 30)], START) is not None


def test_a_create_beside_a_session_is_found() -> None:
    assert check_register([call("create", 0, 10, value="x")], START) is not None
    assert check_register([call("create", 0, 10, value="x")], None) is None


def test_a_search_over_its_budget_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearizability, "STEPS_MAX", 10)
    with pytest.raises(UndecidedError):
        find_faults(_many(), START)


def _many() -> Iterator[Operation]:
    for number in range(20):
        yield call("put", number * 10, number * 10 + 5, value=f"v{number}")
