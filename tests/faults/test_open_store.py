"""A store meets a full disk, another boot, a failed sync, a fork, a read-only directory, a wrong clock."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.shipping.vitals import VitalSigns
from perdure.store import (
    CorruptError,
    ForkedError,
    FormatVersionError,
    Indeterminate,
    OpenOptions,
    PerdureError,
    PoisonedError,
    SessionStore,
    StorageFullError,
    StoreReadOnlyError,
    names,
)
from perdure.store.cursor import list_segments
from perdure.store.opening import STANDALONE_NODE, open_store

Boot = Callable[[str], None]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Boot:
    """Pretend that the machine was started anew."""

    def as_boot(boot_id: str) -> None:
        monkeypatch.setattr(OpenOptions, "boot_id", staticmethod(lambda: boot_id), raising=True)
        fields = OpenOptions.__dataclass_fields__["boot_id"]
        monkeypatch.setattr(fields, "default", lambda: boot_id)
        init = OpenOptions.__init__.__kwdefaults__
        if init is None:
            defaults = list(OpenOptions.__init__.__defaults__ or ())
            position = list(OpenOptions.__dataclass_fields__).index("boot_id")
            defaults[position] = lambda: boot_id
            monkeypatch.setattr(OpenOptions.__init__, "__defaults__", tuple(defaults))

    return as_boot


def filled(path: Path, backend: str = "lmdb", count: int = 200) -> dict[str, int]:
    with SessionStore.open(path, backend=backend) as store:
        for number in range(count):
            store.put(f"k{number}", {"n": number}, None)
        store.flush()
    return {f"k{number}": number for number in range(count)}


def content(store: SessionStore) -> dict[str, int]:
    return {id: session.metadata["n"] for id in store.ids() if (session := store.peek(id))}


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
def test_after_a_power_loss_the_state_is_rebuilt_and_a_new_epoch_begun(
    tmp_path: Path, boot: Boot, backend: str
) -> None:
    path = tmp_path / "store"
    boot("first")
    expected = filled(path, backend)
    with SessionStore.open(path) as store:
        assert store._opened.rebuilt == ""
        epoch = store.position().epoch
    boot("second")
    with SessionStore.open(path) as store:
        assert store._opened.rebuilt
        assert content(store) == expected
        assert store.position().epoch == epoch + 1
        store.put("k0", {"n": 1000}, None)
    with SessionStore.open(path) as store:
        assert store._opened.rebuilt == ""
        assert content(store) == {**expected, "k0": 1000}
    assert any(file.name.startswith("state") for file in (path / names.ASIDE).iterdir())


def test_a_copied_directory_is_not_trusted(tmp_path: Path) -> None:
    expected = filled(tmp_path / "store")
    subprocess.run(["cp", "-a", "--sparse=always", tmp_path / "store", tmp_path / "copy"], check=True)
    with SessionStore.open(tmp_path / "copy") as store:
        assert store._opened.rebuilt
        assert content(store) == expected


def test_a_damaged_state_file_is_never_believed_after_a_rebuild(tmp_path: Path, boot: Boot) -> None:
    boot("first")
    expected = filled(tmp_path / "store")
    boot("second")
    for file in (tmp_path / "store" / names.STATE).rglob("data.mdb"):
        with file.open("r+b") as opened:
            opened.write(b"\xff" * (1 << 20))
    with SessionStore.open(tmp_path / "store") as store:
        assert content(store) == expected


def test_a_failed_sync_is_indeterminate_then_final_until_all_have_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    expected = filled(path)
    one = SessionStore.open(path, durability="disk")
    two = SessionStore.open(path)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(Indeterminate) as caught:
            one.put("unsure", {"n": -1}, None)
    assert caught.value.position is not None
    assert caught.value.operation_id is not None
    for store in (one, two):
        with pytest.raises(PoisonedError):
            store.put("more", {"n": 1}, None)
    with pytest.raises(PoisonedError, match="Close it in every process"):
        SessionStore.open(path)
    one.close()
    with pytest.raises(PoisonedError):
        SessionStore.open(path)
    two.close()
    with SessionStore.open(path) as store:
        found = content(store)
        assert found.pop("unsure", -1) == -1
        assert found == expected
        assert store.position().epoch == 2
        store.put("again", {"n": 7}, None)
    assert not (path / names.POISON).exists()


def test_a_store_that_could_not_write_down_that_a_sync_failed_opens_again_once_all_have_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    expected = filled(path)
    store = SessionStore.open(path, durability="disk")

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr(os, "fsync", fail)
        with pytest.raises(Indeterminate):
            store.put("unsure", {"n": -1}, None)
        with pytest.raises(PoisonedError, match="Close it in every process"):
            SessionStore.open(path)
        store.close()
    assert not (path / names.POISON).exists()
    with SessionStore.open(path) as store:
        found = content(store)
        assert found.pop("unsure", -1) == -1
        assert found == expected
        store.put("again", {"n": 7}, None, durability="disk")


def test_who_watches_a_node_sees_that_its_store_was_opened_again_after_a_failed_sync(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path)
    signs = VitalSigns(path, STANDALONE_NODE)
    try:
        with SessionStore.open(path) as store:
            store._log.flusher.poison("a test")
            assert signs.look(0).failing == "a sync to disk failed"
        with SessionStore.open(path) as store:
            seen = signs.look(0)
            assert (seen.failing, seen.lsn) == ("", store.position().lsn)
    finally:
        signs.close()


def test_a_handle_from_before_a_fork_refuses_in_the_child(tmp_path: Path) -> None:
    store = SessionStore.open(tmp_path / "store")
    store.put("mine", {"n": 1}, None)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (lambda: store.create({}), lambda: store.get("mine"), lambda: store.delete("mine")):
                try:
                    call()
                except ForkedError:
                    continue
                os._exit(2)
            with SessionStore.open(tmp_path / "store") as own:
                own.put("child", {"n": 2}, None)
                code = 0 if own.get("mine") else 3
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    store.put("parent", {"n": 3}, None)
    assert content(store) == {"mine": 1, "child": 2, "parent": 3}
    store.close()


def test_a_clock_that_goes_back_never_makes_frame_times_decrease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(tmp_path / "store") as store:
        store.put("a", {"n": 1}, None)
        before = store._log.cursor.time_ms
        monkeypatch.setattr(store._log, "now_ms", lambda: before - 3_600_000)
        store.put("b", {"n": 2}, None)
        store.update("a", lambda session: session.merge({"n": 3}))
        assert store._log.cursor.time_ms == before
        assert content(store) == {"a": 3, "b": 2}


def test_a_newer_format_is_refused_and_named(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    identity = tmp_path / "store" / names.IDENTITY
    from perdure.store.identity import MAGIC, read_identity
    from perdure.store.smallfile import publish_small

    publish_small(identity, MAGIC, 2, read_identity(tmp_path / "store"))
    with pytest.raises(FormatVersionError, match="newer") as caught:
        SessionStore.open(tmp_path / "store")
    assert caught.value.path == str(identity)


@pytest.mark.parametrize("damage", ["zeros", "trailing zeros", "cut header", "missing", "foreign"])
def test_a_damaged_only_segment_is_named_and_nothing_is_changed(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "store"
    expected = filled(path)
    segment = list_segments(path / names.LOG)[0].path
    data = segment.read_bytes()
    shutil.rmtree(path / names.STATE)
    if damage == "zeros":
        segment.write_bytes(bytes(len(data)))
    elif damage == "trailing zeros":
        segment.write_bytes(data + bytes(8192))
    elif damage == "cut header":
        segment.write_bytes(data[:100])
    elif damage == "missing":
        segment.unlink()
    else:
        filled(tmp_path / "other")
        segment.write_bytes(list_segments(tmp_path / "other" / names.LOG)[0].path.read_bytes())
    if damage == "trailing zeros":
        with SessionStore.open(path) as store:
            assert content(store) == expected
        return
    before = sorted((path / names.LOG).iterdir())
    with pytest.raises(PerdureError) as caught:
        SessionStore.open(path)
    assert caught.value.path is not None
    assert names.LOG in caught.value.path
    assert sorted((path / names.LOG).iterdir()) == before
    assert caught.value.hint or isinstance(caught.value, CorruptError)


@needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_refuses_writes_kills_nobody_and_goes_on_when_there_is_space(
    tmp_path: Path, kind: str
) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "perdure-test", str(mount)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(40 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{kind} cannot be mounted here")
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(mount)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


FULL_DISK = """
    import os, sys
    from perdure.store import SessionStore, StorageFullError
    mount = sys.argv[1]
    ballast = mount + "/ballast"
    with open(ballast, "wb") as file:
        file.write(b"x" * (6 << 20))
        file.flush()
        os.fsync(file.fileno())
    acknowledged = {}
    full = 0
    with SessionStore.open(mount + "/store") as store:
        for number in range(60000):
            try:
                store.put(f"k{number}", {"n": number, "pad": "p" * 400}, None)
                acknowledged[f"k{number}"] = number
            except StorageFullError:
                full += 1
                if full > 20:
                    break
        assert full, "the disk never got full"
        os.unlink(ballast)
        for number in range(100):
            store.put(f"later{number}", {"n": number}, None)
            acknowledged[f"later{number}"] = number
        for key, number in acknowledged.items():
            assert store.get(key).metadata["n"] == number, key
        assert store.count() == len(acknowledged)
    with SessionStore.open(mount + "/store") as store:
        assert store.count() == len(acknowledged)
        assert set(store.ids()) == set(acknowledged)
"""


@needs_root
def test_a_read_only_file_system_is_refused_with_a_clear_error(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "perdure-test", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        filled(mount / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        with pytest.raises(StoreReadOnlyError) as caught:
            SessionStore.open(mount / "store")
        assert caught.value.path is not None
        with pytest.raises(StoreReadOnlyError):
            SessionStore.open(mount / "new")
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_no_space_for_a_frame_leaves_the_session_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(tmp_path / "store") as store:
        store.put("a", {"n": 1}, None)
        before = store.position()

        def full(_descriptor: int, _data: bytes, _offset: int) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            for call in (
                lambda: store.create({}),
                lambda: store.put("a", {"n": 2}, None),
                lambda: store.update("a", lambda session: session.merge({"n": 3})),
                lambda: store.delete("a"),
            ):
                with pytest.raises(StorageFullError):
                    call()
        assert store.position() == before
        assert content(store) == {"a": 1}
        store.put("a", {"n": 4}, None)
        assert content(store) == {"a": 4}


def test_opening_twice_at_once_from_many_processes_makes_one_store(tmp_path: Path) -> None:
    code = """
import sys
from perdure.store import SessionStore
with SessionStore.open(sys.argv[1]) as store:
    store.put(sys.argv[2], {"n": 1}, None)
    print(store.stats()["cluster_id"])
"""
    path = tmp_path / "store"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path), f"p{n}"], stdout=subprocess.PIPE)
        for n in range(4)
    ]
    answers = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0, 0]
    assert len(answers) == 1
    with SessionStore.open(path) as store:
        assert content(store) == {f"p{n}": 1 for n in range(4)}


def test_open_store_gives_back_everything_when_it_fails(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    (tmp_path / "store" / names.PROMISE).write_bytes(b"not a promise")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CorruptError):
            open_store(tmp_path / "store", OpenOptions())
    assert len(os.listdir("/proc/self/fd")) <= before + 1
