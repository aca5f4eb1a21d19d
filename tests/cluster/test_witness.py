"""Two nodes and a witness: promotion by the witness, and a primary that goes on alone and comes back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.recovery import (
    PromotionRefusedError,
    add_witness,
    keep_available,
    list_members,
    promote,
    set_policy,
)
from perdure.recovery.degrading import AvailabilityKeeper
from perdure.recovery.promises import Why
from perdure.shipping import open_node_log
from perdure.shipping.witness import serve_witness
from perdure.store import (
    FencedError,
    NoQuorumError,
    Promise,
    PromiseRefusedError,
    StoreInUseError,
    WireError,
)
from perdure.store.page import Word
from perdure.store.witness import InSync, make_witness, read_witness
from tests.cluster.nodes import CLUSTER, HOST, SECRET, Cluster, cluster_of, until


def start_witness(cluster: Cluster, name: str = "w") -> threading.Event:
    """A witness in a thread of the test; the event ends it."""
    listening = threading.Event()

    def ready(port: int) -> None:
        cluster.ports[name] = port
        listening.set()

    port = cluster.port_of(name)
    cluster._run_here(listening, serve_witness, cluster.path(name), HOST, port, secret=SECRET, on_ready=ready)
    return cluster._here[-1][0]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    """n1 and n2 with k = 1, and w, which is no voter yet."""
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_here()
        make_witness(cluster.path("w"), "w", CLUSTER, 0)
        start_witness(cluster)
        yield cluster


def follows(cluster: Cluster) -> None:
    until(lambda: cluster.slot_state("n1", "n2")[0] == "streaming", "n2 follows")


def add(cluster: Cluster) -> None:
    follows(cluster)
    found = add_witness(cluster.path("n1"), "w", f"{HOST}:{cluster.ports['w']}")
    assert (found.witnesses, found.sync_replicas, found.is_committed) == (("w",), 1, True)


def keep(cluster: Cluster, name: str) -> None:
    """The keeper of the policy, in a thread."""
    ready = threading.Event()
    ready.set()
    stopping = threading.Event()
    replicas: dict[str, tuple[str, int]] = {}
    future = cluster._threads.submit(keep_available, cluster.path(name), replicas, SECRET, stopping.is_set)
    cluster._here.append((stopping, future))


def test_of_two_nodes_the_replica_is_promoted_by_the_witness(pair: Cluster) -> None:
    add(pair)
    store = pair.open("n1")
    kept = [store.create({"n": number}) for number in range(20)]
    end = pair.word("n1", Word.APPENDED)
    until(lambda: pair.word("n2", Word.COMMITTED) == end, "n2 knows that they are committed")
    report = promote(pair.path("n2"), {"n1": (HOST, 1)}, SECRET)
    assert (report.epoch, report.promisers, report.unheard) == (2, ("w",), ("n1",))
    assert report.keeps_acknowledged
    assert read_witness(pair.path("w")).promise.candidate == "n2"
    after = pair.open("n2")
    assert all(after.peek(id) is not None for id in kept)
    with contextlib.suppress(FencedError):
        pair.stop_here()


def test_a_witness_that_was_killed_keeps_its_promise_and_only_one_process_keeps_it(pair: Cluster) -> None:
    add(pair)
    with pytest.raises(StoreInUseError):
        serve_witness(pair.path("w"), HOST, 0, secret=SECRET)
    promote(pair.path("n2"), {}, SECRET)
    with contextlib.suppress(FencedError):
        pair.stop_here()
    start_witness(pair)
    with pair.client("w") as client:
        for late in (Promise(2, "n1"), Promise(1, "n2")):
            with pytest.raises(PromiseRefusedError, match="epoch 2 is promised to n2"):
                client.promise(late)
        status = client.status()
    assert (status.role, status.promise_epoch, status.promise_candidate) == ("witness", 2, "n2")


def test_a_primary_that_is_left_goes_on_once_the_witness_knows_and_goes_back_with_its_replica(
    pair: Cluster,
) -> None:
    add(pair)
    assert set_policy(pair.path("n1"), "available").policy == "available"
    keep(pair, "n1")
    store = pair.open("n1", write_timeout_ms=20_000)
    kept = [store.create({"n": "both"})]
    receiver = next(stop for stop, future in pair._here if not future.done())
    began = time.monotonic()
    receiver.set()  # n2 is gone
    until(lambda: pair.slot_state("n1", "n2")[0] != "streaming", "n2 is lost")
    kept += [store.create({"n": "alone"}) for _ in range(5)]
    assert 1 < time.monotonic() - began < 30
    found = list_members(pair.path("n1"))
    assert (found.sync_replicas, found.degraded_from) == (0, 1)
    assert read_witness(pair.path("w")).in_sync.nodes == ("n1",)

    with pytest.raises(PromotionRefusedError, match="only n1 has every acknowledged write") as caught:
        promote(pair.path("n2"), {}, SECRET)
    assert caught.value.decision.why is Why.NOT_IN_SYNC
    assert read_witness(pair.path("w")).promise.epoch == 1  # nobody was fenced by the try

    pair.serve_here("n2")
    until(lambda: list_members(pair.path("n1")).degraded_from == 0, "n1 waits for n2 again")
    kept.append(store.create({"n": "both again"}))
    with pair.client("w") as client:  # its file shows it a moment before it says so
        until(lambda: set(client.status().in_sync) == {"n1", "n2"}, "the witness knows")
    assert promote(pair.path("n2"), {}, SECRET).keeps_acknowledged
    after = pair.open("n2")
    assert all(after.peek(id) is not None for id in kept)
    with contextlib.suppress(FencedError):
        pair.stop_here()


def test_with_the_policy_strict_nothing_is_written_without_the_replica(pair: Cluster) -> None:
    add(pair)
    keep(pair, "n1")
    store = pair.open("n1", write_timeout_ms=4_000)
    next(stop for stop, future in pair._here if not future.done()).set()
    until(lambda: pair.slot_state("n1", "n2")[0] != "streaming", "n2 is lost")
    assert pair.word("n1", Word.VOTERS_CONNECTED) == 0
    end = pair.word("n1", Word.APPENDED)
    with pytest.raises(NoQuorumError):
        store.create({})
    assert pair.word("n1", Word.APPENDED) == end
    assert read_witness(pair.path("w")).in_sync.nodes == ()


def test_a_witness_that_is_away_is_told_of_once_and_asked_again_until_it_is_back(
    pair: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    add(pair)
    set_policy(pair.path("n1"), "available")
    is_away = True
    asked: list[str] = []

    class Away:
        def record(self, witness: str, _reign: Promise, expected: InSync, _nodes: tuple[str, ...]) -> InSync:
            asked.append(witness)
            if is_away:
                raise WireError("nobody is there", node=witness)
            return expected

    node = open_node_log(pair.path("n1"), [])
    try:
        keeper = AvailabilityKeeper(node, Away())
        for _ in range(5):
            keeper.look()
            assert keeper.has_failed
        assert asked == ["w"] * 5
        assert [record.getMessage() for record in caplog.records if "nobody is there" in record.message] == [
            "cannot ask: witness=w error=nobody is there (node w)"
        ]
        is_away = False
        keeper.look()
        assert not keeper.has_failed
    finally:
        node.close()
