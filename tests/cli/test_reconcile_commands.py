"""consistency, reconcile, transfer and locate, and a node that puts itself right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure
from perdure.recovery import force_sync
from perdure.shipping import read_fault
from perdure.shipping.faults import Fault, write_fault
from perdure.store import SessionStore
from perdure.store.fold import record_of
from tests.cli.runner import process, run, run_json
from tests.cli.test_nodes import ByHand
from tests.cluster.nodes import HOST, SECRET, Cluster, cluster_of, until
from tests.cluster.ops import damage, servers, stored

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("demo")]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """n1 with n2 and n3, k = 1, 200 sessions folded everywhere; servers on all."""
    monkeypatch.setenv("PERDURE_SECRET", SECRET.decode())
    with cluster_of(tmp_path, 3, sync_replicas=1) as made:
        made.start_here()
        made.serve_here("n1")
        store = made.open("n1")
        with store.batch() as batch:
            for number in range(200):
                batch.put(f"s{number:03}", {"n": number})
        assert force_sync(made.path("n1"), timeout_ms=30_000).is_synced
        store.fold()
        made.wait_applied(store.stats()["committed_lsn"])
        with servers(made, "n1", "n2", "n3"):
            yield made


def peers(cluster: Cluster, *names: str) -> list[str]:
    return [word for name in names for word in ("--peer", f"{name}={HOST}:{cluster.ports[name]}")]


def test_differences_are_found_told_and_with_repair_mended(cluster: Cluster) -> None:
    both = peers(cluster, "n2", "n3")
    said = run_json("consistency", cluster.path("n1"), *both)
    assert (said["is_consistent"], said["sessions"], said["differing"]) == (True, 200, 0)
    assert [(row["node"], row["is_right"]) for row in said["nodes"]] == [
        ("n1", True),
        ("n2", True),
        ("n3", True),
    ]
    damage(cluster.path("n3"), {b"s007": None, b"x": record_of(b"x", bytes(64))})
    said = run_json("consistency", cluster.path("n1"), *both, code=1)
    assert (said["is_consistent"], said["differing"], said["reference"]) == (False, 2, "n1")
    dry = run_json("reconcile", cluster.path("n1"), *both, code=1)
    wrong = next(row for row in dry["nodes"] if row["node"] == "n3")
    assert wrong["differences"] == [{"key": "s007", "what": "missing"}, {"key": "x", "what": "extra"}]
    assert wrong["mended"] == 0 and stored(cluster.path("n3"), b"s007") is None
    shown = run("reconcile", cluster.path("n1"), *both)
    assert shown.exit_code == 1 and "s007" in shown.output and "Nothing was changed" in shown.output
    done = run_json("reconcile", cluster.path("n1"), *both, "--repair")
    assert (done["is_consistent"], done["mended"]) == (True, 2)
    assert stored(cluster.path("n3"), b"s007") == stored(cluster.path("n1"), b"s007")
    assert "2 records mended" in run_json("status", cluster.path("n1"), *both)["last_recovery"]["what"]


def test_a_node_without_a_server_is_named_with_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    (cluster.path("n3") / "ports").unlink()
    said = run_json("consistency", cluster.path("n1"), *peers(cluster, "n2", "n3"), code=1)
    row = next(row for row in said["nodes"] if row["node"] == "n3")
    assert row["is_right"] is None and "`perdure node` runs one" in row["problem"]


def test_sessions_are_transferred_and_located(cluster: Cluster) -> None:
    both = peers(cluster, "n2", "n3")
    damage(cluster.path("n2"), {b"s011": None})
    said = run_json("transfer", cluster.path("n1"), "s010", "s011", "--to", "n2", *both)
    assert (said["is_done"], said["differing"], said["comparison"]["mended"]) == (True, ["s011"], 1)
    assert run_json("transfer", cluster.path("n1"), "--all", "--to", "n2", *both)["is_done"]
    assert run("transfer", cluster.path("n1"), "--to", "n2", *both).exit_code == 2
    assert run("transfer", cluster.path("n1"), "s010", "--to", "n9", *both).exit_code == 2

    found = run_json("locate", cluster.path("n1"), "s010", "--wait", "2", *both)
    assert (found["exists"], found["sync_state"], found["is_synced"]) == (True, "active", True)
    assert (found["kind"], found["replicas_holding"]) == ("replaced", 2)
    assert {row["node"] for row in found["holders"] if row["is_held"]} == {"n1", "n2", "n3"}
    missing = run_json("locate", cluster.path("n1"), "nobody", *both, code=1)
    assert missing["error"]["error"] == "SessionNotFoundError"


def test_a_transfer_tells_of_the_two_nodes_alone_and_names_those_that_were_not_asked(
    cluster: Cluster,
) -> None:
    words = ("transfer", cluster.path("n1"), "--to", "n2", *peers(cluster, "n2", "n3"))
    said = run_json(*words, "--all")
    assert (said["is_done"], said["not_asked"]) == (True, ["n3"])
    assert [row["node"] for row in said["comparison"]["nodes"]] == ["n1", "n2"]
    assert said["comparison"]["is_consistent"]
    assert run_json(*words, "s010")["not_asked"] == ["n3"]
    damage(cluster.path("n2"), {b"s011": None})
    differs = run_json(*words, "--all", "--dry-run", code=1)
    assert (differs["is_done"], differs["comparison"]["is_consistent"]) == (False, False)


def test_a_transfer_from_a_replica_or_to_the_primary_is_refused_at_once(cluster: Cluster) -> None:
    both = peers(cluster, "n1", "n2")
    for at, code, told in (("n1", 2, "n1 is the primary itself"), ("n2", 3, "n2 is not the primary")):
        refused = run("transfer", cluster.path(at), "--all", "--to", "n1", *both)
        assert refused.exit_code == code, refused.output
        assert told in refused.stderr


def test_a_node_whose_fold_diverged_makes_its_state_anew_by_itself(tmp_path: Path) -> None:
    nodes = ByHand(tmp_path)
    nodes.make()
    try:
        for node in ("n2", "n3", "n1"):
            nodes.start(node)
        second = nodes.root / "n2"
        with perdure.open(nodes.root / "n1", write_timeout_ms=30_000) as store:
            for number in range(50):
                store.put(f"s{number:02}", {"n": number})
            digest = store.stats()["digest"]
            until(lambda: _digest(second) == digest, "n2 to have all")
            until(lambda: stored(second, b"s07"), "n2 to fold it")  # its log is ahead of its state
            damage(second, {b"s07": None})
            store.patch("s07", {"again": True})  # the frame that n2 cannot fold
            digest = store.stats()["digest"]
            audit = second / "audit.log"
            until(lambda: audit.exists() and "made anew" in audit.read_text(), "n2 to put itself right")
            until(lambda: _digest(second) == digest and not read_fault(second), "n2 to have all again")
        with SessionStore.open(second, create=False) as replica:
            found = replica.peek("s07")
            assert found is not None and found.metadata == {"n": 7, "again": True}
            assert replica.count() == 50
        said = audit.read_text()
        assert "folding stopped" in said and "the state was made anew: 50 sessions" in said
        assert list((second / "aside").glob("state*"))
    finally:
        nodes.end()


def test_without_auto_reconcile_the_fault_stays_and_is_said(tmp_path: Path) -> None:
    nodes = ByHand(tmp_path)
    nodes.make()
    second = nodes.root / "n2"
    (second / "perdure.toml").write_text("[recovery]\nauto_reconcile = false\n")
    write_fault(second, Fault(7, "made up for this test", 1))
    try:
        nodes.start("n2")
        with process("wait", "ready", second, "--timeout", "2", "--json") as waiting:
            out, _ = waiting.communicate(timeout=60)
        assert waiting.returncode == 1 and "made up for this test" in out
        assert read_fault(second)
    finally:
        nodes.end()


def _digest(store: Path) -> str:
    with SessionStore.open(store, create=False) as opened:
        return str(opened.stats()["digest"])
