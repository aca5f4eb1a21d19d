"""Locks between processes: flock with a deadline.

Owns how a lock is waited for. flock has no timed wait, so a taken lock is tried again after short
sleeps; it is released by the kernel when its process dies. A lock file's content is nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from .errors import ForkedError, LockTimeoutError, PerdureError, StoreClosedError
from .files import FILE_MODE, translated

_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
_SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
_RELEASE = fcntl.LOCK_UN
_YIELDS = 4
_SLEEP_S_MIN = 0.00005
_SLEEP_S_MAX = 0.001
flock = fcntl.flock


class FileLock:
    """One process's handle of a lock file. Not for two threads at once: they share the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_inherited = False
        with translated("cannot open a lock file", path):
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        _locks.add(self)

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take it if it is free; says whether."""
        try:
            flock(self.descriptor, _SHARED if shared else _EXCLUSIVE)
        except BlockingIOError:
            return False
        except ValueError as error:  # what it says of a descriptor below 0
            raise self._closed() from error
        return True

    def acquire(
        self,
        timeout_ms: int,
        owner: str = "",
        *,
        shared: bool = False,
    ) -> None:
        """Take it within `timeout_ms`.

        Raises LockTimeoutError; `owner` (who holds it, as far as known) goes into its message.
        """
        if self.try_acquire(shared=shared):
            return
        for _ in range(_YIELDS):
            os.sched_yield()
            if self.try_acquire(shared=shared):
                return
        began = time.monotonic()
        sleep_s = _SLEEP_S_MIN
        while (time.monotonic() - began) * 1000 < timeout_ms:
            time.sleep(sleep_s)
            if self.try_acquire(shared=shared):
                return
            sleep_s = min(sleep_s * 1.5, _SLEEP_S_MAX)
        raise self.timed_out(timeout_ms, owner)

    def timed_out(self, timeout_ms: int, owner: str = "") -> LockTimeoutError:
        return LockTimeoutError(
            f"the lock was not free within {timeout_ms} ms{', held by ' + owner if owner else ''}",
            path=self.path,
            hint="See whether that process hangs or is stopped.",
        )

    def check_open(self) -> None:
        """Raise StoreClosedError, or ForkedError in a child, if it was closed."""
        if self.descriptor < 0:
            raise self._closed()

    def release(self) -> None:
        if self.descriptor >= 0:
            flock(self.descriptor, _RELEASE)

    def close(self) -> None:
        self.release()  # a process that was forked a moment ago may still have the descriptor
        self._forget()

    def _forget(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _closed(self) -> PerdureError:
        if self._is_inherited:
            return ForkedError(
                "this lock was opened before a fork; it belongs to the parent process", path=self.path
            )
        return StoreClosedError("the lock was closed", path=self.path)

    def sever(self) -> None:
        """In a child: its descriptor shares the parent's lock, would keep it held, and could release it."""
        self._forget()
        self._is_inherited = True


class FoldLock(FileLock):
    """The lock that is held to fold: always free while the state is this handle's own."""

    def __init__(self, path: Path, is_own: Callable[[], bool]) -> None:
        super().__init__(path)
        self._is_own = is_own

    def try_acquire(self, *, shared: bool = False) -> bool:
        if not self._is_own():
            return super().try_acquire(shared=shared)
        if self.descriptor < 0:
            raise self._closed()
        return True


_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock.sever()


os.register_at_fork(after_in_child=_after_fork_in_child)
