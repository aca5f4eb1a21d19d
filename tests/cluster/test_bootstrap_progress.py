"""A snapshot on its way: nothing is sent twice, no faster than allowed, told, and kept until it is there."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from perdure.recovery import Policy, apply_retention, prune_snapshots, take_snapshot
from perdure.shipping import ShipperOptions, read_slots, shipping_status
from perdure.shipping.bootstrap import SnapshotSender
from perdure.shipping.install import Incoming, incoming_progress
from perdure.shipping.messages import SnapshotWant, unpack_payload
from perdure.store import SessionStore
from perdure.store.cursor import list_segments
from perdure.store.page import Word
from tests.cluster.nodes import Cluster, cluster_of, until
from tests.cluster.test_shipping_bootstrap import drop_log_before_snapshot, expect_same, write_segments
from tests.recovery.nodes import opened

SEED = int(os.environ.get("PERDURE_SEED", "0"), 0) or random.SystemRandom().randrange(1 << 32)
SLOWLY = ShipperOptions(snapshot_bytes_per_s=128 << 10)
"""What big() makes takes some 20 s so: it is under way while a test looks, however busy the machine is."""
PART_BYTES = 50_000


def big(cluster: Cluster, batches: int = 20) -> SessionStore:
    """Some MB of sessions on n1 with a snapshot, and the log from before it gone."""
    store = cluster.open("n1")
    for _ in range(batches):
        with store.batch() as batch:
            for _ in range(20):
                batch.create({"blob": os.urandom(6_000)})
    write_segments(cluster)
    take_snapshot(cluster.path("n1"))
    drop_log_before_snapshot(cluster)
    return store


def test_however_often_either_side_dies_no_byte_is_written_twice(tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    with cluster_of(tmp_path, 2) as cluster:
        big(cluster)
        snapshot = next((cluster.path("n1") / "snapshots").glob("*.snap"))
        sent = [0, 0]
        deaths = 0
        is_whole = False
        while not is_whole:
            with opened(cluster.path("n1")) as source, opened(cluster.path("n2")) as target:
                sender = SnapshotSender(source, snapshot, compress=True)
                incoming = Incoming(target, sender.offer, target.log.promise)
                want = incoming.want()
                assert [want.snapshot_offset, want.log_offset] == sent, f"seed {SEED}"
                sender.want(want)
                for _ in range(random_.randrange(1, 4)):
                    found = sender.next_message()
                    if found is None:
                        break
                    piece, payload = found
                    raw = unpack_payload(payload, piece.raw_bytes, piece.compressed)
                    raw = raw[: random_.randrange(1, 200_000)]  # it dies in the middle, or a little later
                    incoming.take(piece, raw)
                    sent[piece.part] += len(raw)
                    if len(raw) < piece.raw_bytes:
                        break
                is_whole = sent == [sender.offer.snapshot_bytes, sender.offer.log_bytes]
                incoming.close()
                sender.close()
                deaths += 1
        assert deaths > 10
        cluster.start_here()
        expect_same(cluster)


def test_a_transfer_goes_on_with_the_same_snapshot_although_there_is_a_newer_one(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        store = big(cluster)
        first = next((cluster.path("n1") / "snapshots").glob("*.snap")).name
        cluster.serve_here("n2")
        cluster.ship_here("n1", options=SLOWLY)
        until(lambda: incoming_progress(cluster.path("n2"))[0] > PART_BYTES, "a part of it is here")
        cluster.stop_here()
        before = incoming_progress(cluster.path("n2"))[0]
        store.create({"later": 1})
        store.fold()
        newer = take_snapshot(cluster.path("n1")).name
        assert newer != first
        cluster.serve_here("n2")
        cluster.fold_here("n2")
        cluster.ship_here("n1")
        expect_same(cluster)
        assert [path.name for path in (cluster.path("n2") / "snapshots").glob("*.snap")] == [first]
        assert before > PART_BYTES


def test_what_a_replica_is_being_sent_is_kept_until_it_has_it(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        store = big(cluster)
        sent = next((cluster.path("n1") / "snapshots").glob("*.snap"))
        cluster.serve_here("n2")
        cluster.ship_here("n1", options=SLOWLY)
        until(lambda: incoming_progress(cluster.path("n2"))[0] > PART_BYTES, "a part of it is here")
        until(
            lambda: [slot.snapshot for slot in read_slots(cluster.path("n1"))] == [sent.name],
            "the slot says so",
        )
        slot = read_slots(cluster.path("n1"))[0]
        assert (slot.state, slot.keeps_log) == ("snapshot", True)
        for number in range(3):  # it is the oldest of many now, and so is the log behind it
            store._log.segment_bytes = 32 << 10
            for _ in range(20):
                with store.batch() as batch:
                    for _ in range(20):
                        batch.create({"n": number, "text": "x" * 100})
            store.fold()
            take_snapshot(cluster.path("n1"))
        policy = Policy(log_age_ms=0, snapshots=1)
        plan = apply_retention(cluster.path("n1"), policy)
        prune_snapshots(cluster.path("n1"), keep=1)
        assert sent.exists()
        assert any("being sent" in line.why for line in plan.keep if line.name == sent.name)
        assert list_segments(cluster.path("n1") / "log")[0].first_lsn <= slot.snapshot_lsn + 1
        cluster.stop_here()
        cluster.start_here()
        expect_same(cluster)
        assert (cluster.path("n2") / "snapshots" / sent.name).exists()
        until(lambda: not read_slots(cluster.path("n1"))[0].snapshot, "the slot forgets it")
        seal_and_wait(store)
        apply_retention(cluster.path("n1"), policy)
        assert not sent.exists()


def test_a_replica_over_its_budget_does_not_hold_the_snapshot_that_it_was_being_sent(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        store = big(cluster)
        sent = next((cluster.path("n1") / "snapshots").glob("*.snap"))
        cluster.serve_here("n2")
        cluster.ship_here("n1", options=SLOWLY)
        until(lambda: incoming_progress(cluster.path("n2"))[0] > PART_BYTES, "a part of it is here")
        cluster.stop_here()
        store._log.segment_bytes = 32 << 10
        for number in range(60):
            with store.batch() as batch:
                for _ in range(20):
                    batch.create({"n": number, "text": "x" * 100})
        store.fold()
        seal_and_wait(store)
        take_snapshot(cluster.path("n1"))
        plan = apply_retention(cluster.path("n1"), Policy(log_age_ms=0, snapshots=1, slot_bytes=64 << 10))
        assert any("over its budget" in note for note in plan.notes)
        assert not sent.exists()
        cluster.start_here()  # and gets the newer one, from its beginning
        expect_same(cluster)


def test_progress_is_told_on_both_sides_and_the_rate_is_kept(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        big(cluster)
        assert shipping_status(cluster.path("n1")).incoming_total_bytes == 0
        cluster.serve_here("n2")
        rate = SLOWLY.snapshot_bytes_per_s
        began = time.monotonic()
        cluster.ship_here("n1", options=SLOWLY)
        until(lambda: incoming_progress(cluster.path("n2"))[0] > rate // 2, "half a second's worth is here")
        have, total = incoming_progress(cluster.path("n2"))
        elapsed = time.monotonic() - began
        assert have <= rate * (elapsed + 0.5)
        assert total > 1 << 20
        status = shipping_status(cluster.path("n2"))
        assert status.incoming_total_bytes == total
        assert 0 < status.incoming_bytes <= total
        until(
            lambda: any(slot.snapshot_bytes for slot in read_slots(cluster.path("n1"))), "the slot tells it"
        )
        (replica,) = shipping_status(cluster.path("n1")).replicas
        assert replica.snapshot_total_bytes == total
        assert 0 < replica.snapshot_bytes <= total


def test_two_replicas_that_get_snapshots_do_not_hold_up_a_third(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 4) as cluster:
        store = big(cluster)
        cluster.serve_here("n4")
        cluster.fold_here("n4")
        cluster.ship_here("n1")
        until(lambda: cluster.end("n4") == cluster.end("n1"), "n4 follows")
        cluster.stop_here()
        cluster.serve_here("n2", "n3", "n4")
        cluster.fold_here("n4")
        cluster.ship_here("n1", options=ShipperOptions(snapshot_bytes_per_s=1 << 15))
        until(
            lambda: all(incoming_progress(cluster.path(name))[0] > 50_000 for name in ("n2", "n3")),
            "two snapshots are under way",
        )
        took: list[float] = []
        for _ in range(20):
            began = time.monotonic()
            store.create({"late": 1})
            lsn = cluster.word("n1", Word.APPENDED)
            until(lambda lsn=lsn: cluster.word("n4", Word.APPENDED) >= lsn, "n4 has it")  # type: ignore[misc]
            took.append(time.monotonic() - began)
        assert sorted(took)[-3] < 2, "but for a pause of the machine or two"
        for name in ("n2", "n3"):
            have, total = incoming_progress(cluster.path(name))
            assert have < total, "they are still under way"


def test_pieces_under_a_limit_are_small_and_spread_over_time(tmp_path: Path) -> None:
    now = [1000]
    with cluster_of(tmp_path, 2) as cluster:
        big(cluster)
        snapshot = next((cluster.path("n1") / "snapshots").glob("*.snap"))
        with opened(cluster.path("n1")) as source:
            sender = SnapshotSender(
                source, snapshot, compress=False, bytes_per_s=200_000, clock_ms=lambda: now[0]
            )
            sender.want(SnapshotWant(0, 0))
            sent = 0
            for _ in range(3000):
                now[0] += 1
                found = sender.next_message()
                if found is not None:
                    sent += found[0].raw_bytes
                    assert found[0].raw_bytes <= 10_000
            assert sent == pytest.approx(600_000, rel=0.1)
            sender.close()


def seal_and_wait(store: SessionStore) -> None:
    """Let the keeper seal what was rolled."""
    log = store._log
    until(
        lambda: all(file.path.read_bytes()[-4:] == b"PDRE" for file in list_segments(log.cursor.log)[:-1]),
        "all but the tail are sealed",
    )
