"""Files: durable steps in their order, and the system's refusals as errors that say what to do."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.store.errors import StorageError, StorageFullError, StoreMissingError, StoreReadOnlyError
from perdure.store.files import (
    make_directory,
    next_free,
    pread_exactly,
    publish,
    read_small,
    remove_durably,
    rename_durably,
    sync_directory,
    translate,
    translated,
    write_all,
)


class Calls:
    """Records the calls that make things durable, in their order, and makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        for name in ("write", "fsync", "rename", "unlink", "mkdir"):
            monkeypatch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def _recorded(self, name: str, call: object) -> object:
        def made(*args: object) -> object:
            what = args[0]
            if name == "fsync" and isinstance(what, int) and stat.S_ISDIR(os.fstat(what).st_mode):
                self.seen.append("fsync directory")
            else:
                self.seen.append(name)
            return call(*args)  # type: ignore[operator]

        return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def test_publish_when_it_succeeds_writes_syncs_renames_and_syncs_the_directory(
    tmp_path: Path, calls: Calls
) -> None:
    publish(tmp_path / "file", b"new")
    assert calls.seen == ["write", "fsync", "rename", "fsync directory"]
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(os.stat(tmp_path / "file").st_mode) == 0o600


def test_publish_when_an_older_temporary_file_is_there_does_not_keep_its_end(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").write_bytes(b"a longer content from before a crash")
    publish(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
def test_publish_when_a_step_fails_keeps_the_old_content_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "file"
    publish(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, refuse)
    with pytest.raises(StorageFullError) as caught:
        publish(path, b"new")
    assert caught.value.path == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def small_files() -> Iterator[int]:
    """Files may have at most 1,000 bytes: what is beyond is a short write, then a refusal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_publish_when_the_file_may_not_be_that_large_refuses_and_leaves_nothing(
    tmp_path: Path, small_files: int
) -> None:
    publish(tmp_path / "file", bytes(small_files))
    with pytest.raises(StorageError, match="too large"):
        publish(tmp_path / "other", bytes(small_files + 1))
    assert os.listdir(tmp_path) == ["file"]


def test_write_all_when_the_system_writes_a_part_each_time_writes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def short_write(descriptor: int, data: bytes | memoryview) -> int:
        return real(descriptor, bytes(data)[:7])

    monkeypatch.setattr(os, "write", short_write)
    path = tmp_path / "file"
    for data in (b"", b"short", bytes(range(256)), memoryview(bytes(range(100)))):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        write_all(descriptor, data)
        os.close(descriptor)
        assert path.read_bytes() == bytes(data)


def test_pread_when_the_system_reads_a_part_each_time_reads_all_up_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    real = os.pread

    def short_read(descriptor: int, size: int, at: int) -> bytes:
        return real(descriptor, min(size, 7), at)

    monkeypatch.setattr(os, "pread", short_read)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert pread_exactly(descriptor, 50, 10) == bytes(range(10, 60))
        assert pread_exactly(descriptor, 50, 90) == bytes(range(90, 100))
        assert pread_exactly(descriptor, 50, 100) == b""
        assert pread_exactly(descriptor, 0, 0) == b""
    finally:
        os.close(descriptor)


def test_make_directory_when_it_is_new_syncs_its_parent_and_when_it_is_there_does_nothing(
    tmp_path: Path, calls: Calls
) -> None:
    make_directory(tmp_path / "new")
    assert calls.seen == ["mkdir", "fsync directory"]
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o700
    make_directory(tmp_path / "new")
    assert calls.seen == ["mkdir", "fsync directory", "mkdir"]


def test_rename_when_it_crosses_directories_syncs_both(tmp_path: Path, calls: Calls) -> None:
    (tmp_path / "a").mkdir()
    calls.seen.clear()
    (tmp_path / "file").write_bytes(b"x")
    rename_durably(tmp_path / "file", tmp_path / "renamed")
    assert calls.seen == ["rename", "fsync directory"]
    rename_durably(tmp_path / "renamed", tmp_path / "a" / "file")
    assert calls.seen[2:] == ["rename", "fsync directory", "fsync directory"]


def test_remove_when_the_file_is_gone_already_does_nothing(tmp_path: Path, calls: Calls) -> None:
    (tmp_path / "file").write_bytes(b"x")
    remove_durably(tmp_path / "file")
    assert calls.seen == ["unlink", "fsync directory"]
    remove_durably(tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_read_small_when_a_file_is_longer_than_the_limit_gives_one_byte_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_small(path, 10) is None
    path.write_bytes(b"x" * 100)
    assert read_small(path, 100) == b"x" * 100
    assert read_small(path, 10) == b"x" * 11


def test_read_small_when_the_path_is_a_directory_raises_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        read_small(tmp_path, 10)


def test_sync_directory_when_it_is_a_file_raises_an_os_error_for_its_caller_to_translate(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(StorageError), translated("cannot sync", path):
        sync_directory(path)


def test_next_free_when_names_are_taken_gives_the_first_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "torn"
    assert next_free(path) == path
    path.write_bytes(b"")
    (tmp_path / "torn.1").symlink_to("nowhere")
    assert next_free(path) == tmp_path / "torn.2"


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.ENOSPC, StorageFullError, "Free some space"),
        (errno.EDQUOT, StorageFullError, "Free some space"),
        (errno.EROFS, StoreReadOnlyError, "right to write"),
        (errno.EACCES, StoreReadOnlyError, "right to write"),
        (errno.EPERM, StoreReadOnlyError, "right to write"),
        (errno.ENOENT, StoreMissingError, "Check the path"),
        (errno.EIO, StorageError, "system's log"),
    ],
)
def test_refusal_of_the_system_when_translated_says_what_where_and_what_to_do(
    number: int, kind: type[StorageError], hint: str
) -> None:
    original = OSError(number, os.strerror(number), "/from/the/system")
    with pytest.raises(StorageError) as caught, translated("cannot do it", "/a/path"):
        raise original
    assert type(caught.value) is kind
    assert caught.value.__cause__ is original
    assert caught.value.path == "/a/path"
    assert f"cannot do it: {os.strerror(number)} (file /a/path)" in str(caught.value)
    assert hint in str(caught.value)
    assert translate(original, "x").path == "/from/the/system"
