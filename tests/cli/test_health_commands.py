"""perdure health, monitor, unmonitor and failover where no node runs: what they refuse and keep."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from perdure.cli.health import left_over
from perdure.shipping import NodePorts, NodeWays, read_unmonitored, write_ports, write_ways
from perdure.shipping.messages_health import HealthRow
from perdure.store import identity, names, read_identity
from perdure.store.smallfile import publish_small
from tests.cli.runner import run, run_json


@pytest.fixture
def node(tmp_path: Path) -> Path:
    path = tmp_path / "n1"
    run_json("init", path, "--node", "n1", "--primary", "--voter", "n1", "--voter", "n2", "--voter", "n3")
    return path


def test_health_of_a_node_that_does_not_run_says_so(node: Path) -> None:
    said = run_json("health", node, code=5)["error"]
    assert "no monitor ever ran here" in said["message"]
    assert "perdure node" in said["hint"]


def test_health_of_a_node_that_has_ended_says_what_to_look_at(node: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        write_ports(node, NodePorts(monitor=taken.getsockname()[1]))
        said = run_json("health", node, code=5)["error"]
    assert "the monitor of n1 does not answer" in said["message"]
    assert "perdure node" in said["hint"]


def test_what_is_not_monitored_is_kept_and_taken_back(node: Path) -> None:
    assert run_json("unmonitor", node, "n3")["unmonitored"] == ["n3"]
    first = read_unmonitored(node)
    assert run_json("unmonitor", node, "n2") == {
        "node": "n2",
        "is_monitored": False,
        "unmonitored": ["n2", "n3"],
    }
    assert read_unmonitored(node).changed_ms > first.changed_ms
    assert run_json("monitor", node, "n3")["unmonitored"] == ["n2"]
    assert read_unmonitored(node).nodes == ("n2",)


def test_a_name_that_no_node_can_have_is_refused_and_changes_nothing(node: Path) -> None:
    assert run_json("unmonitor", node, "Not a node", code=2)["error"]["error"] == "UsageError"
    assert "n1, n2, n3" in run_json("unmonitor", node, "n77", code=2)["error"]["message"]
    assert read_unmonitored(node).nodes == ()


def test_a_damaged_list_of_unmonitored_nodes_is_nobody(node: Path) -> None:
    run_json("unmonitor", node, "n3")
    path = node / "unmonitored"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert read_unmonitored(node).nodes == ()


def test_a_failover_takes_one_of_from_and_to(node: Path) -> None:
    said = run_json("failover", node, "--from", "n1", "--to", "n2", code=2)["error"]
    assert "cannot both be given" in said["message"]


def test_a_failover_to_a_node_without_an_address_is_refused(node: Path) -> None:
    said = run_json("failover", node, "--to", "n3", code=2)["error"]
    assert "address of n3 is not known" in said["message"]


def test_a_failover_where_nobody_answers_says_who_did_not(node: Path) -> None:
    said = run_json("failover", node, "--peer", "n2=127.0.0.1:9", code=3)["error"]
    assert "nobody can take over" in said["message"]
    assert "n2" in said["message"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--coordinator", "quorom"), "quorum"),
        (("--coordinator", "etcd"), "endpoints"),
    ],
)
def test_a_node_with_a_coordinator_that_cannot_work_does_not_start(
    node: Path, options: tuple[str, ...], why: str
) -> None:
    said = run_json("node", node, "--listen", "127.0.0.1:0", *options, code=2)["error"]
    assert why in said["message"] + said.get("hint", "")


def test_an_etcd_endpoint_that_is_no_url_is_refused(node: Path) -> None:
    (node / "perdure.toml").write_text('[failover]\netcd_endpoints = ["10.0.0.9:2379"]\n')
    assert "is no URL" in run_json("config", "show", node, code=2)["error"]["message"]


@pytest.mark.parametrize("command", ["failback", "rejoin"])
def test_help_names_the_section_of_an_option_of_the_configuration(command: str) -> None:
    assert "section failover" in " ".join(run(command, "--help").output.split())


def test_a_failover_from_or_to_a_node_that_there_is_not_names_those_that_there_are(node: Path) -> None:
    for word in ("--from", "--to"):
        said = run_json("failover", node, word, "n9", code=2)["error"]
        assert said["message"] == "there is no node n9: n1, n2, n3"


def _row(node: str, verdict: str) -> HealthRow:
    return HealthRow(node, verdict, 0, 0, 0, True, "", 0, 0, "", False, "")


def test_health_says_what_to_do_about_a_node_that_was_removed_and_is_still_watched(node: Path) -> None:
    (hint,) = left_over(node, [_row("n2", "alive"), _row("n7", "gone")])
    assert "n7 is no node of the cluster any more" in hint
    assert f"perdure unmonitor {node} n7" in hint
    write_ways(node, NodeWays({"n7": "127.0.0.1:9"}))  # as --replica told the node process
    assert run_json("unmonitor", node, "n7")["unmonitored"] == ["n7"]
    assert left_over(node, [_row("n2", "gone"), _row("n3", "gone")]) == []


def test_health_says_what_to_do_with_a_node_that_was_removed_itself(node: Path) -> None:
    own = msgspec.structs.replace(read_identity(node), node="n9")
    publish_small(node / names.IDENTITY, identity.MAGIC, identity.VERSION, own)
    (hint,) = left_over(node, [_row("n1", "silent"), _row("n2", "gone")])
    assert "n9 does not vote, and hears no other node" in hint
    assert "member list" in hint
    assert "n9 does not vote" in run_json("health", node, code=5)["error"]["hint"]
    assert left_over(node, [_row("n1", "alive")]) == []
