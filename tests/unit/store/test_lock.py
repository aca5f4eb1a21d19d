"""Locks between processes: exclusive, shared, with a deadline, and free again when their process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perdure.store.errors import LockTimeoutError, StorageError
from perdure.store.lock import FileLock

HOLDER = """
import sys
from pathlib import Path
from perdure.store.lock import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.try_acquire()
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@contextmanager
def holder(path: Path) -> Generator[subprocess.Popen[str]]:
    """Another process that holds the lock, until it is told to release it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "write.lock"


def test_lock_when_two_handles_want_it_is_given_to_one(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    first.close()
    second.close()


def test_lock_when_shared_is_given_to_many_and_to_no_exclusive_one(path: Path) -> None:
    locks = [FileLock(path) for _ in range(3)]
    assert locks[0].try_acquire(shared=True)
    assert locks[1].try_acquire(shared=True)
    assert not locks[2].try_acquire()
    locks[0].release()
    assert not locks[2].try_acquire()
    locks[1].release()
    assert locks[2].try_acquire()
    assert not locks[0].try_acquire(shared=True)
    for lock in locks:
        lock.close()


def test_lock_when_its_handle_is_closed_is_free(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    assert first.try_acquire()
    first.close()
    second.acquire(0)
    second.close()


@pytest.mark.parametrize("timeout_ms", [0, 30])
def test_acquire_when_another_process_keeps_it_raises_at_the_deadline_and_names_it(
    path: Path, timeout_ms: int
) -> None:
    lock = FileLock(path)
    with holder(path):
        before = time.monotonic()
        with pytest.raises(LockTimeoutError) as caught:
            lock.acquire(timeout_ms, owner="process 77")
        waited_ms = (time.monotonic() - before) * 1000
    assert timeout_ms <= waited_ms < timeout_ms + 20_000
    assert f"within {timeout_ms} ms, held by process 77" in str(caught.value)
    assert caught.value.path == str(path)
    lock.close()


def test_acquire_when_it_is_released_meanwhile_gets_it(path: Path) -> None:
    lock = FileLock(path)
    with holder(path) as process:
        assert process.stdin is not None
        assert not lock.try_acquire()
        process.stdin.write("\n")
        process.stdin.flush()
        lock.acquire(10_000)
        lock.release()
    lock.close()


def test_lock_when_its_holder_is_killed_is_free(path: Path) -> None:
    lock = FileLock(path)
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
        lock.acquire(10_000)
    lock.close()


def test_lock_when_its_file_cannot_be_made_raises_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="lock file"):
        FileLock(tmp_path / "missing" / "write.lock")


def test_lock_when_its_file_has_content_leaves_it_alone(path: Path) -> None:
    path.write_bytes(b"something")
    lock = FileLock(path)
    lock.acquire(0)
    lock.close()
    assert path.read_bytes() == b"something"


def test_a_closed_lock_is_free_though_a_child_still_has_its_descriptor(tmp_path: Path) -> None:
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert lock.try_acquire()
    inherited = os.dup(lock.descriptor)  # what a child has between its fork and what is done after it
    lock.close()
    assert other.try_acquire()
    other.close()
    os.close(inherited)
