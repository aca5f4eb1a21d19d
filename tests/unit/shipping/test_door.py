"""Whoever listens leaves its listener alone for a moment where there is no descriptor for a connection."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure.shipping import link
from perdure.shipping.door import SHUT_MS, Door
from perdure.shipping.gateserver import GateServer
from perdure.shipping.link import listen
from perdure.shipping.monitor import Monitor, MonitorOptions
from perdure.shipping.nodelog import monotonic_ms, open_node_log
from perdure.shipping.readiness import Readiness
from perdure.shipping.receiver import Receiver
from perdure.shipping.server import Server
from perdure.shipping.vitals import VitalSigns
from perdure.shipping.wake import short_path
from perdure.store import WireError, names
from tests.support.descriptors import no_descriptors
from tests.unit.shipping.logs import CLUSTER, make_node

HOST = "127.0.0.1"
WAIT_S = 30.0


class Watched:
    """Who is watched, and how often that began."""

    def __init__(self) -> None:
        self.is_watched = False
        self.begun = 0
        self.door = Door(self.watch, self.unwatch)

    def watch(self) -> None:
        assert not self.is_watched
        self.is_watched = True
        self.begun += 1

    def unwatch(self) -> None:
        assert self.is_watched
        self.is_watched = False


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in ms that doors and servers see."""
    at = [1_000_000]
    for module in ("door", "server"):
        monkeypatch.setattr(f"perdure.shipping.{module}.monotonic_ms", lambda: at[0])
    return at


def test_a_door_that_was_shut_opens_after_a_moment_and_says_why_once(
    now: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    one = Watched()
    for _ in range(3):
        one.door.shut("no descriptors")
        one.door.tick(now[0] + SHUT_MS - 1)
        assert not one.is_watched
        now[0] += SHUT_MS
        one.door.tick(now[0])
        assert one.is_watched
    assert [record.getMessage() for record in caplog.records] == ["no descriptors; tried again every 100 ms"]
    one.door.tick(now[0])
    one.door.took()
    one.door.shut("no descriptors")
    assert len(caplog.records) == 2
    assert one.begun == 4


@pytest.mark.parametrize("is_shut", [False, True])
def test_a_door_is_closed_once(is_shut: bool) -> None:
    one = Watched()
    if is_shut:
        one.door.shut("no descriptors")
    one.door.close()
    one.door.tick(monotonic_ms() + SHUT_MS)
    assert not one.is_watched


def leaves_its_listener_alone(selector: selectors.BaseSelector, open_again: Callable[[int], object]) -> None:
    """Somebody waits at a listener of `selector`, and there is no descriptor: looked at once a moment."""
    with no_descriptors():
        for _ in range(3):
            for key, mask in selector.select(WAIT_S):
                key.data(mask)
            assert selector.select(0) == []
            open_again(monotonic_ms() + SHUT_MS)


def stop_looking(vitals: VitalSigns) -> None:
    """End the thread that looks at the disk."""
    vitals._is_over = True
    vitals._wake.set()
    vitals._thread.join(WAIT_S)
    assert not vitals._thread.is_alive()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "cannot take" in record.getMessage()]


def until_some(found: Callable[[], object]) -> Callable[[], bool]:
    """For a loop: end when something is found, fail past the deadline."""
    deadline = time.monotonic() + WAIT_S

    def is_over() -> bool:
        assert time.monotonic() < deadline
        return bool(found())

    return is_over


def test_a_receiver_without_descriptors_does_not_spin_and_takes_callers_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = open_node_log(make_node(tmp_path / "n2", "n2"), [])
    with closing(Receiver(node, HOST, 0, b"")) as receiver, socket.create_connection((HOST, receiver.port)):
        leaves_its_listener_alone(receiver._selector, receiver._door.tick)
        receiver._door.shut("again")
        receiver.run(until_some(lambda: receiver._visitors))
    assert lines(caplog) == ["cannot take a connection: Too many open files; tried again every 100 ms"]


def test_a_monitor_without_descriptors_does_not_spin_and_takes_callers_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, listener = make_node(tmp_path / "n2", "n2"), listen(HOST, 0)
    with (
        closing(Monitor(path, {}, b"", listener, None, MonitorOptions())) as monitor,
        socket.create_connection(listener.getsockname()),
    ):
        stop_looking(monitor._vitals)  # it would give descriptors back
        leaves_its_listener_alone(monitor._selector, monitor._door.tick)
        monitor._door.shut("again")
        monitor.run(until_some(lambda: monitor._callers))
    assert lines(caplog) == ["cannot take a connection: Too many open files; tried again every 100 ms"]


def test_a_gate_without_descriptors_does_not_spin_and_takes_writers_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, selector = make_node(tmp_path / "n1", "n1"), Readiness()
    with (
        closing(GateServer(path, selector, lambda: 0, lambda: None)) as gate,
        socket.socket(socket.AF_UNIX) as writer,
    ):
        with short_path(path, names.GATE_SOCKET) as at:
            writer.connect(at)
        leaves_its_listener_alone(selector, gate.tick)
        for key, mask in selector.select(WAIT_S):
            key.data(mask)
        assert len(gate._writers) == 1
        gate._door.shut("again")  # it ends all the same
    (line,) = lines(caplog)
    assert line == "cannot take a writer's connection: Too many open files; tried again every 100 ms"


def test_a_server_without_descriptors_does_not_spin_and_takes_guests_later(
    now: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    is_full = [True]

    def accept(*given: Any) -> Any:
        asked.append(now[0])
        if is_full[0]:
            raise WireError("cannot take a connection: Too many open files")
        return link.accept(*given)

    monkeypatch.setattr("perdure.shipping.server.accept", accept)
    server = Server(HOST, 0, cluster_id=CLUSTER, secret=b"", handlers={})
    turns = threading.Semaphore(0)
    stopping = threading.Event()

    def should_stop() -> bool:
        turns.release()
        return stopping.is_set()

    thread = threading.Thread(target=server.run, args=(should_stop,))
    began_ms = now[0]
    with socket.create_connection((HOST, server.port)):
        thread.start()
        try:
            for _ in range(3):
                for _ in range(5):  # turns, whatever they do
                    assert turns.acquire(timeout=WAIT_S)
                now[0] += SHUT_MS
            is_full[0] = False
            until = time.monotonic() + WAIT_S
            while not server._guests:
                assert time.monotonic() < until
                now[0] += SHUT_MS
                time.sleep(0.01)
        finally:
            stopping.set()
            thread.join(WAIT_S)
            server.close()
    assert asked[0] == began_ms
    failed = asked[:-1]
    assert len(set(failed)) == len(failed)  # once a moment
    assert lines(caplog) == ["cannot take a connection: Too many open files; tried again every 100 ms"]
