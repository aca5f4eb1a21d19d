"""Turns at the write lock: who waits long is let in, and nobody waits for a request that nobody has."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.store import names, turns
from perdure.store.errors import LockTimeoutError
from perdure.store.lock import FileLock
from perdure.store.page import Word
from perdure.store.sessions import SessionStore
from tests.support.machine import stop_background

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

    words[Word.TURN] = 1000 + turns.TURN_NS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "time", Clock)
        store._log.give_way()
    assert seen == [1000 + turns.TURN_NS] * 3


def test_a_writer_that_waits_reads_on_and_asks_for_a_turn(store: SessionStore, tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store", write_timeout_ms=60_000) as other:
        stop_background(other)
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


class StandingClock:
    """Time that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 1_000 * SECOND_NS
        monkeypatch.setattr(turns, "time", self)

    def monotonic_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class TakenLock(FileLock):
    """A lock that another process has until `free_ns`, and when it was tried for."""

    def __init__(self, path: Path, clock: StandingClock, free_ns: int) -> None:
        super().__init__(path)
        self.clock = clock
        self.free_ns = free_ns
        self.tried_ns: list[int] = []

    def try_acquire(self, *, shared: bool = False) -> bool:
        self.tried_ns.append(self.clock.now_ns)
        return self.clock.now_ns >= self.free_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StandingClock:
    return StandingClock(monkeypatch)


def taken_lock(tmp_path: Path, clock: StandingClock, for_ns: int) -> TakenLock:
    return TakenLock(tmp_path / "write.lock", clock, clock.now_ns + for_ns)


def nothing() -> None:
    pass


def test_the_first_in_line_takes_its_turn_and_leaves_no_word_of_its_own(
    tmp_path: Path, clock: StandingClock
) -> None:
    words = [0] * 64
    asked: list[int] = []
    lock = taken_lock(tmp_path, clock, 20_000_000)
    turns.acquire(lock, words, 1000, lambda: asked.append(words[Word.TURN]))
    assert max(asked) > 0
    assert words[Word.TURN] == words[Word.FIRST_LOOKED] == 0
    assert words[Word.TURN_GIVEN] == clock.now_ns
    lock.close()


def test_no_turn_is_asked_for_so_soon_behind_another(tmp_path: Path, clock: StandingClock) -> None:
    words = [0] * 64
    words[Word.TURN_GIVEN] = given_ns = clock.now_ns + turns.TURN_AFTER_NS
    asked_ns: list[int] = []

    def look() -> None:
        if words[Word.TURN]:
            asked_ns.append(clock.now_ns)

    lock = taken_lock(tmp_path, clock, 20_000_000)
    turns.acquire(lock, words, 1000, look)
    assert asked_ns[0] >= given_ns + turns.TURN_EVERY_NS
    lock.close()


def test_who_has_asked_for_a_turn_does_not_let_those_that_give_way_wait(
    tmp_path: Path, clock: StandingClock
) -> None:
    words = [0] * 64
    asked_ns: list[int] = []

    def look() -> None:
        if words[Word.TURN] and not asked_ns:
            asked_ns.append(clock.now_ns)
            lock.free_ns = clock.now_ns + 1  # whoever had it gives way

    lock = taken_lock(tmp_path, clock, SECOND_NS)
    turns.acquire(lock, words, 1000, look)
    assert clock.now_ns - asked_ns[0] <= int(turns.ASKED_S * 1e9)
    lock.close()


def test_a_writer_behind_another_in_line_does_not_try_for_the_lock(
    tmp_path: Path, clock: StandingClock
) -> None:
    words = [0] * 64
    words[Word.FIRST_SINCE] = clock.now_ns - 1
    words[Word.FIRST_LOOKED] = looked_ns = clock.now_ns + turns.LINE_AFTER_NS
    lock = taken_lock(tmp_path, clock, 2_000_000)
    began_ns = clock.now_ns
    turns.acquire(lock, words, 1000, nothing)
    in_line_ns = [tried_ns for tried_ns in lock.tried_ns if tried_ns >= began_ns + turns.LINE_AFTER_NS]
    assert in_line_ns == [clock.now_ns]
    assert clock.now_ns >= looked_ns + turns.FIRST_NS  # the other has died: it looks no more
    lock.close()


def test_who_has_waited_longer_is_the_first_in_line_instead(tmp_path: Path, clock: StandingClock) -> None:
    words = [0] * 64
    since_ns = clock.now_ns
    firsts: list[int] = []

    def look() -> None:
        if words[Word.FIRST_SINCE]:
            firsts.append(words[Word.FIRST_SINCE])
        words[Word.FIRST_SINCE] = clock.now_ns + SECOND_NS  # one that came later thinks it is
        words[Word.FIRST_LOOKED] = clock.now_ns

    lock = taken_lock(tmp_path, clock, 5_000_000)
    turns.acquire(lock, words, 1000, look)
    assert words[Word.TURN] == 0
    assert since_ns in firsts
    lock.close()


def test_a_writer_that_waits_past_its_deadline_is_told_who_has_the_lock(
    tmp_path: Path, clock: StandingClock
) -> None:
    words = [0] * 64
    words[Word.OWNER] = 77
    lock = taken_lock(tmp_path, clock, 1 << 62)
    with pytest.raises(LockTimeoutError, match="within 50 ms, held by process 77"):
        turns.acquire(lock, words, 50, nothing)
    lock.close()


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
