"""The gate: how a writer wakes the shipper, and waits until its frame is committed.

Owns the writer's side of the two sockets in the store's directory: pokes are datagrams, waits go over
a stream. A wait is 8 bytes (the LSN, little-endian); the answer is 8 bytes (the commit LSN, at least
that). What counts is the commit LSN in the control page; the stream only says when to look.

Threads share one stream: one of them leads and waits on it for the lowest LSN that any of them needs.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..store import names
from ..store.forks import watch_forks
from ..store.identity import read_identity
from ..store.ids import Position
from ..store.page import ControlPage, Word, read_boot_id
from ..store.promise import read_promise
from .wake import CONFIRM, short_path

LSN_WORD = struct.Struct("<Q")
RECONNECT_MS = 20
CONFIRM_POLL_S_MIN = 0.00005
CONFIRM_POLL_S_MAX = 0.002
CONFIRM_AGAIN_US = 100_000
"""A poke may meet no shipper, or one that has just begun."""
LOOK_MS = 200
"""Who waits looks at the page at least this often, whatever the stream says, and at the promise."""
_COMMITTED = int(Word.COMMITTED)
_GENERATION = int(Word.GENERATION)
_SHIPPER_IDLE = int(Word.SHIPPER_IDLE)
_CONFIRMED = int(Word.CONFIRMED_US)


class Gate:
    """A writer's way to the replicas (the port CommitGate). Safe for threads."""

    def __init__(self, store: Path, boot_id: str) -> None:
        self._store = store
        self._page = ControlPage(store / names.CONTROL_PAGE, boot_id)
        self._words = self._page.words
        self._poke = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._poke.setblocking(False)
        self._is_poke_connected = False
        self._stream: socket.socket | None = None
        self._poller = select.poll()
        """Watches the stream."""
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._has_leader = False
        self._wanted: list[int] = []
        watch_forks(self)

    def poke(self, lsn: int) -> None:
        """Tell the shipper that the log reaches `lsn`. Never blocks, never raises."""
        if not self._words[_SHIPPER_IDLE]:
            return  # it looks at the log again before it waits
        self._send_poke(LSN_WORD.pack(lsn))

    def _send_poke(self, data: bytes) -> None:
        try:
            if self._is_poke_connected:
                self._poke.send(data)
                return
        except BlockingIOError:
            return  # pokes wait for the shipper already
        except OSError:
            self._is_poke_connected = False
        try:
            with short_path(self._store, names.POKE_SOCKET) as path:
                self._poke.connect(path)
            self._is_poke_connected = True
            self._poke.send(data)
        except OSError:
            return  # no shipper runs; it looks at the log when it comes

    def wait(self, position: Position, timeout_ms: int) -> bool:
        """Wait until the commit LSN covers the position; the shipper hears of it.

        False when the time (ms) is up, and within LOOK_MS once a higher epoch is promised.
        """
        words, lsn = self._words, position[1]
        if words[_COMMITTED] >= lsn:
            return True
        now = time.monotonic()
        deadline, look_at = now + timeout_ms / 1000, now + LOOK_MS / 1000
        generation = words[_GENERATION]
        with self._mutex:
            self._wanted.append(lsn)
            try:
                while words[_COMMITTED] < lsn:
                    now = time.monotonic()
                    left = deadline - now
                    if left <= 0:
                        return False
                    if words[_GENERATION] != generation or now >= look_at:
                        generation, look_at = words[_GENERATION], now + LOOK_MS / 1000
                        if read_promise(self._store).epoch > position[0]:
                            return bool(words[_COMMITTED] >= lsn)
                    if self._has_leader:
                        self.poke(lsn)
                        self._changed.wait(min(left, LOOK_MS / 1000))
                    else:
                        self._lead(left)
            finally:
                self._wanted.remove(lsn)
        return True

    def confirm(self, timeout_ms: int) -> bool:
        """Have sync_replicas confirm, from now on, that this node still is the primary.

        False when the time (ms) is up. Whether this node itself has promised a later epoch is for the caller
        to look at, behind it.
        """
        words = self._words
        begun_us = time.monotonic_ns() // 1000 + 1
        deadline_us = begun_us + timeout_ms * 1000
        poke_us, pause_s = 0, CONFIRM_POLL_S_MIN
        while words[_CONFIRMED] < begun_us:
            now_us = time.monotonic_ns() // 1000
            if now_us >= deadline_us:
                return False
            if now_us >= poke_us:
                poke_us = now_us + CONFIRM_AGAIN_US
                self._send_poke(CONFIRM)
            time.sleep(pause_s)
            pause_s = min(CONFIRM_POLL_S_MAX, pause_s * 1.3)
        return True

    def confirmed_age_ms(self) -> int | None:
        """How long ago sync_replicas have confirmed that this node is the primary; None: they have not."""
        confirmed = self._words[_CONFIRMED]
        return (time.monotonic_ns() // 1000 - confirmed) // 1000 if confirmed else None

    def close(self) -> None:
        """Give back sockets and page."""
        self._drop_stream()
        self._poke.close()
        self._page.close()

    def sever(self) -> object:
        """In a child: let go of the sockets, whose other ends would else not see the parent die."""
        self._poke.close()
        self._drop_stream()
        return self._page

    def _lead(self, left_s: float) -> None:
        """Wait once on the stream for everyone, without holding the mutex. The caller holds it."""
        self._has_leader = True
        lowest = min(self._wanted)
        self._mutex.release()
        try:
            self._wait_on_stream(lowest, min(left_s, LOOK_MS / 1000))
        finally:
            self._mutex.acquire()
            self._has_leader = False
            if len(self._wanted) > 1:
                self._changed.notify_all()

    def _wait_on_stream(self, lsn: int, wait_s: float) -> None:
        """Say what is waited for, and wait for one answer, perhaps to an earlier wish."""
        stream = self._stream or self._connect()
        if stream is None:
            time.sleep(min(wait_s, RECONNECT_MS / 1000))
            return
        try:
            self._wish(stream, lsn)
            if self._poller.poll(wait_s * 1000) and not stream.recv(4096):
                raise ConnectionResetError
        except OSError:
            self._drop_stream()

    def _wish(self, stream: socket.socket, lsn: int) -> None:
        try:
            stream.send(LSN_WORD.pack(lsn))  # so few bytes fit wholly or not at all
        except BlockingIOError:
            return  # a shipper that reads nothing has wishes enough; the leader looks again by itself

    def _connect(self) -> socket.socket | None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)  # a shipper that hangs holds up nobody beyond the deadline
        try:
            with short_path(self._store, names.GATE_SOCKET) as path:
                stream.connect(path)
        except OSError:
            stream.close()
            return None
        self._stream = stream
        self._poller = select.poll()
        self._poller.register(stream, select.POLLIN)
        return stream

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def open_gate(store: str | os.PathLike[str], *, boot_id: Callable[[], str] = read_boot_id) -> Gate:
    """The gate of the store at `store`, for `SessionStore.open(..., gate=...)`.

    Raises StoreMissingError if there is no store. Without a shipper it opens, too: waits then end at
    their deadline.
    """
    path = Path(store)
    read_identity(path)
    return Gate(path, boot_id())
