"""Files, in named durable steps: write all, sync, sync the directory, publish by rename.

Owns how bytes become durable and how the system's refusals become perdure's errors. What survives a
crash after each step is said at each function.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import PerdureError, StorageError, StorageFullError, StoreMissingError, StoreReadOnlyError
from .names import TEMPORARY_SUFFIX

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


_MISPLACED = "A file stands where a directory belongs, or the other way round; name another path."
_HINTS = {
    errno.ENOTDIR: _MISPLACED,
    errno.EEXIST: _MISPLACED,
    errno.EISDIR: _MISPLACED,
    errno.ENAMETOOLONG: "Take a shorter path.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or open fewer stores.",
    errno.ENFILE: "The whole machine has too many files open.",
}


def translate(error: OSError, doing: str, path: str | Path | None = None) -> PerdureError:
    """The perdure error for a refusal of the system; raise it `from` the original."""
    where = path if path is not None else error.filename
    text = f"{doing}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in _FULL:
        return StorageFullError(
            text, path=where, hint="Free some space; the store goes on by itself once there is some."
        )
    if error.errno in _READ_ONLY:
        return StoreReadOnlyError(
            text, path=where, hint="Give this user the right to write there, or mount it writable."
        )
    if error.errno == errno.ENOENT:
        return StoreMissingError(text, path=where, hint="Check the path; `perdure init DIR` makes a store.")
    hint = _HINTS.get(error.errno or 0, "Look at the system's log for the device.")
    return StorageError(text, path=where, hint=hint)


@contextmanager
def translated(doing: str, path: str | Path | None = None) -> Iterator[None]:
    """Turn OSError inside into the matching StorageError, with `doing` and `path` named."""
    try:
        yield
    except OSError as error:
        raise translate(error, doing, path) from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """write() until all of `data` is written; short writes go on. Survives a crash: nothing yet."""
    done = os.write(descriptor, data)
    if done != len(data):
        view = memoryview(data)
        while done < len(view):
            done += os.write(descriptor, view[done:])


def pread_exactly(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes at `offset`; fewer only at the end of the file."""
    data = os.pread(descriptor, size, offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    have = len(data)
    while have < size:
        more = os.pread(descriptor, size - have, offset + have)
        if not more:
            break
        parts.append(more)
        have += len(more)
    return b"".join(parts)


def sync_directory(path: str | Path) -> None:
    """fsync a directory. Survives a crash: the names in it as they are now."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and sync its parent; nothing happens if it is there."""
    try:
        os.mkdir(path, DIRECTORY_MODE)
    except FileExistsError:
        return
    sync_directory(path.parent)


def publish(path: Path, data: bytes | memoryview) -> None:
    """Replace a file's content as a whole.

    Steps: write a temporary file, fsync it, rename it over `path`, fsync the directory. Survives a
    crash: after the last step the new content, before the rename the old, between them either.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with translated("cannot publish a file", path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
            os.rename(temporary, path)
        except BaseException:
            # A full disk must not keep what was written of a file that never came to be.
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        sync_directory(path.parent)


def rename_durably(source: Path, target: Path) -> None:
    """Rename, then fsync both directories. Survives a crash: the new name."""
    os.rename(source, target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def remove_durably(path: Path) -> None:
    """Unlink, then fsync the directory; nothing happens if it is not there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    sync_directory(path.parent)


def read_small(path: Path, limit_bytes: int) -> bytes | None:
    """A small file's content, None if it is not there; never more than `limit_bytes` + 1 bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translate(error, "cannot read a file", path) from error
    try:
        return pread_exactly(descriptor, limit_bytes + 1, 0)
    except OSError as error:
        raise translate(error, "cannot read a file", path) from error
    finally:
        os.close(descriptor)


def next_free(path: Path) -> Path:
    """`path`, or `path.1`, `path.2`, ...: the first that is not taken."""
    candidate = path
    number = 0
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate
