"""A cluster's members change while it runs: writers and the shipper go on, nothing acknowledged is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.recovery import add_member, list_members, promote, remove_member, set_sync_replicas
from perdure.shipping.slots import read_slots
from perdure.store import Config, FencedError, NoQuorumError, PerdureError, SessionStore, UsageError
from perdure.store.page import Word
from tests.cluster.nodes import HOST, SECRET, Cluster, cluster_of, until


class Alone(Cluster):
    """Nodes of which the first is a store on its own, and nobody else knows of."""

    def begin(self, name: str, config: Config) -> None:
        super().begin(name, Config())


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    cluster = Alone(tmp_path, ("n1", "n2", "n3", "n4"), 0, "lmdb")
    try:
        yield cluster
    finally:
        cluster.close()


def address(cluster: Cluster, name: str) -> str:
    return f"{HOST}:{cluster.ports[name]}"


class Writers:
    """Threads that write on one store all the time; each id that was acknowledged is kept."""

    def __init__(self, store: SessionStore, count: int = 2) -> None:
        self.kept: list[str] = []
        self.failed: list[PerdureError] = []
        self._store = store
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.002):
            try:
                self.kept.append(self._store.create({"n": len(self.kept)}))
            except PerdureError as error:
                self.failed.append(error)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_a_store_on_its_own_becomes_a_cluster_and_grows_and_shrinks_under_open_writers(alone: Alone) -> None:
    store = alone.open("n1")
    kept = [store.create({"n": number}) for number in range(20)]
    alone.ship_here("n1")  # to nobody
    alone.serve_here("n2", "n3", "n4")
    alone.fold_here("n2", "n3", "n4")
    writers = Writers(store)
    try:
        one = alone.path("n1")
        found = add_member(one, "n2", address(alone, "n2"))
        assert (found.voters, found.sync_replicas, found.is_committed) == (("n1", "n2"), 1, True)
        found = add_member(one, "n3", address(alone, "n3"))
        assert (found.voters, found.sync_replicas) == (("n1", "n2", "n3"), 1)
        found = add_member(one, "n4", address(alone, "n4"))
        assert (found.sync_replicas, found.is_auto) == (2, True)
        found = set_sync_replicas(one, 3)
        assert (found.sync_replicas, found.is_auto) == (3, False)
        assert set_sync_replicas(one, None).sync_replicas == 2
        found = remove_member(one, "n3")
        assert (found.voters, found.sync_replicas) == (("n1", "n2", "n4"), 1)
        until(lambda: "n3" not in {slot.node for slot in read_slots(one)}, "n3's slot goes")
        before = alone.word("n1", Word.APPENDED)
        until(lambda: alone.word("n1", Word.COMMITTED) > before + 10, "writes are confirmed")
    finally:
        writers.end()
    assert not writers.failed
    until(lambda: alone.end("n2") == alone.end("n4") == alone.end("n1"), "both replicas have everything")
    end = alone.end("n1").lsn
    until(lambda: alone.word("n2", Word.COMMITTED) == end, "n2 knows that it is committed")
    assert alone.end("n3").lsn < alone.end("n1").lsn
    report = promote(alone.path("n2"), {}, SECRET)  # the addresses are in the log
    assert report.keeps_acknowledged
    assert "n4" in report.promisers
    after = alone.open("n2")
    assert [id for id in kept + writers.kept if after.peek(id) is None] == []
    _, shipper = alone._here[0]
    until(shipper.done, "the old primary's shipper ends")
    with pytest.raises(FencedError):
        alone.stop_here()


def test_a_replica_that_every_write_needs_confirms_that_it_leaves(alone: Alone) -> None:
    store = alone.open("n1")
    store.create({})
    alone.ship_here("n1")
    alone.serve_here("n2", "n3")
    one = alone.path("n1")
    for name in ("n2", "n3"):
        add_member(one, name, address(alone, name))
    assert set_sync_replicas(one, 2).is_committed
    found = remove_member(one, "n3")
    assert (found.voters, found.sync_replicas, found.is_committed) == (("n1", "n2"), 1, True)
    assert "n3" not in found.members
    store.create({})


def test_a_node_that_does_not_follow_stays_without_a_vote_and_is_taken_up_later(
    alone: Alone,
) -> None:
    store = alone.open("n1")
    store.create({})
    alone.ship_here("n1")
    alone.serve_here("n2")
    one, place = alone.path("n1"), address(alone, "n2")
    stopping, receiver = alone._here.pop()
    stopping.set()
    receiver.result(30)
    with pytest.raises(NoQuorumError, match="n2 does not follow"):
        add_member(one, "n2", place, timeout_ms=300)
    found = list_members(one)
    assert (found.voters, found.members, found.sync_replicas) == (("n1",), {"n2": place}, 0)
    store.create({})  # nobody has to confirm it
    alone.serve_here("n2")
    assert add_member(one, "n2", place).voters == ("n1", "n2")


def test_a_change_that_could_not_be_confirmed_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        one = cluster.path("n1")
        with pytest.raises(NoQuorumError, match="0 of the 1 replica"):
            remove_member(one, "n3")
        with pytest.raises(UsageError, match="is the primary") as caught:
            remove_member(one, "n1")
        assert "switchover" in caught.value.hint
        with pytest.raises(UsageError, match="there is no node n9"):
            remove_member(one, "n9")
        with pytest.raises(PerdureError, match="replica"):
            remove_member(cluster.path("n2"), "n3")
        assert list_members(one).voters == ("n1", "n2", "n3")


def test_the_last_replica_leaves_only_with_its_own_confirmation(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        store.create({})
        until(lambda: cluster.slot_state("n1", "n2")[0] == "streaming", "n2 follows")
        found = remove_member(cluster.path("n1"), "n2")
        assert (found.voters, found.sync_replicas, found.is_committed) == (("n1",), 0, True)
        assert "n2" not in list_members(cluster.path("n2")).voters  # it knows, and stands for nothing
        store.create({})


def test_a_replica_at_another_address_is_shipped_to_there(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        store.create({})
        until(lambda: cluster.slot_state("n1", "n3")[0] == "streaming", "n3 follows")
        stopping, receiver = cluster._here[1]  # of n3
        stopping.set()
        receiver.result(30)
        until(lambda: cluster.slot_state("n1", "n3")[0] != "streaming", "n3 is gone")
        cluster.ports["n3"] = 0
        cluster.serve_here("n3")
        assert add_member(cluster.path("n1"), "n3", address(cluster, "n3")).is_committed
        lsn = cluster.word("n1", Word.APPENDED)
        until(lambda: cluster.end("n3").lsn >= lsn, "n3 follows at its new address")
