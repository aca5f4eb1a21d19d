"""The runbook, as an operator goes through it: diagnosis in order, then five scripts and a few single ones.

Three real nodes; everything that is asked of them goes through the command line. Contents, ids and digests
are taken before and compared after.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.store import Priority, SessionStore
from perdure.store.fold import record_of
from tests.cli.runner import process, run, run_json
from tests.cluster.ops import damage
from tests.support.ports import free_ports

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("demo")]

NODES = ("n1", "n2", "n3")
COUNT = 100
LAG_MS_MAX = 5_000
PATIENCE_S = 60.0


class Nodes:
    """Three nodes with their configuration in their directories: a command needs no more than that."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running: dict[str, subprocess.Popen[str]] = {}
        secret = root / "secret"
        secret.write_text("a secret that all nodes share")
        ports = dict(zip(NODES, free_ports(len(NODES), in_a_row=3), strict=True))
        voters = [word for node in NODES for word in ("--voter", node)]
        made = run_json("init", root / "n1", "--node", "n1", "--primary", *voters, "--sync-replicas", "1")
        for node in NODES[1:]:
            run_json("init", root / node, "--node", node, "--cluster-id", made["cluster_id"])
        for node in NODES:
            peers = "\n".join(f'{other} = "127.0.0.1:{ports[other]}"' for other in NODES)
            (root / node / "perdure.toml").write_text(
                f'[node]\nlisten = "127.0.0.1:{ports[node]}"\nsecret_file = "{secret}"\n'
                f'[node.peers]\n{peers}\n[failover]\ncoordinator = "manual"\n'
            )

    def __getitem__(self, node: str) -> Path:
        return self.root / node

    def end(self) -> None:
        for running in self.running.values():
            running.send_signal(signal.SIGTERM)
        for running in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                running.communicate(timeout=PATIENCE_S)

    def content(self, node: str) -> dict[str, Any]:
        """id -> metadata of every session, as this node has them."""
        with SessionStore.open(self[node], create=False) as store:
            return {session.id: session.metadata for session in store.sessions()}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    try:
        _start_all(made)
        with perdure.open(made["n1"], write_timeout_ms=30_000) as store, store.batch() as batch:
            for number in range(COUNT):
                batch.put(
                    f"s{number:04}",
                    {"n": number},
                    home_node=NODES[number % 3] if number < 90 else "gone",
                    priority=Priority.CRITICAL if number < 10 else Priority.NORMAL,
                )
        yield made
    finally:
        made.end()


def _start_all(made: Nodes) -> None:
    for node in ("n2", "n3", "n1"):
        made.running[node] = process("node", made[node], "--json")
    for node in NODES:
        stdout = made.running[node].stdout
        assert stdout is not None
        assert json.loads(stdout.readline())["node"] == node
    assert run_json("wait", "recovered", made["n1"], "--timeout", PATIENCE_S)["is_reached"]


def _until(is_so: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.05)


def _states(nodes: Nodes) -> set[str]:
    said = run("status", nodes["n1"], "--json")
    if said.exit_code:
        return set()
    status = json.loads(said.stdout)
    return {status["state"], *(row["state"] for row in status["peers"])}


def diagnose(nodes: Nodes) -> None:
    assert run_json("sync", nodes["n1"])["is_synced"]
    _until(lambda: _states(nodes) == {"active"}, "all to be active")
    status = run_json("status", nodes["n1"])
    assert (status["node"], status["sessions"], status["sync_state"]) == ("n1", COUNT, "synced")
    assert [row["node"] for row in status["replicas"]] == ["n2", "n3"]
    assert all(row["lag_ms"] is not None and row["lag_ms"] < LAG_MS_MAX for row in status["replicas"])
    assert run_json("ensure-synced", nodes["n1"])["synced_count"] == 2
    assert run_json("transfers", nodes["n1"])["transfers"] == []
    assert run_json("orphans", "count", nodes["n1"], "--members", "n1,n2,n3", code=1)["orphans"] == 10
    assert run_json("consistency", nodes["n1"])["is_consistent"]


def script_1_a_lag_is_seen_and_forced_down(nodes: Nodes) -> None:
    held = nodes.running.pop("n3")
    held.send_signal(signal.SIGTERM)
    held.communicate(timeout=PATIENCE_S)
    with perdure.open(nodes["n1"], write_timeout_ms=30_000) as store:
        for number in range(20):
            store.put(f"later{number}", {"n": number})
    time.sleep(0.2)  # a lag that can be told from 0
    behind = run_json("status", nodes["n1"], code=1)
    lag = next(row for row in behind["replicas"] if row["node"] == "n3")
    assert lag["lag_events"] >= 20 and 200 <= lag["lag_ms"] < PATIENCE_S * 1000
    pending = run_json("transfers", nodes["n1"], code=1)["transfers"]
    assert [row["node"] for row in pending] == ["n3"] and pending[0]["records"] >= 20
    assert not run_json("sync", nodes["n1"], "--timeout", "0.2", code=1)["is_synced"]
    nodes.running["n3"] = process("node", nodes["n3"], "--json")
    assert run_json("sync", nodes["n1"], "--timeout", PATIENCE_S)["is_synced"]
    after = run_json("status", nodes["n1"])
    assert all(row["lag_ms"] == 0 for row in after["replicas"])


def script_2_orphans_are_listed_counted_and_cleaned_up(nodes: Nodes) -> None:
    members = ("--members", "n1,n2,n3")
    listed = run_json("orphans", "list", nodes["n1"], *members, code=1)["orphans"]
    assert len(listed) == run_json("orphans", "count", nodes["n1"], *members, code=1)["orphans"] == 10
    run_json("orphans", "cleanup", nodes["n1"], *members, "--yes")
    assert run_json("orphans", "list", nodes["n1"], *members)["orphans"] == []
    assert not set(nodes.content("n1")) & {row["id"] for row in listed}


def script_3_an_inconsistency_is_found_reconciled_and_transferred(nodes: Nodes) -> None:
    expected = nodes.content("n1")
    assert run_json("sync", nodes["n1"])["is_synced"]
    _until(lambda: nodes.content("n2") == expected, "n2 to have all")
    with SessionStore.open(nodes["n2"], create=False) as store:
        store.fold()
    damage(nodes["n2"], {b"s0007": None, b"s0008": record_of(b"s0008", bytes(64))})
    assert run_json("consistency", nodes["n1"], code=1)["differing"] == 2
    assert run_json("reconcile", nodes["n1"], code=1)["mended"] == 0
    done = run_json("reconcile", nodes["n1"], "--repair")
    assert (done["is_consistent"], done["mended"]) == (True, 2)
    assert run_json("transfer", nodes["n1"], "--all", "--to", "n2")["is_done"]
    assert nodes.content("n2") == expected


def script_4_a_failover_loses_nothing(nodes: Nodes) -> None:
    before = nodes.content("n1")
    ready = run_json("ensure-synced", nodes["n1"], "--timeout", "10")
    assert ready["is_synced"] and ready["synced_count"] > 0
    assert Path(run_json("snapshot", "create", nodes["n1"])["snapshot"]).exists()
    report = run_json("failover", nodes["n1"], "--to", "n2")
    assert report["node"] == "n2"
    over = run_json("wait", "failover", nodes["n3"], "--from-epoch", "1", "--timeout", PATIENCE_S)
    assert (over["is_reached"], over["primary"]) == (True, "n2")
    assert run_json("wait", "recovered", nodes["n2"], "--timeout", PATIENCE_S)["is_reached"]
    assert nodes.content("n2") == before, f"lost: {sorted(set(before) - set(nodes.content('n2')))}"
    for id in random.Random(4).sample(sorted(before), 10):
        assert run_json("session", "get", nodes["n2"], id)["metadata"] == before[id]
    for node in NODES:
        assert run("verify", nodes[node], "--level", "chain").exit_code == 0
    assert run_json("consistency", nodes["n2"])["is_consistent"]
    status = run_json("status", nodes["n2"])
    assert (status["role"], status["failovers"]) == ("primary", 1)
    assert (status["last_failover"]["node"], status["last_failover"]["before"]) == ("n2", "n1")
    with perdure.open(nodes["n2"], write_timeout_ms=30_000) as store:
        assert store.create({"after": True})


def script_5_a_large_recovery_goes_in_stages_and_critical_ones_first(nodes: Nodes) -> None:
    stat = run_json("log", "stat", nodes["n1"])
    assert stat["events"] >= COUNT
    listed = run_json("session", "list", nodes["n1"], "--priority", "critical")["sessions"]
    critical = [row["id"] for row in listed]
    assert len(critical) == 10
    first = run_json("transfer", nodes["n1"], *critical, "--to", "n3")
    assert first["is_done"] and first["not_in_log"] == []
    everything = run_json("transfer", nodes["n1"], "--all", "--to", "n3")
    assert everything["is_done"] and everything["comparison"]["sessions"] == len(nodes.content("n1"))
    assert run_json("wait", "recovered", nodes["n1"], "--timeout", PATIENCE_S)["is_reached"]


def one_session_is_rebuilt_from_the_log(nodes: Nodes, tmp_path: Path) -> None:
    with perdure.open(nodes["n1"], write_timeout_ms=30_000) as store:
        store.patch("s0042", {"cart": ["a"]})
        good = store.position().lsn
        store.put("s0042", {"damaged": "by a person"})
    found = run_json("locate", nodes["n1"], "s0042", "--wait", "2", "--timeout", PATIENCE_S)
    assert (found["lsn"], found["sync_state"]) == (good + 1, "active")
    dumped = run("log", "dump", nodes["n1"], "--session", "s0042")
    assert len(re.findall(r"s0042", dumped.output)) >= 3
    run_json("replay", nodes["n1"], "--into", tmp_path / "then", "--to-lsn", good)
    then = run_json("session", "get", tmp_path / "then", "s0042")["metadata"]
    assert then == {"n": 42, "cart": ["a"]}
    run_json("session", "put", nodes["n1"], "s0042", json.dumps(then))
    assert nodes.content("n1")["s0042"] == then


def a_session_that_is_not_found_is_explained(nodes: Nodes) -> None:
    """Symptom: not found after creation. On the primary? Pending? Expired?"""
    with perdure.open(nodes["n1"], write_timeout_ms=30_000) as store:
        id = store.create({"n": 1})
        short = store.create({}, timeout_ms=1)
    assert run_json("locate", nodes["n1"], id, "--wait", "2", "--timeout", PATIENCE_S)["is_synced"]
    assert run_json("session", "get", nodes["n1"], id)["metadata"] == {"n": 1}
    _until(lambda: id in nodes.content("n2"), "n2 to have folded it")
    gone = run("session", "get", nodes["n1"], short)
    assert gone.exit_code == 1
    assert run_json("locate", nodes["n1"], short)["exists"] is False
    with perdure.open(nodes["n1"], write_timeout_ms=30_000) as store:
        store.cleanup_expired()  # until then its record is in every state, and counts in comparisons


def test_the_runbook_from_top_to_bottom(nodes: Nodes, tmp_path: Path) -> None:
    """One cluster for all of it: nodes take long to start, and the last script changes the primary."""
    diagnose(nodes)
    a_session_that_is_not_found_is_explained(nodes)
    script_1_a_lag_is_seen_and_forced_down(nodes)
    script_2_orphans_are_listed_counted_and_cleaned_up(nodes)
    script_3_an_inconsistency_is_found_reconciled_and_transferred(nodes)
    script_5_a_large_recovery_goes_in_stages_and_critical_ones_first(nodes)
    one_session_is_rebuilt_from_the_log(nodes, tmp_path)
    script_4_a_failover_loses_nothing(nodes)
