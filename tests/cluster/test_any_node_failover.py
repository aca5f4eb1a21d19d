"""Writes that meet the end of a primary: they wait, and are carried out once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perdure.shipping import NodePorts, Server, write_ports
from perdure.shipping.forward_service import ForwardService
from perdure.shipping.messages import Message
from perdure.shipping.messages_forward import ForwardAsk
from perdure.store import Outcome, PerdureError, SessionStore
from perdure.store.session import Session
from tests.cluster.any_node import AnyNodeCluster, any_node_cluster
from tests.cluster.nodes import CLUSTER, HOST, SECRET, until


def count_up(session: Session) -> Session:
    return session.merge({"n": session.metadata["n"] + 1})


class Counting:
    """Threads that count one key up, each through a handle of its own."""

    def __init__(self, stores: list[SessionStore]) -> None:
        self.done = 0
        self.failed: list[PerdureError] = []
        self._stopping = threading.Event()
        self._mutex = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(store,)) for store in stores]
        for thread in self._threads:
            thread.start()

    def _work(self, store: SessionStore) -> None:
        while not self._stopping.is_set():
            try:
                store.update("n", count_up)
            except PerdureError as error:
                self.failed.append(error)
                return
            with self._mutex:
                self.done += 1

    def stop(self) -> int:
        """End them; answers how often they counted. Raises what they met."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
        if self.failed:
            raise self.failed[0]
        return self.done


def value_on(store: SessionStore) -> int:
    found = store.peek("n")
    return -1 if found is None else int(found.metadata["n"])


def test_a_primary_that_is_killed_under_forwarded_writes_costs_none_and_doubles_none(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path) as cluster:
        stores = [cluster.handle(name, write_timeout_ms=30_000) for name in ("n2", "n3", "n3")]
        stores[0].put("n", {"n": 0})
        counting = Counting(stores)
        until(lambda: counting.done > 20, "they count")
        cluster.kill_node("n1")
        cluster.promote("n2")
        before = counting.done
        until(lambda: counting.done > before + 20 or counting.failed, "they count on")
        cluster.revive("n1")
        until(lambda: counting.done > before + 40 or counting.failed, "they still count")
        cluster.kill_node("n2")
        cluster.promote("n3")
        cluster.revive("n2")  # who writes on a node waits until that node has it
        before = counting.done
        until(lambda: counting.done > before + 20 or counting.failed, "they count again")
        total = counting.stop()
        assert value_on(stores[1]) == total


def test_local_writers_of_a_primary_that_is_replaced_go_on_with_the_new_one(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path) as cluster:
        stores = [cluster.handle("n1", write_timeout_ms=30_000) for _ in range(2)]
        stores[0].put("n", {"n": 0})
        counting = Counting(stores)
        until(lambda: counting.done > 20, "they count")
        for name in ("n2", "n1", "n3"):
            cluster.promote(name)
            target = counting.done + 20
            until(lambda: counting.done > target or counting.failed, f"they count on {name}")  # noqa: B023
        total = counting.stop()
        assert value_on(stores[0]) == total


def test_a_writer_whose_node_has_died_around_it_finds_the_new_primary(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path) as cluster:
        store = cluster.handle("n1", write_timeout_ms=30_000)
        store.put("n", {"n": 0})
        counting = Counting([store])
        until(lambda: counting.done > 5, "it counts")
        cluster.kill_node("n1")
        cluster.promote("n2")
        time.sleep(1)
        cluster.revive("n1")
        before = counting.done
        until(lambda: counting.done > before + 5 or counting.failed, "it counts on")
        total = counting.stop()
        assert value_on(store) == total


@contextmanager
def breaking(cluster: AnyNodeCluster, breaks: Callable[[ForwardAsk], str]) -> Iterator[list[str]]:
    """In place of n1's server one that hangs up "before" or "after" it carries out what it is asked."""
    cluster.servers.pop("n1").stop()
    store = cluster.open("n1")
    service = ForwardService(store)
    handlers = service.handlers()
    forward = handlers[ForwardAsk]
    broken: list[str] = []

    def hang_up() -> None:
        for link in list(server._guests):
            link.socket.shutdown(socket.SHUT_RDWR)

    def breaking_forward(message: ForwardAsk, payload: bytes) -> tuple[Message, bytes]:
        when = breaks(message)
        if when:
            broken.append(when)
        if when == "before":
            hang_up()
            raise OSError("broken")
        answer = forward(message, payload)
        if when == "after":
            hang_up()
        return answer

    server = Server(
        HOST, 0, cluster_id=CLUSTER, secret=SECRET, handlers={**handlers, ForwardAsk: breaking_forward}
    )
    stopping = threading.Event()
    thread = threading.Thread(target=server.run, args=(stopping.is_set,))
    thread.start()
    write_ports(cluster.path("n1"), NodePorts(cluster.ports["n1"], server.port))
    try:
        yield broken
    finally:
        stopping.set()
        thread.join(10)
        server.close()


@pytest.mark.parametrize("sync_replicas", [0, 1])
def test_a_write_whose_answer_is_lost_is_carried_out_once(tmp_path: Path, sync_replicas: int) -> None:
    with any_node_cluster(tmp_path, 2, sync_replicas=sync_replicas) as cluster:
        replica = cluster.handle("n2", write_timeout_ms=20_000)
        replica.put("n", {"n": 0})
        broken_ids: set[bytes] = set()
        times = iter(range(1000))

        def breaks(asked: ForwardAsk) -> str:
            if asked.operation_id in broken_ids:
                return ""
            broken_ids.add(asked.operation_id)
            return ("before", "after")[next(times) % 2]

        with breaking(cluster, breaks) as broken:
            for number in range(1, 7):
                assert replica.update("n", count_up).metadata["n"] == number
            id = replica.create({"a": 1})
            assert replica.delete(id) is True
            assert len(broken) == 8
        assert value_on(replica) == 6


def test_a_group_that_is_deleted_in_batches_is_gone_though_answers_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.bulk.ATOMIC_MAX", 10)
    monkeypatch.setattr("perdure.store.bulk.BATCH_SESSIONS", 8)
    with any_node_cluster(tmp_path, 2, sync_replicas=0) as cluster:
        replica = cluster.handle("n2", write_timeout_ms=20_000)
        with replica.batch() as batch:
            for _ in range(35):
                batch.create({}, group="g")
        times = iter(range(1000))
        with breaking(cluster, lambda _asked: ("after", "before", "")[next(times) % 3]) as broken:
            assert replica.delete_group("g").sessions == 35
        assert broken
        assert replica.count() == 0


def test_what_became_of_a_write_that_found_no_answer_can_be_asked(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path, 2) as cluster:
        replica = cluster.handle("n2", write_timeout_ms=20_000)
        replica.put("n", {"n": 0})
        token = replica.position()
        assert replica.outcome(token) is Outcome.COMMITTED
