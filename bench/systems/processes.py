"""The processes of the systems that are servers: started, waited for, ended, never left behind.

Owns one server process and what it says (a file in its folder). The kernel ends it when the thread that
started it ends, however that happens, so start servers in the main thread.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

START_S = 30.0
STOP_S = 30.0
POLL_S = 0.002
SOCKET_PATH_BYTES_MAX = 100
"""The kernel allows 107, of which servers append some to the folder's path."""


class ServerError(Exception):
    """A server did not start, or did not do what it was asked. Says what it wrote last."""


class ServerProcess:
    """One server: started again and again with the same command."""

    def __init__(
        self,
        command: Sequence[str],
        said: Path,
        *,
        before: Sequence[str] = (),
        end_by: signal.Signals = signal.SIGTERM,
        abandon_by: signal.Signals = signal.SIGKILL,
    ) -> None:
        """`said` takes its output; `before` stands before the command (a namespace). `end_by` is the signal
        that ends it in order, `abandon_by` the one that ends it when its data are not needed any more; the
        kernel sends that, too, if it is left alone.
        """
        self._command = [*before, *ending_with_us(command, abandon_by)]
        self._said = said
        self._end_by = end_by
        self._abandon_by = abandon_by
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """It, and all that it has started."""
        process = self._process
        return () if process is None or process.poll() is not None else family(process.pid)

    def start(self, answers: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Returns once `answers`. Raises ServerError."""
        with open(self._said, "ab") as said:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        try:
            self.wait_until(answers, timeout_s)
        except BaseException:
            self.kill()
            raise

    def wait_until(self, is_true: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Raises ServerError if the process ends before, or it takes too long."""
        deadline_s = time.monotonic() + timeout_s
        while not is_true():
            if self._process is None or self._process.poll() is not None:
                raise ServerError(f"{self._command} ended: {self._last_words()}")
            if time.monotonic() > deadline_s:
                raise ServerError(f"{self._command} was not ready in {timeout_s} s: {self._last_words()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it in order; kill it if it does not."""
        self._end(self._end_by)

    def abandon(self) -> None:
        """End it at once; its data need not be kept. Nothing to do if it has ended."""
        self._end(self._abandon_by)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, by: int) -> None:
        process = self._process
        if process is None:
            return
        started = [pid for pid in self.pids if pid != process.pid]
        if process.poll() is None:
            process.send_signal(by)
            if by == signal.SIGKILL:
                _kill(started)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)
        self._process = None
        await_end(started)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self._said.read_text("utf-8", "replace")[-2000:]
        return ""


def run_once(command: Sequence[str], timeout_s: float = 120.0) -> str:
    """Run a command to its end; answers what it printed. Raises ServerError with its last words."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise ServerError(
            f"{list(command)} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )
    return done.stdout


def ending_with_us(command: Sequence[str], by: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command such that the kernel sends it that signal when the thread that started it ends."""
    has_setpriv = shutil.which("setpriv") is not None
    return [*(("setpriv", "--pdeathsig", by.name.removeprefix("SIG")) if has_setpriv else ()), *command]


def family(pid: int) -> tuple[int, ...]:
    """A process and its descendants, as far as they can be seen now."""
    found = [pid]
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    return tuple(found)


def free_port() -> int:
    """A port of loopback that nobody had a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    rng = random.SystemRandom()
    while True:
        first = rng.randrange(20_000, 60_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def socket_folder(folder: Path) -> tempfile.TemporaryDirectory[str] | None:
    """None if the paths of sockets in `folder` are short enough; else a folder where they are."""
    is_short = len(str(folder).encode()) <= SOCKET_PATH_BYTES_MAX - len("/.s.PGSQL.65535")
    return None if is_short else tempfile.TemporaryDirectory(prefix="perdure-bench-")


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def await_end(pids: Iterable[int]) -> None:
    """Wait for processes that are about to end. Raises ServerError for one that does not."""
    deadline_s = time.monotonic() + STOP_S
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline_s:
                raise ServerError(f"process {pid} of a server that was ended still runs")
            time.sleep(POLL_S)
