"""The state's marker: when a state is trusted, what happens to one that is not, and crashes in between."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from perdure.store import names
from perdure.store.backends import BACKENDS, backend_kind
from perdure.store.errors import CorruptError, UsageError
from perdure.store.fold import record_of
from perdure.store.ids import NOWHERE
from perdure.store.ports import Backend
from perdure.store.rebuild import fill
from perdure.store.session import encode_session
from perdure.store.state import (
    ASIDE_STATES_MAX,
    REASON_FILE,
    StateMarker,
    judge_state,
    mark_state,
    open_state,
    set_aside,
)
from tests.contract.children import at

RECORD = record_of(b"a", encode_session(1, 1, 1, 0, 0, {}))

CLUSTER = b"c" * 16
NOW = StateMarker(CLUSTER, "lmdb", "lmdb 0.9", "boot-1", 7, 100, 101, 5)
ROWS = [
    ("no marker, no data", None, {"data_inode": 0}, False, "none yet"),
    ("no marker", None, {}, False, "never completed"),
    ("all the same", {}, {}, False, None),
    ("another cluster", {"cluster_id": b"d" * 16}, {}, False, "another cluster"),
    ("another back end", {"backend": "sqlite"}, {}, False, "sqlite"),
    ("another engine", {"engine": "lmdb 1.0"}, {}, False, "lmdb 1.0"),
    ("another boot", {"boot_id": "boot-0"}, {}, False, "started anew"),
    ("another boot, in use", {"boot_id": "boot-0"}, {}, True, "started anew"),
    ("another device", {"device": 8}, {}, False, "copy"),
    ("another directory", {"inode": 99}, {}, False, "copy"),
    ("another directory, in use", {"inode": 99}, {}, True, "copy"),
    ("another data file", {"data_inode": 77}, {}, False, "replaced"),
    ("data file missing", {}, {"data_inode": 0}, False, "missing"),
    ("another mount", {"mount_id": 4}, {}, False, "mounted anew"),
    ("another mount, in use", {"mount_id": 4}, {}, True, None),
]


@pytest.mark.parametrize(
    ("marked", "now", "in_use", "reason"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS]
)
def test_a_state_is_trusted_only_if_nothing_of_it_can_have_been_lost(
    marked: dict[str, object] | None, now: dict[str, object], in_use: bool, reason: str | None
) -> None:
    marker = None if marked is None else msgspec.structs.replace(NOW, **marked)
    verdict = judge_state(marker, msgspec.structs.replace(NOW, **now), in_use=in_use)
    assert verdict.is_trusted == (reason is None)
    assert reason is None or reason in verdict.reason


@pytest.fixture(params=[name for name in BACKENDS if backend_kind(name).is_shared])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(store: Path, kind: str, boot: str = "boot-1") -> tuple[Backend, str]:
    """(back end, why it is empty; "" if it is trusted)"""
    backend, verdict = open_state(store, kind, CLUSTER, boot)
    assert verdict.is_trusted == (not verdict.reason)
    return backend, verdict.reason


def filled(store: Path, kind: str, lsn: int = 5, boot: str = "boot-1") -> None:
    """A complete state, closed."""
    backend, why = opened(store, kind, boot)
    assert why
    fill(backend, [(b"a", RECORD)], at(lsn))
    mark_state(store, backend_name=kind, cluster_id=CLUSTER, boot_id=boot)
    backend.close()


def asides(store: Path) -> list[Path]:
    return sorted((store / names.ASIDE).glob("state*"))


def test_a_marked_state_is_opened_as_it_is(tmp_path: Path, kind: str) -> None:
    filled(tmp_path, kind)
    backend, why = opened(tmp_path, kind)
    assert why == ""
    assert backend.refresh() == at(5)
    assert backend.get(b"a") == RECORD
    backend.close()
    assert asides(tmp_path) == []


def test_after_another_boot_it_is_set_aside_and_an_empty_one_opened(tmp_path: Path, kind: str) -> None:
    filled(tmp_path, kind)
    backend, why = opened(tmp_path, kind, "boot-2")
    assert "started anew" in why
    assert backend.refresh() == NOWHERE
    assert backend.get(b"a") is None
    backend.close()
    (aside,) = asides(tmp_path)
    assert (aside / REASON_FILE).read_text() == why + "\n"
    assert (aside / kind).is_dir()


def test_a_load_that_was_not_completed_is_made_anew(tmp_path: Path, kind: str) -> None:
    backend, why = opened(tmp_path, kind)
    fill(backend, [(b"a", RECORD)], at(5))
    backend.close()
    for _ in range(3):
        backend, why = opened(tmp_path, kind)
        assert why == "it was never completed"
        assert backend.refresh() == NOWHERE
        fill(backend, [(b"a", RECORD)], at(5))
        backend.close()
    assert asides(tmp_path) == []


def test_a_state_whose_marker_is_gone_is_not_trusted(tmp_path: Path, kind: str) -> None:
    filled(tmp_path, kind)
    (names.state_path(tmp_path) / names.STATE_MARKER).unlink()
    backend, why = opened(tmp_path, kind)
    assert why == "it was never completed"
    backend.close()


def test_a_copied_store_is_rebuilt_and_the_original_goes_on(tmp_path: Path, kind: str) -> None:
    store, copy = tmp_path / "store", tmp_path / "copy"
    store.mkdir()
    filled(store, kind)
    shutil.copytree(store, copy)
    backend, why = opened(copy, kind)
    assert "copy" in why
    backend.close()
    backend, why = opened(store, kind)
    assert why == ""
    backend.close()


def test_a_store_that_was_only_renamed_is_trusted(tmp_path: Path, kind: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    filled(store, kind)
    backend, why = opened(store.rename(tmp_path / "moved"), kind)
    assert why == ""
    backend.close()


def test_a_data_file_put_back_from_a_copy_is_not_trusted(tmp_path: Path, kind: str) -> None:
    filled(tmp_path, kind)
    (data,) = [
        path for path in (tmp_path / names.STATE / kind).iterdir() if path.name.startswith(("data", "ses"))
    ]
    shutil.copy(data, tmp_path / "copy")
    (tmp_path / "copy").rename(data)
    backend, why = opened(tmp_path, kind)
    assert "replaced" in why
    backend.close()


def test_a_missing_data_file_is_not_an_empty_state(tmp_path: Path, kind: str) -> None:
    filled(tmp_path, kind)
    shutil.rmtree(tmp_path / names.STATE / kind)
    backend, why = opened(tmp_path, kind)
    assert "missing" in why
    backend.close()


def test_every_damage_to_the_marker_means_rebuild(tmp_path: Path) -> None:
    filled(tmp_path, "lmdb")
    marker = tmp_path / names.STATE / names.STATE_MARKER
    good = marker.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        for data in (bytes(bad), good[:place]):
            marker.write_bytes(data)
            _, verdict = _judged(tmp_path)
            assert not verdict, f"byte {place}"
    marker.write_bytes(good)
    assert _judged(tmp_path)[1]


def _judged(store: Path) -> tuple[bool, bool]:
    from perdure.store.state import _judge

    was_complete, verdict = _judge(store / names.STATE, "lmdb", CLUSTER, "boot-1", False)
    return was_complete, verdict.is_trusted


def test_a_marked_state_that_the_engine_cannot_open_is_set_aside(tmp_path: Path, kind: str) -> None:
    filled(tmp_path, kind)
    with (tmp_path / names.STATE / kind / backend_kind(kind).data_file).open("r+b") as file:
        file.write(b"\xee" * 8192)
    backend, why = opened(tmp_path, kind)
    assert "damaged" in why
    assert backend.refresh() == NOWHERE
    backend.close()
    assert len(asides(tmp_path)) == 1


def test_another_back_end_s_state_is_set_aside(tmp_path: Path) -> None:
    filled(tmp_path, "lmdb")
    backend, why = opened(tmp_path, "sqlite")
    assert why == "it is kept in lmdb, not in sqlite"
    backend.close()
    assert len(asides(tmp_path)) == 1


def test_an_unknown_back_end_touches_nothing(tmp_path: Path) -> None:
    filled(tmp_path, "lmdb")
    with pytest.raises(UsageError, match="lmdb"):
        open_state(tmp_path, "lmbd", CLUSTER, "boot-1")
    backend, why = opened(tmp_path, "lmdb")
    assert why == ""
    backend.close()


def test_only_the_newest_states_set_aside_are_kept_and_nothing_else_goes(tmp_path: Path, kind: str) -> None:
    (tmp_path / names.ASIDE / "state-of-the-art").mkdir(parents=True)
    for lsn in range(1, 6):
        filled(tmp_path, kind, lsn, f"boot-{lsn}")
    set_aside(tmp_path, "the last one")
    kept = [path for path in asides(tmp_path) if (path / REASON_FILE).exists()]
    assert len(kept) == ASIDE_STATES_MAX
    reasons = sorted((path / REASON_FILE).read_text() for path in kept)
    assert reasons == ["the last one\n", "the machine was started anew since it was written\n"]
    assert (tmp_path / names.ASIDE / "state-of-the-art").exists()
    assert set_aside(tmp_path, "nothing left") is None


def test_a_state_without_data_cannot_be_marked(tmp_path: Path) -> None:
    (tmp_path / names.STATE).mkdir()
    with pytest.raises(CorruptError):
        mark_state(tmp_path, backend_name="lmdb", cluster_id=CLUSTER, boot_id="boot-1")


def test_a_file_system_that_was_mounted_anew_is_not_trusted(tmp_path: Path) -> None:
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)

    def mount() -> None:
        words = ["mount", "-o", "loop", str(image), str(mounted)]
        if subprocess.run(words, check=False, capture_output=True).returncode:
            pytest.skip("cannot mount an ext4 here")

    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot make an ext4 here")
    mount()
    try:
        filled(mounted, "lmdb")
        subprocess.run(["umount", str(mounted)], check=True)
        mount()
        backend, why = opened(mounted, "lmdb")
        assert why == "its file system was mounted anew since it was written"
        backend.close()
    finally:
        if subprocess.run(["umount", str(mounted)], check=False, capture_output=True).returncode:
            subprocess.run(["umount", "-l", str(mounted)], check=False)
