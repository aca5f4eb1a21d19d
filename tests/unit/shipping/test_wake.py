"""Waking the shipper: each way alone brings a frame to it, and pokes cost nothing while it is busy."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from perdure.shipping.gate import Gate, open_gate
from perdure.shipping.nodelog import open_node_log, take_process_lock
from perdure.shipping.shipper import Shipper, ShipperOptions
from perdure.shipping.wake import PokeSocket, Wake, Watcher, bind_in_store, short_path
from perdure.store import Position, SessionStore, StoreMissingError, names
from perdure.store.page import ControlPage, Word, read_boot_id
from perdure.store.promise import Promise
from tests.unit.shipping.logs import make_primary

WAIT_S = 10.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_primary(tmp_path / "n1")


@contextmanager
def shipping(store: Path, options: ShipperOptions) -> Iterator[Shipper]:
    """A shipper without replicas, in a thread."""
    node = open_node_log(store, [take_process_lock(store, names.SHIPPER_LOCK)])
    shipper = Shipper(node, {}, b"", options, None)
    stopping = threading.Event()
    failed: list[str] = []

    def run() -> None:
        try:
            shipper.run(stopping.is_set)
        finally:
            shipper.close()
            node.close()
            if not stopping.is_set():
                failed.append("the shipper ended by itself")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield shipper
    finally:
        stopping.set()
        thread.join(WAIT_S)
    assert not failed


def until(is_true: object, what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():  # type: ignore[operator]
        if time.monotonic() > deadline:
            pytest.fail(f"not in time: {what}")
        time.sleep(0.005)


def write_until_woken_by(store: SessionStore, shipper: Shipper, way: Wake) -> None:
    """Write now and then until the shipper, while it waited, heard of a frame in this way."""
    deadline = time.monotonic() + WAIT_S
    while not shipper.wakes[way]:
        if time.monotonic() > deadline:
            pytest.fail(f"never woken by {way}: {shipper.wakes}")
        store.create({})
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("options", "with_gate", "way", "never"),
    [
        (ShipperOptions(poll_ms=50, use_watcher=False), True, Wake.POKE, Wake.WATCHER),
        (ShipperOptions(poll_ms=50, use_pokes=False), False, Wake.WATCHER, Wake.POKE),
        (ShipperOptions(poll_ms=5, use_pokes=False, use_watcher=False), False, Wake.POLL, Wake.WATCHER),
    ],
    ids=["poke", "watcher", "poll"],
)
def test_each_way_alone_brings_frames_to_the_shipper(
    store: Path, options: ShipperOptions, with_gate: bool, way: Wake, never: Wake
) -> None:
    with shipping(store, options) as shipper:
        gate = open_gate(store) if with_gate else None
        with SessionStore.open(store, gate=gate) as sessions:
            write_until_woken_by(sessions, shipper, way)
            end = sessions._log.cursor.at.lsn
            until(lambda: sessions._log.words[Word.FLUSHED] >= end, "the shipper flushes what it heard of")
        assert not shipper.wakes[never]


def test_a_watcher_starts_only_when_frames_come_that_nobody_announced(store: Path) -> None:
    with shipping(store, ShipperOptions()) as shipper, SessionStore.open(store) as silent:
        time.sleep(0.05)
        assert not shipper._watcher.is_running
        write_until_woken_by(silent, shipper, Wake.WATCHER)
        assert shipper._watcher.is_running


def test_frames_that_something_else_finds_ahead_of_their_poke_start_no_watcher(store: Path) -> None:
    """Answers of replicas wake a shipper all the time, also between an append and its poke."""
    reading, writing = os.pipe()
    with (
        shipping(store, ShipperOptions()) as shipper,
        SessionStore.open(store, gate=open_gate(store)) as sessions,
    ):
        shipper.wake_on(reading, lambda: os.read(reading, 4096))
        stopping = threading.Event()
        noise = threading.Thread(target=_write_until, args=(writing, stopping))
        noise.start()
        for _ in range(1000):
            sessions.create({})
        stopping.set()
        noise.join()
        assert not shipper._watcher.is_running
    os.close(reading)
    os.close(writing)


def _write_until(descriptor: int, stopping: threading.Event) -> None:
    while not stopping.wait(0.0001):
        os.write(descriptor, b".")


def test_a_watcher_that_was_not_needed_for_a_while_is_stopped(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ControlPage(store / names.CONTROL_PAGE, read_boot_id())
    watcher = Watcher(store / "log", page.words, Word.SHIPPER_IDLE)
    watcher.need()
    watcher.rest()
    states = [watcher.is_running]
    monkeypatch.setattr("perdure.shipping.wake.WATCH_IDLE_S", 0.0)
    watcher.rest()
    states.append(watcher.is_running)
    watcher.close()
    page.close()
    assert states == [True, False]


def test_a_poke_is_sent_only_while_the_shipper_is_idle(store: Path) -> None:
    socket = PokeSocket(store)
    gate = open_gate(store)
    words = gate._words
    gate.poke(1)
    assert socket.drain() == 0
    words[Word.SHIPPER_IDLE] = 1
    gate.poke(1)
    assert select.select([socket], [], [], WAIT_S)[0]
    assert socket.drain() == 1
    gate.close()
    socket.close()


def test_a_poke_never_blocks_nor_raises(store: Path) -> None:
    gate = open_gate(store)
    gate._words[Word.SHIPPER_IDLE] = 1
    gate.poke(1)  # nobody listens
    socket = PokeSocket(store)
    for lsn in range(2000):
        gate.poke(lsn)  # far more than a socket holds
    socket.close()
    gate.poke(1)  # it was there, and is gone
    socket = PokeSocket(store)
    gate.poke(2)
    assert socket.drain() == 1
    socket.close()
    gate.close()


def test_sockets_work_in_a_directory_with_a_path_longer_than_an_address(tmp_path: Path) -> None:
    deep = tmp_path
    while len(str(deep)) < 200:
        deep /= "a-directory-with-a-long-name"
    deep.mkdir(parents=True)
    store = make_primary(deep / "n1")
    with shipping(store, ShipperOptions()):
        gate = open_gate(store)
        with SessionStore.open(store, gate=gate) as sessions:
            sessions.create({})
            at = sessions._log.cursor.at.position
            assert gate.wait(at, 5000)


# -- the gate --------------------------------------------------------------------------------------


def test_a_gate_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError):
        open_gate(tmp_path / "nothing")


def test_a_wait_ends_false_at_its_deadline_without_a_shipper(store: Path) -> None:
    gate = open_gate(store)
    began = time.monotonic()
    assert not gate.wait(Position(1, 1000, 0), 150)
    assert 0.1 < time.monotonic() - began < 5
    gate.close()


@contextmanager
def deaf_shipper(store: Path, backlog: int) -> Iterator[socket.socket]:
    """Something that listens at the gate, and neither takes a connection nor reads."""
    deaf = bind_in_store(store, names.GATE_SOCKET, socket.SOCK_STREAM)
    deaf.listen(backlog)
    try:
        yield deaf
    finally:
        deaf.close()


def answers_of_waits(gate: Gate, count: int, deaf: socket.socket) -> list[bool]:
    """What so many short waits answered, one behind the other; fails if one of them hangs."""
    results: list[bool] = []
    waiting = threading.Thread(
        target=lambda: results.extend(gate.wait(Position(1, 1000, 0), 1) for _ in range(count)), daemon=True
    )
    waiting.start()
    waiting.join(WAIT_S)
    if waiting.is_alive():
        deaf.close()
        pytest.fail("a wait hangs")
    return results


def test_a_wait_ends_at_its_deadline_though_the_shipper_reads_nothing(store: Path) -> None:
    with deaf_shipper(store, 8) as deaf:
        gate = open_gate(store)
        assert answers_of_waits(gate, 500, deaf) == [False] * 500  # more than the socket holds
        assert gate._stream is not None
        with pytest.raises(BlockingIOError):
            gate._stream.send(bytes(8))
        gate.close()


def test_a_wait_ends_at_its_deadline_though_nobody_takes_its_connection(store: Path) -> None:
    with deaf_shipper(store, 0) as deaf, ExitStack() as others:
        with suppress(BlockingIOError):
            while True:  # until the backlog is full
                other = others.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)
                with short_path(store, names.GATE_SOCKET) as path:
                    other.connect(path)
        gate = open_gate(store)
        assert answers_of_waits(gate, 2, deaf) == [False, False]
        gate.close()


def test_a_gate_that_had_no_descriptors_takes_writers_again(store: Path) -> None:
    with shipping(store, ShipperOptions()) as shipper, socket.socket(socket.AF_UNIX) as writer:
        shipper._gate._door.shut("no descriptors")
        with short_path(store, names.GATE_SOCKET) as path:
            writer.connect(path)
        until(lambda: shipper._gate._writers, "the writer's connection is taken")


def test_what_is_committed_already_needs_no_wait(store: Path) -> None:
    gate = open_gate(store)
    gate._words[Word.COMMITTED] = 10
    assert gate.wait(Position(1, 10, 0), 0)
    gate.close()


def test_a_wait_ends_when_a_higher_epoch_is_promised(store: Path) -> None:
    gate = open_gate(store)
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(gate.wait(Position(1, 1000, 0), 60_000)))
    waiting.start()
    with_promise(store, Promise(2, "n2"))
    waiting.join(WAIT_S)
    assert results == [False]
    gate.close()


def test_a_wait_that_begins_behind_the_promise_of_a_higher_epoch_does_not_last_to_its_deadline(
    store: Path,
) -> None:
    gate = open_gate(store)
    results: list[bool] = []
    with_promise(store, Promise(2, "n2"))
    waits = [
        threading.Thread(target=lambda: results.append(gate.wait(Position(1, 1000, 0), 600_000)), daemon=True)
        for _ in range(2)  # one leads, the other waits for it
    ]
    for waiting in waits:
        waiting.start()
    for waiting in waits:
        waiting.join(WAIT_S)
    assert results == [False, False]
    gate.close()


def with_promise(store: Path, promise: Promise) -> None:
    node = open_node_log(store, [])
    node.log.lock_any()
    node.log.give_promise(promise)
    node.log.unlock()
    node.close()


def test_threads_that_share_a_gate_all_hear_of_their_own_lsn(store: Path) -> None:
    gate = open_gate(store)
    end = gate._words[Word.APPENDED]
    with shipping(store, ShipperOptions()), SessionStore.open(store) as sessions:
        heard: list[int] = []

        def wait(lsn: int) -> None:
            if gate.wait(Position(1, lsn, 0), 20_000):
                heard.append(lsn)

        wanted = list(range(end + 1, end + 21))
        threads = [threading.Thread(target=wait, args=(lsn,)) for lsn in wanted]
        for thread in threads:
            thread.start()
        for _ in wanted:
            sessions.create({})
            time.sleep(0.002)
        for thread in threads:
            thread.join(WAIT_S)
        assert sorted(heard) == wanted
    gate.close()


def test_a_wait_outlives_the_shipper_that_it_began_with(store: Path) -> None:
    gate: Gate = open_gate(store)
    lsn = gate._words[Word.APPENDED] + 1
    results: list[bool] = []
    with shipping(store, ShipperOptions()):
        waiting = threading.Thread(target=lambda: results.append(gate.wait(Position(1, lsn, 0), 30_000)))
        waiting.start()
        until(lambda: gate._stream is not None, "the wait is on the stream")
    with SessionStore.open(store) as sessions:
        sessions.create({})
    assert results == []
    with shipping(store, ShipperOptions()):
        waiting.join(WAIT_S)
    assert results == [True]
    gate.close()


def test_a_writer_that_waits_wakes_the_shipper_without_a_poke(tmp_path: Path) -> None:
    store = make_primary(tmp_path / "n1", k=1)
    options = ShipperOptions(poll_ms=50, use_pokes=False, use_watcher=False)
    with shipping(store, options) as shipper, SessionStore.open(store) as sessions:
        gate = open_gate(store)
        deadline = time.monotonic() + WAIT_S
        while not shipper.wakes[Wake.POKE]:  # the first one is found when the gate is connected
            assert time.monotonic() < deadline
            sessions._log.lock()  # nobody is there to confirm: append as a writer would
            try:
                position = sessions._log.append_control(None, sessions._log.config, 0)
            finally:
                sessions._log.unlock()
            assert not gate.wait(position, 100)
            until(lambda lsn=position.lsn: sessions._log.words[Word.FLUSHED] >= lsn, "it is on disk")
        assert not shipper._unannounced
        gate.close()
