"""Who may ship to whom: secrets, clusters, epochs, promises; and logs that have parted."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from perdure.shipping import cut, open_node_log, serve_receiver
from perdure.store import (
    Config,
    FencedError,
    ForeignError,
    Indeterminate,
    NotPrimaryError,
    PromiseRefusedError,
    SessionStore,
    StoreInUseError,
    UsageError,
    WireError,
    init_store,
    names,
)
from perdure.store.event import Kind, Reason, encode_event
from perdure.store.fold import Fold
from perdure.store.page import Word
from perdure.store.promise import Promise, read_promise
from perdure.store.session import encode_session
from perdure.store.smallfile import publish_small
from tests.cluster.nodes import CLUSTER, HOST, NOW_MS, SECRET, Cluster, cluster_of, until

OTHER_SECRET = b"another secret, 32 bytes long..."


def test_a_shipper_with_another_secret_is_refused_and_ships_nothing(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n2")
        cluster.open("n1").create({"n": 1})
        cluster.ship_here("n1", secret=OTHER_SECRET)
        until(lambda: cluster.slot_state("n1", "n2")[0] == "refused", "the slot says refused")
        assert "another one, or none" in cluster.slot_state("n1", "n2")[1]
        assert cluster.end("n2").lsn == 0


def test_a_client_with_another_secret_learns_nothing(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n2")
        with pytest.raises(WireError, match=r"closed the connection at the proof .* another one, or none"):
            cluster.client("n2", secret=OTHER_SECRET)
        with pytest.raises(WireError, match="this side has none"):
            cluster.client("n2", secret=b"")


def test_a_client_with_a_secret_is_told_that_the_other_side_may_have_none(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n2", secret=b"")
        with pytest.raises(WireError, match="another one, or none"):
            cluster.client("n2")


def test_the_secret_is_never_on_the_wire(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster, socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        cluster.ports["n2"] = listener.getsockname()[1]
        cluster.ship_here("n1")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            said = connection.recv(65536)
        assert said
        assert SECRET not in said
        assert CLUSTER not in said


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(4096),
        b"\xff" * 4096,
        (1 << 30).to_bytes(4, "little") + b"\x01\x01" + bytes(64),
    ],
    ids=["http", "zeros", "ones", "huge"],
)
def test_garbage_on_the_port_is_dropped_and_others_are_served(tmp_path: Path, garbage: bytes) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n2")
        with socket.create_connection((HOST, cluster.ports["n2"]), timeout=5) as stranger:
            stranger.sendall(garbage)
            assert drained(stranger) == b""
        with cluster.client("n2") as client:
            assert client.status().node == "n2"


def test_strangers_beyond_the_limit_push_out_the_oldest_stranger(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n2")
        address = (HOST, cluster.ports["n2"])
        strangers = [socket.create_connection(address, timeout=5) for _ in range(40)]
        try:
            assert drained(strangers[0]) == b""
            with cluster.client("n2") as client:
                assert client.status().node == "n2"
        finally:
            for stranger in strangers:
                stranger.close()


def test_a_replica_of_another_cluster_is_named_as_such(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        other = tmp_path / "other"
        init_store(other, node="n2", cluster_id=bytes(16), now_ms=NOW_MS)
        shutil.rmtree(cluster.path("n2"))
        other.rename(cluster.path("n2"))
        cluster.serve_here("n2")
        cluster.ship_here("n1")
        until(lambda: "another cluster" in cluster.slot_state("n1", "n2")[1], "the slot says why")
        assert cluster.slot_state("n1", "n2")[0] == "refused"
        with pytest.raises(ForeignError):
            cluster.client("n2")


def test_another_node_at_a_replicas_address_is_named(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3) as cluster:
        cluster.serve_here("n2")
        cluster.ports["n3"] = cluster.ports.pop("n2")
        cluster.ship_here("n1")
        until(lambda: "is node n2, not n3" in cluster.slot_state("n1", "n3")[1], "the slot says why")


def test_without_a_secret_only_loopback_is_allowed(tmp_path: Path) -> None:
    init_store(tmp_path / "n", node="n", cluster_id=CLUSTER, now_ms=NOW_MS)
    with pytest.raises(UsageError, match="loopback"):
        serve_receiver(tmp_path / "n", "0.0.0.0", 0)
    with pytest.raises(UsageError, match="at least 16"):
        serve_receiver(tmp_path / "n", HOST, 0, secret=b"short")


def test_a_second_receiver_on_one_store_is_refused(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n2")
        with pytest.raises(StoreInUseError, match="another process holds"):
            serve_receiver(cluster.path("n2"), HOST, 0, secret=SECRET)


# -- promises --------------------------------------------------------------------------------------


def test_two_candidates_in_one_epoch_the_second_is_refused(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.serve_here("n2")
        with cluster.client("n2") as client:
            reply = client.promise(Promise(7, "n3"))
            assert (reply.epoch, reply.candidate) == (7, "n3")
            with pytest.raises(PromiseRefusedError, match="epoch 7 is promised to n3"):
                client.promise(Promise(7, "n1"))
            with pytest.raises(PromiseRefusedError):
                client.promise(Promise(6, "n1"))
            assert client.promise(Promise(7, "n3")).candidate == "n3"
        assert read_promise(cluster.path("n2")) == Promise(7, "n3")


def test_a_promise_outlives_the_receivers_death(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start(cluster.receiver("n2"))
        with cluster.client("n2") as client:
            client.promise(Promise(7, "n2"))
        cluster.kill("receiver:n2")
        cluster.start(cluster.receiver("n2"))
        with cluster.client("n2") as client:
            assert client.status().promise_epoch == 7
            with pytest.raises(PromiseRefusedError):
                client.promise(Promise(7, "n1"))


def test_a_higher_promise_at_the_replicas_stops_the_old_primarys_commits(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.start_all()
        cluster.open("n1", write_timeout_ms=30_000).create({"n": 0})
        store = cluster.open("n1", write_timeout_ms=2_000)
        committed = cluster.word("n1", Word.COMMITTED)
        ends = []
        for name in ("n2", "n3"):
            with cluster.client(name) as client:
                ends.append(client.promise(Promise(2, "n2")).end[1])
        assert max(ends) >= committed  # one of them has it; the other one may not have met the primary yet
        with pytest.raises((FencedError, Indeterminate)):
            store.create({"n": 1})
        until(lambda: not cluster.children["shipper:n1"].is_running, "the shipper ends")
        assert cluster.children["shipper:n1"].process.returncode == 3
        assert read_promise(cluster.path("n1")) == Promise(2, "n2")
        with pytest.raises(FencedError, match="n2"):
            store.create({"n": 2})
        assert cluster.word("n1", Word.COMMITTED) == committed


def test_a_promise_on_the_primarys_own_receiver_fences_its_writers(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n1")
        store = cluster.open("n1")
        store.create({"n": 0})
        with cluster.client("n1") as client:
            assert client.status().role == "primary"
            reply = client.promise(Promise(2, "n2"))
            assert reply.end == tuple(cluster.end("n1"))
        with pytest.raises(FencedError):
            store.create({"n": 1})


# -- logs that have parted -------------------------------------------------------------------------


def test_an_uncommitted_tail_of_a_replica_is_exported_and_cut(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        kept = store.create({"n": 0})
        until(lambda: cluster.end("n3") == cluster.end("n1") == cluster.end("n2"), "all have it")
        committed = cluster.word("n1", Word.COMMITTED)
        lost = write_uncommitted(cluster, "n1", ("n2",))
        assert cluster.end("n2").lsn > committed
        become_primary(cluster, "n3", Promise(2, "n3"), Config(cluster.names, 1))
        cluster.serve_here("n1", "n2")
        cluster.fold_here("n2")
        cluster.ship_here("n3")
        until(lambda: cluster.end("n2") == cluster.end("n3"), "n2 follows n3")
        until(lambda: cluster.end("n1") == cluster.end("n3"), "n1 follows n3")
        end = cluster.end("n3").lsn
        until(lambda: cluster.word("n2", Word.COMMITTED) == end, "n2 knows that all is committed")
        for name in ("n1", "n2"):
            kept_files = list((cluster.path(name) / "diverged").rglob("*.seg"))
            assert any(lost.encode() in file.read_bytes() for file in kept_files)
        with SessionStore.open(cluster.path("n2")) as reader:
            assert reader.peek(kept) is not None
            assert reader.peek(lost) is None
        assert store.peek(kept) is not None  # a handle of n1 that was open all the time
        assert store.peek(lost) is None
        with pytest.raises(NotPrimaryError):
            store.create({"n": 3})
        new = cluster.open("n3").create({"n": 2})
        cluster.wait_applied(cluster.word("n3", Word.COMMITTED), "n2")
        with SessionStore.open(cluster.path("n2")) as reader:
            assert reader.peek(new) is not None
            assert reader.count() == 2


def test_a_cut_that_a_dead_promotion_left_takes_off_nothing_that_is_acknowledged_later(
    tmp_path: Path,
) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1", write_timeout_ms=30_000)
        store.create({"n": 0})
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it")
        fork = cluster.end("n2")
        store.create({"n": 1})
        cluster.stop_here()
        cluster.serve_here("n2")
        # A promotion of n2 was killed before it had cut what the plan says; n2's receiver goes on.
        publish_small(
            cluster.path("n2") / names.CUT_PLAN,
            cut.MAGIC,
            cut.VERSION,
            cut.CutPlan(*fork, committed_lsn=0, folder="a-plan", is_open=True),
        )
        cluster.ship_here("n1")
        store.create({"n": 2})
        end = cluster.end("n1")
        cluster.stop_here()
        cluster.serve_here("n2")  # whoever opens the log for itself finishes what was planned
        assert cluster.end("n2") == end


def test_a_shipper_of_an_older_epoch_is_refused(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.start(cluster.receiver("n2"))
        with cluster.client("n2") as client:
            client.promise(Promise(5, "n2"))
        cluster.start(cluster.shipper("n1"))
        until(lambda: not cluster.children["shipper:n1"].is_running, "the shipper is fenced")
        assert cluster.end("n2").lsn == 0


def test_a_replica_that_has_caught_up_counts_as_connected_before_the_next_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_here()
        cluster.open("n1").create({"n": 0})
        write_uncommitted(cluster, "n1", ())
        monkeypatch.setattr("perdure.shipping.peer.HEARTBEAT_MS", 1_000_000)
        cluster.serve_here("n2")
        cluster.ship_here("n1")
        until(lambda: cluster.word("n1", Word.VOTERS_CONNECTED) == 1, "writers may go on")
        assert cluster.end("n2") == cluster.end("n1")


def write_uncommitted(cluster: Cluster, primary: str, reached: tuple[str, ...]) -> str:
    """Let a write reach some replicas' logs without being committed; answers its id. All are down then."""
    cluster.stop_here()
    node = open_node_log(cluster.path(primary), [])
    try:
        value = stored_session()
        key = os.urandom(16).hex().encode()
        node.log.lock()
        at = node.log.cursor.at
        fold = Fold(lambda _key: None, at.digest, at.session_count)
        fold.apply([(int(Kind.PUT), int(Reason.CREATED), bytes(16), key, value)])
        payload = encode_event(Kind.PUT, Reason.CREATED, bytes(16), key, value)
        node.log.append(payload, 1, fold.digest, fold.session_count, at_least(node.log.cursor.time_ms))
        node.log.unlock()
        node.log.flush(node.log.cursor.at.lsn)
        cursor = node.cursor()
        cursor.seek(at.lsn)
        run = cursor.read()
        cursor.close()
        assert run is not None
        for name in reached:
            replica = open_node_log(cluster.path(name), [])
            replica.log.lock_any()
            assert replica.log.cursor.at == at, f"{name} has not what comes before; wait for it"
            replica.log.append_run(run)
            replica.log.flush(replica.log.cursor.at.lsn)
            replica.log.unlock()
            replica.close()
    finally:
        node.close()
    return key.decode()


def become_primary(cluster: Cluster, name: str, promise: Promise, config: Config) -> None:
    """Begin a reign as a promotion does, once it has counted its promises."""
    node = open_node_log(cluster.path(name), [])
    try:
        node.log.lock_any()
        node.log.start_epoch(promise, config, "test")
        node.log.unlock()
    finally:
        node.close()


def stored_session() -> bytes:
    return encode_session(
        version=1,
        created_ms=NOW_MS,
        accessed_ms=NOW_MS,
        timeout_ms=0,
        cap_ms=0,
        priority=2,
        group="",
        tags=(),
        metadata={},
    )


def at_least(time_ms: int) -> int:
    return max(time_ms, NOW_MS)


def drained(connection: socket.socket) -> bytes:
    """What the other side says until it closes; b"" too for a reset."""
    said = b""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            data = connection.recv(4096)
        except ConnectionResetError:
            return said
        if not data:
            return said
        said += data
    pytest.fail("the connection was not closed")
