"""`perdure member` on a node's directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.runner import run, run_json
from tests.cli.test_switchover import words
from tests.cluster.nodes import HOST, until
from tests.cluster.switching import switching


@pytest.fixture
def node(tmp_path: Path) -> Path:
    voters = [word for name in ("n1", "n2", "n3") for word in ("--voter", name)]
    run_json("init", tmp_path / "n1", "--node", "n1", "--primary", *voters, "--member", "n2=10.0.0.2:7001")
    return tmp_path / "n1"


def test_the_members_are_listed_as_the_log_says(node: Path) -> None:
    said = run_json("member", "list", node)
    assert (said["voters"], said["sync_replicas"], said["is_auto"]) == (["n1", "n2", "n3"], 1, True)
    assert said["members"] == {"n2": "10.0.0.2:7001"}
    assert said["role"] == "primary"
    assert "n1" in run("member", "list", node).stdout


def test_a_change_that_nobody_could_confirm_has_the_code_of_a_refusal_or_of_usage(node: Path) -> None:
    refused = run_json("member", "set-sync", node, "2", code=3)
    assert refused["error"]["error"] == "NoQuorumError"
    assert run("member", "remove", node, "n1").exit_code == 2
    assert run("member", "set-sync", node, "many").exit_code == 2
    assert run("member", "set-policy", node, "available").exit_code == 2
    assert run("member", "add", node, "n4").exit_code == 2
    assert run_json("member", "list", node)["sync_replicas"] == 1


def test_a_store_on_its_own_gets_a_member_that_does_not_vote(tmp_path: Path) -> None:
    run_json("init", tmp_path / "one", "--node", "n1", "--primary")
    said = run_json("member", "add", tmp_path / "one", "n2=127.0.0.1:7001", "--no-vote")
    assert (said["members"], said["voters"], said["is_committed"]) == ({"n2": "127.0.0.1:7001"}, ["n1"], True)
    late = run_json("member", "add", tmp_path / "one", "n2=127.0.0.1:7001", "--timeout", "0.1", code=3)
    assert "does not follow" in late["error"]["message"]
    assert run_json("member", "remove", tmp_path / "one", "n2")["members"] == {}


def test_members_are_changed_from_any_node(tmp_path: Path) -> None:
    with switching(tmp_path / "nodes", 3) as cluster:
        cluster.start()
        nodes = cluster.cluster
        second, given = nodes.path("n2"), words(cluster, tmp_path, "n2")
        third = f"n3={HOST}:{nodes.ports['n3']}"
        until(
            lambda: {nodes.slot_state("n1", name)[0] for name in ("n2", "n3")} == {"streaming"}, "both follow"
        )

        said = run_json("member", "remove", second, "n3", *given)
        assert (said["node"], said["role"], said["voters"]) == ("n1", "primary", ["n1", "n2"])
        assert said["is_committed"]
        assert run_json("member", "list", second)["voters"] == ["n1", "n2"]
        said = run_json("member", "add", second, third, "--no-vote", *given)
        assert (said["voters"], list(said["members"])) == (["n1", "n2"], ["n3"])
        said = run_json("member", "add", second, third, *given)
        assert (said["voters"], said["sync_replicas"]) == (["n1", "n2", "n3"], 1)
        said = run_json("member", "set-sync", second, "2", *given)
        assert (said["sync_replicas"], said["is_auto"]) == (2, False)

        refused = run_json("member", "set-policy", second, "available", *given, code=2)
        assert "needs a witness" in refused["error"]["message"]  # as the primary says
        late = run_json("member", "add", second, "n4=127.0.0.1:1", "--timeout", "0.1", *given, code=3)
        assert "n4 does not follow closely" in late["error"]["message"]
        assert late["error"]["message"].count("n4") <= 2  # the second one in why it cannot be reached
        assert "(waited 100 ms)" in late["error"]["message"]
        assert run_json("member", "remove", second, "n4", *given)["members"].keys() == {"n3"}


def test_without_a_primary_that_answers_nothing_is_changed_and_it_is_said(tmp_path: Path) -> None:
    with switching(tmp_path / "nodes", 2) as cluster:
        cluster.cluster.start(cluster.cluster.receiver("n1"), cluster.cluster.receiver("n2"))
        second, given = cluster.cluster.path("n2"), words(cluster, tmp_path, "n2")
        no_server = run_json("member", "remove", second, "n1", *given, code=5)
        assert "n1 has no server" in no_server["error"]["message"]
        cluster.cluster.kill("receiver:n1")
        refused = run_json("member", "remove", second, "n1", *given, code=3)
        assert refused["error"]["error"] == "NotPrimaryError"
        assert "none of this node and n1 is it" in refused["error"]["message"]
        alone = run_json("member", "remove", second, "n1", code=3)
        assert "--peer" in alone["error"]["hint"]


def test_a_replica_says_that_only_the_primary_knows_who_follows(tmp_path: Path, node: Path) -> None:
    run_json("init", tmp_path / "n2", "--node", "n2", "--cluster-id", "ab" * 16)
    assert run_json("member", "list", tmp_path / "n2")["streaming"] is None
    assert "only the primary knows" in run("member", "list", tmp_path / "n2").stdout
    assert run_json("member", "list", node)["streaming"] == []


def test_a_member_that_does_not_follow_is_named_once_with_the_time_that_was_given(tmp_path: Path) -> None:
    run_json("init", tmp_path / "one", "--node", "n1", "--primary")
    late = run("member", "add", tmp_path / "one", "n2=127.0.0.1:7001", "--timeout", "0.2")
    assert late.exit_code == 3
    message = late.stderr.splitlines()[0]
    assert message.count("n2") == 1
    assert "waited 200 ms" in message
