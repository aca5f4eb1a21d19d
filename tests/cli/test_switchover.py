"""`perdure switchover` and `perdure failback`, as a person uses them."""

from __future__ import annotations

from pathlib import Path

import pytest

import perdure
from tests.cli.runner import run, run_json
from tests.cluster.nodes import HOST, SECRET
from tests.cluster.switching import Switching, switching


def words(cluster: Switching, folder: Path, own: str) -> list[str]:
    """The addresses of the other nodes, and the secret."""
    (folder / "secret").write_bytes(SECRET)
    ports = cluster.cluster.ports
    peers = [word for name in ports if name != own for word in ("--peer", f"{name}={HOST}:{ports[name]}")]
    return [*peers, "--secret-file", str(folder / "secret")]


def test_the_role_goes_over_and_back_from_either_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A node that starts late behind a switchover is no problem here.
    monkeypatch.setattr("perdure.recovery.switchover.AFTER_MS", 30_000)
    with switching(tmp_path / "nodes", 2) as cluster:
        cluster.start()
        first, second = cluster.cluster.path("n1"), cluster.cluster.path("n2")
        with perdure.open(first, write_timeout_ms=20_000) as store:
            id = store.create({"n": 1})
        said = run_json("switchover", first, "n2", *words(cluster, tmp_path, "n1"))
        assert (said["node"], said["before"], said["epoch"], said["problems"]) == ("n2", "n1", 2, [])
        assert said["sessions"] == 1
        assert said["pause_ms"] >= said["promotion_ms"]
        with perdure.open(second, write_timeout_ms=20_000) as store:
            assert store.peek(id) is not None
            store.create({"n": 2})

        other = words(cluster, tmp_path, "n2")
        missing = run_json("failback", second, *other, code=2)
        assert "preferred" in missing["error"]["message"]
        (second / "perdure.toml").write_text('[failover]\npreferred = "n1"\n')
        back = run_json("failback", second, *other)
        assert (back["node"], back["epoch"], back["problems"]) == ("n1", 3, [])
        again = run("failback", second, *other)
        assert again.exit_code == 0
        assert "n1 is primary of epoch 3 already" in again.output
        with perdure.open(first, write_timeout_ms=20_000) as store:
            assert store.count() == 2


def test_a_refusal_says_why_and_has_its_code(tmp_path: Path) -> None:
    with switching(tmp_path / "nodes", 2) as cluster:
        cluster.start()
        first = cluster.cluster.path("n1")
        given = words(cluster, tmp_path, "n1")
        cluster.cluster.kill("shipper:n2")
        refused = run_json("switchover", first, "n2", *given, code=3)
        assert "no shipper waits there" in refused["error"]["message"]
        unknown = run_json("switchover", first, "n9", *given, code=2)
        assert "n1, n2" in unknown["error"]["hint"]
        with perdure.open(first, write_timeout_ms=20_000) as store:
            store.create({})
