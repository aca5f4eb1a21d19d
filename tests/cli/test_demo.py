"""The demo as a user runs it: real processes, a real kill -9, and a report that holds."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runner import process

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("demo"),  # each of them uses every core there is
]

ACCESS_LOG = Path(__file__).parent.parent / "data" / "small_access.log"
DEMO_S_MAX = 380.0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where demos make their directories; nothing may be left there, and no process of them."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
    assert _processes_of(folder) == []


def _processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that name a directory, once those that are ending have had time."""
    end = time.monotonic() + 60.0
    while True:
        found: list[str] = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if str(folder).encode() in command:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def _demo(*arguments: object) -> tuple[int, dict[str, Any]]:
    with process("demo", *arguments, "--json") as demo:
        try:
            out, err = demo.communicate(timeout=DEMO_S_MAX)
        except BaseException:
            demo.send_signal(signal.SIGINT)
            raise
    assert "Traceback" not in err, err
    assert out, err
    return demo.returncode, json.loads(out)


def test_a_synchronous_cluster_loses_nothing(place: Path, seed: int) -> None:
    code, report = _demo("--sessions", 300, "--writers", 2, "--seconds", 1.5, "--seed", seed)
    assert (code, report["lost"], report["phantom"], report["unknown"] <= 2) == (0, 0, 0, True), report
    assert report["digests_agree"] and report["is_proven"]
    assert report["acknowledged_at_end"] > report["acknowledged"] > 300
    assert report["sessions"] > 0
    assert report["failover_ms"] > 0
    assert report["replay_ms"] >= 0
    assert report["killed_processes"] == 3
    assert report["replayed"]["base"].endswith(".snap")
    assert report["seed"] == seed


def test_an_access_log_gives_what_the_log_alone_implies(place: Path) -> None:
    arguments = ("--access-log", ACCESS_LOG, "--writers", 2, "--backend", "sqlite", "--seed", 1)
    code, report = _demo(*arguments)
    assert code == 0, report
    assert (report["lost"], report["phantom"], report["mismatches"]) == (0, 0, 0)
    # Counted by hand from tests/data/small_access.log.
    assert (report["expected_sessions"], report["expected_hits"], report["expected_expirations"]) == (8, 8, 5)
    assert (report["measured_sessions"], report["measured_hits"], report["measured_expirations"]) == (8, 8, 5)
    assert report["log_agrees"]
    assert report["malformed_lines"] == 2


@pytest.mark.lab
def test_a_cluster_with_its_state_in_memory_loses_nothing(place: Path, seed: int) -> None:
    arguments = ("--sessions", 200, "--writers", 2, "--seconds", 1, "--backend", "memory", "--seed", seed)
    code, report = _demo(*arguments)
    assert (code, report["lost"], report["phantom"]) == (0, 0, 0), report
    assert report["digests_agree"] and report["is_proven"]


def test_an_asynchronous_cluster_says_honestly_what_was_lost(place: Path, seed: int) -> None:
    code, report = _demo(
        "--sessions", 200, "--writers", 2, "--seconds", 0.5, "--sync-replicas", 0, "--seed", seed
    )
    assert report["digests_agree"]
    assert report["holes"] == 0
    assert code == (0 if report["lost"] == report["phantom"] == 0 else 1)
    assert report["at_risk"]


def test_interrupted_it_leaves_neither_process_nor_directory(place: Path) -> None:
    with process("demo", "--sessions", 100, "--writers", 2) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "app processes write" in line:
                break
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=90)
    assert demo.returncode == 130
    assert "Traceback" not in err


def test_killed_it_leaves_no_process(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with process("demo", "--sessions", 100, "--writers", 2, "--keep", kept) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "app processes write" in line:
                break
        os.kill(demo.pid, signal.SIGKILL)
        demo.communicate(timeout=90)
    assert _processes_of(kept) == []


def test_a_log_that_cannot_be_read_is_an_error_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.log"
    empty.write_text("nothing\n")
    code, report = _demo("--access-log", empty)
    assert (code, report["error"]["error"]) == (4, "AccessLogError")
    code, report = _demo("--access-log", tmp_path / "nowhere.log")
    assert (code, report["error"]["error"]) == (5, "StorageError")


def test_a_directory_that_is_not_empty_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    code, report = _demo("--keep", tmp_path)
    assert (code, report["error"]["error"]) == (2, "UsageError")
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]


def test_nodes_that_are_killed_and_come_back_lose_nothing(place: Path) -> None:
    code, report = _demo("--nodes", 3, "--coordinator", "manual", "--failovers", 1, "--seed", 7)
    assert (code, report["lost"], report["phantom"], report["false_elections"]) == (0, 0, 0, 0)
    assert report["digests_agree"]
    assert report["linearizable"]
    assert report["acknowledged"] > 1000
    (failover,) = report["failovers"]
    assert failover["node"] == "n1"
    assert failover["taken_by"] in {"n2", "n3"}
    assert 0 < failover["detection_ms"] + failover["promotion_ms"] <= failover["write_gap_ms"]


def test_failovers_and_an_access_log_exclude_each_other(place: Path) -> None:
    code, report = _demo("--failovers", 1, "--access-log", ACCESS_LOG)
    assert (code, report["error"]["error"]) == (2, "UsageError")
