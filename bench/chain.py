"""A bare chain of three processes that flush before they ship: what a write on two disks costs at least.

The peer of the figures of synchronous writes. An application appends a record to a file and pokes a shipper
over a socket; the shipper flushes the file and sends the record over TCP to a replica, which writes and
flushes it and answers; the answer goes back the same way. No framing, checks or state; one write at a time.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

RECORD_BYTES = 300

_REPLICA = """
import os, socket, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
link, _ = listener.accept()
link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := link.recv(65536):
    os.write(file, data)
    if sys.argv[2] == "sync":
        os.fdatasync(file)
    link.send(b"+")
"""

_SHIPPER = """
import os, socket, sys
file = os.open(sys.argv[1], os.O_RDONLY)
link = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
app = socket.socket(fileno=int(sys.argv[3]))
at = 0
while app.recv(1):
    if sys.argv[4] == "sync":
        os.fdatasync(file)
    data = os.pread(file, 65536, at)
    at += len(data)
    link.sendall(data)
    link.recv(1)
    app.send(b"+")
"""


class BareChain:
    """The application's end of a chain in a directory. Its processes end with it."""

    def __init__(self, folder: Path, *, has_sync: bool = True) -> None:
        """Without syncs it shows what the hand-overs alone cost."""
        sync = "sync" if has_sync else "no sync"
        folder.mkdir()
        self._file = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._socket, theirs = socket.socketpair()
        self._replica = subprocess.Popen(
            [sys.executable, "-c", _REPLICA, str(folder / "replica"), sync], stdout=subprocess.PIPE, text=True
        )
        assert self._replica.stdout is not None
        port = self._replica.stdout.readline().strip()
        words = [sys.executable, "-c", _SHIPPER, str(folder / "log"), port, str(theirs.fileno()), sync]
        self._shipper = subprocess.Popen(words, pass_fds=[theirs.fileno()])
        theirs.close()
        self._record = os.urandom(RECORD_BYTES)

    @property
    def pids(self) -> tuple[int, int]:
        """Its shipper and its replica."""
        return self._shipper.pid, self._replica.pid

    def write(self) -> None:
        """One record, on two disks when this returns."""
        os.write(self._file, self._record)
        self._socket.send(b"!")
        if self._socket.recv(1) != b"+":
            raise OSError("the chain broke")

    def close(self) -> None:
        self._socket.close()
        for process in (self._shipper, self._replica):
            process.wait(10)
        assert self._replica.stdout is not None
        self._replica.stdout.close()
        os.close(self._file)

    def __enter__(self) -> BareChain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
