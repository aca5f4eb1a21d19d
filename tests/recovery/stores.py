"""Stores with sessions in them, and what a store holds, for the tests of recovery."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure.store import OpenOptions, SessionStore, open_store
from perdure.store.sealing import unsealed_segments

BLOCK_BYTES = 4096


def contents(store: SessionStore) -> dict[str, Any]:
    """Every session's metadata by id, as readers see it."""
    found = {}
    for id in store.ids():
        session = store.peek(id)
        if session is not None:
            found[id] = dict(session.metadata)
    return found


def contents_of(path: Path) -> dict[str, Any]:
    with SessionStore.open(path, create=False) as store:
        return contents(store)


def small_segments(
    path: Path, *, backend: str | None = None, segment_bytes: int = 4096, **more: Any
) -> SessionStore:
    """A store whose log rolls often, so that there are sealed segments soon."""
    options = OpenOptions(backend=backend, segment_bytes=segment_bytes, **more)
    return SessionStore(open_store(path, options), options, None)


def seal(store: SessionStore, deadline_s: float = 10.0) -> None:
    """Have every segment that another one follows sealed; the store's own thread may be at it, too."""
    log = store._opened.log
    until = time.monotonic() + deadline_s
    while unsealed_segments(log.cursor.log):
        assert time.monotonic() < until, "the segments are not sealed in time"
        store._keeper._seal()
        time.sleep(0.005)


def fingerprint(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Every file below a directory: mode, size, mtime and content; what must not change."""
    found = {}
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root) / name
            status = path.stat()
            if not path.is_socket():
                found[str(path.relative_to(folder))] = (
                    status.st_mode,
                    status.st_size,
                    status.st_mtime_ns,
                    _content(path, status.st_size),
                )
        found[os.path.relpath(root, folder)] = (0, 0, os.stat(root).st_mtime_ns, "")
    return found


def _content(path: Path, size: int) -> str:
    """Hash of a file's allocated parts: a state's file may be a terabyte of holes."""
    content = hashlib.blake2b()
    with path.open("rb") as file:
        at = 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end and (data := os.pread(file.fileno(), min(BLOCK_BYTES, end - at), at)):
                if any(data):  # a block of zeros may be a hole at one time and none at another
                    content.update(at.to_bytes(8, "little") + data)
                at += len(data)
    return content.hexdigest()


def without_rights(place: Path, action: Callable[[], object]) -> int:
    """Run `action` in a child that may read what is in `place`, and write nothing of it; its exit code.

    Root may write anywhere, so that the child becomes another user there; new entries in `place` itself
    may be made.
    """
    for root, folders, files in os.walk(place):
        for name in folders + files:
            os.chmod(os.path.join(root, name), 0o555)
    os.chmod(place, 0o777)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            action()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for root, folders, _files in os.walk(place):
        for name in folders:
            os.chmod(os.path.join(root, name), 0o755)
    return code
