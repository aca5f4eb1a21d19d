"""Writing on any node: every call works on a replica, exactly once, whatever becomes of the primary."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure
from perdure.store import (
    Indeterminate,
    NotPrimaryError,
    SessionNotFoundError,
    SessionStore,
    VersionConflictError,
)
from perdure.store.session import Session
from tests.cluster.any_node import AnyNodeCluster, any_node_cluster
from tests.cluster.nodes import HOST, SECRET, until


def count_up(session: Session) -> Session:
    return session.merge({"n": session.metadata["n"] + 1})


@pytest.fixture(params=[0, 1], ids=["async", "sync"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyNodeCluster]:
    with any_node_cluster(tmp_path, 2, sync_replicas=request.param) as cluster:
        yield cluster


def test_every_write_works_on_a_replica_and_is_read_there_at_once(cluster: AnyNodeCluster) -> None:
    primary, replica = cluster.handle("n1"), cluster.handle("n2")
    id = replica.create({"n": 0}, group="g", tags=["t"], home_node="gone")
    assert replica.peek(id) is not None
    assert replica.update(id, count_up).metadata["n"] == 1
    assert replica.patch(id, {"m": 2}).metadata == {"n": 1, "m": 2}
    replica.touch(id)
    replica.put("mine", {"x": 1}, group="g")
    with pytest.raises(VersionConflictError):
        replica.put("mine", {}, if_version=7)
    with pytest.raises(SessionNotFoundError):
        replica.update("nobody", count_up)
    with replica.batch() as batch:
        batch.create({"b": 1}, group="h")
        batch.put("other", {"o": 1}, group="h")
        batch.delete("mine")
    assert replica.peek("mine") is None
    moved = replica.regenerate_id(id)
    assert replica.peek(id) is None
    assert (found := replica.peek(moved)) is not None and found.metadata["n"] == 1
    assert replica.touch_group("h").sessions == 2
    assert replica.delete_group("h") == (2, True)
    assert replica.adopt_orphans(["n1", "n2"], "n2") == 1
    assert replica.delete(moved) is True
    assert replica.delete(moved) is False
    assert primary.count() == replica.count() == 0
    assert primary.stats()["digest"] == replica.stats()["digest"]


def test_expired_sessions_are_cleaned_up_from_a_replica(cluster: AnyNodeCluster) -> None:
    replica = cluster.handle("n2", sweep_interval_ms=0)
    for _ in range(5):
        replica.put(f"s{_}", {}, 1)
    time.sleep(0.01)
    until(lambda: replica.cleanup_expired() or not replica.count(), "all are expired")
    assert replica.count() == 0


def test_a_refresh_on_a_replica_reaches_the_primary(
    cluster: AnyNodeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.elsewhere.REFRESH_MS", 30_000)
    primary = cluster.handle("n1")
    replica = cluster.handle("n2", refresh_window_ms=200)
    id = replica.create({}, timeout_ms=600_000)
    before = primary.peek(id)
    assert before is not None

    def is_refreshed() -> bool:
        replica.get(id)
        now = primary.peek(id)
        return now is not None and now.last_accessed > before.last_accessed

    until(is_refreshed, "it is refreshed")
    until(lambda: replica.stats()["refreshes_forwarded"] > 0, "its answer is back")
    assert replica.stats()["refreshes_dropped"] == 0


def test_a_refresh_that_cannot_be_written_is_counted_and_not_raised(cluster: AnyNodeCluster) -> None:
    replica = cluster.handle("n2", refresh_window_ms=200)
    id = replica.create({}, timeout_ms=600_000)
    cluster.kill_node("n1")

    def is_dropped() -> bool:
        replica.get(id)
        return bool(replica.stats()["refreshes_dropped"])

    until(is_dropped, "one is dropped")


def test_without_a_primary_a_write_waits_for_its_time_and_then_says_so(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path, 2) as cluster:
        id = cluster.handle("n2", write_timeout_ms=30_000).create({"n": 1})
        replica = cluster.handle("n2", write_timeout_ms=700)
        cluster.kill_node("n1")
        begun = time.monotonic()
        with pytest.raises((NotPrimaryError, Indeterminate)):
            replica.patch(id, {"n": 2})
        assert 0.5 < time.monotonic() - begun < 10
        begun = time.monotonic()
        with pytest.raises(NotPrimaryError):
            replica.patch(id, {"n": 2})
        assert 0.5 < time.monotonic() - begun < 10
        found = replica.peek(id)
        assert found is not None and found.metadata["n"] == 1


def test_a_handle_without_any_other_node_refuses_at_once(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path, 2) as cluster:
        store = cluster.open("n2", write_timeout_ms=60_000)
        begun = time.monotonic()
        with pytest.raises(NotPrimaryError):
            store.create({})
        assert time.monotonic() - begun < 20, "it does not wait for its time"


def test_counters_that_three_nodes_count_up_together_are_exact(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path) as cluster:
        stores = [cluster.handle(name, write_timeout_ms=20_000) for name in cluster.names]
        for key in ("a", "b"):
            stores[0].put(key, {"n": 0})
        failed: list[BaseException] = []

        def work(store: SessionStore) -> None:
            try:
                for number in range(20):
                    store.update("a" if number % 2 else "b", count_up)
            except BaseException as error:  # noqa: BLE001 - it is for the test
                failed.append(error)

        threads = [threading.Thread(target=work, args=(store,)) for store in stores for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failed
        for store in stores:
            for key in ("a", "b"):
                until(lambda: store[key].metadata["n"] == 60, f"all see {key}")  # noqa: B023


def test_a_node_that_is_configured_finds_the_primary_by_itself_also_in_asyncio(tmp_path: Path) -> None:
    with any_node_cluster(tmp_path, 2) as cluster:
        (tmp_path / "secret").write_bytes(SECRET)
        peers = ", ".join(f'{name} = "{HOST}:{port}"' for name, port in cluster.ports.items())
        (cluster.path("n2") / "perdure.toml").write_text(
            f'[node]\nsecret_file = "{tmp_path / "secret"}"\npeers = {{ {peers} }}\n'
        )

        async def work() -> int:
            async with await perdure.open_async(cluster.path("n2"), create=False) as store:
                id = await store.create({"n": 0})
                for _ in range(5):
                    await store.update(id, count_up)
                await store.wait_for(await store.position())
                found = await store.get(id, linearizable=True)
                assert found is not None
                return int(found.metadata["n"])

        assert asyncio.run(work()) == 5
        refusing = perdure.open(cluster.path("n2"), create=False, forward=False)
        with refusing as store, pytest.raises(NotPrimaryError):
            store.create({})
