"""Writers held back for a switchover: they wait, in every process; reads go on; it ends by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure.shipping import NodeLog, open_node_log
from perdure.store import LockTimeoutError, NotPrimaryError, SessionStore
from perdure.store.clock import read_boottime_ms
from perdure.store.drain import begin_drain, drained_ms, end_drain
from perdure.store.page import Word
from perdure.store.promise import Promise


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "store", write_timeout_ms=20_000) as opened:
        yield opened


@pytest.fixture
def node(store: SessionStore, tmp_path: Path) -> Iterator[NodeLog]:
    opened = open_node_log(tmp_path / "store", [])
    yield opened
    opened.close()


def started(call: Callable[[], object]) -> tuple[threading.Event, ThreadPoolExecutor]:
    done = threading.Event()
    pool = ThreadPoolExecutor(1)

    def run() -> None:
        call()
        done.set()

    pool.submit(run)
    return done, pool


WRITES: dict[str, Callable[[SessionStore, str], object]] = {
    "create": lambda store, id: store.create({}),
    "update": lambda store, id: store.update(id, lambda session: session.merge({"n": 2})),
    "patch": lambda store, id: store.patch(id, {"n": 2}),
    "delete": lambda store, id: store.delete(id),
    "put": lambda store, id: store.put("another", {}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_write_waits_while_writers_are_held_back_and_reads_go_on(
    store: SessionStore, node: NodeLog, write: Callable[[SessionStore, str], object]
) -> None:
    id = store.create({"n": 1})
    at = begin_drain(node.log, 7, 30_000)
    done, pool = started(lambda: write(store, id))
    with pool:
        assert not done.wait(0.2)
        assert store.peek(id) is not None
        assert store.count() == 1
        assert node.end_on_disk() == at.position
        assert end_drain(node.log, 7)
        assert done.wait(10)
    assert node.end_on_disk() != at.position


def test_what_was_appended_before_is_in_the_position_that_a_drain_answers(
    store: SessionStore, node: NodeLog
) -> None:
    """Many writers, many drains: nothing is appended between a drain and its end."""
    stopping = threading.Event()

    def write() -> int:
        written = 0
        while not stopping.is_set():
            store.create({"n": written})
            written += 1
        return written

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write) for _ in range(4)]
        try:
            number, deadline_s = 0, time.monotonic() + 60
            while (number < 30 or store.count() <= 30) and time.monotonic() < deadline_s:
                number += 1
                at = begin_drain(node.log, number, 5_000)
                assert node.end_on_disk() == at.position
                time.sleep(0.002)  # room for a writer that would not wait
                assert node.end_on_disk() == at.position
                assert end_drain(node.log, number)
                time.sleep(0.005)  # room for those that waited
        finally:
            stopping.set()
        written = sum(writer.result(20) for writer in writers)
    assert store.count() == written > 30


def test_a_drain_that_nobody_ends_ends_by_itself(store: SessionStore, node: NodeLog) -> None:
    began, began_ms = time.monotonic(), read_boottime_ms()
    begin_drain(node.log, 7, 1000)
    until_ms = node.log.words[Word.DRAINED_UNTIL_MS]
    assert began_ms + 1000 <= until_ms <= read_boottime_ms() + 1000
    assert drained_ms(node.log) <= 1000
    store.create({})
    assert 0.9 < time.monotonic() - began < 10
    assert drained_ms(node.log) == 0
    assert not end_drain(node.log, 7)


def test_a_write_waits_no_longer_than_its_own_time(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store", write_timeout_ms=100) as store:
        node = open_node_log(tmp_path / "store", [])
        try:
            begin_drain(node.log, 7, 30_000)
            with pytest.raises(LockTimeoutError, match="switchover"):
                store.create({})
            with pytest.raises(LockTimeoutError, match="switchover"):
                store.put("a", {})
            end_drain(node.log, 7)
            store.create({})
        finally:
            node.close()


def test_a_writer_that_waits_learns_at_once_that_another_node_took_over(
    store: SessionStore, node: NodeLog
) -> None:
    begin_drain(node.log, 7, 30_000)
    errors: list[Exception] = []

    def write() -> None:
        try:
            store.create({})
        except NotPrimaryError as error:
            errors.append(error)

    done, pool = started(write)
    with pool:
        assert not done.wait(0.1)
        node.log.lock_any()
        node.log.give_promise(Promise(node.log.promise.epoch + 1, "n9"))
        node.log.unlock()
        assert done.wait(5)
    assert "n9" in str(errors[0])


def test_one_switchover_at_a_time(store: SessionStore, node: NodeLog) -> None:
    begin_drain(node.log, 7, 30_000)
    with pytest.raises(LockTimeoutError, match="another switchover"):
        begin_drain(node.log, 8, 30_000)
    assert not end_drain(node.log, 8)
    begin_drain(node.log, 7, 30_000)
    assert end_drain(node.log, 7)
    begin_drain(node.log, 8, 30_000)
    assert end_drain(node.log, 8)


def test_a_replica_is_not_drained(tmp_path: Path, node: NodeLog) -> None:
    node.log.lock_any()
    node.log.give_promise(Promise(node.log.promise.epoch + 1, "n9"))
    node.log.unlock()
    with pytest.raises(NotPrimaryError):
        begin_drain(node.log, 7, 1000)
