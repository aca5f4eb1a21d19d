"""Commands that make, change and remove sessions, groups and orphans, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perdure
from perdure.cli.app import app
from perdure.cli.init import make_node
from perdure.store import Config, Priority
from tests.cli.runner import run, run_json


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty store."""
    perdure.open(tmp_path / "store").close()
    return tmp_path / "store"


def fields(store: Path, id: str) -> dict[str, Any]:
    return run_json("session", "get", store, id)


# -- one session ----------------------------------------------------------------------------------


def test_a_session_is_created_with_all_that_is_named(store: Path) -> None:
    said = run_json(
        *("session", "create", store, '{"user": 42, "key": {"$bytes": "AAE="}}', "--timeout", "30m"),
        *("--max-lifetime", "12h", "--group", "g", "--tag", "a", "--tag", "b", "--home-node", "n1"),
        *("--priority", "high"),
    )
    assert len(said["id"]) == 32
    assert (said["timeout_ms"], said["group"], said["tags"]) == (1_800_000, "g", ["a", "b"])
    assert (said["home_node"], said["priority"], said["version"]) == ("n1", "high", 1)
    assert said["max_expires_at"] == said["created_at"] + 12 * 3_600_000
    with perdure.open(store) as opened:
        assert opened[said["id"]].metadata == {"user": 42, "key": b"\x00\x01"}


def test_without_json_the_id_is_all_that_is_said(store: Path) -> None:
    result = run("session", "create", store, "--timeout", "never")
    said = fields(store, result.stdout.strip())
    assert (said["metadata"], said["timeout_ms"]) == ({}, None)


def test_metadata_come_from_a_file_and_from_standard_input(store: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"n": 1}')
    assert run_json("session", "put", store, "a", f"@{tmp_path / 'm.json'}")["metadata"] == {"n": 1}
    arguments = ["session", "put", str(store), "b", "-", "--ttl", "7d", "--json"]
    result = CliRunner().invoke(app, arguments, input='{"n": 2}', catch_exceptions=False)
    said = json.loads(result.stdout)
    assert said["metadata"] == {"n": 2}
    assert said["max_expires_at"] == said["created_at"] + 7 * 86_400_000


@pytest.mark.parametrize("metadata", ["{", "[1]", "7", '{"a": {"$bytes": "?"}}', '{"a": {"$what": 1}}'])
def test_metadata_that_are_none_are_a_usage_error_and_nothing_is_written(store: Path, metadata: str) -> None:
    said = run_json("session", "create", store, metadata, code=2)
    assert said["error"]["message"]
    assert run_json("session", "count", store)["sessions"] == 0


def test_a_file_of_metadata_that_is_not_there_is_an_error(store: Path, tmp_path: Path) -> None:
    said = run_json("session", "create", store, f"@{tmp_path / 'none'}", code=5)
    assert said["error"]["path"] == str(tmp_path / "none")


@pytest.mark.parametrize("time", ["30", "0s", "-1s", "soon", "1y", "999999999999d"])
def test_a_time_without_a_unit_or_out_of_its_limits_is_a_usage_error(store: Path, time: str) -> None:
    assert run("session", "create", store, "--timeout", time).exit_code == 2


def test_a_put_may_ask_for_a_version(store: Path) -> None:
    assert run_json("session", "put", store, "a", "{}", "--if-version", "0")["version"] == 1
    said = run_json("session", "put", store, "a", '{"n": 2}', "--if-version", "0", code=1)
    assert said["error"]["error"] == "VersionConflictError"
    assert run_json("session", "put", store, "a", '{"n": 2}', "--if-version", "1")["version"] == 2


def test_an_update_changes_what_is_named_and_leaves_the_rest(store: Path) -> None:
    run(
        "session",
        "put",
        store,
        "a",
        '{"keep": 1, "drop": 2, "n": 3}',
        "--group",
        "g",
        "--tag",
        "t",
        "--sliding",
    )
    said = run_json(
        *("session", "update", store, "a", "--set", "n=4", "--set", 'name="Anna"', "--unset", "drop"),
        *("--merge", '{"m": [1, null]}', "--priority", "low", "--timeout", "2h", "--if-version", "1"),
    )
    assert said["metadata"] == {"keep": 1, "n": 4, "m": [1, None], "name": "Anna"}
    assert (said["version"], said["priority"], said["timeout_ms"]) == (2, "low", 7_200_000)
    assert (said["group"], said["tags"]) == ("g", ["t"])
    said = run_json("session", "update", store, "a", "--tag", "", "--group", "", "--home-node", "n2")
    assert (said["group"], said["tags"], said["home_node"]) == ("", [], "n2")


@pytest.mark.parametrize(
    "arguments",
    [("--set", "n"), ("--set", "n=Anna"), ("--set", "n=1", "--set", "n=2"), ("--set", "n=1", "--unset", "n")],
)
def test_a_change_that_is_none_is_a_usage_error(store: Path, arguments: tuple[str, ...]) -> None:
    run("session", "put", store, "a", '{"n": 0}')
    assert run("session", "update", store, "a", *arguments).exit_code == 2
    assert fields(store, "a")["version"] == 1


def test_an_update_or_touch_of_what_is_not_there_is_a_finding(store: Path) -> None:
    for command in ("update", "touch"):
        said = run_json("session", command, store, "nobody", code=1)
        assert said["error"]["error"] == "SessionNotFoundError"


def test_a_touch_extends_the_life(store: Path) -> None:
    run("session", "put", store, "a", "{}", "--ttl", "1h", "--sliding")
    before = fields(store, "a")["expires_at"]
    said = run_json("session", "touch", store, "a")
    assert said["expires_at"] >= before
    assert fields(store, "a")["version"] == 1


def test_a_delete_needs_yes_and_says_whether_there_was_one(store: Path) -> None:
    run("session", "put", store, "a", "{}")
    assert run_json("session", "delete", store, "a", code=1) == {
        "id": "a",
        "deleted": False,
        "would_delete": True,
    }
    assert fields(store, "a")["found"]
    assert run_json("session", "delete", store, "a", "--yes")["deleted"]
    assert run_json("session", "delete", store, "a", "--yes", code=1) == {
        "id": "a",
        "deleted": False,
        "would_delete": False,
    }


def test_a_write_on_a_replica_is_refused(tmp_path: Path) -> None:
    assert run("init", tmp_path / "n2", "--node", "n2", "--cluster-id", "ab" * 16).exit_code == 0
    assert run_json("session", "create", tmp_path / "n2", code=3)["error"]["error"] == "NotPrimaryError"


def test_a_write_that_replicas_must_confirm_goes_through_their_gate(tmp_path: Path) -> None:
    make_node(tmp_path / "n1", "n1", None, "lmdb", Config(voters=("n1", "n2"), sync_replicas=1))
    assert run_json("session", "create", tmp_path / "n1", code=3)["error"]["error"] == "NoQuorumError"


# -- many -----------------------------------------------------------------------------------------


@pytest.fixture
def labelled(store: Path) -> Path:
    """Six sessions: groups g0 and g1, tags, home nodes n1 and n9, one critical."""
    with perdure.open(store) as opened:
        for number in range(6):
            opened.put(
                f"s{number}", {"n": number}, group=f"g{number % 2}", home_node="n9" if number > 3 else "n1"
            )
        opened.update("s0", lambda session: session.replace(priority=Priority.CRITICAL, tags=["t"]))
    return store


def test_sessions_are_listed_and_counted_by_label(labelled: Path) -> None:
    def ids(*arguments: str) -> list[str]:
        return [row["id"] for row in run_json("session", "list", labelled, *arguments)["sessions"]]

    assert ids("--group", "g1") == ["s1", "s3", "s5"]
    assert ids("--home-node", "n9") == ["s4", "s5"]
    assert ids("--group", "g0", "--home-node", "n9") == ["s4"]
    assert ids("--tag", "t") == ids("--priority", "critical") == ["s0"]
    assert ids("--priority", "normal", "--after", "s3") == ["s4", "s5"]
    assert run_json("session", "count", labelled, "--group", "g1")["sessions"] == 3
    assert run("session", "count", labelled, "--priority", "normal").stdout == "5\n"


def test_a_sample_is_of_what_is_there_without_repeating(labelled: Path) -> None:
    drawn = [row["id"] for row in run_json("session", "sample", labelled, "-n", "4")["sessions"]]
    assert len(set(drawn)) == 4
    assert set(drawn) <= {f"s{number}" for number in range(6)}
    every = run_json("session", "sample", labelled, "-n", "100", "--long")["sessions"]
    assert sorted(row["metadata"]["n"] for row in every) == list(range(6))


def test_groups_are_listed_shown_counted_and_touched(labelled: Path) -> None:
    assert run_json("group", "list", labelled)["groups"] == [
        {"group": "g0", "sessions": 3},
        {"group": "g1", "sessions": 3},
    ]
    shown = run_json("group", "show", labelled, "g1")["sessions"]
    assert [row["id"] for row in shown] == ["s1", "s3", "s5"]
    assert run_json("group", "show", labelled, "g7", code=1) == {"sessions": []}
    assert run("group", "count", labelled, "g1").stdout == "3\n"
    assert run_json("group", "touch", labelled, "g1")["touched"] == 3


def test_a_group_is_deleted_with_yes_only(labelled: Path) -> None:
    assert run_json("group", "delete", labelled, "g1", code=1)["would_delete"] == 3
    assert run_json("session", "count", labelled)["sessions"] == 6
    said = run_json("group", "delete", labelled, "g1", "--yes")
    assert (said["deleted"], said["is_atomic"]) == (3, True)
    assert run_json("group", "delete", labelled, "g1", "--yes")["deleted"] == 0
    assert run_json("group", "delete", labelled, "g1")["would_delete"] == 0


def test_orphans_are_listed_counted_adopted_and_cleaned_up(labelled: Path) -> None:
    said = run_json("orphans", "list", labelled, "--members", "n1,n2", code=1)
    assert said["orphans"] == [{"id": "s4", "home_node": "n9"}, {"id": "s5", "home_node": "n9"}]
    assert run_json("orphans", "count", labelled, "--members", "n1,n2", code=1) == {"orphans": 2}
    assert run_json("orphans", "count", labelled, "--members", "n1,n9")["orphans"] == 0
    assert run_json("orphans", "cleanup", labelled, "--members", "n1", code=1)["would_delete"] == 2
    assert run("orphans", "adopt", labelled, "--members", "n1", "--by", "n7").exit_code == 2
    assert run_json("orphans", "adopt", labelled, "--members", "n1,n2", "--by", "n2")["adopted"] == 2
    assert run_json("orphans", "list", labelled, "--members", "n1,n2") == {"orphans": []}
    assert run_json("orphans", "cleanup", labelled, "--members", "n1", "--yes")["deleted"] == 2
    assert run_json("session", "count", labelled)["sessions"] == 4


def test_no_members_are_a_usage_error_and_never_all_sessions(labelled: Path) -> None:
    assert run("orphans", "cleanup", labelled, "--members", ",", "--yes").exit_code == 2
    assert run_json("session", "count", labelled)["sessions"] == 6


def test_brackets_and_colons_are_shown_as_they_are(store: Path) -> None:
    metadata = {"roles": "[node] and [/bold]", "mood": ":smile:"}
    run_json("session", "put", store, "a[bold]:key:b", json.dumps(metadata), "--group", "[red]")
    for words in (("get", store, "a[bold]:key:b"), ("list", store)):
        assert "a[bold]:key:b" in run("session", *words).stdout
    shown = run("session", "get", store, "a[bold]:key:b").stdout
    assert all(text in shown for text in ("[node] and [/bold]", ":smile:", "[red]"))
