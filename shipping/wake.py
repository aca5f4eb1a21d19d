"""Waking the shipper: a poke where the writer can, watchdog where no poke reaches, a poll at last.

Owns the datagram socket in the store's directory and the watcher. Writers poke only while the page's
idle flag is up; the shipper sets it, looks at the log again, and only then waits.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Final

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from ..store import names
from ..store.files import FILE_MODE, translated

logger = logging.getLogger(__name__)

POLL_MS: Final = 5
"""The last resort: look at the page this often."""
WATCH_IDLE_S: Final = 10.0
"""The watcher is stopped when it was not needed for so long: it costs more than any other way."""
UNANNOUNCED_MIN: Final = 3
"""It is needed once frames came so often in a row without a poke: one poke may be late, not each."""
POKE_BYTES: Final = 8


class Wake(Enum):
    """What told the shipper of new frames."""

    POKE = "poke"
    WATCHER = "watcher"
    POLL = "poll"


@contextmanager
def short_path(store: Path, name: str) -> Generator[str, None, None]:
    """A path to a socket in a store's directory that fits into a socket's address, however long it is.

    A socket's path has 107 bytes at most; through a descriptor of the directory any path is short.
    """
    directory = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)


def bind_in_store(store: Path, name: str, kind: socket.SocketKind) -> socket.socket:
    """A unix socket under `name` in a store's directory, which replaces what a dead process left.

    The caller holds the lock that makes it the only one. Raises StorageError.
    """
    bound = socket.socket(socket.AF_UNIX, kind)
    try:
        with translated("cannot make a socket", store / name), short_path(store, name) as path:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            bound.bind(path)
            os.chmod(path, FILE_MODE)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


CONFIRM: Final = bytes([0xFF]) * 8
"""A poke that is no LSN: have the replicas confirm that this node is the primary."""


class PokeSocket:
    """Where pokes arrive."""

    def __init__(self, store: Path) -> None:
        self.socket = bind_in_store(store, names.POKE_SOCKET, socket.SOCK_DGRAM)

        self.asks_to_confirm = False
        """Somebody asks whether this node still is the primary."""

    def fileno(self) -> int:
        return self.socket.fileno()

    def drain(self) -> int:
        """Take all pokes; says how many there were."""
        count = 0
        while True:
            try:
                poke = self.socket.recv(POKE_BYTES)
            except BlockingIOError:
                return count
            if poke == CONFIRM:
                self.asks_to_confirm = True
            count += 1

    def close(self) -> None:
        self.socket.close()


class _Handler(FileSystemEventHandler):
    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._watcher.notice()


class Watcher:
    """Wakes the shipper when the log's files change. Runs only while something needs it.

    It is started once a poll found frames that nobody had announced: some writer does not poke.
    """

    def __init__(self, log: Path, words: Any, idle_word: int) -> None:
        self._log = log
        self._words = words
        self._idle_word = idle_word
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._observer: Any = None
        self._needed_at = 0.0
        self._has_failed = False

    def fileno(self) -> int:
        return self._read

    @property
    def is_running(self) -> bool:
        return self._observer is not None

    def need(self) -> None:
        """A frame was found that no poke had announced: watch from now on."""
        self._needed_at = time.monotonic()
        if self._observer is None and not self._has_failed:
            self._start()

    def rest(self) -> None:
        """Stop watching if it was not needed for a while."""
        if self._observer is not None and time.monotonic() - self._needed_at > WATCH_IDLE_S:
            self._stop()

    def notice(self) -> None:
        """Called in the watcher's thread for every change."""
        if self._words[self._idle_word]:
            try:
                os.write(self._write, b"w")
            except BlockingIOError:
                pass

    def drain(self) -> bool:
        """Take what was noticed; says whether anything was."""
        try:
            return bool(os.read(self._read, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._stop()
        os.close(self._read)
        os.close(self._write)

    def _start(self) -> None:
        observer = Observer()
        try:
            observer.schedule(_Handler(self), str(self._log), recursive=False)
            observer.start()
        except OSError as error:
            self._has_failed = True
            logger.warning("cannot watch the log, polling goes on: path=%s error=%s", self._log, error)
            return
        self._observer = observer
        logger.debug("watching the log: path=%s", self._log)

    def _stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None
