"""Whole nodes whose every link is TLS: writes on a replica, and a switchover."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure
from perdure.shipping import NodeClient, read_ports
from perdure.store import WireError, read_identity
from tests.cluster.elections import SECRET, Nodes, until
from tests.support.certificates import certificates

pytestmark = [pytest.mark.xdist_group("elections"), pytest.mark.timeout(300)]

PAIR = ("n1", "n2")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """n1, the primary, and n2, with certificates and a secret; the third voter is away."""
    found = Nodes(tmp_path, failover='coordinator = "manual"')
    for node, files in certificates(tmp_path / "tls", *PAIR).items():
        text = found.config(node).read_text()
        tls = f'tls_cert = "{files.cert}"\ntls_key = "{files.key}"\ntls_ca = "{files.ca}"\n'
        found.config(node).write_text(text.replace("[stores.main]", f"{tls}[stores.main]"))
    try:
        for node in PAIR:
            found.start(node)
        yield found
    finally:
        found.end()


def test_writes_go_to_the_primary_and_the_role_goes_over_by_links_of_tls_alone(nodes: Nodes) -> None:
    def opened(node: str) -> perdure.store.SessionStore:
        return perdure.open(nodes.root / node, config=nodes.config(node), write_timeout_ms=60_000)

    with opened("n1") as first, opened("n2") as second:
        kept = [second.create({"on": "the replica"})]
        assert nodes.primary() == "n1"
        until(lambda: nodes.row("n1", "n2").get("verdict") == "alive", "n1's monitor hears n2's")
        code, said = nodes.command("switchover", "n1", "n2")
        assert (code, said["node"], said["before"], said["problems"]) == (0, "n2", "n1", [])
        kept.append(first.create({"on": "the old primary"}))
        kept.append(second.create({"on": "the new one"}))
        assert nodes.primary() == "n2"
        second.wait_for(first.position(), 30_000)
        first.wait_for(second.position(), 30_000)
        assert [id for id in kept if first.peek(id) is None or second.peek(id) is None] == []

    for node in PAIR:
        ports = read_ports(nodes.root / node)
        cluster_id = read_identity(nodes.root / node).cluster_id
        for port in (ports.listen, ports.serve, ports.monitor):
            with pytest.raises(WireError):  # who knows the secret, and shows no certificate
                NodeClient("127.0.0.1", port, cluster_id=cluster_id, secret=SECRET.encode())
