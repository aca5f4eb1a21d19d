"""Consistency between nodes: differences are found, told who is wrong, and mended; locate, transfer."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.recovery import (
    Level,
    SessionSync,
    check_consistency,
    force_sync,
    force_transfer,
    locate,
    reconcile,
    verify,
    wait_synced,
)
from perdure.recovery.audit import read_audit
from perdure.store import SessionStore, UsageError
from perdure.store.fold import record_of
from tests.cluster.nodes import Cluster, cluster_of, until
from tests.cluster.ops import damage, reach_of, servers, stored

SEED = int(os.environ.get("PERDURE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
COUNT = 1500
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(params=["lmdb", "sqlite"])
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """n1 with n2 and n3, k = 1, COUNT sessions folded everywhere; servers on all."""
    with cluster_of(tmp_path, 3, sync_replicas=1, backend=request.param) as made:
        made.start_here()
        made.serve_here("n1")
        with made.open("n1").batch() as batch:
            for number in range(COUNT):
                batch.put(f"s{number:05}", {"n": number}, tags=("even",) if number % 2 == 0 else ())
        store = made._open[-1]
        assert isinstance(store, SessionStore)
        settle(made, store)
        with servers(made, "n1", "n2", "n3"):
            yield made


def settle(cluster: Cluster, store: SessionStore) -> None:
    """Everything is folded on every node."""
    assert force_sync(cluster.path("n1"), timeout_ms=30_000).is_synced
    store.fold()
    cluster.wait_applied(store.stats()["committed_lsn"])


def store_of(cluster: Cluster) -> SessionStore:
    store = cluster._open[-1]
    assert isinstance(store, SessionStore)
    return store


def wrongs(cluster: Cluster, node: str) -> dict[bytes, bytes | None]:
    """One session missing, one extra, one different, and one with a damaged hash of its own."""
    other, damaged = stored(cluster.path(node), b"s00009"), stored(cluster.path(node), b"s00011")
    assert other is not None and damaged is not None
    return {
        b"s00007": None,
        b"s00008": record_of(b"s00008", other[8:]),
        b"s00011": bytes(8) + damaged[8:],
        b"zz-extra": record_of(b"zz-extra", other[8:]),
    }


WRONG = {"s00007": "missing", "s00008": "different", "s00011": "different", "zz-extra": "extra"}


def test_nodes_that_are_equal_are_found_so_while_others_write(cluster: Cluster) -> None:
    store, reach = store_of(cluster), reach_of(cluster, "n2", "n3")
    stopping = threading.Event()

    def write() -> None:
        number = 0
        while not stopping.is_set():
            store.put(f"s{number % COUNT:05}", {"again": number})
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            found = check_consistency(cluster.path("n1"), reach)
            assert found.is_consistent, found
            assert {verdict.sessions for verdict in found.nodes} == {COUNT}
            assert len({verdict.digest for verdict in found.nodes}) == 1
    finally:
        stopping.set()
        writer.join()


def test_what_is_wrong_on_a_replica_is_named_and_not_touched_without_repair(cluster: Cluster) -> None:
    reach = reach_of(cluster, "n2", "n3")
    damage(cluster.path("n2"), wrongs(cluster, "n2"))
    found = reconcile(cluster.path("n1"), reach)
    verdicts = {verdict.node: verdict for verdict in found.nodes}
    assert not found.is_consistent
    assert found.reference == "n1"
    assert (verdicts["n1"].is_right, verdicts["n2"].is_right, verdicts["n3"].is_right) == (True, False, True)
    assert {row.key: row.what for row in verdicts["n2"].differences} == WRONG
    assert verdicts["n2"].buckets <= len(WRONG)
    assert stored(cluster.path("n2"), b"s00007") is None
    assert read_audit(cluster.path("n2")) == []


def test_a_wrong_replica_is_mended_and_comes_out_as_its_log_says(cluster: Cluster) -> None:
    reach = reach_of(cluster, "n2", "n3")
    right = {key: stored(cluster.path("n1"), key) for key in wrongs(cluster, "n2")}
    damage(cluster.path("n2"), wrongs(cluster, "n2"))
    found = reconcile(cluster.path("n1"), reach, repairs=True)
    assert found.is_consistent, found
    assert {verdict.node: verdict.mended for verdict in found.nodes} == {"n1": 0, "n2": 4, "n3": 0}
    assert {key: stored(cluster.path("n2"), key) for key in right} == right
    lines = read_audit(cluster.path("n2"))
    assert {(line.key, line.what) for line in lines if line.key} == {
        ("s00007", "was missing"),
        ("s00008", "was different"),
        ("s00011", "was different"),
        ("zz-extra", "was extra"),
    }
    assert {line.source for line in lines} == {"n1"}
    assert "4 records mended" in read_audit(cluster.path("n1"))[-1].what
    # folding goes on over what was mended, and labels and deadlines of it are right
    store = store_of(cluster)
    for key in ("s00007", "s00008", "s00011"):
        store.patch(key, {"after": True})
    settle(cluster, store)
    assert not (cluster.path("n2") / "fold.fault").exists()
    bad = [finding for finding in verify(cluster.path("n2")) if finding.level is Level.CORRUPT]
    assert bad == []
    with SessionStore.open(cluster.path("n2"), create=False) as replica:
        assert list(replica.ids(tag="even")) == [f"s{number:05}" for number in range(0, COUNT, 2)]


def test_a_wrong_primary_is_told_from_right_replicas_and_mended_from_one(cluster: Cluster) -> None:
    damage(cluster.path("n1"), wrongs(cluster, "n1"))
    found = reconcile(cluster.path("n1"), reach_of(cluster, "n2", "n3"))
    assert {verdict.node: verdict.is_right for verdict in found.nodes} == {
        "n1": False,
        "n2": True,
        "n3": True,
    }
    assert reconcile(cluster.path("n1"), reach_of(cluster, "n2", "n3"), repairs=True).is_consistent
    assert reconcile(cluster.path("n2"), reach_of(cluster, "n1", "n3")).is_consistent


def test_where_no_node_is_right_it_is_said_and_nothing_is_spread(cluster: Cluster) -> None:
    for node in ("n1", "n2", "n3"):
        damage(cluster.path(node), {b"s00007": None})
    found = reconcile(cluster.path("n1"), reach_of(cluster, "n2", "n3"), repairs=True)
    assert found.reference == ""
    assert all(verdict.is_right is False and "perdure repair" in verdict.problem for verdict in found.nodes)


def test_random_damage_is_mended_while_others_write(cluster: Cluster) -> None:
    print(f"PERDURE_SEED={SEED}")
    rng = random.Random(SEED)
    store, reach = store_of(cluster), reach_of(cluster, "n2", "n3")
    stopping = threading.Event()

    def write() -> None:
        writing = random.Random(SEED + 1)
        while not stopping.is_set():  # not what is damaged: a fold over that says that it has diverged
            key = f"s{writing.randrange(COUNT // 2):05}"
            match writing.randrange(3):
                case 0:
                    store.delete(key)
                case 1:
                    store.put(key, {"w": writing.random()})
                case _:
                    store.create({"new": True})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for node in ("n2", "n3"):
            chosen = rng.sample(range(COUNT // 2, COUNT), 300)
            some = stored(cluster.path(node), f"s{COUNT - 1:05}".encode()) or record_of(b"x", bytes(64))
            wrong: dict[bytes, bytes | None] = {}
            for number in chosen:
                key = f"s{number:05}".encode()
                wrong[key] = None if rng.random() < 0.5 else record_of(key, some[8:])
            damage(cluster.path(node), wrong)
        found = reconcile(cluster.path("n1"), reach, repairs=True)
        assert found.is_consistent, found
        assert all(verdict.mended > 250 for verdict in found.nodes if verdict.node != "n1")
    finally:
        stopping.set()
        writer.join()
    settle(cluster, store)
    assert check_consistency(cluster.path("n1"), reach).is_consistent


def test_a_peer_that_cannot_be_asked_is_a_verdict_of_its_own(cluster: Cluster) -> None:
    reach = reach_of(cluster, "n2")
    found = check_consistency(cluster.path("n1"), reach)
    verdicts = {verdict.node: verdict for verdict in found.nodes}
    assert verdicts["n2"].is_right and verdicts["n3"].is_right is None
    assert "address" in verdicts["n3"].problem
    assert not found.is_consistent


def test_a_session_is_located_on_every_node(cluster: Cluster) -> None:
    store, reach = store_of(cluster), reach_of(cluster, "n2", "n3")
    id = store.create({"n": 1})
    lsn = store.position().lsn
    assert wait_synced(cluster.path("n1"), id, 2, 30_000)
    until(lambda: locate(cluster.path("n1"), id, reach).replicas_holding == 2, "both to have it")
    found = locate(cluster.path("n1"), id, reach)
    assert found.change is not None
    assert (found.change.lsn, found.change.kind, found.is_committed) == (lsn, "created", True)
    assert found.sync_state is SessionSync.ACTIVE
    assert {(holder.node, holder.said_by, holder.is_held) for holder in found.holders} == {
        (node, node, True) for node in ("n1", "n2", "n3")
    }
    store.patch(id, {"n": 2})
    store.delete(id)
    assert wait_synced(cluster.path("n1"), id, 2, 30_000)
    gone = locate(cluster.path("n1"), id, reach)
    assert gone.change is not None and gone.change.is_removed and gone.change.lsn == lsn + 2
    others = reach_of(cluster, "n1", "n3")
    until(lambda: locate(cluster.path("n2"), id, others).change == gone.change, "n2 has it")
    until(
        lambda: locate(cluster.path("n2"), id, others).sync_state is SessionSync.ACTIVE,
        "n2 knows of the commit",
    )
    assert locate(cluster.path("n1"), "never-was", reach).change is None


def test_a_transfer_of_some_sessions_mends_what_differs_there(cluster: Cluster) -> None:
    reach = reach_of(cluster, "n2", "n3")
    same = force_transfer(cluster.path("n1"), "n2", reach, ids=["s00001", "s00002"], timeout_ms=30_000)
    assert same.is_done and same.comparison is None
    damage(cluster.path("n2"), wrongs(cluster, "n2"))
    dry = force_transfer(
        cluster.path("n1"), "n2", reach, ids=["s00001", "s00008"], timeout_ms=30_000, repairs=False
    )
    assert (dry.is_done, dry.differing) == (False, ["s00008"])
    done = force_transfer(cluster.path("n1"), "n2", reach, ids=["s00008", "none"], timeout_ms=30_000)
    assert (done.is_done, done.differing, done.not_in_log) == (True, ["s00008"], ["none"])
    assert force_transfer(cluster.path("n1"), "n2", reach, ids=None, timeout_ms=30_000).is_done
    with pytest.raises(UsageError, match="1 to 100"):
        force_transfer(cluster.path("n1"), "n2", reach, ids=["x"] * 101, timeout_ms=1)
