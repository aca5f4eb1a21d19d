"""Reads that ask for more than what a node has: tokens, bounded staleness, linearizable, never backwards."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perdure.store import Position, PositionLostError, SessionStore, StaleReadError, UsageError
from tests.cluster.any_node import AnyNodeCluster, any_node_cluster
from tests.cluster.nodes import until


@contextmanager
def stopped(cluster: AnyNodeCluster, *keys: str) -> Iterator[None]:
    """SIGSTOP these processes for a while."""
    pids = [cluster.children[key].pid for key in keys]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_token_of_one_node_is_waited_for_on_another(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path, 2, sync_replicas=0) as cluster:
        primary, replica = cluster.handle("n1"), cluster.handle("n2", write_timeout_ms=10_000)
        for number in range(50):
            id = primary.create({"n": number})
            found = replica.get(id, after=primary.position())
            assert found is not None and found.metadata["n"] == number
        with stopped(cluster, "receiver:n2"):
            id = primary.create({})
            token = primary.position()
            with pytest.raises(StaleReadError):
                replica.wait_for(token, 200)
            with pytest.raises(StaleReadError):
                replica.wait_for(str(token), 0)
            assert replica.peek(id) is None
        assert replica.wait_for(token).lsn >= token.lsn
        assert replica.peek(id) is not None
        for wrong in ("x", (1, 2), "1:2"):
            with pytest.raises(UsageError):
                replica.wait_for(wrong)  # type: ignore[arg-type]


def is_refused(store: SessionStore, id: str) -> bool:
    """Is a read of at most 100 ms? A heartbeat that was on its way, or waited to be taken, comes late."""
    try:
        store.get(id, max_lag_ms=100)
    except StaleReadError:
        return True
    return False


def test_a_replica_that_does_not_hear_from_the_primary_refuses_a_bounded_read(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path, 2) as cluster:
        primary, replica = cluster.handle("n1"), cluster.handle("n2")
        id = replica.create({})
        until(lambda: replica.lag_ms() is not None, "it hears heartbeats")
        assert replica.get(id, max_lag_ms=5_000) is not None
        assert primary.get(id, max_lag_ms=5_000) is not None
        with stopped(cluster, "shipper:n1"):
            for store in (replica, primary):
                until(lambda store=store: is_refused(store, id), "it is refused")  # type: ignore[misc]
                assert store.get(id) is not None
                assert (store.lag_ms() or 1000) >= 100
        until(lambda: (replica.lag_ms() or 0) < 200, "it is fresh again")
        assert replica.get(id, max_lag_ms=2_000) is not None
        with pytest.raises(UsageError):
            replica.get(id, max_lag_ms=-1)


def test_linearizable_reads_see_what_was_acknowledged_anywhere(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path) as cluster:
        stores = [cluster.handle(name, write_timeout_ms=20_000) for name in cluster.names]
        stores[0].put("n", {"n": 0})
        for number in range(1, 40):
            writer, reader = stores[number % 3], stores[(number * 7 + 1) % 3]
            writer.put("n", {"n": number})
            found = reader.peek("n", linearizable=True)
            assert found is not None and found.metadata["n"] == number
        assert stores[1].get("nobody", linearizable=True) is None


def test_a_primary_that_was_replaced_serves_no_linearizable_read(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path) as cluster:
        old = cluster.open("n1", write_timeout_ms=600)
        new = cluster.handle("n2", write_timeout_ms=20_000)
        new.put("n", {"n": 1})
        with stopped(cluster, "shipper:n1", "receiver:n1"):
            cluster.ports.pop("n1")
            cluster.names = ("n2", "n3")
            until(lambda: cluster.end("n2") == cluster.end("n3"), "both are as far")
            cluster.promote("n2")
            new.put("n", {"n": 2})
            with pytest.raises(StaleReadError):
                old.peek("n", linearizable=True)
            plain = old.peek("n")
            assert plain is not None and plain.metadata["n"] == 1
        cluster.names = ("n1", "n2", "n3")


def test_a_token_of_a_history_that_was_lost_is_its_own_error(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path, 2, sync_replicas=0) as cluster:
        primary, replica = cluster.handle("n1"), cluster.handle("n2")
        primary.create({})
        until(lambda: replica.position() == primary.position(), "it has it")
        for kind in ("shipper", "receiver", "folder"):
            cluster.kill(f"{kind}:n1")
        cluster.kill_server("n1")
        lost = [primary.create({}) for _ in range(20)]
        token = primary.position()
        cluster.promote("n2", alone=True)
        for _ in range(5):
            replica.create({})
        with pytest.raises(PositionLostError):
            replica.wait_for(token)
        assert replica.peek(lost[0]) is None
        with pytest.raises((PositionLostError, StaleReadError)):
            replica.wait_for(Position(token.epoch, token.lsn + 1000, 1), 100)


def test_plain_reads_of_one_handle_never_go_backwards_over_role_changes(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path) as cluster:
        writer = cluster.handle("n3", write_timeout_ms=30_000)
        readers = [cluster.open(name) for name in cluster.names]
        writer.put("n", {"n": 0})
        for reader in readers:
            until(lambda: reader.peek("n"), "all have it")  # noqa: B023
        stopping = threading.Event()
        wrong: list[str] = []

        def read(reader: SessionStore) -> None:
            last = 0
            while not stopping.is_set():
                found = reader.peek("n")
                now = -1 if found is None else found.metadata["n"]
                if now < last:
                    wrong.append(f"{now} after {last}")
                last = max(last, now)

        def write() -> None:
            number = 0
            while not stopping.is_set():
                number += 1
                writer.put("n", {"n": number})

        threads = [threading.Thread(target=read, args=(reader,)) for reader in readers]
        threads.append(threading.Thread(target=write))
        for thread in threads:
            thread.start()
        for name in ("n2", "n1", "n2"):
            time.sleep(0.3)
            cluster.promote(name)
        time.sleep(0.3)
        stopping.set()
        for thread in threads:
            thread.join(60)
        assert not wrong
