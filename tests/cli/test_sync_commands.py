"""status, sync, flush, ensure-synced, transfers and wait, on a primary with two replicas."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import Reach, force_sync, transfers
from perdure.shipping import shipping_status
from perdure.store import UsageError
from tests.cli.runner import process, run, run_json
from tests.cluster.nodes import HOST, SECRET, Cluster, cluster_of, until
from tests.cluster.ops import servers

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """n1 with n2 and n3, k = 1; receivers and folders run in this process, the shipper does not yet."""
    monkeypatch.setenv("PERDURE_SECRET", SECRET.decode())
    with cluster_of(tmp_path, 3, sync_replicas=1) as made:
        made.serve_here("n2", "n3")
        made.fold_here("n2", "n3")
        yield made


def peers(cluster: Cluster, *names: str) -> list[str]:
    return [word for name in names for word in ("--peer", f"{name}={HOST}:{cluster.ports[name]}")]


def shipped(cluster: Cluster) -> list[str]:
    """A shipper runs, both replicas follow; the peers' options."""
    cluster.ship_here("n1")
    both = peers(cluster, "n2", "n3")
    assert run_json("wait", "ready", cluster.path("n1"), *both, "--timeout", "30")["is_reached"]
    assert run_json("wait", "ready", cluster.path("n3"), "--timeout", "30")["is_reached"]
    until(
        lambda: {cluster.slot_state("n1", name)[0] for name in ("n2", "n3")} == {"streaming"}, "both follow"
    )
    return both


def _lsn_of(cluster: Cluster, replica: str) -> int:
    """What the primary's slot of a replica tells that it has."""
    return next(row.acked_lsn for row in shipping_status(cluster.path("n1")).replicas if row.node == replica)


def test_status_tells_the_whole_cluster(cluster: Cluster) -> None:
    both = shipped(cluster)
    store = cluster.open("n1")
    for number in range(20):
        store.create({"n": number})
    assert run_json("sync", cluster.path("n1"), *both)["is_synced"]
    cluster.wait_applied(store.stats()["committed_lsn"])
    said = run_json("status", cluster.path("n1"), *both)
    assert (said["role"], said["epoch"], said["sessions"]) == ("primary", 1, 20)
    assert (said["primary"], said["sync_state"]) == ("n1", "synced")
    assert (said["pending_events"], said["failed"], said["failovers"]) == (0, 0, 0)
    assert said["total_replicated"] == said["flushed_lsn"]
    assert [row["node"] for row in said["replicas"]] == ["n2", "n3"]
    for row in said["replicas"]:
        assert (row["lag_ms"], row["lag_events"], row["lag_bytes"]) == (0, 0, 0)
    assert [row["role"] for row in said["peers"]] == ["replica", "replica"]
    assert said["unknown"] == []


def test_status_says_what_it_could_not_ask(cluster: Cluster) -> None:
    shipped(cluster)
    said = run_json("status", cluster.path("n1"), *peers(cluster, "n2"))
    assert any("n3 could not be asked" in text for text in said["unknown"])
    replica = run_json("status", cluster.path("n2"), *peers(cluster, "n3"))
    assert (replica["role"], replica["sync_state"]) == ("replica", "unknown")
    assert any("no primary was heard" in text for text in replica["unknown"])


def test_a_replica_that_is_away_has_the_age_of_the_oldest_event_that_it_lacks_as_its_lag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERDURE_SECRET", SECRET.decode())
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.start_all()
        both = peers(cluster, "n2", "n3")
        store = cluster.open("n1", write_timeout_ms=30_000)
        store.create({})
        assert run_json("sync", cluster.path("n1"), *both)["synced"] == ["n2", "n3"]
        cluster.kill("receiver:n3")
        until(lambda: cluster.slot_state("n1", "n3")[0] == "disconnected", "n3 to be missed")
        lacked_ms = time.monotonic()
        ids = [store.create({"n": number}) for number in range(5)]
        assert len(ids) == 5
        time.sleep(0.3)  # an age that can be told from 0
        until(lambda: _lsn_of(cluster, "n2") == store.position().lsn, "the slot tells of all that n2 has")
        assert "does not run" in run_json("status", cluster.path("n3"), code=1)["problem"]
        assert (
            "does not run" in run_json("wait", "ready", cluster.path("n3"), "--timeout", "0", code=1)["why"]
        )
        said = run_json("status", cluster.path("n1"), *both, code=1)
        waited_ms = (time.monotonic() - lacked_ms) * 1000
        rows = {row["node"]: row for row in said["replicas"]}
        assert said["sync_state"] == "degraded"
        assert rows["n3"]["lag_events"] == 5
        assert 300 <= rows["n3"]["lag_ms"] <= waited_ms + 50
        assert 0 < rows["n3"]["lag_bytes"] < 10_000
        assert rows["n2"]["lag_events"] == 0

        found = run_json("transfers", cluster.path("n1"), *both, code=1)["transfers"]
        assert [(row["node"], row["records"]) for row in found] == [("n3", 5)]
        assert found[0]["age_ms"] >= 300 and found[0]["bytes"] == rows["n3"]["lag_bytes"]
        no = run_json("ensure-synced", cluster.path("n1"), *both, "--timeout", "0.2", code=1)
        assert (no["is_synced"], no["synced"]) == (False, ["n2"])
        assert [(row["node"], row["records"]) for row in no["lacking"]] == [("n3", 5)]
        enough = run_json("flush", cluster.path("n1"), *both)
        assert (enough["is_synced"], enough["needed"]) == (True, 1)
        assert (
            run_json("flush", cluster.path("n1"), *both, "--all", "--timeout", "0.2", code=1)["needed"] == 2
        )

        cluster.start(cluster.receiver("n3"))
        assert run_json("wait", "synced", cluster.path("n1"), *both)["is_reached"]
        transfers = ("transfers", cluster.path("n1"), *both, "--json")  # from slots, which are a bit behind
        until(lambda: json.loads(run(*transfers).stdout)["transfers"] == [], "the slot to say so")
        assert run_json("ensure-synced", cluster.path("n1"), *both)["synced_count"] == 2


def test_sync_ships_by_itself_where_no_shipper_runs(cluster: Cluster) -> None:
    both = peers(cluster, "n2", "n3")
    early = run_json("transfers", cluster.path("n1"), *both, code=1)["transfers"]
    assert {row["state"] for row in early} == {"unknown"}
    said = run_json("sync", cluster.path("n1"), *both, "--timeout", "30")
    assert (said["is_synced"], said["synced"], said["lacking"]) == (True, ["n2", "n3"], [])
    assert cluster.end("n2") == cluster.end("n1") == cluster.end("n3")


def test_who_asks_a_replica_is_sent_to_the_primary(cluster: Cluster) -> None:
    shipped(cluster)
    cluster.wait_applied(1)
    for command in ("sync", "flush", "ensure-synced", "transfers"):
        said = run_json(command, cluster.path("n2"), code=3)
        assert said["error"]["error"] == "NotPrimaryError"
        assert "n1" in said["error"]["hint"]


def test_on_a_replica_the_primary_is_asked(cluster: Cluster) -> None:
    shipped(cluster)
    cluster.serve_here("n1")
    store = cluster.open("n1")
    store.create({"n": 1})
    others = peers(cluster, "n1", "n3")
    with servers(cluster, "n1"):
        assert run_json("sync", cluster.path("n2"), *others)["node"] == "n1"
        assert run_json("flush", cluster.path("n3"), *peers(cluster, "n1"))["is_synced"]
        assert run_json("ensure-synced", cluster.path("n2"), *others)["synced"] == ["n2", "n3"]
        assert run_json("transfers", cluster.path("n2"), *others)["transfers"] == []
        said = run_json("status", cluster.path("n2"), *others)
        assert (said["role"], said["primary"], said["sync_state"]) == ("replica", "n1", "synced")
        assert [row["node"] for row in said["replicas"]] == ["n2", "n3"]
        assert said["unknown"] == []
    without = run_json("status", cluster.path("n2"), *others)
    assert without["sync_state"] == "unknown" and "n1 cannot be asked" in without["unknown"][0]


def test_wait_ends_with_code_1_and_says_what_is_missing(cluster: Cluster) -> None:
    said = run_json("wait", "ready", cluster.path("n1"), "--timeout", "0.1", code=1)
    assert not said["is_reached"] and "0 of 1 replicas" in said["why"]
    shipped(cluster)
    said = run_json("wait", "failover", cluster.path("n1"), "--timeout", "0.1", code=1)
    assert "above 1" in said["why"]
    assert run_json("wait", "failover", cluster.path("n1"), "--from-epoch", "0")["epoch"] == 1


def test_recovered_is_asked_of_any_node(cluster: Cluster) -> None:
    both = shipped(cluster)
    cluster.serve_here("n1")
    store = cluster.open("n1")
    store.create({"n": 1})
    others = peers(cluster, "n1", "n3")
    assert run_json("wait", "recovered", cluster.path("n1"), *both)["is_reached"]
    assert run_json("wait", "recovered", cluster.path("n2"), *others)["primary"] == "n1"
    missing = run_json(
        "wait", "recovered", cluster.path("n2"), *peers(cluster, "n1"), "--timeout", "0", code=1
    )
    assert "n3 could not be asked" in missing["why"]


def test_watching_writes_a_line_of_json_each_time(cluster: Cluster) -> None:
    shipped(cluster)
    watching: subprocess.Popen[str] = process(
        "status", cluster.path("n1"), "--watch", "--every", "0.05", "--json"
    )
    try:
        assert watching.stdout is not None
        looks: list[dict[str, Any]] = [json.loads(watching.stdout.readline()) for _ in range(3)]
    finally:
        watching.kill()
        watching.communicate()
    assert [look["node"] for look in looks] == ["n1"] * 3


def test_the_tables_are_for_people_too(cluster: Cluster) -> None:
    both = shipped(cluster)
    for command in ("status", "sync", "ensure-synced", "transfers"):
        shown = run(command, cluster.path("n1"), *both)
        assert shown.exit_code == 0, shown.output
        assert "n2" in shown.output or "none pending" in shown.output


def test_limits_are_kept(cluster: Cluster) -> None:
    reach = Reach({name: (HOST, cluster.ports[name]) for name in ("n2", "n3")}, SECRET)
    with pytest.raises(UsageError, match="1 to 100"):
        transfers(cluster.path("n1"), reach, limit=101)
    assert run("flush", cluster.path("n1"), "--replicas", "3").exit_code == 2
    assert run("flush", cluster.path("n1"), "--replicas", "1", "--all").exit_code == 2
    assert not force_sync(cluster.path("n1"), timeout_ms=50).is_synced
