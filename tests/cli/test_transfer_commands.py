"""`perdure export` and `perdure import`: files, pipes, conflicts, and death in the middle."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import perdure
from perdure.cli.app import app
from perdure.store import SessionStore, import_sessions
from perdure.store.session import stored_bytes
from tests.cli.runner import COMMAND, environment, process, run, run_json

SESSIONS = 30_000
ATTEMPTS = 4


def stored(path: Path) -> dict[str, bytes]:
    with SessionStore.open(path, create=False) as store:
        return {session.id: stored_bytes(session) for session in store.sessions()}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a few sessions."""
    with perdure.open(tmp_path / "store") as opened:
        for number in range(5):
            opened.put(f"user-{number}", {"n": number, "b": b"\x00"}, group=f"g{number % 2}")
    return tmp_path / "store"


def test_an_export_imported_elsewhere_is_the_same(store: Path, tmp_path: Path) -> None:
    said = run_json("export", store, tmp_path / "x.jsonl")
    assert (said["sessions"], said["expired"]) == (5, 0)
    assert run_json("status", store)["digest"] == said["digest"]
    perdure.open(tmp_path / "copy", backend="sqlite").close()
    report = run_json("import", tmp_path / "copy", tmp_path / "x.jsonl")
    assert (report["imported"], report["digest"]) == (5, said["digest"])
    assert stored(tmp_path / "copy") == stored(store)
    assert run_json("import", tmp_path / "copy", tmp_path / "x.jsonl")["unchanged"] == 5


def test_an_export_goes_through_a_pipe_into_an_import(store: Path, tmp_path: Path) -> None:
    perdure.open(tmp_path / "copy").close()
    first = subprocess.Popen(
        [*COMMAND, "export", str(store), "--group", "g1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    second = subprocess.run(
        [*COMMAND, "import", str(tmp_path / "copy"), "-", "--json"],
        stdin=first.stdout,
        capture_output=True,
        env=environment(),
        check=False,
    )
    _, told = first.communicate()
    assert first.returncode == second.returncode == 0, (told, second.stderr)
    assert json.loads(told)["sessions"] == json.loads(second.stdout)["imported"] == 2
    assert sorted(stored(tmp_path / "copy")) == ["user-1", "user-3"]


def test_standard_output_holds_the_lines_and_nothing_else(store: Path) -> None:
    result = run("export", store, "--prefix", "user-4")
    lines = result.stdout.splitlines()
    assert [json.loads(line).get("id") for line in lines] == [None, "user-4", None]
    assert "1 sessions at LSN" in result.stderr


def test_a_file_that_is_there_is_replaced_with_yes_only(store: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("dear")
    assert run_json("export", store, tmp_path / "x.jsonl", code=2)["error"]["path"] == str(
        tmp_path / "x.jsonl"
    )
    assert (tmp_path / "x.jsonl").read_text() == "dear"
    assert run("export", store, tmp_path / "x.jsonl", "--yes").exit_code == 0
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "x.jsonl"]


def test_an_export_into_no_directory_is_an_error_and_leaves_nothing(store: Path, tmp_path: Path) -> None:
    assert run_json("export", store, tmp_path / "none" / "x.jsonl", code=5)["error"]["path"]
    assert not (tmp_path / "none").exists()


def test_conflicts_are_dealt_with_as_asked(store: Path, tmp_path: Path) -> None:
    run("export", store, tmp_path / "x.jsonl")
    run("session", "put", store, "user-0", '{"mine": 1}')
    said = run_json("import", store, tmp_path / "x.jsonl", "--on-conflict", "fail", code=1)
    assert said["error"]["error"] == "VersionConflictError"
    assert run_json("import", store, tmp_path / "x.jsonl")["skipped"] == 1
    assert run_json("import", store, tmp_path / "x.jsonl", "--on-conflict", "replace")["replaced"] == 1
    assert run_json("session", "get", store, "user-0")["metadata"]["n"] == 0
    assert run("import", store, tmp_path / "x.jsonl", "--on-conflict", "merge").exit_code == 2


def test_a_bad_line_is_told_with_file_and_line_and_nothing_is_written(store: Path, tmp_path: Path) -> None:
    run("export", store, tmp_path / "x.jsonl")
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    lines[3] = '{"id": "x"}'
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    perdure.open(tmp_path / "copy").close()
    said = run_json("import", tmp_path / "copy", tmp_path / "x.jsonl", code=2)["error"]
    assert "line 4" in said["message"]
    assert said["path"] == str(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text("\n".join(lines[:3]))
    assert run_json("import", tmp_path / "copy", tmp_path / "x.jsonl", code=4)["error"]["hint"]
    assert run_json("session", "count", tmp_path / "copy")["sessions"] == 0


def test_an_import_from_a_file_that_is_not_there_is_an_error(store: Path, tmp_path: Path) -> None:
    assert run_json("import", store, tmp_path / "none", code=5)["error"]["path"] == str(tmp_path / "none")


def test_an_import_from_standard_input_in_this_process(store: Path, tmp_path: Path) -> None:
    lines = run("export", store).stdout
    perdure.open(tmp_path / "copy").close()
    arguments = ["import", str(tmp_path / "copy"), "-", "--json"]
    result = CliRunner().invoke(app, arguments, input=lines, catch_exceptions=False)
    assert json.loads(result.stdout)["imported"] == 5


def test_an_import_that_is_killed_and_run_again_ends_as_one_that_was_not(tmp_path: Path) -> None:
    with perdure.open(tmp_path / "source") as source:
        import_sessions(source, ({"id": f"user-{n}", "metadata": {"n": n}} for n in range(SESSIONS)))
    said = run_json("export", tmp_path / "source", tmp_path / "x.jsonl")
    partial: list[int] = []
    for attempt in range(ATTEMPTS):  # one of them may end before it is killed, where that comes late
        copy = tmp_path / f"copy {attempt}"
        perdure.open(copy).close()
        partial = [_kill_an_import(copy, tmp_path / "x.jsonl", above=floor) for floor in (0, 6000, 12_000)]
        if all(0 < count < SESSIONS for count in partial):
            break
    else:
        pytest.fail(f"no import was killed half way: {partial}")
    report = run_json("import", copy, tmp_path / "x.jsonl")
    assert report["unchanged"] >= partial[-1] > 0
    assert report["imported"] + report["unchanged"] == SESSIONS
    assert report["skipped"] == report["replaced"] == 0
    assert run_json("status", copy)["digest"] == said["digest"] == report["digest"]
    assert stored(copy) == stored(tmp_path / "source")
    assert run("verify", copy, "--level", "replay").exit_code == 0


def _kill_an_import(directory: Path, file: Path, *, above: int) -> int:
    """Kill an import once the store has more than `above` sessions; answers how many it had left behind."""
    running = process("import", directory, file)
    deadline = time.monotonic() + 60
    with SessionStore.open(directory, create=False) as store:
        while store.count() <= above and running.poll() is None:
            assert time.monotonic() < deadline
        running.kill()
        running.communicate()
        return store.count()


def test_the_lines_are_read_by_any_json_tool(store: Path) -> None:
    result = run("export", store)
    rows = [json.loads(line) for line in io.StringIO(result.stdout)]
    assert [row["metadata"] for row in rows[1:-1]] == [{"n": n, "b": {"$bytes": "AA=="}} for n in range(5)]


def test_an_export_never_takes_the_place_of_a_device_or_a_pipe(store: Path, tmp_path: Path) -> None:
    """A rename would: as root even that of /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    said = run_json("export", str(store), str(pipe), "--yes", code=2)
    assert said["error"]["path"] == str(pipe)
    assert pipe.is_fifo()


def test_a_file_that_is_cut_in_the_middle_of_a_line_is_damaged(store: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run_json("export", str(store), str(whole))
    for left_out in (5, whole.read_bytes().count(b"") // 2):
        cut.write_bytes(whole.read_bytes()[:-left_out])
        with SessionStore.open(tmp_path / "new"):
            pass
        said = run_json("import", str(tmp_path / "new"), str(cut), code=4)
        assert "breaks off" in said["error"]["message"]
