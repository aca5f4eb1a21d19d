"""The shipper's side of the gate: writers say which LSN they wait for, and hear when it is committed.

Owns the unix stream socket in the store's directory and its connections. Each connection has one wish,
the newest; a writer that does not read loses its connection, never the shipper's time.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..store import names
from .door import NO_ROOM, Door
from .gate import LSN_WORD
from .wake import bind_in_store

CONNECTIONS_MAX = 4096
BACKLOG = 128
_NEVER = (1 << 64) - 1


class _Writer:
    __slots__ = ("connection", "rest", "wanted")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rest = b""
        self.wanted = _NEVER


class GateServer:
    """All writers that wait."""

    def __init__(
        self,
        store: Path,
        selector: selectors.BaseSelector,
        committed_lsn: Callable[[], int],
        on_wish: Callable[[], object],
    ) -> None:
        self._selector = selector
        self._committed_lsn = committed_lsn
        self._on_wish = on_wish
        self._writers: dict[int, _Writer] = {}
        self._lowest = _NEVER
        self.listener = bind_in_store(store, names.GATE_SOCKET, socket.SOCK_STREAM)
        self.listener.listen(BACKLOG)
        self._door = Door(
            partial(selector.register, self.listener, selectors.EVENT_READ, self._accept),
            partial(selector.unregister, self.listener),
        )

    def announce(self, committed_lsn: int) -> None:
        """Tell every writer whose wish is committed now."""
        if committed_lsn < self._lowest:
            return
        answer = LSN_WORD.pack(committed_lsn)
        lowest = _NEVER
        for writer in list(self._writers.values()):
            wanted = writer.wanted
            if wanted <= committed_lsn:
                writer.wanted = _NEVER
                self._answer(writer, answer)
            elif wanted < lowest:
                lowest = wanted
        self._lowest = lowest

    def tick(self, at_ms: int) -> None:
        """Look for new writers again, where none could be taken. `at_ms` is monotonic."""
        self._door.tick(at_ms)

    def close(self) -> None:
        for writer in list(self._writers.values()):
            self._drop(writer)
        self._door.close()
        self.listener.close()

    def _accept(self, _mask: int) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError as error:
            if error.errno in NO_ROOM:
                self._door.shut(f"cannot take a writer's connection: {error.strerror}")
            return
        self._door.took()
        if len(self._writers) >= CONNECTIONS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        writer = _Writer(connection)
        self._writers[connection.fileno()] = writer
        self._selector.register(connection, selectors.EVENT_READ, partial(self._read, writer))

    def _read(self, writer: _Writer, _mask: int) -> None:
        try:
            data = writer.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(writer)
            return
        if writer.rest or len(data) != LSN_WORD.size:
            data = writer.rest + data
        whole = len(data) - len(data) % LSN_WORD.size
        writer.rest = data[whole:]
        if not whole:
            return
        self._on_wish()
        writer.wanted = LSN_WORD.unpack_from(data, whole - LSN_WORD.size)[0]
        committed_lsn = self._committed_lsn()
        if writer.wanted <= committed_lsn:
            writer.wanted = _NEVER
            self._answer(writer, LSN_WORD.pack(committed_lsn))
        elif writer.wanted < self._lowest:
            self._lowest = writer.wanted

    def _answer(self, writer: _Writer, answer: bytes) -> None:
        try:
            writer.connection.send(answer)
        except OSError:
            self._drop(writer)

    def _drop(self, writer: _Writer) -> None:
        self._writers.pop(writer.connection.fileno(), None)
        self._selector.unregister(writer.connection)
        writer.connection.close()
