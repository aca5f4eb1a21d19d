"""Consumers of the event feed are killed with -9 at random moments while others write: nothing is missed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.store import SessionEvent, SessionStore
from perdure.store.cursor import LogCursor, list_segments
from perdure.store.event import Kind
from perdure.store.frame import cluster_key
from perdure.store.identity import read_identity
from tests.crash.test_processes import start

KILLS = 50
WRITERS = 2
LIFE_S_MAX = 0.25
START_S_MAX = 20.0
CONSUMER = "billing"


class Effects:
    """What a consumer did: one line for each event, appended with its LSN in one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        data = path.read_bytes()
        os.ftruncate(self._descriptor, data.rfind(b"\n") + 1)  # half a line is no effect

    def add(self, event: SessionEvent) -> None:
        os.write(self._descriptor, f"{event.lsn} {event.kind} {event.id}\n".encode())

    def lsns(self) -> list[int]:
        return [int(line.split()[0]) for line in self.path.read_text().splitlines()]

    def close(self) -> None:
        os.close(self._descriptor)


def keep_own_lsn(store: Path, effects: Effects, *, follow: bool) -> None:
    """A consumer that keeps the LSN with its effect, and begins behind it."""
    lsns = effects.lsns()
    with SessionStore.open(store, create=False) as opened:
        for event in opened.feed(lsns[-1] + 1 if lsns else 1, follow=follow):
            effects.add(event)


def use_a_name(store: Path, effects: Effects, *, follow: bool) -> None:
    """A consumer whose progress the store keeps."""
    with SessionStore.open(store, create=False) as opened:
        for event in opened.feed(consumer=CONSUMER, follow=follow):
            effects.add(event)


Consume = Callable[..., None]


def forked(consume: Consume, store: Path, effects: Path) -> int:
    """A child that consumes until it is killed; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            consume(store, Effects(effects), follow=True)
            code = 0
        finally:
            os._exit(code)
    return child


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that write the store in tmp_path until they are told to end."""
    SessionStore.open(tmp_path / "store").close()
    with SessionStore.open(tmp_path / "store") as store:
        store.feed(1, consumer=CONSUMER).close()
    running = [
        start(tmp_path / "store", tmp_path / f"ledger-{number}", number, "os", 900.0)
        for number in range(WRITERS)
    ]
    yield running
    stop(running)


def in_the_log(store: Path) -> list[tuple[int, str]]:
    """(LSN, session id) of every session event, read from the segments without a feed."""
    identity = read_identity(store)
    cursor = LogCursor(store / "log", identity.cluster_id, cluster_key(identity.cluster_id))
    found = []
    try:
        cursor.open_segment(list_segments(store / "log")[0])
        for run in cursor.runs():
            for offset, frame in run.frames:
                for lsn, event in enumerate(run.events(offset, frame), frame.first_lsn):
                    if event[0] < Kind.EPOCH_START:
                        found.append((lsn, event[3].decode()))
    finally:
        cursor.close()
    return found


def kill_again_and_again(
    consume: Consume, store: Path, effects: Path, rng: random.Random, check: Callable[[], None]
) -> int:
    """Kill a consumer KILLS times, looking at what it left each time; in how many lives it did something."""
    busy = 0
    for _ in range(KILLS):
        before = effects.stat().st_size if effects.exists() else 0
        child = forked(consume, store, effects)
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0.0, LIFE_S_MAX))  # perhaps before it does anything
        else:
            deadline_s = time.monotonic() + START_S_MAX
            while (
                not (effects.exists() and effects.stat().st_size > before) and time.monotonic() < deadline_s
            ):
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, LIFE_S_MAX / 2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the consumer ended by itself: {status}"
        busy += effects.exists() and effects.stat().st_size > before
        check()
    return busy


def stop(writers: list[subprocess.Popen[bytes]]) -> None:
    while writers:
        process = writers.pop()
        process.kill()
        process.communicate()


@pytest.mark.timeout(180)
def test_a_consumer_that_keeps_the_lsn_with_its_effect_sees_every_event_once_in_order(
    tmp_path: Path, writers: list[subprocess.Popen[bytes]], seed: int
) -> None:
    rng = random.Random(seed)
    store, path = tmp_path / "store", tmp_path / "effects"
    busy = kill_again_and_again(keep_own_lsn, store, path, rng, lambda: None)
    assert busy >= KILLS // 2, f"only {busy} consumers lived long enough"
    assert all(process.poll() is None for process in writers)
    stop(writers)
    effects = Effects(path)
    keep_own_lsn(store, effects, follow=False)
    effects.close()
    done = [(int(line.split()[0]), line.split()[2]) for line in path.read_text().splitlines()]
    assert len(done) > 1000
    assert done == in_the_log(store)


@pytest.mark.timeout(180)
def test_a_named_consumer_misses_nothing_and_only_its_last_event_comes_again(
    tmp_path: Path, writers: list[subprocess.Popen[bytes]], seed: int
) -> None:
    rng = random.Random(seed)
    store, path = tmp_path / "store", tmp_path / "effects"
    ends: list[int] = []

    def note_end() -> None:
        ends.append(path.read_text().count("\n") if path.exists() else 0)

    busy = kill_again_and_again(use_a_name, store, path, rng, note_end)
    assert busy >= KILLS // 2, f"only {busy} consumers lived long enough"
    stop(writers)
    effects = Effects(path)
    use_a_name(store, effects, follow=False)
    lsns = effects.lsns()
    effects.close()
    first_of_a_life = {end for end in ends if 0 < end < len(lsns)}
    again = [at for at in range(1, len(lsns)) if lsns[at] <= lsns[at - 1]]
    assert [at for at in again if lsns[at] != lsns[at - 1] or at not in first_of_a_life] == []
    assert len(lsns) > 1000
    assert sorted(set(lsns)) == [lsn for lsn, _ in in_the_log(store)]
