"""How a process gets another one to work for it: by exec, or by fork from one that has everything loaded.

Owns the two ways to start a module's `main()` with a task, and the handle on what was started. Both give the
child the same face: the task on standard input (nothing is on a command line or in the environment), which
stays open for as long as the parent lives, standard output as a pipe back, and a session of its own. A fork
takes a fiftieth of the processor time of an exec, which is a Python's start and every import again.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Final, NoReturn, Protocol, TypeVar

import msgspec

from ..store.errors import WireError

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 5.0
TASK_BYTES_MAX: Final = 1 << 20
_SIZE_BYTES: Final = 4
_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
_NAME_BYTES_MAX: Final = 15
"""Of a process, in Linux."""

_TaskT = TypeVar("_TaskT")


class Process(Protocol):
    """A process that was started, as subprocess.Popen has it."""

    @property
    def pid(self) -> int: ...

    @property
    def stdin(self) -> IO[bytes] | None: ...

    @property
    def stdout(self) -> IO[bytes] | None: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int, /) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Launch(Protocol):
    """A way to start a process."""

    def __call__(
        self, module: str, task: msgspec.Struct, passed: Sequence[int] = (), *, name: str
    ) -> Process:
        """Start `module`'s `main()` with a task and the descriptors `passed`. Raises OSError if the system
        refuses, or the process ended before it took its task."""
        ...


def execute(module: str, task: msgspec.Struct, passed: Sequence[int] = (), *, name: str) -> Process:
    """Start it in a new Python. For any process, whatever threads it has. `name` is not used."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=package_environment(),
        start_new_session=True,
        pass_fds=passed,
    )
    return _with_task(process, task)


def fork(module: str, task: msgspec.Struct, passed: Sequence[int] = (), *, name: str) -> Process:
    """Start it in a copy of this process, which must have no thread but this one; `ps` shows it as `name`.

    Raises RuntimeError where there are other threads: what they hold would be held for ever in the copy.
    """
    if threading.active_count() != 1:
        raise RuntimeError("a process with threads cannot be forked")
    main: Callable[[], int | None] = importlib.import_module(module).main
    child_in, parent_out = os.pipe()
    parent_in, child_out = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or the child says again what is still in a buffer
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            become_child(main, child_in, child_out, passed, name, before)
    except BaseException:
        for descriptor in (parent_out, parent_in):
            os.close(descriptor)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for descriptor in (child_in, child_out):
            os.close(descriptor)
    return _with_task(Forked(pid, parent_out, parent_in), task)


class Forked:
    """A forked process."""

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.stdin: IO[bytes] | None = os.fdopen(stdin, "wb", buffering=0)
        self.stdout: IO[bytes] | None = os.fdopen(stdout, "rb", buffering=0)
        self.returncode: int | None = None
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired past the timeout, in seconds."""
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._handle, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
            self._ended(os.waitpid(self.pid, 0)[1])
        return self.returncode or 0

    def send_signal(self, sig: int, /) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, status: int) -> None:
        self.returncode = os.waitstatus_to_exitcode(status)
        os.close(self._handle)


def end_process(process: Process, name: str, timeout_s: float = STOP_TIMEOUT_S) -> int:
    """End a process in order (SIGTERM), by force past the timeout; answers its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            logger.warning("killed, because it did not end: kind=%s pid=%d", name, process.pid)
            process.kill()
    return reap_process(process)


def reap_process(process: Process) -> int:
    """Wait for the end of a process, and close the pipes to it; answers its exit code."""
    code = process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    return code


def read_task(kind: type[_TaskT], descriptor: int = _STDIN) -> _TaskT:
    """The task that the parent wrote. Raises msgspec.DecodeError if it is none."""
    size = int.from_bytes(_read_exactly(descriptor, _SIZE_BYTES), "little")
    return msgspec.json.decode(_read_exactly(descriptor, min(size, TASK_BYTES_MAX)), type=kind)


def _with_task(process: Process, task: msgspec.Struct) -> Process:
    data = msgspec.json.encode(task)
    try:
        if process.stdin is None:
            raise WireError("a process was started without a pipe to it")
        process.stdin.write(len(data).to_bytes(_SIZE_BYTES, "little") + data)
        process.stdin.flush()
    except BaseException:
        process.kill()
        reap_process(process)
        raise
    return process


def become_child(
    main: Callable[[], int | None],
    stdin: int,
    stdout: int,
    passed: Iterable[int],
    name: str,
    mask: Iterable[int],
) -> NoReturn:
    """What a copy does, with the pipes to its parent and every other signal held back: never returns.

    `mask` are the signals that are held back from then on.
    """
    code = 1
    gc.freeze()  # pages stay shared, and nothing that is the parent's is finalized here
    try:
        os.setsid()
        os.dup2(stdin, _STDIN)
        os.dup2(stdout, _STDOUT)
        _close_others({_STDIN, _STDOUT, _STDERR, *passed})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        Path("/proc/self/comm").write_bytes(name.encode()[:_NAME_BYTES_MAX])
        _forget_logging()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = main() or 0
    except SystemExit as ended:
        code = 0 if ended.code is None else ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001  (said, as a Python's last words)
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            logging.shutdown()
            sys.stderr.flush()
        os._exit(code)


def _forget_logging() -> None:
    """The child sets up its own lines."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)


def _close_others(kept: set[int]) -> None:
    """Close every descriptor but these: an end of another child's pipe would keep that alive."""
    low = 0
    for descriptor in sorted(kept):
        if descriptor > low:  # an empty range can be taken for all
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def package_environment() -> dict[str, str]:
    """The environment of a process that has to find this very package, whether it is installed or not."""
    package = Path(__file__).absolute().parent.parent.parent
    environment = dict(os.environ)
    path = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = f"{package}{os.pathsep}{path}" if path else str(package)
    return environment


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            break
        data += more
    return data
