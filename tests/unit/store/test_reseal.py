"""Resealing: rotation while others write, what a change meanwhile means, and going on after a kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import Level, key_use, verify
from perdure.store import KeyMissingError, SessionStore
from perdure.store.keyring import (
    ALGORITHMS,
    change_keyring,
    make_keyring,
    read_keyring,
    rotate_keyring,
    without_key,
)
from perdure.store.reseal import BATCH_SESSIONS, keys_in_use
from perdure.store.sealed import is_sealed
from perdure.store.session import with_accessed
from tests.support.machine import stop_background
from tests.unit.store.reseal_process import child

DEADLINE_S = 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    make_keyring(path, ALGORITHMS[0], 1)
    return path


def rotate(file: Path) -> int:
    """A new active key that was made long ago, so that nobody has to be waited for."""
    return rotate_keyring(file, None, 2).active


def test_a_resealed_session_keeps_all_but_its_key(tmp_path: Path, file: Path) -> None:
    with SessionStore.open(tmp_path / "store", keys=file) as store:
        store.put("a", {"n": 1}, group="g", tags=["t"])
        store.patch("a", {"n": 2})
        store.put("never", {}, None)
        before = {id: store.peek(id) for id in ("a", "never")}
        active = rotate(file)
        done = store.reseal()
        assert (done.resealed, done.kept) == (2, 2)
        assert {id: store.peek(id) for id in before} == before
        assert keys_in_use(store._view) == {active: 2}
        assert store.reseal().resealed == 0
        assert store.patch("a", {"n": 3}).version == 3


def test_plain_sessions_become_sealed_and_compressed_as_the_options_say(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    metadata = {"text": "word " * 500}
    with SessionStore.open(path) as store:
        for number in range(10):
            store.put(f"user-{number}", metadata | {"n": number})
        plain = {session.id: session for session in store.sessions()}
    steps: tuple[tuple[dict[str, Any], int, bool, int], ...] = (
        ({"compression": "zstd"}, 1, False, 10),
        ({"compression": "zstd"}, 1, False, 0),
        ({"keys": file, "compression": "zstd"}, 3, True, 10),
        ({"keys": file}, 2, True, 10),
    )
    for options, flags, sealed, resealed in steps:
        with SessionStore.open(path, **options) as store:
            assert store.reseal().resealed == resealed
            for id, session in plain.items():
                stored = store._view.read(id.encode())
                assert stored is not None
                assert (stored[9], is_sealed(stored[8:])) == (flags, sealed)
                assert store.peek(id) == session


def test_a_rotation_without_recompressing_leaves_the_form_as_it_is(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file, compression="zstd") as store:
        store.put("small", {"n": 1})
        store.put("large", {"text": "word " * 500})
    with SessionStore.open(path) as store:
        store.put("plain", {"text": "word " * 500})
    active = rotate(file)
    with SessionStore.open(path, keys=file) as store:
        assert store.reseal(recompress=False).resealed == 3
        flags = {id: (store._view.read(id.encode()) or b"")[9] for id in ("small", "large", "plain")}
        assert flags == {"small": 2, "large": 3, "plain": 2}
        assert keys_in_use(store._view) == {active: 3}
        assert store["large"].metadata == store["plain"].metadata == {"text": "word " * 500}


def test_a_session_that_is_changed_meanwhile_is_left_to_the_next_pass(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file) as store, SessionStore.open(path, keys=file) as other:
        stop_background(other)  # it would notice the new key and write with it
        for id in ("changed", "deleted", "moved", "still", "touched"):
            store.put(id, {"n": 1}, None)
        active = rotate(file)
        moved: list[str] = []
        original = store._sealer.resealed

        def resealed(key: bytes, stored: bytes, *, recompress: bool) -> bytes | None:
            new = original(key, stored, recompress=recompress)
            if key == b"still" and not moved:  # the others were read before
                moved.append(other.regenerate_id("moved"))
                other.patch("changed", {"n": 2})
                other.delete("deleted")
                other.touch("touched")
            return new

        monkeypatch.setattr(store._sealer, "resealed", resealed)
        done = store.reseal()
        assert done.passes == 3  # one that missed some, one that did those, one that found nothing
        assert store["changed"].metadata == {"n": 2}
        assert store["changed"].version == 2
        assert store.peek("deleted") is None
        assert store.peek("moved") is None
        assert store[moved[0]].metadata == {"n": 1}
        assert keys_in_use(store._view) == {active: 4}


def test_a_touch_meanwhile_is_kept(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SessionStore.open(tmp_path / "store", keys=file) as store:
        store.put("a", {"n": 1}, 1_000_000, sliding=True)
        rotate(file)
        original = store._sealer.resealed

        def resealed(key: bytes, stored: bytes, *, recompress: bool) -> bytes | None:
            older = with_accessed(stored, bytes(8))  # as if it was touched since it was read
            return original(key, older, recompress=recompress)

        before = store.peek("a")
        monkeypatch.setattr(store._sealer, "resealed", resealed)
        assert store.reseal().resealed == 1
        assert store.peek("a") == before


def test_a_rotated_key_file_is_noticed_by_an_open_store(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file) as store, SessionStore.open(path, keys=file) as other:
        store.put("a", {"n": 1})
        new = rotate(file)
        with SessionStore.open(path, keys=file) as third:
            third.put("b", {"n": 2})
        assert other["b"].metadata == {"n": 2}  # by the unknown id
        end = time.monotonic() + DEADLINE_S
        while store._sealer.keys is not None and store._sealer.keys.ring.active != new:  # by looking
            assert time.monotonic() < end
            time.sleep(0.02)
        store.put("c", {"n": 3})
        assert keys_in_use(store._view)[new] == 2


def test_a_damaged_key_file_is_reported_and_the_store_goes_on(tmp_path: Path, file: Path) -> None:
    with SessionStore.open(tmp_path / "store", keys=file) as store:
        good = file.read_bytes()
        file.write_bytes(good[:50])
        end = time.monotonic() + DEADLINE_S
        while store.stats()["background_error"] is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert store.put("a", {"n": 1}).version == 1
        assert store["a"].metadata == {"n": 1}
        file.write_bytes(good)


def test_sessions_whose_key_is_lost_are_said_after_all_others_are_done(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    lost = read_keyring(file).active
    with SessionStore.open(path, keys=file) as store:
        store.put("a", {"n": 1})
    middle = rotate(file)
    with SessionStore.open(path, keys=file) as store:
        store.put("b", {"n": 2})
    active = rotate(file)
    change_keyring(file, lambda ring: without_key(ring, lost))
    with SessionStore.open(path, keys=file) as store:
        with pytest.raises(KeyMissingError, match="1 sessions") as caught:
            store.reseal()
        assert caught.value.key_id == lost
        assert keys_in_use(store._view) == {lost: 1, active: 1}
    assert middle != active


@pytest.mark.timeout(150)
def test_two_processes_write_through_a_rotation_and_all_sessions_end_under_the_new_key(
    tmp_path: Path, file: Path
) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file) as store:
        for number in range(600):
            store.put(f"user-{number}", {"n": number}, None)
        with child("write", path, file) as one, child("write", path, file) as two:
            for writer in (one, two):
                assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
            active = 0
            for _ in range(2):
                active = rotate_keyring(file, None, time.time_ns() // 1_000_000).active
                done = store.reseal()
                assert done.resealed >= 600
            for writer in (one, two):
                said, errors = writer.communicate("stop\n", timeout=DEADLINE_S)
                assert writer.returncode == 0, errors
                assert int(said) > 20
        used = keys_in_use(store._view)
        assert set(used) == {active}
        assert used[active] == store.count() >= 650
        assert all(session.metadata["n"] >= 0 for session in store.sessions())
    assert all(finding.level is Level.OK for finding in verify(path))


@pytest.mark.timeout(150)
def test_a_rotation_that_is_killed_goes_on_where_it_was(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    count = 12 * BATCH_SESSIONS
    old = read_keyring(file).active
    with SessionStore.open(path, keys=file) as store:
        with store.batch() as batch:
            for number in range(count):
                batch.put(f"user-{number}", {"n": number}, None)
        digest = {session.id: session.metadata for session in store.sessions()}
    active = rotate(file)
    with child("reseal", path, file) as resealing:
        assert resealing.stdout is not None and resealing.stdin is not None
        for _ in range(2):
            assert resealing.stdout.readline()
            print(file=resealing.stdin, flush=True)
        assert resealing.stdout.readline()
        resealing.kill()
        resealing.wait()
    broken_off = {key_id: use.sessions for key_id, use in key_use(path).items() if use.sessions}
    assert set(broken_off) == {old, active}
    assert sum(broken_off.values()) == count
    with SessionStore.open(path, keys=file) as store:
        done = store.reseal()
        assert done.resealed == broken_off[old]
        assert keys_in_use(store._view) == {active: count}
        assert {session.id: session.metadata for session in store.sessions()} == digest
        assert all(session.version == 1 for session in store.sessions())
    assert all(finding.level is Level.OK for finding in verify(path))
