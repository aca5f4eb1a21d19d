"""The comparison of a recovered store with the ledgers: what is lost, what is a phantom, what is neither."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import islice

import pytest

from perdure.cli.demo.audit import EXAMPLES_MAX, Audit, compare
from perdure.cli.demo.ledger import NO_OPERATION, Answer, Attempt, Entry, LedgerError, Verdict
from perdure.cli.demo.operations import (
    Create,
    Delete,
    Expire,
    Kind,
    Operation,
    Regenerate,
    Update,
    content_hash,
)
from perdure.cli.demo.traffic import Mix, Plan, operations

ACKNOWLEDGED, REFUSED, UNKNOWN = Verdict.ACKNOWLEDGED, Verdict.REFUSED, None
Write = tuple[Kind, str, int, Verdict | None]


def ledger(*writes: Write) -> list[Entry]:
    """The entries of a ledger: kind, key (`old>new` for a change of id), content hash, answer."""
    entries: list[Entry] = []
    for number, (kind, keys, effect, verdict) in enumerate(writes):
        key, _, new_key = keys.partition(">")
        entries.append(Attempt(number, kind, key, new_key, number, number, effect, NO_OPERATION))
        if verdict is not None:
            entries.append(Answer(number, verdict, True, None))
    return entries


def audit(writes: Sequence[Write], recovered: dict[str, int]) -> Audit:
    return compare({"w0": ledger(*writes)}, recovered.items())


def numbers(result: Audit) -> tuple[int, int, int]:
    return result.lost, result.phantom, result.holes


CREATED: Write = (Kind.CREATE, "a", 1, ACKNOWLEDGED)
UPDATED: Write = (Kind.UPDATE, "a", 2, ACKNOWLEDGED)
UPDATED_AGAIN: Write = (Kind.UPDATE, "a", 3, ACKNOWLEDGED)
DELETED: Write = (Kind.DELETE, "a", 0, ACKNOWLEDGED)
EXPIRED: Write = (Kind.EXPIRE, "a", 0, ACKNOWLEDGED)
RENAMED: Write = (Kind.REGENERATE, "a>b", 4, ACKNOWLEDGED)


def answered(write: Write, verdict: Verdict | None) -> Write:
    return (*write[:3], verdict)


@pytest.mark.parametrize(
    ("writes", "recovered"),
    [
        ([], {}),
        ([CREATED], {"a": 1}),
        ([CREATED, UPDATED], {"a": 2}),
        ([CREATED, DELETED], {}),
        ([CREATED, EXPIRED], {}),
        ([CREATED, RENAMED], {"b": 4}),
        ([CREATED, RENAMED, (Kind.DELETE, "b", 0, ACKNOWLEDGED)], {}),
        ([CREATED, answered(UPDATED, REFUSED)], {"a": 1}),
        ([CREATED, answered(DELETED, REFUSED)], {"a": 1}),
        ([answered(CREATED, REFUSED)], {}),
        ([CREATED, answered(RENAMED, REFUSED)], {"a": 1}),
    ],
)
def test_a_state_that_shows_every_acknowledged_write_is_clean(
    writes: list[Write], recovered: dict[str, int]
) -> None:
    result = audit(writes, recovered)
    assert numbers(result) == (0, 0, 0)
    assert result.is_clean
    assert result.examples == ()


@pytest.mark.parametrize(
    ("writes", "allowed"),
    [
        ([answered(CREATED, UNKNOWN)], [{}, {"a": 1}]),
        ([CREATED, answered(UPDATED, UNKNOWN)], [{"a": 1}, {"a": 2}]),
        ([CREATED, answered(DELETED, UNKNOWN)], [{"a": 1}, {}]),
        ([CREATED, answered(RENAMED, UNKNOWN)], [{"a": 1}, {"b": 4}]),
        ([answered(CREATED, UNKNOWN), answered(RENAMED, UNKNOWN)], [{}, {"a": 1}, {"b": 4}]),
        (
            [CREATED, answered(UPDATED, UNKNOWN), answered(UPDATED_AGAIN, UNKNOWN)],
            [{"a": 1}, {"a": 2}, {"a": 3}],
        ),
        ([CREATED, answered(UPDATED, UNKNOWN), UPDATED_AGAIN], [{"a": 3}]),
        ([CREATED, answered(RENAMED, UNKNOWN), RENAMED], [{"b": 4}]),
    ],
)
def test_an_unanswered_write_may_show_or_not_but_nothing_else_may(
    writes: list[Write], allowed: list[dict[str, int]]
) -> None:
    for recovered in ({}, {"a": 1}, {"a": 2}, {"a": 3}, {"b": 4}, {"a": 1, "b": 4}, {"a": 9}):
        assert audit(writes, recovered).is_clean == (recovered in allowed), recovered


@pytest.mark.parametrize(
    ("writes", "recovered", "expected"),
    [
        ([CREATED], {}, (1, 0, 0)),
        ([CREATED, UPDATED], {}, (2, 0, 0)),
        ([CREATED, UPDATED], {"a": 1}, (1, 0, 0)),
        ([CREATED, UPDATED, UPDATED_AGAIN], {"a": 1}, (2, 0, 0)),
        ([CREATED, UPDATED, answered(UPDATED_AGAIN, UNKNOWN)], {"a": 1}, (1, 0, 0)),
        ([CREATED, answered(UPDATED, UNKNOWN), UPDATED_AGAIN], {"a": 2}, (1, 0, 0)),
        ([CREATED, RENAMED], {}, (1, 0, 0)),
        ([CREATED, RENAMED, (Kind.UPDATE, "b", 5, ACKNOWLEDGED)], {"b": 4}, (1, 0, 0)),
        ([CREATED, answered(RENAMED, UNKNOWN)], {}, (1, 0, 0)),  # half of an atomic step
        # A deletion that did not hold is a lost write and a session that must not be there.
        ([CREATED, DELETED], {"a": 1}, (1, 1, 0)),
        ([CREATED, EXPIRED], {"a": 1}, (1, 1, 0)),
        ([CREATED, UPDATED, DELETED], {"a": 1}, (2, 1, 0)),
        ([CREATED, RENAMED], {"a": 1}, (1, 1, 0)),
        ([CREATED, RENAMED], {"a": 1, "b": 4}, (1, 1, 0)),
        ([CREATED, answered(RENAMED, UNKNOWN)], {"a": 1, "b": 4}, (0, 1, 0)),
        # What nobody wrote, and what the store said it had not written.
        ([], {"x": 1}, (0, 1, 0)),
        ([CREATED], {"a": 1, "x": 1}, (0, 1, 0)),
        ([CREATED], {"a": 7}, (1, 1, 0)),
        ([CREATED, answered(UPDATED, REFUSED)], {"a": 2}, (1, 1, 0)),
        ([answered(CREATED, REFUSED)], {"a": 1}, (0, 1, 0)),
        ([CREATED, DELETED], {"a": 7}, (1, 1, 0)),
        ([CREATED, (Kind.CREATE, "b", 9, ACKNOWLEDGED)], {"a": 9, "b": 9}, (1, 1, 1)),  # another's content
    ],
)
def test_loss_and_phantoms_are_counted(
    writes: list[Write], recovered: dict[str, int], expected: tuple[int, int, int]
) -> None:
    result = audit(writes, recovered)
    assert numbers(result) == expected
    assert not result.is_clean
    assert result.examples


def test_an_example_names_the_write_and_its_ledger() -> None:
    result = compare(
        {"w0": ledger((Kind.CREATE, "c", 1, ACKNOWLEDGED)), "w1": ledger(CREATED, UPDATED)},
        [("c", 1), ("a", 1)],
    )
    (example,) = result.examples
    assert (example.trouble, example.key, example.ledger, example.attempt) == ("lost", "a", "w1", 1)
    assert (example.kind, example.counter) == ("update", 1)


def test_the_counts_add_up() -> None:
    writes = [CREATED, answered(UPDATED, REFUSED), UPDATED_AGAIN, RENAMED, (Kind.DELETE, "b", 0, UNKNOWN)]
    result = audit(writes, {"b": 4})
    assert (result.attempted, result.acknowledged, result.refused, result.unknown) == (5, 3, 1, 1)
    assert result.by_kind == {"create": 1, "update": 1, "regenerate": 1, "delete": 0, "expire": 0}


def test_a_delete_that_found_nothing_tells_of_a_session_that_was_lost_before() -> None:
    entries = [*ledger(CREATED, (Kind.DELETE, "a", 0, UNKNOWN)), Answer(1, ACKNOWLEDGED, False, None)]
    result = compare({"w0": entries}, [])
    assert (result.lost, result.by_kind["delete"]) == (1, 0)
    explained = ledger(CREATED, (Kind.DELETE, "a", 0, UNKNOWN), (Kind.DELETE, "a", 0, UNKNOWN))
    assert compare({"w0": [*explained, Answer(2, ACKNOWLEDGED, False, None)]}, []).is_clean


def test_a_session_that_is_there_twice_is_a_phantom() -> None:
    assert compare({"w0": ledger(CREATED)}, [("a", 1), ("a", 1)]).phantom == 1


def test_a_loss_with_a_later_write_of_the_same_writer_kept_is_a_hole() -> None:
    writes = [CREATED, UPDATED, (Kind.CREATE, "c", 1, ACKNOWLEDGED)]
    assert numbers(audit(writes, {"a": 1, "c": 1})) == (1, 0, 1)
    assert numbers(audit(writes, {"a": 1})) == (2, 0, 0)
    other_writer = {"w0": ledger(CREATED, UPDATED), "w1": ledger((Kind.CREATE, "c", 1, ACKNOWLEDGED))}
    assert numbers(compare(other_writer, [("a", 1), ("c", 1)])) == (1, 0, 0)


def test_a_late_answer_counts_as_one() -> None:
    entries = ledger(CREATED, answered(UPDATED, UNKNOWN), (Kind.CREATE, "c", 1, ACKNOWLEDGED))
    entries.append(Answer(1, ACKNOWLEDGED, True, None))
    result = compare({"w0": entries}, [("a", 1), ("c", 1)])
    assert (result.acknowledged, result.lost) == (3, 1)


def test_examples_are_bounded_and_counts_are_not() -> None:
    writes: list[Write] = [(Kind.CREATE, f"k{n}", 1, ACKNOWLEDGED) for n in range(500)]
    result = audit(writes, {f"x{n}": 1 for n in range(300)})
    assert (result.lost, result.lost_sessions, result.phantom) == (500, 500, 300)
    assert len(result.examples) == 2 * EXAMPLES_MAX


@pytest.mark.parametrize(
    "ledgers",
    [
        {"w0": ledger(CREATED), "w1": ledger(UPDATED)},
        {"w0": [*ledger(CREATED), Answer(0, REFUSED, False, None)]},
        {"w0": [*ledger(CREATED), Answer(1, ACKNOWLEDGED, True, None)]},
        {"w0": ledger(CREATED, UPDATED)[2:]},
    ],
)
def test_ledgers_that_contradict_each_other_are_an_error(ledgers: dict[str, Iterable[Entry]]) -> None:
    with pytest.raises(LedgerError):
        compare(ledgers, [])


# -- a simulated store that is killed at a random place, then recovered rightly or with a known bug ---


class Run:
    """Random traffic of several writers on a store whose log is a list; each call is answered, or not."""

    def __init__(self, rng: random.Random, writers: int, calls: int) -> None:
        mix = Mix(get=0, update=5, regenerate=1, delete=1)
        plan = Plan(seed=rng.getrandbits(32), sessions=writers * 6, writers=writers, mix=mix)
        streams = [operations(plan, writer) for writer in range(writers)]
        self.entries: list[list[Entry]] = [[] for _ in range(writers)]
        self.log: list[Operation] = []
        self.acknowledged_end = 0  # how much of the log acknowledged writes cover
        for _ in range(calls):
            writer = rng.randrange(writers)
            (operation,) = islice(streams[writer], 1)
            self._call(writer, operation, is_answered=True)
        for writer in rng.sample(range(writers), k=rng.randint(0, writers)):  # under way when the kill came
            (operation,) = islice(streams[writer], 1)
            self._call(writer, operation, is_answered=False)

    def _call(self, writer: int, operation: Operation, *, is_answered: bool) -> None:
        entries = self.entries[writer]
        number = sum(isinstance(entry, Attempt) for entry in entries)
        content = getattr(operation, "content", None)
        entries.append(
            Attempt(
                number,
                {Create: Kind.CREATE, Update: Kind.UPDATE, Regenerate: Kind.REGENERATE, Delete: Kind.DELETE}[
                    type(operation)
                ],
                operation.key,
                getattr(operation, "new_key", ""),
                number,
                getattr(operation, "counter", 0),
                content_hash(content) if content else 0,
                NO_OPERATION,
            )
        )
        self.log.append(operation)
        if is_answered:
            entries.append(Answer(number, ACKNOWLEDGED, True, None))
            self.acknowledged_end = len(self.log)

    def state(self, log: Iterable[Operation]) -> dict[str, int]:
        """What a store holds after these operations; one that finds no session does nothing."""
        held: dict[str, int] = {}
        for operation in log:
            match operation:
                case Create(key=key, content=content) | Update(key=key, content=content):
                    held[key] = content_hash(content)
                case Regenerate(key=key, new_key=new_key, content=content):
                    held.pop(key, None)
                    held[new_key] = content_hash(content)
                case Delete(key=key) | Expire(key=key):
                    held.pop(key, None)
                case _:
                    raise AssertionError(operation)
        return held

    def audit(self, state: dict[str, int]) -> Audit:
        return compare({f"w{n}": some for n, some in enumerate(self.entries)}, state.items())


def test_any_recovery_that_keeps_what_was_acknowledged_is_clean(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        run = Run(rng, rng.randint(1, 4), rng.randint(0, 120))
        under_way = run.log[run.acknowledged_end :]
        kept = rng.sample(under_way, k=rng.randint(0, len(under_way)))
        result = run.audit(run.state(run.log[: run.acknowledged_end] + kept))
        assert result.is_clean, result
        assert result.unknown == len(under_way)


def test_a_lost_tail_is_found_whenever_it_shows_and_is_no_hole(seed: int) -> None:
    rng = random.Random(seed)
    found = 0
    for _ in range(60):
        run = Run(rng, rng.randint(1, 4), rng.randint(20, 120))
        cut = rng.randrange(run.acknowledged_end)
        state = run.state(run.log[:cut])
        result = run.audit(state)
        if state != run.state(run.log[: run.acknowledged_end]):
            assert 1 <= result.lost <= run.acknowledged_end - cut, result
            found += 1
        assert result.holes == 0, result
    assert found > 30


def test_a_write_lost_from_the_middle_is_found(seed: int) -> None:
    rng = random.Random(seed)
    found = 0
    for _ in range(80):
        run = Run(rng, rng.randint(1, 3), rng.randint(20, 80))
        at = rng.randrange(run.acknowledged_end)
        log = run.log[: run.acknowledged_end]
        state, right = run.state(log[:at] + log[at + 1 :]), run.state(log)
        under_way = run.log[run.acknowledged_end :]
        excused = {key for call in under_way for key in (call.key, getattr(call, "new_key", call.key))}
        differ = {key for key in state.keys() | right.keys() if state.get(key) != right.get(key)}
        if differ - excused:  # what an unanswered call could have done is no proof of a loss
            result = run.audit(state)
            assert result.lost >= 1, result
            found += 1
    assert found > 5


def test_a_session_that_comes_back_is_found(seed: int) -> None:
    rng = random.Random(seed)
    found = 0
    for _ in range(40):
        run = Run(rng, rng.randint(1, 3), rng.randint(40, 120))
        log = run.log[: run.acknowledged_end]
        right, before = run.state(log), run.state(log[: rng.randrange(len(log))])
        for key in before.keys() - right.keys():
            result = run.audit({**right, key: before[key]})
            assert result.phantom == 1, result
            assert result.lost >= 1
            found += 1
    assert found > 20


def test_content_that_nobody_wrote_there_is_found(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(40):
        run = Run(rng, rng.randint(1, 3), rng.randint(40, 80))
        state = run.state(run.log[: run.acknowledged_end])
        key, other = rng.sample(sorted(state), k=2)
        for wrong in (state[other], state[key] ^ 1):
            result = run.audit({**state, key: wrong})
            assert (result.phantom, result.lost >= 1) == (1, True), result
        assert run.audit({**state, "never-seen": 5}).phantom == 1
