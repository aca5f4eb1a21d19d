"""Turns at the write lock: who waits long is let in, and nobody waits for a request that nobody has."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.store import follow, names
from perdure.store.lock import FileLock
from perdure.store.page import Word
from perdure.store.sessions import SessionStore

SECOND_NS = 1_000_000_000
WRITERS = 4
WRITES = 400

WRITER = """
import sys
from perdure.store import SessionStore
with SessionStore.open(sys.argv[1], write_timeout_ms=20_000) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(sys.argv[2])):
        store.create({"n": number})
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "store", write_timeout_ms=10_000) as opened:
        yield opened


@pytest.mark.parametrize("asked_ns", [-SECOND_NS, SECOND_NS, 1 << 62], ids=["past", "too far", "nonsense"])
def test_a_request_for_a_turn_that_nobody_can_have_made_holds_nobody_up(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, asked_ns: int
) -> None:
    def never(_seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr(time, "sleep", never)
    store._log.words[Word.TURN] = time.monotonic_ns() + asked_ns
    store._log.give_way()
    assert store._log.words[Word.TURN] == 0


def test_a_request_for_a_turn_is_waited_for_until_it_is_taken(store: SessionStore) -> None:
    words = store._log.words
    seen: list[int] = []

    class Clock:
        """Time stands still; after a few sleeps whoever asked has had its turn."""

        @staticmethod
        def monotonic_ns() -> int:
            return 1000

        @staticmethod
        def sleep(_seconds: float) -> None:
            seen.append(words[Word.TURN])
            if len(seen) == 3:
                words[Word.TURN] = 0

    words[Word.TURN] = 1000 + follow.TURN_NS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "time", Clock)
        store._log.give_way()
    assert seen == [1000 + follow.TURN_NS] * 3


def test_a_writer_that_waits_reads_on_and_asks_for_a_turn(store: SessionStore, tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store") as other:
        other._keeper._stopping.set()
        for _ in range(20):
            store.create({"n": 1})
        held = FileLock(tmp_path / "store" / names.WRITE_LOCK)
        held.acquire(1000)
        writer = threading.Thread(target=other.create, args=({"n": 2},))
        writer.start()
        until = time.monotonic() + 10
        while not store._log.words[Word.TURN] and time.monotonic() < until:
            time.sleep(0.001)
        asked = store._log.words[Word.TURN]
        followed = other._log.cursor.at.lsn
        appended = store._log.words[Word.APPENDED]
        held.close()
        writer.join()
        assert asked
        assert followed == appended
        assert store._log.words[Word.TURN] == 0
    assert store.count() == 21


def test_writers_of_several_processes_all_get_their_turn(store: SessionStore, tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path, str(WRITES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(WRITERS)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            writer.communicate(timeout=60)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert [writer.returncode for writer in writers] == [0] * WRITERS
    assert store.count() == WRITERS * WRITES
