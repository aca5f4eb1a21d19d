"""Monitors hear each other, tell who has ended, take no strangers, and ask witnesses, which have none."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from perdure.shipping import (
    Credentials,
    NodePorts,
    PeerHealth,
    Pipe,
    Secret,
    Verdict,
    pipe_pair,
    run_monitor,
    write_ports,
)
from perdure.shipping.link import listen
from perdure.shipping.messages_health import Beat, HealthAsk, HealthReply, StandAsk, StandReply
from perdure.shipping.monitor_pipe import Done, Order, Report, Told
from perdure.shipping.server_client import ServerClient
from perdure.store import BusyError, WireError
from tests.cluster.nodes import CLUSTER, HOST, NOW_MS, SECRET, Cluster, cluster_of, until

OTHER_SECRET = b"another secret, 32 bytes long..."


class Watch:
    """The monitor of one node in a thread, with the test as its elector."""

    def __init__(
        self, cluster: Cluster, name: str, threads: ThreadPoolExecutor, secret: Secret, host: str
    ) -> None:
        listener = listen(HOST, 0)
        self.port = int(listener.getsockname()[1])
        write_ports(cluster.path(name), NodePorts(listen=cluster.ports[name], monitor=self.port))
        ours, theirs = pipe_pair()
        self.pipe = Pipe(ours)
        self._stop = threading.Event()
        peers = {other: (host, port) for other, port in cluster.ports.items() if other != name}
        self._future: Future[None] = threads.submit(
            run_monitor,
            cluster.path(name),
            peers,
            listener=listener,
            pipe=Pipe(theirs),
            secret=secret,
            should_stop=self._stop.is_set,
        )
        self._report: Report | None = None
        self.orders: list[Order] = []

    def peer(self, node: str) -> PeerHealth | None:
        """What it says of a peer now."""
        if not self._future.done():
            for message in self.pipe.receive():
                if isinstance(message, Report):
                    self._report = message
                elif isinstance(message, Order):
                    self.orders.append(message)
        return next((one for one in self._report.peers if one.node == node), None) if self._report else None

    def verdict(self, node: str) -> Verdict | None:
        found = self.peer(node)
        return found.verdict if found else None

    def beat(self, node: str) -> Beat | None:
        found = self.peer(node)
        return found.beat if found else None

    def end(self) -> None:
        self._stop.set()
        self._future.result(20)
        self.pipe.close()


@contextlib.contextmanager
def watching(
    cluster: Cluster, *names: str, secret: Secret = SECRET, host: str = HOST
) -> Iterator[list[Watch]]:
    """The monitors of these nodes; `host` is where each finds the others."""
    with ThreadPoolExecutor(len(names)) as threads:
        found = [Watch(cluster, name, threads, secret, host) for name in names]
        try:
            yield found
        finally:
            for one in found:
                with contextlib.suppress(Exception):
                    one.end()


def client(port: int, secret: bytes = SECRET) -> ServerClient:
    return ServerClient(HOST, port, cluster_id=CLUSTER, secret=secret)


def test_monitors_hear_each_other_and_who_ends_is_gone_at_once(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.serve_here("n1", "n2")
        with watching(cluster, "n1", "n2") as (first, second):
            until(lambda: first.verdict("n2") is Verdict.ALIVE, "n1 hears n2")
            until(lambda: second.verdict("n1") is Verdict.ALIVE, "n2 hears n1")
            until(lambda: (second.beat("n1") or first.beat("n2")).is_primary, "n1 says that it is primary")  # type: ignore[union-attr]
            until(lambda: getattr(first.beat("n2"), "hears", "") == "n1", "n2 says that it hears n1")
            began_s = time.monotonic()
            first.end()
            until(lambda: second.verdict("n1") is Verdict.GONE, "n1 has gone")
            peer = second.peer("n1")
            assert peer is not None
            assert peer.silence_ms < 1_000 or time.monotonic() - began_s > 1.0


def test_a_monitor_sends_heartbeats_to_named_hosts_and_asks_no_name_server_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = set[str](), socket.getaddrinfo

    def note(host: str, *given: Any, **wanted: Any) -> Any:
        if host == "nodes.test":
            asked.add(threading.current_thread().name)
            host = HOST
        return real(host, *given, **wanted)

    monkeypatch.setattr(socket, "getaddrinfo", note)
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n1", "n2")
        secret = Credentials(SECRET, allow_plain=True)
        with watching(cluster, "n1", "n2", secret=secret, host="nodes.test") as (first, second):
            until(lambda: first.verdict("n2") is Verdict.ALIVE, "n1 hears n2")
            until(lambda: second.verdict("n1") is Verdict.ALIVE, "n2 hears n1")
    assert asked == {"perdure-finder"}


def test_a_peer_that_does_not_finish_the_handshake_is_looked_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.shipping.monitor_dial.HANDSHAKE_MS", 100)
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n1", "n2")
        silent = listen(HOST, 0)  # what stands at the old address takes connections, and says nothing
        write_ports(
            cluster.path("n2"),
            NodePorts(listen=cluster.ports["n2"], monitor=int(silent.getsockname()[1])),
        )
        try:
            with watching(cluster, "n1"):
                until(lambda: _has_caller(silent), "n1 connects to the old address")
                with watching(cluster, "n2") as (second,):
                    until(lambda: second.verdict("n1") is Verdict.ALIVE, "n1 has found n2's monitor")
        finally:
            silent.close()


def _has_caller(listener: socket.socket) -> bool:
    return bool(select.select([listener], [], [], 0)[0])


def test_a_monitor_with_another_secret_is_not_heard_and_others_are_served(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n1", "n2")
        with watching(cluster, "n1") as (first,):
            with pytest.raises(WireError, match="closed the connection"):
                client(first.port, OTHER_SECRET).ask(HealthAsk(), HealthReply)
            with socket.create_connection((HOST, first.port), timeout=5) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(4096))
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(100) == b""
            strangers = [socket.create_connection((HOST, first.port), timeout=5) for _ in range(40)]
            try:
                with client(first.port) as asking:
                    reply, _ = asking.ask(HealthAsk(), HealthReply)
            finally:
                for one in strangers:
                    one.close()
            assert [row.node for row in reply.nodes] == ["n1", "n2"]
            assert reply.nodes[1].verdict in ("new", "silent")


def test_what_the_elector_thinks_is_told_and_an_order_reaches_it(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster, ThreadPoolExecutor(1) as threads:
        cluster.serve_here("n1", "n2")
        with watching(cluster, "n1") as (first,):
            first.pipe.send(Told("syncing", "quorum", "because"))

            def told() -> HealthReply:
                with client(first.port) as asking:
                    return asking.ask(HealthAsk(), HealthReply)[0]

            until(lambda: told().why == "because", "the elector's word")
            assert (told().coordinator, told().nodes[0].state) == ("quorum", "syncing")

            def ask() -> StandReply:
                with client(first.port) as asking:
                    return asking.ask(StandAsk("a test"), StandReply, timeout_ms=20_000)[0]

            asked = threads.submit(ask)
            until(lambda: first.peer("n2") and first.orders, "the order")
            assert first.orders[0].ask == StandAsk("a test")
            first.pipe.send(Done(first.orders[0].number, StandReply(7, False)))
            assert asked.result(20) == StandReply(7, False)


def test_without_an_elector_an_order_is_refused(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n1")
        listener = listen(HOST, 0)
        ended = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(
                run_monitor,
                cluster.path("n1"),
                {},
                listener=listener,
                secret=SECRET,
                should_stop=ended.is_set,
            )
            try:
                port = int(listener.getsockname()[1])
                with pytest.raises(BusyError), client(port) as asking:
                    asking.ask(StandAsk("a test"), StandReply)
            finally:
                ended.set()
                running.result(20)


def test_peers_that_join_and_leave_are_watched_as_the_elector_says(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3) as cluster:
        cluster.serve_here("n1", "n2", "n3")
        with watching(cluster, "n1", "n2") as (first, second):
            until(lambda: first.verdict("n2") is Verdict.ALIVE, "n1 hears n2")
            first.pipe.send(Told("active", "quorum", "", {"n3": (HOST, cluster.ports["n3"])}))
            until(lambda: first.verdict("n2") is None and first.verdict("n3") is not None, "n3 alone")
            first.pipe.send(Told("active", "quorum", "", {"n2": (HOST, cluster.ports["n2"])}))
            until(lambda: first.verdict("n2") is Verdict.ALIVE, "n2 again")
            until(lambda: second.verdict("n1") is Verdict.ALIVE, "n2 hears n1")


def test_a_decision_not_to_monitor_reaches_the_others(tmp_path: Path) -> None:
    from perdure.shipping import read_unmonitored, set_monitored

    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n1", "n2")
        with watching(cluster, "n1", "n2"):
            decided = set_monitored(cluster.path("n2"), "n1", False)
            until(lambda: read_unmonitored(cluster.path("n1")) == decided, "n1 has written it down")


def test_a_witness_is_heard_though_it_has_no_monitor(tmp_path: Path) -> None:
    from perdure.shipping.witness import serve_witness
    from perdure.store.witness import make_witness

    with cluster_of(tmp_path, 2) as cluster, ThreadPoolExecutor(1) as threads:
        cluster.serve_here("n1")
        make_witness(tmp_path / "w", "w", CLUSTER, NOW_MS)
        ready = threading.Event()
        ended = threading.Event()

        def listening(port: int) -> None:
            cluster.ports["w"] = port
            ready.set()

        stops: Callable[[], bool] = ended.is_set
        running = threads.submit(
            serve_witness, tmp_path / "w", HOST, 0, secret=SECRET, should_stop=stops, on_ready=listening
        )
        try:
            assert ready.wait(20)
            with watching(cluster, "n1") as (first,):
                until(lambda: first.verdict("w") is Verdict.ALIVE, "the witness is heard")
                beat = first.beat("w")
                assert beat is not None
                assert (beat.is_primary, beat.is_fit, beat.hears) == (False, False, "")
                ended.set()
                running.result(20)
                until(lambda: first.verdict("w") is Verdict.SILENT, "the witness is silent")
        finally:
            ended.set()
