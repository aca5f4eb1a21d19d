"""A process that has imported everything already, and forks once for each run.

Owns the protocol between a sweep and its zygote: one JSON object a line, on stdin and stdout. A run
then costs a fork instead of the start of an interpreter with all its imports. The zygote has the
shim loaded but idle; the fork takes the run's environment and wakes it. As a command,

    python -m tests.support.faults.zygote MODULE:FUNCTION DIRECTORY LEDGER [ARGUMENT...]

makes one run in its own process, which is how a violation is repeated by hand.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""The repository."""

Function = Callable[..., int | None]
"""function(directory, ledger, *arguments) -> exit code; None is 0."""


class Zygote:
    """The sweep's side. Belongs to the process that made it and dies with it."""

    def __init__(self, library: Path, function: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FAULTS_")}
        environment |= {"LD_PRELOAD": str(library), "FAULTS_DIE_WITH_PARENT": "1"}
        environment["PYTHONPATH"] = import_path()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, "--serve", function],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=ROOT,
        )
        self._buffer = b""

    def begin(self, request: Mapping[str, object]) -> int:
        """Fork a run; returns its pid, which is also its session. Keys: directory, ledger, arguments,
        output, environment."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        pid = self._answer(None)
        assert pid is not None
        return pid

    def end(self, timeout_s: float | None) -> int | None:
        """The exit code of the run (negative: a signal), None if it does not end in time."""
        return self._answer(timeout_s)

    def close(self) -> None:
        """End the zygote; a run that is under way is left alone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self, timeout_s: float | None) -> int | None:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(timeout_s):
                    return None
                data = os.read(self._process.stdout.fileno(), 4096)
                if not data:
                    raise RuntimeError(f"the zygote is gone, exit code {self._process.wait()}")
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return int(line)


@dataclass(frozen=True)
class _Request:
    directory: str
    ledger: str
    arguments: Sequence[str]
    output: str
    environment: Mapping[str, str]


def import_path() -> str:
    """PYTHONPATH for a process under test: the tests and the package of this very checkout."""
    return os.pathsep.join([str(ROOT), str(ROOT / "src")])


def find(name: str) -> Function:
    """MODULE:FUNCTION, imported."""
    module, _, attribute = name.partition(":")
    function: Function = getattr(importlib.import_module(module), attribute)
    return function


def _serve(function: Function) -> int:
    replies = os.dup(1)
    os.dup2(2, 1)  # what a run prints must not look like a reply
    for line in sys.stdin.buffer:
        request = _Request(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            os.close(replies)
            _be_the_run(function, request)
        os.write(replies, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(replies, b"%d\n" % os.waitstatus_to_exitcode(status))
    return 0


def _be_the_run(function: Function, request: _Request) -> None:
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for descriptor, path in ((0, os.devnull), (1, request.output), (2, request.output)):
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(opened, descriptor)
            os.close(opened)
        os.environ.update(request.environment)
        ctypes.CDLL(None).faults_begin()
        code = function(Path(request.directory), Path(request.ledger), *request.arguments) or 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:  # noqa: BLE001  the sweep reads it in the run's output
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(argv: Sequence[str]) -> int:
    """The command; see the module's text."""
    if argv[0] == "--serve":
        return _serve(find(argv[1]))
    return find(argv[0])(Path(argv[1]), Path(argv[2]), *argv[3:]) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
