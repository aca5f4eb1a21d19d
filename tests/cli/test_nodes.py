"""Three nodes run by hand, as docs/operations.md says: writes, a dead primary, a promotion, a rejoin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.shipping import shipping_status
from perdure.store import PerdureError, SessionStore
from tests.cli.runner import process, run_json
from tests.support.ports import free_ports

pytestmark = pytest.mark.xdist_group("demo")

SECRET = "a secret that all nodes share"
NODES = ("n1", "n2", "n3")
PATIENCE_S = 60.0


def _until(is_so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.02)


class ByHand:
    """A cluster whose nodes are `perdure node` processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.secret = root / "secret"
        self.secret.write_text(SECRET)
        self.ports: dict[str, int] = {}
        """Of the nodes that were started once: who is started later is told of them."""
        self._places = dict(zip(NODES, free_ports(len(NODES), in_a_row=3), strict=True))
        self.running: dict[str, subprocess.Popen[str]] = {}

    def make(self) -> None:
        voters = [word for node in NODES for word in ("--voter", node)]
        made = run_json(
            "init", self.root / "n1", "--node", "n1", "--primary", *voters, "--sync-replicas", "1"
        )
        for node in NODES[1:]:
            run_json("init", self.root / node, "--node", node, "--cluster-id", made["cluster_id"])

    def start(self, node: str, *options: object) -> None:
        others = [word for name in NODES if name in self.ports for word in ("--replica", self.address(name))]
        listen = f"127.0.0.1:{self._places[node]}"
        self.running[node] = process(
            "node",
            self.root / node,
            "--listen",
            listen,
            *others,
            "--secret-file",
            self.secret,
            "--coordinator",
            "manual",
            "--json",
            *options,
        )
        stdout = self.running[node].stdout
        assert stdout is not None
        self.ports[node] = int(json.loads(stdout.readline())["listening"].rpartition(":")[2])

    def address(self, node: str) -> str:
        return f"{node}=127.0.0.1:{self.ports[node]}"

    def stop(self, node: str) -> int:
        process = self.running.pop(node)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
        return process.returncode

    def kill(self, node: str) -> None:
        """kill -9 of the node's own process; what it supervised ends with it."""
        process = self.running.pop(node)
        process.kill()
        process.communicate(timeout=PATIENCE_S)

    def status(self, node: str, *options: object) -> dict[str, Any]:
        try:
            return run_json("status", self.root / node, "--secret-file", self.secret, *options)
        except AssertionError:
            return {}

    def end(self) -> None:
        for node in list(self.running):
            with suppress(subprocess.TimeoutExpired):
                self.stop(node)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ByHand]:
    found = ByHand(tmp_path)
    found.make()
    try:
        yield found
    finally:
        found.end()


def _shipper_of(store: Path) -> int:
    try:
        return shipping_status(store).shipper_pid
    except PerdureError:
        return 0


def _states(status: dict[str, Any]) -> set[str]:
    return {replica["state"] for replica in status.get("replicas", [])}


def test_a_cluster_run_by_hand_survives_its_primary(cluster: ByHand) -> None:
    for node in ("n2", "n3", "n1"):
        cluster.start(node, "--snapshot-every", "0.5", "--sweep-every", "0.3", "--retention-every", "0.5")
    first, second = cluster.root / "n1", cluster.root / "n2"
    with perdure.open(first, write_timeout_ms=30_000) as store:
        short = store.create({}, timeout_ms=1)
        kept = [store.create({"n": number}) for number in range(20)]
    _until(lambda: run_json("session", "count", first)["sessions"] == 20, "the sweeper")
    _until(lambda: list((second / "snapshots").glob("*.snap")) != [], "a snapshot")

    _until(lambda: _shipper_of(first) != 0, "the shipper to say its pid")
    old = _shipper_of(first)
    assert old > 0
    os.kill(old, signal.SIGKILL)
    _until(lambda: _shipper_of(first) not in (0, old), "the shipper to be started again")
    _until(lambda: cluster.status("n1").get("voters_connected") == 2, "the replicas to come back")
    _until(lambda: _states(cluster.status("n1")) == {"streaming"}, "their slots to say so")
    said: dict[str, Any] = {}

    def is_said() -> bool:
        said.update(cluster.status("n1", "--peer", cluster.address("n2")))
        return bool(said) and said["peers"][0].get("role") == "replica"

    _until(is_said, "n2 to say that it is a replica")
    assert (said["role"], said["sessions"]) == ("primary", 20)
    assert _states(said) <= {"streaming", "catch-up"}

    cluster.kill("n1")
    peers = ("--peer", cluster.address("n1"), "--peer", cluster.address("n3"))
    promoted = run_json("promote", second, *peers, "--secret-file", cluster.secret)
    assert (promoted["epoch"], promoted["promisers"], promoted["unheard"]) == (2, ["n3"], ["n1"])
    assert promoted["keeps_acknowledged"]
    cluster.stop("n2")
    cluster.start("n2")  # with the addresses of all nodes, which it did not know at first
    with perdure.open(second, write_timeout_ms=30_000) as store:
        assert all(store.peek(id) is not None for id in kept)
        assert store.peek(short) is None
        kept.append(store.create({"n": "after"}))

    cluster.start("n1")
    _until(lambda: cluster.status("n2").get("voters_connected") == 2, "the old primary to follow")
    _until(lambda: cluster.status("n1").get("role") == "replica", "n1 to say that it is a replica")
    with perdure.open(first, write_timeout_ms=30_000) as store:  # as its node was told, secret included
        kept.append(store.create({"n": "on a replica"}))
    with perdure.open(second, write_timeout_ms=30_000) as store:
        kept.append(store.create({"n": "with three again"}))
        digest = store.stats()["digest"]

    def agrees() -> bool:
        with SessionStore.open(first, create=False) as copy:
            return bool(copy.stats()["digest"] == digest and copy.count() == len(kept))

    _until(agrees, "the old primary to have what the new one has")
    assert [cluster.stop(node) for node in NODES] == [0, 0, 0]
    assert (
        run_json("ship", first, "--replica", "n2=127.0.0.1:9", code=3)["error"]["error"] == "NotPrimaryError"
    )


def test_a_wrong_secret_is_refused_and_said(cluster: ByHand, tmp_path: Path) -> None:
    cluster.start("n2")
    wrong = tmp_path / "wrong"
    wrong.write_text("another secret of the same length")
    # The node's page is there once somebody has opened it.
    with SessionStore.open(cluster.root / "n1", create=False):
        pass
    said = run_json(
        "status", cluster.root / "n1", "--peer", cluster.address("n2"), "--secret-file", wrong, code=1
    )
    assert said["peers"][0]["problem"]
    node = cluster.running.pop("n2")
    node.terminate()
    _, err = node.communicate(timeout=PATIENCE_S)
    assert "does not know the shared secret" in err
    assert SECRET not in err


def test_a_second_receiver_of_one_node_is_refused(cluster: ByHand) -> None:
    cluster.start("n2")
    second = process("receive", cluster.root / "n2", "--listen", "127.0.0.1:0", "--json")
    out, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode in (3, 5), err
    assert "receiver.lock" in json.loads(out)["error"]["message"]
