"""`perdure migrate` and `perdure repair`, as users run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.store import SessionStore, names
from perdure.store.cursor import list_segments
from tests.cli.runner import run, run_json


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "n1"
    with SessionStore.open(path) as opened:
        for number in range(20):
            opened.put(f"user-{number}", {"n": number})
    return path


def test_a_state_is_moved_shown_moved_back_and_dropped(store: Path) -> None:
    said = run_json("migrate", store, "--to-backend", "sqlite")
    assert (said["from_backend"], said["to_backend"], said["sessions"]) == ("lmdb", "sqlite", 20)
    status = run_json("migrate", store, "--status")
    assert (status["backend"], status["phase"], status["kept_backend"]) == ("sqlite", "", "lmdb")
    assert run_json("migrate", store, "--back")["to_backend"] == "lmdb"
    would = run_json("migrate", store, "--drop", code=1)
    assert would["would_free_bytes"] > 0
    assert (store / names.STATE_PREVIOUS).exists()
    assert run_json("migrate", store, "--drop", "--yes")["freed_bytes"] == would["would_free_bytes"]
    assert not (store / names.STATE_PREVIOUS).exists()
    assert run_json("migrate", store, "--drop", code=0)["would_free_bytes"] == 0
    assert run_json("migrate", store, "--abort") == {"was_under_way": False}
    assert run_json("session", "count", store)["sessions"] == 20


@pytest.mark.parametrize("options", [(), ("--back", "--drop"), ("--to-backend", "sqlite", "--abort")])
def test_exactly_one_thing_is_asked_for(options: tuple[str, ...], store: Path) -> None:
    said = run_json("migrate", store, *options, code=2)
    assert "give one of" in said["error"]["message"]


def test_an_unknown_back_end_is_a_usage_error_with_the_nearest_name(store: Path) -> None:
    said = run_json("migrate", store, "--to-backend", "sqllite", code=2)
    assert "'sqlite'" in said["error"]["hint"]


def test_a_right_state_is_left_alone_and_a_damaged_one_made_anew(store: Path) -> None:
    said = run_json("repair", store)
    assert (said["is_repaired"], said["findings"]) == (False, [])
    file = store / names.STATE / "lmdb" / "data.mdb"
    with file.open("r+b") as opened:
        data = opened.read(4 << 20)
        for number in range(20):
            at = data.find(b"user-%d" % number)
            while at >= 0:
                opened.seek(at + 60)
                byte = opened.read(1)[0]
                opened.seek(at + 60)
                opened.write(bytes([byte ^ 1]))
                at = data.find(b"user-%d" % number, at + 1)
    assert run_json("repair", store, "--check", code=4)["findings"]
    said = run_json("repair", store)
    assert (said["is_repaired"], said["sessions"]) == (True, 20)
    assert Path(said["aside"]).is_dir()
    assert run("repair", store, "--check").exit_code == 0
    assert run_json("repair", store, "--unchecked")["is_repaired"]
    assert run_json("repair", store, "--unchecked", "--check", code=2)


def test_a_damaged_log_is_said_and_nothing_is_changed(store: Path) -> None:
    segment = list_segments(store / names.LOG)[0].path
    data = bytearray(segment.read_bytes())
    data[600] ^= 1
    segment.write_bytes(data)
    inode = (store / names.STATE).stat().st_ino
    said = run_json("repair", store, "--unchecked", code=4)
    assert said["error"]["path"] == str(segment)
    assert run_json("repair", store, "--check", code=4)["findings"]
    assert (store / names.STATE).stat().st_ino == inode
