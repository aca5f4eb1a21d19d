"""Every command as a user meets it: help with an example, results, JSON, exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import perdure
from perdure.cli.app import app, narrowed
from perdure.store import SessionStore, names
from perdure.store.lock import FileLock
from tests.cli.runner import COMMAND, environment, process, run, run_json


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command, those of groups included."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path
        return
    for name, found in inner.items():
        yield from _commands(found, (*path, name))


ALL = sorted(_commands(typer.main.get_command(app)))
EXPECTED = (
    "init node ship receive replay verify migrate repair promote status bench demo "
    "snapshot_create snapshot_list snapshot_prune "
    "keys_init keys_list keys_rotate keys_reseal keys_retire keys_hash "
    "log_dump log_stat retention_explain rejoin diverged_list diverged_show diverged_apply "
    "export import config_show config_check stores "
    "session_create session_get session_put session_update session_touch session_delete session_list "
    "session_count session_sample session_watch group_list group_show group_count group_touch group_delete "
    "orphans_list orphans_count orphans_cleanup orphans_adopt feed_list feed_drop "
    "sync flush ensure-synced transfers transfer wait locate consistency reconcile tls_test-ca "
    "failback failover health member_add member_list member_remove "
    "member_set-policy member_set-sync monitor switchover unmonitor witness"
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A standalone store with a few sessions."""
    place = tmp_path / "store"
    with SessionStore.open(place) as opened:
        for number in range(5):
            opened.put(f"user-{number}", {"n": number})
        opened.put("other", {"n": 99})
        opened.delete("user-4")
    return place


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    """A node that is no primary."""
    place = tmp_path / "n2"
    assert run("init", place, "--node", "n2", "--cluster-id", "ab" * 16).exit_code == 0
    return place


def test_the_commands_are_those_that_are_documented() -> None:
    assert {"_".join(path) for path in ALL} == set(EXPECTED.split())


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_each_command_has_help_with_an_example_and_json(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.stdout
    assert f"perdure {' '.join(path)} " in result.stdout.split("Example:")[1]
    assert "--json" in result.stdout


def test_the_version_is_said() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"perdure {perdure.__version__}\n")


def test_completion_is_installed_for_the_shell(tmp_path: Path) -> None:
    import subprocess

    environ = {**environment(), "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [*COMMAND, "--install-completion", "bash"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "perdure" in written


# -- what they answer -----------------------------------------------------------------------------


def test_init_makes_a_primary_that_takes_writes(tmp_path: Path) -> None:
    said = run_json("init", tmp_path / "n1", "--node", "n1", "--primary", "--backend", "sqlite")
    assert said["is_primary"]
    assert (said["node"], said["backend"], len(said["cluster_id"])) == ("n1", "sqlite", 32)
    with perdure.open(tmp_path / "n1", create=False) as opened:
        assert opened.get(opened.create({"a": 1})) is not None


@pytest.mark.parametrize(("options", "draws"), [((), True), (("--json",), False)])
def test_a_command_with_json_loads_nothing_to_draw_with(
    store: Path, options: tuple[str, ...], draws: bool
) -> None:
    code = "import sys; from perdure.cli.app import main; sys.exit(main())"
    words = [sys.executable, "-X", "importtime", "-c", code, "log", "stat", str(store), *options]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert ("rich" in loaded) is draws


def test_sessions_are_shown_listed_and_counted(store: Path) -> None:
    said = run_json("session", "get", store, "user-3")
    assert said["found"]
    assert said["metadata"] == {"n": 3}
    listed = run_json("session", "list", store, "--prefix", "user-", "--limit", "3")
    assert [row["id"] for row in listed["sessions"]] == ["user-0", "user-1", "user-2"]
    assert listed["next_after"] == "user-2"
    rest = run_json("session", "list", store, "--prefix", "user-", "--after", "user-2", "--long")
    assert [(row["id"], row["metadata"]) for row in rest["sessions"]] == [("user-3", {"n": 3})]
    assert rest["next_after"] is None
    assert run_json("session", "count", store)["sessions"] == 5
    assert run("session", "count", store).stdout == "5\n"
    assert run("session", "list", store).stdout.splitlines()[0] == "other"


def test_a_session_that_is_not_there_is_a_finding(store: Path) -> None:
    assert run_json("session", "get", store, "nobody", code=1) == {"id": "nobody", "found": False}


def test_showing_a_session_does_not_extend_its_life(store: Path) -> None:
    before = run_json("session", "get", store, "user-1")
    assert run_json("session", "get", store, "user-1")["last_accessed"] == before["last_accessed"]


def test_snapshots_are_taken_listed_checked_and_pruned(store: Path) -> None:
    first = run_json("snapshot", "create", store)
    with SessionStore.open(store) as opened:
        opened.put("late", {})
    second = run_json("snapshot", "create", store, "--compress")
    assert second["lsn"] > first["lsn"]
    listed = run_json("snapshot", "list", store, "--check")["snapshots"]
    assert [(row["lsn"], row["level"]) for row in listed] == [(first["lsn"], "ok"), (second["lsn"], "ok")]
    asked = run_json("snapshot", "prune", store, "--keep", "1", code=1)
    assert (asked["removed"], len(asked["would_remove"])) == ([], 1)
    assert Path(first["snapshot"]).exists()
    pruned = run_json("snapshot", "prune", store, "--keep", "1", "--yes")
    assert pruned["kept"] == [Path(second["snapshot"]).name]
    assert not Path(first["snapshot"]).exists()


def test_a_damaged_snapshot_is_listed_as_corrupt(store: Path) -> None:
    path = Path(run_json("snapshot", "create", store)["snapshot"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    listed = run_json("snapshot", "list", store, "--check", code=4)["snapshots"]
    assert listed[0]["level"] == "corrupt"


def test_a_replay_ends_with_the_digest_of_the_source(store: Path, tmp_path: Path) -> None:
    with SessionStore.open(store) as opened:
        stats = opened.stats()
    said = run_json("replay", store, "--into", tmp_path / "copy")
    assert (said["lsn"], said["digest"], said["sessions"]) == (stats["appended_lsn"], stats["digest"], 5)
    assert run_json("session", "count", tmp_path / "copy")["sessions"] == 5


def test_a_replay_to_an_lsn_stops_there(store: Path, tmp_path: Path) -> None:
    said = run_json("replay", store, "--into", tmp_path / "copy", "--to-lsn", "4", "--backend", "sqlite")
    assert (said["lsn"], said["backend"]) == (4, "sqlite")
    assert run_json("session", "count", tmp_path / "copy")["sessions"] == 2


def test_a_log_is_dumped_event_by_event(store: Path) -> None:
    result = run("log", "dump", store, "--session", "user-4", "--json")
    assert result.exit_code == 0
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(event["kind"], event["key"]) for event in events] == [("put", "user-4"), ("delete", "user-4")]
    assert "user-4" in run("log", "dump", store).stdout


def test_a_log_says_how_it_is_made_up(store: Path) -> None:
    said = run_json("log", "stat", store)
    with SessionStore.open(store) as opened:
        stats = opened.stats()
    assert (said["end"]["lsn"], said["digest"], said["sessions"]) == (
        stats["appended_lsn"],
        stats["digest"],
        5,
    )
    assert len(said["segments"]) == 1


def test_verify_streams_findings_and_a_summary(store: Path) -> None:
    result = run("verify", store, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[-1]["code"] == result.exit_code == 0, lines
    assert {"level", "kind", "message"} <= set(lines[0])


def test_status_says_role_sessions_and_marks(store: Path) -> None:
    said = run_json("status", store)
    assert (said["role"], said["sessions"], said["problem"]) == ("primary", 5, "")
    assert said["appended_lsn"] >= said["folded_lsn"] > 0
    assert said["replicas"] == said["peers"] == []


def test_status_of_a_primary_without_its_replicas_is_code_1_and_says_why(tmp_path: Path) -> None:
    place = tmp_path / "n1"
    run_json(
        "init", place, "--node", "n1", "--primary", "--voter", "n1", "--voter", "n2", "--sync-replicas", 1
    )
    assert run_json("status", place, code=1)["problem"].startswith("0 of the 1 replica(s)")


def test_status_of_a_store_that_cannot_be_opened_has_the_same_keys(store: Path) -> None:
    keys = list(run_json("status", store))
    (store / names.USERS_LOCK).unlink()
    (store / names.USERS_LOCK).mkdir()
    said = run_json("status", store, code=5)
    assert said["problem"]
    assert said["sessions"] is None
    assert list(said) == keys


def test_retention_is_explained(store: Path) -> None:
    said = run_json("retention", "explain", store)
    assert said["segments"]


def test_bench_puts_each_figure_beside_its_limit(tmp_path: Path) -> None:
    said = run_json("bench", "--dir", tmp_path, "--seconds", "0.05")
    figures = {figure["name"]: figure for figure in said["figures"]}
    assert all(figure["per_s"] > 0 for figure in figures.values())
    disk = figures["create, durability disk"]
    assert disk["limit_per_s"] == figures[disk["limit"]]["per_s"]
    assert list(tmp_path.iterdir()) == []


# -- exit codes -----------------------------------------------------------------------------------

READING = (
    ("session", "count"),
    ("snapshot", "create"),
    ("snapshot", "list"),
    ("verify",),
    ("status",),
    ("log", "stat"),
    ("log", "dump"),
    ("retention", "explain"),
)


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_directory_that_is_missing_is_code_5_and_stays_missing(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    place = tmp_path / "nowhere"
    error = run_json(*command, place, code=5)["error"]
    assert error["error"] == "StoreMissingError"
    assert error["hint"]
    assert not place.exists()


def test_a_directory_of_somebody_else_is_code_4_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("private")
    error = run_json("init", tmp_path, "--node", "n1", "--primary", code=4)["error"]
    assert error["error"] == "ForeignError"
    assert "letter.txt" in error["message"]
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_a_second_init_is_refused(replica: Path) -> None:
    error = run_json("init", replica, "--node", "n2", "--cluster-id", "ab" * 16, code=2)["error"]
    assert error["error"] == "UsageError"
    assert "a store already, of node n2" in error["message"]
    assert "perdure status" in error["hint"]


def test_a_second_init_of_a_witness_is_refused_as_usage(tmp_path: Path) -> None:
    words = ("init", tmp_path / "w", "--node", "w", "--witness-of", "ab" * 16)
    run_json(*words)
    assert "perdure witness" in run_json(*words, code=2)["error"]["hint"]


def test_a_promotion_of_a_node_that_does_not_run_says_how_to_start_it(tmp_path: Path) -> None:
    voters = [word for name in ("n1", "n2") for word in ("--voter", name)]
    run_json("init", tmp_path / "n1", "--node", "n1", "--primary", *voters)
    alone = ("promote", tmp_path / "n1", "--alone", "--accept-data-loss")
    said = run_json(*alone)
    assert said["is_running"] is False
    assert f"perdure node {tmp_path / 'n1'}" in said["hint"]
    assert "perdure node" in run(*alone).stderr
    receiver = FileLock(tmp_path / "n1" / names.RECEIVER_LOCK)
    receiver.acquire(1000)
    try:
        said = run_json(*alone)
    finally:
        receiver.close()
    assert said["is_running"] is True
    assert "hint" not in said


def test_shipping_from_a_node_that_is_no_primary_is_code_3(replica: Path) -> None:
    error = run_json("ship", replica, "--replica", "n3=127.0.0.1:9", code=3)["error"]
    assert error["error"] == "NotPrimaryError"


def test_a_promotion_of_a_node_without_a_log_is_code_3(replica: Path) -> None:
    error = run_json("promote", replica, code=3)["error"]
    assert error["error"] == "PromotionRefusedError"
    assert "n2 has no log" in error["message"]


def test_a_promotion_of_the_primary_says_that_it_was(tmp_path: Path) -> None:
    place = tmp_path / "n1"
    voters = ("--voter", "n1", "--voter", "n2", "--voter", "n3")
    run_json("init", place, "--node", "n1", "--primary", *voters, "--sync-replicas", "1")
    with SessionStore.open(place) as opened:
        stats = opened.stats()
    assert stats["is_primary"]
    said = run_json("promote", place)
    assert said["was_primary"]


def test_a_damaged_log_is_code_4_and_named(store: Path) -> None:
    segment = next((store / names.LOG).glob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0x10
    segment.write_bytes(data)
    result = run("verify", store)
    assert result.exit_code == 4
    assert "corrupt" in result.stdout
    said = run_json("log", "stat", store, code=4)
    assert said["segments"][0]["problem"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("init",),
        ("init", "/nowhere/at/all", "--node", "N 1"),
        ("init", "/nowhere/at/all", "--node", "n1"),
        ("init", "/nowhere/at/all", "--node", "n1", "--cluster-id", "ab" * 16, "--voter", "n1"),
        ("init", "/nowhere/at/all", "--node", "n1", "--primary", "--voter", "n2"),
        ("init", "/nowhere/at/all", "--node", "n1", "--primary", "--sync-replicas", "1"),
        ("init", "/nowhere/at/all", "--node", "n1", "--cluster-id", "abc"),
        ("receive", "/nowhere/at/all", "--listen", "7001"),
        ("node", "/nowhere/at/all", "--listen", "0.0.0.0:7001"),
        ("bench", "--dir", "/nowhere/at/all"),
        ("retention", "explain", "/nowhere/at/all", "--log-hours", "inf"),
        ("session", "list", "/nowhere/at/all", "--limit", "9" * 20),
        ("log", "dump", "/nowhere/at/all", "--session", "\udcff"),
        ("replay", "/nowhere/at/all", "--into", "/nowhere/else", "--to-lsn", "9" * 20),
        ("replay", "/nowhere/at/all", "--into", "/nowhere/else", "--to-time", "9" * 30),
        ("replay", "/nowhere/at/all", "--into", "/nowhere/else", "--to-time", "noon"),
        ("demo", "--sync-replicas", "3"),
        ("demo", "--access-log", "x.log", "--sessions", "5"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_code_2_and_does_nothing(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert not Path("/nowhere").exists()


def test_a_command_line_that_cannot_be_parsed_is_json_too() -> None:
    import subprocess

    words = [*COMMAND, "session", "list", "/nowhere/at/all", "--limit", "many", "--json"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["error"], error["code"]) == (2, "UsageError", 2)
    assert "--limit" in error["message"]
    assert done.stderr == ""


def test_a_second_receiver_of_a_node_is_code_3(replica: Path) -> None:
    with open(replica / names.RECEIVER_LOCK, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for command in ("receive", "node"):
            error = run_json(command, replica, "--listen", "127.0.0.1:0", code=3)["error"]
            assert (error["error"], error["path"]) == ("StoreInUseError", str(replica / names.RECEIVER_LOCK))


def test_a_replay_into_a_directory_that_is_not_empty_is_code_2(store: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    run_json("replay", store, "--into", tmp_path / "full", code=2)


def test_a_reader_that_goes_away_is_no_error_to_read_about(store: Path) -> None:
    import subprocess

    with SessionStore.open(store) as opened, opened.batch() as batch:
        for number in range(20_000):
            batch.put(f"many-{number:06}", {})
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -n 1', "sh", *COMMAND, "session", "list", str(store), "--limit", "20000"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "many-000000\n"
    assert done.stderr == ""


# -- events ----------------------------------------------------------------------------------------


def _watched(*arguments: object) -> list[dict[str, Any]]:
    result = run("session", "watch", *arguments, "--no-follow", "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_watch_shows_committed_events_from_an_lsn_on_by_kind_and_up_to_a_limit(store: Path) -> None:
    events = _watched(store, "--from", 0)
    assert [event["id"] for event in events] == [*(f"user-{n}" for n in range(5)), "other", "user-4"]
    assert events[0]["session"]["metadata"] == {"n": 0}
    assert _watched(store, "--from", events[3]["lsn"]) == events[3:]
    assert _watched(store, "--from", events[3]["position"]) == events[4:]
    assert _watched(store, "--from", 0, "--kind", "deleted", "--kind", "touched") == events[-1:]
    assert _watched(store, "--from", 0, "--limit", 2) == events[:2]
    assert _watched(store) == []
    line = run("session", "watch", store, "--from", events[-1]["lsn"], "--no-follow").stdout.split()
    assert line == [str(events[-1]["lsn"]), "deleted", "deleted", "user-4"]


def test_watch_as_a_consumer_goes_on_behind_what_it_has_shown(store: Path) -> None:
    first = _watched(store, "--from", 0, "--consumer", "c", "--limit", 3)
    rest = _watched(store, "--consumer", "c")
    assert first + rest == _watched(store, "--from", 0)
    (consumer,) = run_json("feed", "list", store)["consumers"]
    assert (consumer["name"], consumer["lag_events"], consumer["is_active"]) == ("c", 0, False)
    assert run_json("feed", "drop", store, "c") == {"name": "c", "dropped": True}
    assert run_json("feed", "drop", store, "c", code=1) == {"name": "c", "dropped": False}
    assert run_json("feed", "list", store) == {"consumers": []}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--from", "x"), 2),
        (("--from", "1000"), 5),
        (("--from", "1:4:0000000000000000"), 4),
        (("--consumer", "NO"), 2),
        (("--kind", "gone"), 2),
    ],
)
def test_watch_says_what_is_wrong_with_its_arguments(
    store: Path, arguments: tuple[str, ...], code: int
) -> None:
    assert run("session", "watch", store, "--no-follow", *arguments).exit_code == code


def test_watch_shows_each_event_as_it_comes_until_it_is_interrupted(store: Path) -> None:
    with process("session", "watch", store, "--from", 0, "--json") as watching:
        assert watching.stdout is not None
        for _ in range(7):
            json.loads(watching.stdout.readline())
        with SessionStore.open(store) as opened:
            opened.put("late", {"n": 1})
        assert json.loads(watching.stdout.readline())["id"] == "late"
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()
        assert watching.wait(20) == 130


@pytest.mark.parametrize(
    ("words", "commands", "groups"),
    [
        (["status", "/srv/n1"], 1, 0),
        (["--config", "status", "keys", "list"], 0, 1),
        (["--config=promote", "--allow-plain", "import"], 1, 0),
        (["ensure-synced", "/srv/n1"], 1, 0),
    ],
)
def test_a_command_line_makes_only_the_command_that_it_names(
    words: list[str], commands: int, groups: int
) -> None:
    made = narrowed(words)
    assert (len(made.registered_commands), len(made.registered_groups)) == (commands, groups)


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["-h", "status"], ["--config"], ["--config", "x"], ["stat"]]
)
def test_a_command_line_that_names_no_command_has_them_all(words: list[str]) -> None:
    assert narrowed(words) is app
