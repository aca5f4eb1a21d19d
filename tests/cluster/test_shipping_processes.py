"""Shipping's processes as children: they get ready, start again, and end with those who started them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from perdure.shipping import Child, Task, start_child
from perdure.store import NotPrimaryError, PerdureError, StoreInUseError, StoreMissingError, UsageError
from perdure.store.page import Word
from tests.cluster.nodes import HOST, SECRET, Cluster, cluster_of, until


def children_of(pid: int) -> dict[str, int]:
    """The children of a process of shipping: kind -> pid, as their threads' parents tell."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in listing.read_text().split()]
    return {str(number): number for number in sorted(found)}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def start_replica(cluster: Cluster, name: str) -> Child:
    task = Task("replica", str(cluster.path(name)), HOST, 0, SECRET)
    cluster.start((f"replica:{name}", task))
    return cluster.children[f"replica:{name}"]


def test_a_replica_starts_its_processes_again_and_ends_both_when_told(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        replica = start_replica(cluster, "n2")
        cluster.ship_here("n1")
        store = cluster.open("n1")
        store.create({"n": 0})
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        first = children_of(replica.pid)
        assert len(first) == 2
        for pid in first.values():
            os.kill(pid, signal.SIGKILL)
        store.create({"n": 1})
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        second = children_of(replica.pid)
        assert not set(first) & set(second)
        assert cluster.stop("replica:n2") == 0
        assert not any(is_alive(pid) for pid in second.values())


def test_the_processes_of_a_replica_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        replica = start_replica(cluster, "n2")
        until(lambda: len(children_of(replica.pid)) == 2, "both run")
        both = list(children_of(replica.pid).values())
        cluster.kill("replica:n2")
        until(lambda: not any(is_alive(pid) for pid in both), "both end")


def test_the_secret_is_on_no_command_line_and_in_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERDURE_SECRET", raising=False)
    with cluster_of(tmp_path, 2) as cluster:
        _, task = cluster.receiver("n2")
        child = cluster.children["receiver:n2"] = start_child(task)  # a new Python: a fork shows its parent's
        child.wait_ready()
        place = Path(f"/proc/{child.pid}")
        assert SECRET not in (place / "cmdline").read_bytes()
        assert SECRET not in (place / "environ").read_bytes()


@pytest.mark.parametrize(
    ("kind", "name", "error", "why", "code"),
    [
        ("shipper", "n2", NotPrimaryError, "accepts no writes", 3),
        ("receiver", "nothing", StoreMissingError, "no store here", 5),
        ("folder", "nothing", StoreMissingError, "no store here", 5),
    ],
)
def test_a_child_that_cannot_do_its_work_says_why_and_ends(
    tmp_path: Path, kind: str, name: str, error: type[PerdureError], why: str, code: int
) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        child = start_child(Task(kind, str(cluster.path(name))))
        with pytest.raises(error, match=why):
            child.wait_ready()
        assert child.process.wait(10) == code
        child.kill()


def test_only_one_shipper_serves_a_store(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.ports["n2"] = 1
        cluster.ship_here("n1")
        with pytest.raises(StoreInUseError, match="another process holds"):
            cluster.start(cluster.shipper("n1"))


def test_a_node_is_no_replica_of_itself(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        task = Task("shipper", str(cluster.path("n1")), replicas={"n1": ("127.0.0.1", 1)})
        child = start_child(task)
        with pytest.raises(UsageError, match="no replica of it"):
            child.wait_ready()
        child.kill()
        assert not list((cluster.path("n1") / "slots").glob("n1*"))
