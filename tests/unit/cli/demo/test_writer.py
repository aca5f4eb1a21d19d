"""A writer's life: what is on file before and after a call, and where the next life takes up the stream."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.cli.demo import writer
from perdure.cli.demo.audit import compare
from perdure.cli.demo.gauge import Count, Gauge, Stage
from perdure.cli.demo.ledger import Answer, Attempt, Ledger, progress_of, read_ledger
from perdure.cli.demo.operations import (
    Create,
    Delete,
    Expire,
    Get,
    Kind,
    Operation,
    Peek,
    Regenerate,
    Touch,
    Update,
    content_hash,
)
from perdure.cli.demo.traffic import Plan, operations
from perdure.store import Indeterminate, LockTimeoutError, Outcome, SessionStore


@pytest.fixture
def task(tmp_path: Path) -> writer.Task:
    return writer.Task(
        store=str(tmp_path / "store"),
        ledger=str(tmp_path / "ledger"),
        gauge=str(tmp_path / "gauge"),
        writer=0,
        plan=Plan(seed=7, sessions=40, writers=1),
    )


def _drive(task: writer.Task, calls: int) -> Gauge:
    """One life of a writer that is asked to stop after so many looks at the question."""
    looks = count()
    gauge = Gauge(Path(task.gauge))
    assert writer.drive(task, gauge, lambda: next(looks) >= calls) is Stage.STOPPED
    return gauge


def _recovered(store: str) -> list[tuple[str, int]]:
    with SessionStore.open(store, create=False) as opened:
        found = [(id, opened.peek(id)) for id in opened.ids()]
        return [(id, content_hash(session.metadata)) for id, session in found if session is not None]


def _all(*operations: Operation) -> Callable[[writer.Task], Any]:
    return lambda task: iter(operations)


def test_what_a_writer_did_is_what_its_ledger_says(task: writer.Task) -> None:
    gauge = _drive(task, 400)
    audit = compare({"0": read_ledger(task.ledger)}, _recovered(task.store))
    assert audit.is_clean, audit
    assert audit.unknown == 0
    assert audit.acknowledged == gauge[Count.WRITES] > 100
    assert gauge[Count.MISMATCHES] == 0
    gauge.close()


def test_lives_in_a_row_carry_out_one_stream(task: writer.Task) -> None:
    sequence = 0
    for _ in range(5):
        gauge = _drive(task, 60)
        assert gauge[Count.MISMATCHES] == 0
        sequence = gauge[Count.SEQUENCE]
        gauge.close()
    assert compare({"0": read_ledger(task.ledger)}, _recovered(task.store)).is_clean
    contents: dict[str, int] = {}
    for operation in islice(operations(task.plan, 0), sequence):
        match operation:
            case Create(key=key, content=content) | Update(key=key, content=content):
                contents[key] = content_hash(content)
            case Regenerate(key=key, new_key=new_key, content=content):
                del contents[key]
                contents[new_key] = content_hash(content)
            case Delete(key=key):
                del contents[key]
            case _:
                pass
    assert dict(_recovered(task.store)) == contents


@pytest.mark.parametrize("was_carried_out", [True, False], ids=["carried-out", "not-carried-out"])
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name.lower())
def test_an_unanswered_call_is_carried_out_once(
    kind: Kind, was_carried_out: bool, task: writer.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Create("a", 0, 1, {"hits": 1})
    calls: dict[Kind, Operation] = {
        Kind.CREATE: Create("b", 1, 1, {"hits": 1}),
        Kind.UPDATE: Update("a", 1, 2, {"hits": 2}),
        Kind.REGENERATE: Regenerate("a", "b", 1, 2, {"hits": 2}),
        Kind.DELETE: Delete("a", 1, 1),
        Kind.EXPIRE: Expire("a", 1, 1),
    }
    last = calls[kind]
    monkeypatch.setattr(writer, "stream_of", _all(before))
    task = msgspec.structs.replace(task, access_log="x")
    gauge = Gauge(Path(task.gauge))
    assert writer.drive(task, gauge, lambda: False) is Stage.FINISHED
    with SessionStore.open(task.store) as store, Ledger.open(task.ledger) as ledger:
        driver = writer.Driver(store, ledger, gauge)
        recorded, new_key, hashed, call = driver._call_of(last)  # type: ignore[arg-type]
        ledger.attempt(recorded, last.key, new_key=new_key, sequence=1, counter=1, content_hash=hashed)
        if was_carried_out:
            call()
    monkeypatch.setattr(writer, "stream_of", _all(before, last))
    assert writer.drive(task, gauge, lambda: False) is Stage.FINISHED
    assert gauge[Count.MISMATCHES] == 0
    gauge.close()
    entries = list(read_ledger(task.ledger))
    attempts = [entry for entry in entries if isinstance(entry, Attempt)]
    assert [attempt.sequence for attempt in attempts] == ([0, 1] if was_carried_out else [0, 1, 1])
    assert {entry.number for entry in entries if isinstance(entry, Answer)} == {0, len(attempts) - 1}
    left = {Kind.CREATE: ["a", "b"], Kind.UPDATE: ["a"], Kind.REGENERATE: ["b"]}.get(kind, [])
    assert [id for id, _ in _recovered(task.store)] == left
    assert progress_of(entries).next_sequence == 2


def test_a_batch_that_was_cut_off_is_taken_up_from_its_first_session(task: writer.Task) -> None:
    creates = [
        operation for operation in islice(operations(task.plan, 0), 40) if isinstance(operation, Create)
    ]
    with SessionStore.open(task.store), Ledger.open(task.ledger) as ledger:
        for sequence, create in enumerate(creates[:25]):
            ledger.attempt(
                Kind.CREATE,
                create.key,
                sequence=sequence,
                counter=1,
                content_hash=content_hash(create.content),
            )
    gauge = _drive(task, 1)
    gauge.close()
    assert [id for id, _ in _recovered(task.store) if id in {create.key for create in creates}] == sorted(
        create.key for create in creates
    )
    assert compare({"0": read_ledger(task.ledger)}, _recovered(task.store)).is_clean


def test_answers_that_contradict_the_writers_history_are_counted(
    task: writer.Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = (
        Create("a", 0, 1, {"hits": 1}),
        Get("a", 1, 2),
        Peek("nobody", 1, 1),
        Touch("nobody", 1),
        Update("a", 2, 5, {"hits": 5}),
        Get("a", 3, 5),
    )
    monkeypatch.setattr(writer, "stream_of", _all(*stream))
    task = msgspec.structs.replace(task, access_log="x")
    gauge = Gauge(Path(task.gauge))
    writer.drive(task, gauge, lambda: False)
    assert gauge[Count.MISMATCHES] == 4
    gauge.close()
    assert "session a has 1 hits, its writer knows of 2" in capsys.readouterr().err


class Stubborn:
    """A store that refuses twice, then cannot say; its outcome is pending once."""

    def __init__(self, outcome: Outcome) -> None:
        self.answers: list[Exception] = [LockTimeoutError("busy"), LockTimeoutError("busy")]
        self.answers.append(Indeterminate("not known", position=(1, 2, 3), operation_id=None))
        self.outcomes = [Outcome.PENDING, outcome]

    def delete(self, _id: str) -> bool:
        raise self.answers.pop(0)

    def outcome(self, _position: tuple[int, int, int]) -> Outcome:
        return self.outcomes.pop(0)


@pytest.mark.parametrize("outcome", [Outcome.COMMITTED, Outcome.LOST, Outcome.UNKNOWN])
def test_a_refused_call_is_repeated_and_an_unknown_one_asked_for(outcome: Outcome, tmp_path: Path) -> None:
    gauge = Gauge(tmp_path / "gauge")
    with Ledger.open(tmp_path / "ledger") as ledger:
        driver = writer.Driver(Stubborn(outcome), ledger, gauge)  # type: ignore[arg-type]
        if outcome is Outcome.COMMITTED:
            driver.carry_out(Delete("a", 0, 1), 0)
        else:
            with pytest.raises(Indeterminate):
                driver.carry_out(Delete("a", 0, 1), 0)
    assert (gauge[Count.REFUSED], gauge[Count.UNKNOWN]) == (2, 1)
    gauge.close()
    answered = [entry for entry in read_ledger(tmp_path / "ledger") if isinstance(entry, Answer)]
    assert len(answered) == (1 if outcome is Outcome.COMMITTED else 0)
