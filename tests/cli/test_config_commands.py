"""`perdure config`, `perdure stores`, @NAME, and what commands take from the configuration."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import perdure
from tests.cli.runner import process, run, run_json

TEXT = """
[store]
interval_ms = 500

[stores.web]
path = "web"
max_session_size_bytes = 100

[stores.jobs]
path = "jobs"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with two named stores, of which one is there; PERDURE_CONFIG names it."""
    path = tmp_path / "perdure.toml"
    path.write_text(TEXT)
    perdure.open("@web", config=path).close()
    monkeypatch.setenv("PERDURE_CONFIG", str(path))
    return path


def test_every_option_is_shown_with_where_it_comes_from(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERDURE_DURABILITY", "disk")
    said = run_json("config", "show", "@web")
    assert said["file"] == str(config)
    assert said["stores"]["web"] == str(config.parent / "web")
    shown = {row["option"]: (row["value"], row["source"], row["where"]) for row in said["options"]}
    assert shown["store.interval_ms"] == (500, "file", "[store]")
    assert shown["store.max_session_size_bytes"] == (100, "file", "[stores.web]")
    assert shown["store.durability"] == ("disk", "environment", "PERDURE_DURABILITY")
    assert shown["store.write_timeout_ms"] == (5000, "default", "")
    assert run_json("config", "show", config.parent / "web")["options"] == said["options"]
    general = {row["option"]: row["source"] for row in run_json("config", "show")["options"]}
    assert general["store.max_session_size_bytes"] == "default"
    assert "interval_ms" in run("config", "show").stdout


def test_a_right_configuration_is_well(config: Path) -> None:
    assert run_json("config", "check") == {"file": str(config), "problems": [], "notes": []}
    assert "all is well" in run("config", "check").stdout


def test_everything_that_is_wrong_is_told(config: Path) -> None:
    config.write_text("[store]\ndurabilty = 'os'\ninterval_ms = 0\nbackend = 'lmbd'\ncleanup_interval = 5\n")
    said = run_json("config", "check", code=2)
    assert len(said["problems"]) == 3
    assert all(problem["path"] == str(config) for problem in said["problems"])
    assert any("lmdb" in (problem["hint"] or "") for problem in said["problems"])
    assert [note["key"] for note in said["notes"]] == ["cleanup_interval"]
    result = run("config", "check")
    assert "did you mean 'durability'" in result.stdout
    assert "note: " in result.stdout
    assert run("config", "show").exit_code == 2


def test_an_old_name_is_a_finding(config: Path) -> None:
    config.write_text("replication_factor = 3\n")
    said = run_json("config", "check", code=1)
    assert "no effect" in said["notes"][0]["text"]


def test_a_named_store_stands_for_its_directory_in_every_command(config: Path) -> None:
    id = run_json("session", "create", "@web", '{"n": 1}')["id"]
    assert run_json("session", "get", config.parent / "web", id)["metadata"] == {"n": 1}
    assert run("session", "count", "@web").stdout == "1\n"
    assert run_json("status", "@web")["sessions"] == 1
    said = run_json("session", "create", "@web", '{"n": "%s"}' % ("x" * 200), code=2)
    assert said["error"]["error"] == "SessionTooLargeError"
    result = run("session", "count", "@wbe")
    assert result.exit_code == 2
    assert "did you mean 'web'" in " ".join(result.stderr.replace("│", " ").split())


def test_the_option_config_names_the_file_for_one_command_only(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERDURE_CONFIG")
    assert run("session", "count", "@web").exit_code == 2
    assert run("--config", config, "session", "count", "@web").stdout == "0\n"
    assert "PERDURE_CONFIG" not in os.environ


def test_a_named_store_stands_for_its_directory_in_keys_and_log_too(config: Path, tmp_path: Path) -> None:
    perdure.open("@web", config=config).close()
    file = tmp_path / "keys"
    named = ("--config", config)
    assert run("keys", "init", file).exit_code == 0
    old = run_json("keys", "list", file)["keys"][0]["key"]
    run_json(*named, "keys", "rotate", file, "@web")
    run_json(*named, "keys", "reseal", file, "@web")
    assert run_json(*named, "keys", "list", file, "@web")["keys"][0]["sessions"] == 0
    run_json(*named, "keys", "retire", file, old, "@web", "--yes")
    assert "epoch_start" in run(*named, "log", "dump", "@web").stdout
    assert run(*named, "keys", "list", file, "@wbe").exit_code == 2


def test_named_stores_are_listed_with_their_status(config: Path) -> None:
    rows = run_json("stores", code=1)["stores"]
    assert [(row["store"], row["sessions"], bool(row["problem"])) for row in rows] == [
        ("web", 0, False),
        ("jobs", None, True),
    ]
    assert not (config.parent / "jobs").exists()
    perdure.open("@jobs").close()
    assert run_json("stores")["stores"][1]["problem"] == ""


def test_a_node_is_made_as_the_configuration_says(tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    (tmp_path / "n1" / "perdure.toml").write_text(
        "[store]\nbackend = 'sqlite'\n[node]\nname = 'n1'\nvoters = ['n1', 'n2']\nsync_replicas = 1\n"
    )
    said = run_json("init", tmp_path / "n1", "--primary")
    assert (said["node"], said["backend"], said["voters"]) == ("n1", "sqlite", ["n1", "n2"])
    assert said["sync_replicas"] == 1
    verified = run("verify", tmp_path / "n1", "--json")
    assert verified.exit_code == 0
    assert "perdure.toml" not in verified.stdout


def test_without_a_number_a_majority_of_the_cluster_confirms_and_witnesses_never_do(tmp_path: Path) -> None:
    three = [word for node in ("n1", "n2", "n3") for word in ("--voter", node)]
    said = run_json("init", tmp_path / "three", "--node", "n1", "--primary", *three)
    assert (said["sync_replicas"], said["is_auto"]) == (1, True)
    two = ["--voter", "n1", "--voter", "n2", "--witness", "w", "--member", "n2=10.0.0.2:7001"]
    said = run_json("init", tmp_path / "two", "--node", "n1", "--primary", *two, "--policy", "available")
    assert (said["voters"], said["witnesses"], said["sync_replicas"]) == (["n1", "n2", "w"], ["w"], 1)
    for bad in (
        [*two, "--sync-replicas", "2"],
        [*two, "--sync-replicas", "many"],
        ["--voter", "n1", "--voter", "n2", "--policy", "available"],
        [*two, "--policy", "lax"],
        ["--voter", "n2", "--witness", "n1"],
    ):
        assert run("init", tmp_path / "bad", "--node", "n1", "--primary", *bad).exit_code == 2, bad
        assert not (tmp_path / "bad").exists()


def test_an_address_that_nothing_gives_is_a_usage_error_that_says_where_it_belongs(tmp_path: Path) -> None:
    assert run("init", tmp_path / "n1", "--node", "n1", "--primary").exit_code == 0
    for command in ("node", "receive"):
        said = run_json(command, tmp_path / "n1", code=2)
        assert "listen in [node]" in said["error"]["hint"]
    assert run_json("ship", tmp_path / "n1", code=2)["error"]["error"] == "UsageError"
    assert run("init", tmp_path / "n2", "--primary").exit_code == 2


def test_peers_and_their_secret_come_from_the_configuration(tmp_path: Path) -> None:
    assert run("init", tmp_path / "n1", "--node", "n1", "--primary").exit_code == 0
    (tmp_path / "n1" / "perdure.toml").write_text(
        "[node]\npeers = { n1 = '127.0.0.1:1', n2 = '127.0.0.1:2' }\nsecret_file = 'secret'\n"
    )
    said = run_json("status", tmp_path / "n1", code=5)
    assert said["error"]["path"] == str(tmp_path / "n1" / "secret")
    (tmp_path / "n1" / "secret").write_text("s" * 32)
    said = run_json("status", tmp_path / "n1", code=1)
    assert [(row["node"], row["address"]) for row in said["peers"]] == [("n2", "127.0.0.1:2")]


def test_retention_is_explained_by_the_configured_policy(tmp_path: Path) -> None:
    perdure.open(tmp_path / "s").close()
    for _ in range(2):
        with perdure.open(tmp_path / "s") as store:
            store.create({})
        run("snapshot", "create", tmp_path / "s")
    kept = [line["is_dropped"] for line in run_json("retention", "explain", tmp_path / "s")["snapshots"]]
    assert kept == [False, False]
    (tmp_path / "s" / "perdure.toml").write_text("[recovery]\nsnapshots_kept = 1\nlog_age_ms = 0\n")
    kept = [line["is_dropped"] for line in run_json("retention", "explain", tmp_path / "s")["snapshots"]]
    assert sorted(kept) == [False, True]


def test_the_text_of_a_key_file_is_never_shown(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_KEYS", '{"secret": "hush"}')
    result = run("config", "show", "--json")
    assert result.exit_code == 0
    assert "hush" not in result.output


def test_a_node_runs_as_the_configuration_says(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        """
[stores.web]
path = "web"
[stores.web.node]
name = "n1"
listen = "127.0.0.1:0"
[recovery]
snapshot_interval_ms = 100
snapshots_kept = 2
log_age_ms = 0
"""
    )
    assert run("--config", tmp_path / "c.toml", "init", "@web", "--primary").exit_code == 0
    running = process("--config", tmp_path / "c.toml", "node", "@web", "--json")
    try:
        assert running.stdout is not None
        said = json.loads(running.stdout.readline())
        assert (said["node"], said["listening"].rpartition(":")[0]) == ("n1", "127.0.0.1")
        deadline = time.monotonic() + 60
        seen: set[str] = set()
        with perdure.open("@web", config=tmp_path / "c.toml") as store:
            while len(seen) < 3:
                assert time.monotonic() < deadline, seen
                store.create({})
                seen |= {path.name for path in (tmp_path / "web" / "snapshots").glob("*.snap")}
    finally:
        running.terminate()
        running.communicate(timeout=30)
    assert running.returncode == 0
    assert len(list((tmp_path / "web" / "snapshots").glob("*.snap"))) <= 3


def test_a_named_store_without_a_configuration_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_CONFIG", raising=False)
    message = run_json("config", "show", "@web", code=2)["error"]["hint"]
    assert "perdure --config FILE" in message
    assert "PERDURE_CONFIG" in message
    shown = " ".join(run("session", "count", "@web").output.split())
    assert "perdure --config" in shown
