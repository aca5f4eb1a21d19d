"""Whole nodes with etcd as coordinator: a primary that is killed is replaced, and its key with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from perdure.recovery.coordinators.etcd import Leader
from perdure.recovery.coordinators.etcd_client import EtcdClient, EtcdError
from perdure.store import read_identity
from tests.cluster.elections import NODES, Nodes, until
from tests.cluster.etcd_members import Members, needs_etcd

pytestmark = [needs_etcd, pytest.mark.xdist_group("etcd"), pytest.mark.timeout(300)]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Members]:
    folder = tmp_path / "etcd"
    folder.mkdir()
    found = Members(folder, 1)
    try:
        yield found
    finally:
        found.end()


def leader(etcd: Members, nodes: Nodes) -> Leader | None:
    """Who has the key."""
    key = f"/perdure/{read_identity(nodes.root / 'n1').cluster_id.hex()}/leader".encode()
    client = EtcdClient(etcd.endpoints, timeout_ms=20_000)
    try:
        found = client.get(key).get(key)
    except EtcdError:
        return None
    finally:
        client.close()
    return msgspec.json.decode(found.value, type=Leader) if found and found.value else None


def test_a_primary_that_is_killed_is_replaced_by_who_gets_its_key(etcd: Members, tmp_path: Path) -> None:
    endpoints = ", ".join(f'"{endpoint}"' for endpoint in etcd.endpoints)
    nodes = Nodes(tmp_path, failover=f'coordinator = "etcd"\netcd_endpoints = [{endpoints}]')
    try:
        for node in NODES:
            nodes.start(node)
        until(nodes.is_well, "all nodes are well")
        assert nodes.primary() == "n1"
        until(lambda: leader(etcd, nodes) == Leader("n1", 1), "n1 has the key")
        kept = [nodes.write({"n": number}) for number in range(20)]

        nodes.kill("n1")
        kept.append(nodes.write({"n": "after"}))
        after, epoch = nodes.primary(), nodes.epoch()
        assert (after in NODES[1:], epoch > 1) == (True, True)
        until(lambda: leader(etcd, nodes) == Leader(after, epoch), "the new primary has the key")
        store = nodes.store(after)
        assert [id for id in kept if store.peek(id) is None] == []
        assert nodes.health(after)["coordinator"] == "etcd"

        nodes.start("n1")
        until(nodes.is_well, "the old primary follows")
        assert nodes.primary() == after
    finally:
        nodes.end()
