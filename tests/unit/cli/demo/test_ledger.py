"""The writers' ledgers: what is on file when, what a kill leaves, what damage is called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.cli.demo.ledger import (
    Answer,
    Attempt,
    Entry,
    Ledger,
    LedgerError,
    Verdict,
    progress_of,
    read_ledger,
)
from perdure.cli.demo.operations import Kind
from perdure.store import ForeignError, FormatError, FormatVersionError, StorageError, UsageError

OPERATION = bytes(range(16))


def entries(path: Path) -> list[Entry]:
    return list(read_ledger(path))


def entries_or_error(path: Path) -> list[Entry] | FormatError:
    try:
        return entries(path)
    except FormatError as error:
        return error


def write_three(path: Path) -> list[Entry]:
    """A ledger of one create, one change of id and one refused delete."""
    with Ledger.open(path, writer=3) as ledger:
        first = ledger.attempt(Kind.CREATE, "a-1", counter=1, content_hash=2**64 - 1, operation_id=OPERATION)
        ledger.acknowledge(first, position=(1, 2**40, 2**63))
        second = ledger.attempt(Kind.REGENERATE, "a-1", new_key="a-2", sequence=1, counter=2, content_hash=7)
        ledger.acknowledge(second)
        third = ledger.attempt(Kind.DELETE, "a-2", sequence=4, counter=2)
        ledger.refuse(third)
    return [
        Attempt(0, Kind.CREATE, "a-1", "", 0, 1, 2**64 - 1, OPERATION),
        Answer(0, Verdict.ACKNOWLEDGED, True, (1, 2**40, 2**63)),
        Attempt(1, Kind.REGENERATE, "a-1", "a-2", 1, 2, 7, bytes(16)),
        Answer(1, Verdict.ACKNOWLEDGED, True, None),
        Attempt(2, Kind.DELETE, "a-2", "", 4, 2, 0, bytes(16)),
        Answer(2, Verdict.REFUSED, False, None),
    ]


def test_what_was_written_is_read_back_in_order(tmp_path: Path) -> None:
    expected = write_three(tmp_path / "ledger")
    assert entries(tmp_path / "ledger") == expected


def test_an_attempt_is_on_file_when_attempt_returns(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger") as ledger:
        number = ledger.attempt(Kind.CREATE, "a", content_hash=1)
        assert [type(entry) for entry in entries(tmp_path / "ledger")] == [Attempt]
        ledger.acknowledge(number)
        ledger.attempt(Kind.UPDATE, "a", content_hash=2)
        assert [type(entry) for entry in entries(tmp_path / "ledger")] == [Attempt, Answer, Attempt]


def test_an_answer_is_on_file_after_flush_and_after_a_second_answer(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger") as ledger:
        numbers = [ledger.attempt(Kind.CREATE, key, content_hash=1) for key in ("a", "b", "c")]
        ledger.acknowledge(numbers[0])
        assert len(entries(tmp_path / "ledger")) == 3
        ledger.flush()
        ledger.flush()
        assert len(entries(tmp_path / "ledger")) == 4
        ledger.acknowledge(numbers[2], existed=False)
        ledger.refuse(numbers[1])
        assert len(entries(tmp_path / "ledger")) == 5
    assert entries(tmp_path / "ledger")[4:] == [
        Answer(2, Verdict.ACKNOWLEDGED, False, None),
        Answer(1, Verdict.REFUSED, False, None),
    ]


def test_a_ledger_that_is_opened_again_goes_on_where_it_ended(tmp_path: Path) -> None:
    expected = write_three(tmp_path / "ledger")
    with Ledger.open(tmp_path / "ledger", writer=3) as ledger:
        assert ledger.attempt(Kind.EXPIRE, "a-2") == 3
    assert entries(tmp_path / "ledger") == [*expected, Attempt(3, Kind.EXPIRE, "a-2", "", 0, 0, 0, bytes(16))]


def test_every_truncation_reads_as_a_beginning_and_can_be_gone_on_with(tmp_path: Path) -> None:
    expected = write_three(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "ledger"
    counts = set()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        found = entries(path)
        assert found == expected[: len(found)]
        counts.add(len(found))
        attempts = sum(isinstance(entry, Attempt) for entry in found)
        with Ledger.open(path, writer=3) as ledger:
            assert ledger.attempt(Kind.CREATE, "b", content_hash=1) == attempts
        assert entries(path) == [*found, Attempt(attempts, Kind.CREATE, "b", "", 0, 0, 1, bytes(16))]
    assert counts == {0, 1, 3, 5, 6}  # an answer and the attempt after it come in one record


def test_every_flipped_byte_is_an_error_or_reads_as_a_beginning(tmp_path: Path) -> None:
    expected = write_three(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "ledger"
    beginnings = 0
    for at in range(len(whole)):
        for bit in (0x01, 0x80):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            found = entries_or_error(path)
            if isinstance(found, FormatError):
                assert found.path == str(path)
                continue
            assert found == expected[: len(found)]
            beginnings += found != expected
    # Only a length that points beyond the end of the file looks like a record that a kill tore.
    assert beginnings <= 2 * 2 * 4


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_make_the_reader_raise_but_its_own_errors(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "ledger"
    header = b"PRDLEDGR\x01\0\0\0\0\0\0\0"
    for content in (garbage, header + garbage, header + b"\xa7" + garbage):
        path.write_bytes(content)
        found = entries_or_error(path)
        if isinstance(found, FormatError):
            assert found.path == str(path)
        else:
            assert found == []


def test_a_foreign_file_a_newer_version_and_another_writer_are_told_apart(tmp_path: Path) -> None:
    write_three(tmp_path / "ledger")
    raw = (tmp_path / "ledger").read_bytes()
    with pytest.raises(LedgerError, match="writer 3"):
        Ledger.open(tmp_path / "ledger", writer=4)
    (tmp_path / "newer").write_bytes(raw[:8] + b"\x02" + raw[9:])
    with pytest.raises(FormatVersionError):
        entries(tmp_path / "newer")
    (tmp_path / "foreign").write_bytes(b"something else entirely")
    with pytest.raises(ForeignError):
        Ledger.open(tmp_path / "foreign")
    assert (tmp_path / "foreign").read_bytes() == b"something else entirely"


def test_a_ledger_that_cannot_be_read_or_made_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        entries(tmp_path / "absent")
    with pytest.raises(StorageError):
        Ledger.open(tmp_path / "absent" / "ledger")
    with pytest.raises(StorageError):
        Ledger.open(tmp_path)


MISFITS: list[Callable[[Ledger], object]] = [
    lambda ledger: ledger.attempt(Kind.CREATE, ""),
    lambda ledger: ledger.attempt(Kind.CREATE, "k" * 256),
    lambda ledger: ledger.attempt(Kind.REGENERATE, "a"),
    lambda ledger: ledger.attempt(Kind.UPDATE, "a", new_key="b"),
    lambda ledger: ledger.attempt(Kind.CREATE, "a", content_hash=2**64),
    lambda ledger: ledger.attempt(Kind.CREATE, "a", operation_id=b"short"),
    lambda ledger: ledger.acknowledge(0),
    lambda ledger: ledger.refuse(-1),
]


@pytest.mark.parametrize("attempt", MISFITS)
def test_what_the_file_has_no_room_for_is_refused_and_leaves_it_whole(
    tmp_path: Path, attempt: Callable[[Ledger], object]
) -> None:
    with Ledger.open(tmp_path / "ledger") as ledger:
        with pytest.raises(UsageError):
            attempt(ledger)
        ledger.attempt(Kind.CREATE, "k" * 255, content_hash=1)
    assert len(entries(tmp_path / "ledger")) == 1


def test_a_full_disk_leaves_no_half_record_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    room_bytes = 30

    def short_write(descriptor: int, data: bytes) -> int:
        nonlocal room_bytes
        if not room_bytes:
            raise OSError(28, "No space left on device")
        written = real_write(descriptor, data[:room_bytes])
        room_bytes -= written
        return written

    with Ledger.open(tmp_path / "ledger") as ledger:
        ledger.attempt(Kind.CREATE, "a", content_hash=1)
        ledger.acknowledge(0)
        monkeypatch.setattr(os, "write", short_write)
        with pytest.raises(StorageError, match="no space"):
            ledger.attempt(Kind.UPDATE, "a", content_hash=2)
        monkeypatch.undo()
        assert ledger.attempt(Kind.UPDATE, "a", content_hash=3) == 1
    found = entries(tmp_path / "ledger")
    assert [type(entry) for entry in found] == [Attempt, Answer, Attempt]


def test_progress_names_the_next_operation_and_what_nobody_answered(tmp_path: Path) -> None:
    write_three(tmp_path / "ledger")
    assert progress_of(read_ledger(tmp_path / "ledger")).unanswered == ()
    with Ledger.open(tmp_path / "ledger", writer=3) as ledger:
        ledger.attempt(Kind.UPDATE, "a-2", sequence=9, content_hash=5)
    progress = progress_of(read_ledger(tmp_path / "ledger"))
    assert progress.next_sequence == 10
    assert [attempt.number for attempt in progress.unanswered] == [3]
    assert progress_of([]).next_sequence == 0


KILLED_WRITER = """
import sys
from perdure.cli.demo.ledger import Ledger
from perdure.cli.demo.operations import Kind
ledger = Ledger.open(sys.argv[1])
number = 0
while True:
    ledger.attempt(Kind.UPDATE, f"key-{number % 50}" * 20, counter=number, content_hash=number)
    if number % 2_000 == 0:
        print(number, flush=True)  # the call: whoever reads this knows that the attempt was on file before
    ledger.acknowledge(number)
    number += 1
"""


def test_a_killed_writer_loses_no_attempt_whose_call_began_and_at_most_one_answer(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    source = os.path.dirname(os.path.dirname(sys.modules["perdure"].__file__ or ""))
    for _ in range(5):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED_WRITER, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": source},
        )
        assert writer.stdout is not None
        with writer.stdout:
            called = [int(writer.stdout.readline()) for _ in range(4)]
            writer.send_signal(signal.SIGKILL)
            called += [int(line) for line in writer.stdout]
        assert writer.wait() == -signal.SIGKILL
        found = entries(path)
        attempts = [entry for entry in found if isinstance(entry, Attempt)]
        answers = [entry for entry in found if isinstance(entry, Answer)]
        assert [attempt.counter for attempt in attempts] == list(range(len(attempts)))
        assert [answer.number for answer in answers] == list(range(len(answers)))
        assert len(attempts) > max(called)
        assert 0 <= len(attempts) - len(answers) <= 1
