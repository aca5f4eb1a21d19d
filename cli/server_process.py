"""A node's server as a process of its own, and how the node process starts it.

Owns the wiring: which rooms' handlers the server answers with. Run as `python -m perdure.cli.server_process`,
with its task on standard input; it says on standard output, in one JSON line, which port it
has taken or why it cannot begin, and ends when standard input does.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from pathlib import Path
from time import monotonic

import msgspec

from .. import open as open_replicated
from ..recovery import MemberService, OpsService, SwitchService
from ..shipping import ForwardService, Secret, Server, merged_handlers
from ..shipping.launching import STOP_TIMEOUT_S, Launch, Process, end_process, execute, read_task
from ..store import PerdureError, SessionStore, WireError, read_identity

logger = logging.getLogger(__name__)

STDIN = 0
STDOUT = 1
READY_S = 30.0


class ServerTask(msgspec.Struct, frozen=True):
    """What a server is to serve, and where it listens; port 0 takes a free one."""

    directory: str
    host: str
    port: int
    secret: Secret = b""
    peers: dict[str, tuple[str, int]] = {}
    """The other nodes' receivers."""
    log_level: str = "WARNING"


class ServerReady(msgspec.Struct, frozen=True):
    """The first line that a server says."""

    port: int = 0
    error: str = ""


def serve(task: ServerTask, store: SessionStore) -> Server:
    """The server over an open store, with the handlers of every room. Raises WireError, UsageError."""
    directory = Path(task.directory)
    tables = [
        ForwardService(store).handlers(),
        OpsService(directory).handlers(),
        MemberService(directory).handlers(),
        SwitchService(directory, store, task.peers, task.secret).handlers(),
    ]
    return Server(
        task.host,
        task.port,
        cluster_id=read_identity(Path(task.directory)).cluster_id,
        secret=task.secret,
        handlers=merged_handlers(tables),
    )


class ServerChild:
    """The running process of a server."""

    def __init__(self, process: Process, port: int) -> None:
        self._process = process
        self.port = port

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """End it in order (SIGTERM), by force past the timeout; answers its exit code."""
        return end_process(self._process, "server", timeout_s)


def start_server(task: ServerTask, launch: Launch = execute) -> ServerChild:
    """Start a server and wait until it listens. Raises WireError if it cannot."""
    try:
        process = launch("perdure.cli.server_process", task, name="perdure-server")
    except OSError as error:
        raise WireError(f"cannot start the server: {error}") from error
    child = ServerChild(process, 0)
    try:
        if process.stdout is None:
            raise WireError("the server has no pipe back")
        said = msgspec.json.decode(_first_line(process.stdout.fileno()), type=ServerReady)
    except (OSError, msgspec.DecodeError) as error:
        child.stop()
        raise WireError(f"the server did not start: {error}") from error
    except BaseException:
        child.stop()
        raise
    if said.error:
        child.stop()
        raise WireError(f"the server did not start: {said.error}")
    child.port = said.port
    return child


def _first_line(descriptor: int) -> bytes:
    deadline, line = monotonic() + READY_S, b""
    while not line.endswith(b"\n"):
        left_s = deadline - monotonic()
        if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
            raise WireError(f"the server did not get ready within {READY_S:.0f} s")
        data = os.read(descriptor, 4096)
        if not data:
            raise WireError("the server ended before it was ready")
        line += data
    return line


def main() -> int:
    """Serve what standard input asks for, until it ends or SIGTERM comes."""
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task = read_task(ServerTask)
    logging.basicConfig(
        level=task.log_level, format="%(asctime)s %(levelname)s server[%(process)d] %(name)s: %(message)s"
    )
    try:
        with open_replicated(task.directory, create=False, forward=False) as store:
            server = serve(task, store)
            try:
                _say(ServerReady(server.port))
                server.run(lambda: bool(stopping), STDIN)
            finally:
                server.close()
    except PerdureError as error:
        logger.error("ended: %s", error)
        _say(ServerReady(error=str(error)))
        return 5
    return 0


def _say(ready: ServerReady) -> None:
    os.write(STDOUT, msgspec.json.encode(ready) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
