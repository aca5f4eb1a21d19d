"""The client processes of one system: started when a case needs them, and begun all at the same moment.

Owns the processes and their end. Invariant: a client process that no case in progress needs has no
connection, so that it can't be in the way of those that have one.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from .latency import Histogram
from .loop import Slice
from .systems.ports import Address
from .worker import Close, Connect, Failed, Fill, Learn, Memory, Prepare, Reply, Request, Run
from .workloads import Case

REPLY_S: Final = 120.0
HEAD_START_NS: Final = 3_000_000
"""From the order to begin until the beginning."""

_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], Reply] = msgspec.json.Decoder(Reply).decode


class ClientError(Exception):
    """A client could not do its part: what the system raised, or that it fell silent."""


class ClientProcess:
    """One process. Requests and replies go in pairs."""

    def __init__(self) -> None:
        path = os.pathsep.join(part for part in sys.path if part)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def ask(self, request: Request, *, wait_s: float = REPLY_S) -> Reply:
        self.send(request)
        return self.answer(wait_s)

    def send(self, request: Request) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_encode(request) + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ClientError("the client process has ended") from error

    def answer(self, wait_s: float = REPLY_S) -> Reply:
        """Raises ClientError."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], wait_s)[0]:
            raise ClientError(f"no answer within {wait_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise ClientError("the client process has ended")
        reply = _decode(line)
        if isinstance(reply, Failed):
            raise ClientError(reply.error)
        return reply

    def close(self) -> None:
        """Idempotent; what does not end by itself is killed."""
        with suppress(ClientError):
            self.ask(Close(), wait_s=10.0)
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()


class Crew:
    """The clients of one running system."""

    def __init__(self, system: str, address: Address, folder: Path) -> None:
        """`system` is its registered name; lists of ids are kept in `folder`."""
        self._system = system
        self.address = address
        self._folder = folder
        self._clients: list[ClientProcess] = []
        self._idle: list[ClientProcess] = []
        """Have no connection, and know what is learned."""
        self._sizes: list[int] = []

    def fill(self, count: int, value_bytes: int, *, limit_s: float, is_all: bool = False) -> int:
        """Have so many more sessions of this size, or what `limit_s` allows: how many.

        Raises ClientError, with `is_all` also as soon as the time will not do.
        """
        request = Fill(count, value_bytes, str(self.file_of(value_bytes)), limit_s, is_all)
        stored = self.resize(1)[0].ask(request, wait_s=limit_s + REPLY_S)
        assert isinstance(stored, float)
        return int(stored)

    def learn(self, value_bytes: int) -> None:
        """Have all clients, also those to come, choose among the sessions of this size."""
        self._sizes.append(value_bytes)
        for client in (*self._clients, *self._idle):
            client.ask(Learn(value_bytes, str(self.file_of(value_bytes))))

    def slice(self, case: Case, number: int, seconds: float) -> tuple[float, Histogram]:
        """Run a slice of a case on its clients: units a second of all together, and their latencies.

        The time is that from the common beginning to the last answer of any client. Raises ClientError; all
        clients are ended then.
        """
        try:
            clients = self.resize(case.clients)
            for client in clients:
                client.send(Prepare(case, number, seconds))
            _answers(clients)
            at_ns = time.perf_counter_ns() + HEAD_START_NS
            for client in clients:
                client.send(Run(at_ns))
            replies = _answers(clients)
        except ClientError:
            self.close()
            raise
        latencies, units, elapsed_ns = Histogram(), 0, 1
        for reply in replies:
            assert isinstance(reply, Slice)
            latencies.add(Histogram(reply.counts, reply.max_ns))
            units += reply.units
            elapsed_ns = max(elapsed_ns, reply.elapsed_ns)
        return units * 1e9 / elapsed_ns, latencies

    def ask(self, request: Request) -> Reply:
        """Of the first client."""
        return self.resize(1)[0].ask(request)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of all client processes, connected or not."""
        return tuple(client.pid for client in (*self._clients, *self._idle))

    def memory_bytes(self) -> int:
        """Of the first client's process."""
        taken = self.ask(Memory())
        assert isinstance(taken, float)
        return int(taken)

    def disconnect(self) -> None:
        """Let all clients close their connections; the next request opens new ones."""
        while self._clients:
            self._clients[-1].ask(Close())
            self._idle.append(self._clients.pop())

    def close(self) -> None:
        """End all clients; the next request starts new ones."""
        for clients in (self._clients, self._idle):
            while clients:
                clients.pop().close()

    def kill(self) -> None:
        """kill -9 of all clients that are connected."""
        while self._clients:
            self._clients.pop().kill()

    def file_of(self, value_bytes: int) -> Path:
        """Where the ids of sessions of this size are written."""
        return self._folder / f"ids-{value_bytes}"

    def resize(self, count: int) -> Sequence[ClientProcess]:
        """So many clients, connected; those that are too many are disconnected. Raises ClientError."""
        while len(self._clients) > count:
            self._clients[-1].ask(Close())
            self._idle.append(self._clients.pop())
        new = range(len(self._clients), count)
        self._idle += self._started(len(new) - len(self._idle))
        for number in new:
            self._clients.append(self._idle.pop())
            self._clients[-1].send(Connect(self._system, self.address, number))
        _answers(self._clients[new.start :])
        return self._clients

    def _started(self, count: int) -> list[ClientProcess]:
        clients = [ClientProcess() for _ in range(count)]
        for size in self._sizes:
            for client in clients:
                client.send(Learn(size, str(self.file_of(size))))
            _answers(clients)
        return clients


def _answers(clients: Sequence[ClientProcess]) -> list[Reply]:
    """Of each client, so that no answer is left that nobody took; then the first error is raised."""
    replies: list[Reply] = []
    error: ClientError | None = None
    for client in clients:
        try:
            replies.append(client.answer())
        except ClientError as failed:
            error = error or failed
    if error is not None:
        raise error
    return replies
