"""A process that has the package loaded, and forks the processes of nodes for tests.

Owns it and the handles on what it forked. A test process has threads, so it cannot fork them itself, and
a new Python takes half a second where a fork takes a hundredth. The template starts with the first use and
ends with the process that started it.
"""

from __future__ import annotations

import array
import fcntl
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

import msgspec

from perdure.shipping.launching import Process, become_child
from tests.cli.runner import environment

PRELOADED: Final = ("perdure.shipping.__main__", "perdure.cli.server_process")
MESSAGE_BYTES_MAX: Final = 4096
DESCRIPTORS_MAX: Final = 16
FREE_FROM: Final = 500
"""Descriptors from here on are out of the way of those that a child is to have."""
POLL_S: Final = 0.002


class Template:
    """The way to the template of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, module: str, task: msgspec.Struct, passed: Sequence[int] = (), *, name: str) -> Process:
        """As perdure.shipping.launching.fork, from a process with threads."""
        child_in, parent_out = os.pipe()
        parent_in, child_out = os.pipe()
        ask = {"module": module, "name": name, "passed": list(passed)}
        pid = int(self.ask(ask, [child_in, child_out, *passed])["pid"])
        for descriptor in (child_in, child_out):
            os.close(descriptor)
        process = _Forked(self, pid, parent_out, parent_in)
        data = msgspec.json.encode(task)
        process.stdin.write(len(data).to_bytes(4, "little") + data)
        return process

    def ask(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        with self._lock:
            if self._socket is None:
                self._socket = self._start()
            rights = array.array("i", descriptors)
            self._socket.sendmsg(
                [json.dumps(message).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            )
            said: dict[str, Any] = json.loads(self._socket.recv(MESSAGE_BYTES_MAX))
        return said

    def close(self) -> None:
        """End the template."""
        if self._socket is not None and self.process is not None:
            self._socket.close()
            self._socket = None
            self.process.wait()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.template"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_without_settings(environment()),
                start_new_session=True,
            )
        return ours


def _without_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """Without what the test that happens to need the template first has set: it is for all that follow."""
    return {name: value for name, value in variables.items() if not name.startswith("PERDURE_")}


class _Forked:
    """A child of the template."""

    def __init__(self, template: Template, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.stdin: IO[bytes] = os.fdopen(stdin, "wb", buffering=0)
        self.stdout: IO[bytes] = os.fdopen(stdout, "rb", buffering=0)
        self.returncode: int | None = None
        self._template = template

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._template.ask({"poll": self.pid})["code"]
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout if timeout is not None else 1e9)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
            time.sleep(POLL_S)
        return code

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


template: Final = Template()
launch: Final = template.launch


def main() -> None:
    """Fork and wait as standard input asks for, until it ends."""
    asked = socket.socket(fileno=os.dup(0))
    for module in PRELOADED:
        importlib.import_module(module)
    size = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
    while True:
        data, rights, _, _ = asked.recvmsg(MESSAGE_BYTES_MAX, size)
        if not data:
            return
        message = json.loads(data)
        descriptors = array.array("i")
        for _, _, some in rights:
            descriptors.frombytes(some)
        if "poll" in message:
            pid, status = os.waitpid(message["poll"], os.WNOHANG)
            said = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            said = {"pid": _fork(message, list(descriptors))}
        asked.send(json.dumps(said).encode())


def _fork(message: dict[str, Any], descriptors: list[int]) -> int:
    main = importlib.import_module(message["module"]).main
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        stdin, stdout, *rest = (
            fcntl.fcntl(descriptor, fcntl.F_DUPFD, FREE_FROM) for descriptor in descriptors
        )
        for descriptor, wanted in zip(rest, message["passed"], strict=True):
            os.dup2(descriptor, wanted)
        become_child(main, stdin, stdout, message["passed"], message["name"], mask)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


if __name__ == "__main__":
    main()
