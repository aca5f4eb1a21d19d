"""Keyrings: the key file, its checks, and how a change of it is noticed."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import msgspec
import pytest

from perdure.store import CorruptError, KeyMissingError, Keyring, PerdureError, UsageError
from perdure.store.keyring import (
    ALGORITHMS,
    KEYS_MAX,
    Key,
    KeySource,
    change_keyring,
    key_name,
    make_keyring,
    new_keyring,
    parse_key_name,
    parse_keyring,
    read_keyring,
    rotate_keyring,
    with_new_key,
    without_key,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    make_keyring(path, ALGORITHMS[0], 1_000)
    return path


def secrets_of(ring: Keyring) -> list[str]:
    return [ring.id_secret, *(key.secret for key in ring.keys)]


def test_a_key_file_is_read_as_it_was_made_and_its_owner_alone_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = make_keyring(path, "chacha20-poly1305", 1_234)
    assert read_keyring(path) == ring
    assert path.stat().st_mode & 0o777 == 0o600
    assert (ring.active_key.algorithm, ring.active_key.created_ms) == ("chacha20-poly1305", 1_234)


def test_making_a_key_file_where_there_is_one_leaves_it_alone(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(UsageError, match="already"):
        make_keyring(file, ALGORITHMS[0], 2_000)
    assert file.read_bytes() == before


def test_a_rotation_adds_an_active_key_and_keeps_all_else(file: Path) -> None:
    old = read_keyring(file)
    new = rotate_keyring(file, None, 2_000)
    assert read_keyring(file) == new
    assert new.keys[:1] == old.keys
    assert new.id_secret == old.id_secret
    assert new.active != old.active
    assert new.active_key.created_ms == 2_000
    assert rotate_keyring(file, ALGORITHMS[1], 3_000).active_key.algorithm == ALGORITHMS[1]


def test_rotations_at_once_are_all_kept(file: Path) -> None:
    threads = [threading.Thread(target=rotate_keyring, args=(file, None, number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keyring(file).keys) == 9


def test_an_old_key_goes_and_the_active_one_stays(file: Path) -> None:
    old = read_keyring(file).active
    with pytest.raises(UsageError, match="active"):
        change_keyring(file, lambda ring: without_key(ring, old))
    rotate_keyring(file, None, 2)
    change_keyring(file, lambda ring: without_key(ring, old))
    assert read_keyring(file).key(old) is None
    with pytest.raises(UsageError, match="no key"):
        change_keyring(file, lambda ring: without_key(ring, old))


def test_neither_repr_nor_errors_show_a_secret(file: Path) -> None:
    ring = rotate_keyring(file, None, 2)
    said = [repr(ring), str(ring), repr(ring.keys), f"{ring.active_key}"]
    data = file.read_text()
    for broken in (data[:-10], data.replace('"active"', '"actve"'), data.replace("aes-256-gcm", "des", 1)):
        with pytest.raises(CorruptError) as caught:
            parse_keyring(broken, file)
        said += [str(caught.value), repr(caught.value)]
    for secret in secrets_of(ring):
        assert not any(secret in text for text in said)


def broken_rings() -> list[tuple[str, Keyring]]:
    ring = with_new_key(new_keyring(ALGORITHMS[0], 1), None, 2)
    one, two = ring.keys
    return [
        ("format", msgspec.structs.replace(ring, format=2)),
        ("none", msgspec.structs.replace(ring, keys=())),
        ("twice", msgspec.structs.replace(ring, keys=(one, one, two))),
        ("active", msgspec.structs.replace(ring, active=0)),
        ("id 0", msgspec.structs.replace(ring, keys=(Key(0, ALGORITHMS[0], 1, one.secret), two))),
        ("id", msgspec.structs.replace(ring, keys=(Key(1 << 32, ALGORITHMS[0], 1, one.secret), two))),
        ("algorithm", msgspec.structs.replace(ring, keys=(Key(1, "rot13", 1, one.secret), two))),
        ("short", msgspec.structs.replace(ring, keys=(Key(1, ALGORITHMS[0], 1, one.secret[2:]), two))),
        ("no hex", msgspec.structs.replace(ring, keys=(Key(1, ALGORITHMS[0], 1, "z" * 64), two))),
        (
            "spaces",
            msgspec.structs.replace(ring, keys=(Key(1, ALGORITHMS[0], 1, one.secret[:62] + "  "), two)),
        ),
        ("id secret", msgspec.structs.replace(ring, id_secret="00")),
        (
            "many",
            msgspec.structs.replace(
                ring, keys=(*(Key(n + 1, ALGORITHMS[0], 1, one.secret) for n in range(KEYS_MAX)), two)
            ),
        ),
    ]


@pytest.mark.parametrize(
    ("what", "ring"), broken_rings(), ids=lambda item: item if isinstance(item, str) else ""
)
def test_a_keyring_that_cannot_be_right_is_refused(what: str, ring: Keyring) -> None:
    assert what
    with pytest.raises(CorruptError):
        parse_keyring(msgspec.json.encode(ring))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b'{"format": 1}', b"[" * 100_000])
def test_text_that_is_no_keyring_is_refused(text: bytes) -> None:
    with pytest.raises(CorruptError):
        parse_keyring(text)


def test_a_missing_key_file_is_said_and_no_store_is_spoken_of(tmp_path: Path) -> None:
    with pytest.raises(KeyMissingError, match="keys init") as caught:
        KeySource(tmp_path / "none")
    assert caught.value.key_id is None
    assert caught.value.path == str(tmp_path / "none")


@pytest.mark.parametrize("keys", ["", 7, b"", "a\0b"])
def test_what_can_be_no_key_file_is_refused(keys: object) -> None:
    with pytest.raises(PerdureError):
        KeySource(keys)  # type: ignore[arg-type]


def test_keys_come_as_a_path_as_text_and_as_a_keyring(file: Path) -> None:
    ring = read_keyring(file)
    for keys in (file, str(file), file.read_text(), ring):
        assert KeySource(keys).ring == ring
    assert not KeySource(ring).refresh()


def test_a_key_file_that_others_may_read_is_warned_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_keyring(file)
        assert not caplog.records
        os.chmod(file, 0o640)
        read_keyring(file)
    assert "chmod 600" in caplog.text


def test_a_rotation_is_noticed_and_what_cannot_be_read_leaves_the_keys_as_they_were(file: Path) -> None:
    source = KeySource(file)
    before = source.ring
    assert not source.refresh()
    good = file.read_bytes()
    file.write_bytes(good[:-20])
    with pytest.raises(CorruptError):
        source.refresh()
    assert source.ring == before
    file.unlink()
    with pytest.raises(KeyMissingError):
        source.refresh()
    file.write_bytes(good)
    assert not source.refresh()
    new = rotate_keyring(file, None, 5)
    assert source.refresh()
    assert source.ring == new


def test_a_key_file_with_another_secret_for_ids_is_not_taken(file: Path) -> None:
    source = KeySource(file)
    before = source.ring
    file.unlink()
    make_keyring(file, ALGORITHMS[0], 9)
    for _ in range(2):
        with pytest.raises(CorruptError, match="another secret"):
            source.refresh()
    assert source.ring == before


def test_the_name_of_a_key_leads_back_to_its_id() -> None:
    assert parse_key_name(key_name(0x3F2A91BC)) == 0x3F2A91BC
    for text in ("", "0", "zz", "-1", "1" * 9, "0x1f_", " 1"):
        with pytest.raises(UsageError, match="no key"):
            parse_key_name(text)
