"""`perdure keys`: a key file made, listed, rotated, and freed of what nothing needs any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import perdure
from perdure.store import SessionStore
from perdure.store.keyring import make_keyring, read_keyring, rotate_keyring
from tests.cli.runner import run, run_json


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    make_keyring(path, "aes-256-gcm", 1)
    return path


@pytest.fixture
def store(tmp_path: Path, file: Path) -> Path:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file) as opened:
        for number in range(5):
            opened.put(f"user-{number}", {"n": number}, None)
    return path


def test_a_key_file_is_made_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    said = run_json("keys", "init", file, "--algorithm", "chacha20-poly1305")
    ring = read_keyring(file)
    assert said["active"] == f"{ring.active:08x}"
    assert ring.active_key.algorithm == said["algorithm"] == "chacha20-poly1305"
    assert run_json("keys", "init", file, code=2)["error"]["error"] == "UsageError"
    assert read_keyring(file) == ring


def test_no_command_shows_a_secret(file: Path, store: Path) -> None:
    shown = [
        run("keys", "list", file).output,
        run("keys", "list", file, store, "--json").output,
        run("keys", "rotate", file).output,
        run("keys", "reseal", file, store, "--json").output,
        run("keys", "retire", file, f"{read_keyring(file).keys[0].id:08x}", store).output,
        run("keys", "hash", file, "user-1").output,
    ]
    ring = read_keyring(file)
    for secret in (ring.id_secret, *(key.secret for key in ring.keys)):
        assert not any(secret in text for text in shown)


def test_a_key_file_that_others_may_read_is_said(file: Path) -> None:
    assert run_json("keys", "list", file)["is_open_to_others"] is False
    file.chmod(0o644)
    assert run_json("keys", "list", file)["is_open_to_others"] is True
    assert "chmod 600" in run("keys", "list", file).output


@pytest.mark.timeout(120)
def test_a_rotation_reseals_the_stores_and_the_old_key_goes_once_nothing_needs_it(
    file: Path, store: Path, tmp_path: Path
) -> None:
    old = f"{read_keyring(file).active:08x}"
    said = run_json("keys", "rotate", file, store)
    assert said["older_keys"] == [old]
    (row,) = said["stores"]
    assert (row["resealed"], row["kept"], row["problem"]) == (5, 5, "")
    listed = {row["key"]: row for row in run_json("keys", "list", file, store)["keys"]}
    assert (listed[old]["sessions"], listed[old]["segments"], listed[old]["is_active"]) == (0, 1, False)
    assert (listed[said["active"]]["sessions"], listed[said["active"]]["is_active"]) == (5, True)

    refused = run_json("keys", "retire", file, old, store, "--yes", code=3)
    assert not refused["is_retired"] and refused["segments"] == 1
    asked = run_json("keys", "retire", file, old, store, "--without-history", code=1)
    assert asked["would_retire"] and not asked["is_retired"]
    assert len(read_keyring(file).keys) == 2
    assert run_json("keys", "retire", file, old, store, "--without-history", "--yes")["is_retired"]
    assert [f"{key.id:08x}" for key in read_keyring(file).keys] == [said["active"]]
    with SessionStore.open(store, keys=file) as opened:
        assert [session.metadata["n"] for session in opened.sessions()] == list(range(5))


def test_a_key_that_an_export_is_sealed_under_is_kept(file: Path, store: Path, tmp_path: Path) -> None:
    old = f"{read_keyring(file).active:08x}"
    rotate_keyring(file, None, 2)
    node = tmp_path / "node"
    with SessionStore.open(node, keys=file) as opened:
        opened.put("new", {}, None)
    export = node / "diverged" / f"{2:020d}-00000001"
    export.mkdir()
    (segment,) = (store / "log").glob("*.seg")
    shutil.copy(segment, export)
    said = run_json("keys", "retire", file, old, node, "--yes", code=3)
    assert (said["exports"], said["segments"], said["is_retired"]) == (1, 0, False)
    assert run_json("keys", "retire", file, old, node, "--yes", "--without-history")["is_retired"]


def test_a_key_that_sessions_are_under_is_never_retired(file: Path, store: Path) -> None:
    old = f"{read_keyring(file).active:08x}"
    assert run_json("keys", "retire", file, old, store, "--yes", code=2)["error"]["error"] == "UsageError"
    rotate_keyring(file, None, 2)
    before = file.read_bytes()
    said = run_json("keys", "retire", file, old, store, "--yes", "--without-history", code=3)
    assert (said["sessions"], said["is_retired"]) == (5, False)
    assert file.read_bytes() == before
    assert run("keys", "retire", file, "zz", store).exit_code == 2


def test_a_rotation_without_resealing_is_gone_on_with(file: Path, store: Path) -> None:
    said = run_json("keys", "rotate", file, store, "--no-reseal")
    assert "stores" not in said
    row = run_json("keys", "reseal", file, store)["stores"][0]
    assert row["resealed"] == 5
    text = run("keys", "reseal", file, store, "--compression", "zstd").output
    assert "0 sessions stored anew, 5 left as they are" in text


def test_a_store_that_cannot_be_resealed_is_said_beside_the_others(
    file: Path, store: Path, tmp_path: Path
) -> None:
    said = run_json("keys", "reseal", file, tmp_path / "none", store, code=5)
    assert [bool(row["problem"]) for row in said["stores"]] == [True, False]


def test_sessions_are_shown_with_the_key_file_or_the_environment(
    file: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = run_json("session", "get", store, "user-1", code=2)
    assert without["error"]["error"] == "KeyMissingError"
    assert "--keys" in without["error"]["hint"]
    assert run_json("session", "get", store, "user-1", "--keys", file)["metadata"] == {"n": 1}
    assert run_json("session", "count", store)["sessions"] == 5
    assert len(run_json("session", "list", store)["sessions"]) == 5
    monkeypatch.setenv("PERDURE_KEYS", str(file))
    assert run_json("session", "get", store, "user-2")["metadata"] == {"n": 2}
    assert len(run_json("session", "list", store, "--long")["sessions"]) == 5


def test_a_hidden_id_is_found_in_the_log_by_its_hash(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "hidden"
    with perdure.open(path, keys=file, hide_ids=True) as store:
        store.put("user-1", {"n": 1}, group="g")
        store.put("user-2", {"n": 2})
    hashed = run("keys", "hash", file, "user-1").output.strip()
    group = run_json("keys", "hash", file, "g", "--of", "group")["hash"]
    dumped = run("log", "dump", path, "--session", hashed, "--json").output.splitlines()
    assert len(dumped) == 1
    assert group in dumped[0]
    assert "user-1" not in dumped[0]
    assert run_json("session", "get", path, "user-1", "--keys", file)["group"] == "g"
    listed = run_json("session", "list", path, "--keys", file)["sessions"]
    assert sorted(row["id"] for row in listed) == ["user-1", "user-2"]
