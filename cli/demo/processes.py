"""The real processes of a demo: started, watched, killed, and never left behind.

Owns every child. Each stands in a process group of its own, or in the one of its machine, so that a whole
machine dies by one kill and Ctrl-C in the terminal reaches the director alone. Invariant: after `end` no
process that was started here is alive, nor any of its children.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from ...store import StorageError
from .leash import PARENT_VARIABLE

END_S = 5.0
"""How long processes may take to end by themselves before they are killed."""
OUTPUT_SHOWN_BYTES = 2000
LINE_BYTES_MAX = 65_536


class Child:
    """One running process: its name, and where what it says on stderr is kept."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], group: int, output: Path) -> None:
        self.name = name
        self.process = process
        self.group = group
        self.output = output

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def first_line(self, timeout_s: float) -> dict[str, object]:
        """The first line of its stdout, which is a JSON object. Raises StorageError if none comes."""
        stdout = self.process.stdout
        end = time.monotonic() + timeout_s
        raw = b""
        while stdout is not None and not raw.endswith(b"\n") and len(raw) < LINE_BYTES_MAX:
            left = end - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                break
            if not (piece := os.read(stdout.fileno(), 4096)):
                break
            raw += piece
        try:
            return msgspec.json.decode(raw.split(b"\n")[0], type=dict[str, object])
        except msgspec.DecodeError as error:
            raise self.failure(f"{self.name} did not say that it is ready") from error

    def failure(self, what: str) -> StorageError:
        """An error that tells what this process said last."""
        said = self.said()
        return StorageError(f"{what}{': ' + said if said else ''}", path=self.output)

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        with suppress(OSError):
            return self.output.read_bytes()[-OUTPUT_SHOWN_BYTES:].decode(errors="replace").strip()
        return ""


class Processes:
    """All children of one demo."""

    def __init__(self, outputs: Path, secret: str) -> None:
        self._outputs = outputs
        self._environment = {**os.environ, "PERDURE_SECRET": secret, PARENT_VARIABLE: str(os.getpid())}
        self._children: list[Child] = []

    def start(self, name: str, arguments: Sequence[str], *, group: int = 0) -> Child:
        """Start `python -m ARGUMENTS...` under a name, in the process group of another child (0: its own)."""
        output = self._outputs / f"{name}.stderr"
        with output.open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self._environment,
                process_group=group,
            )
        child = Child(name, process, group or process.pid, output)
        self._children.append(child)
        return child

    def command(self, name: str, arguments: Sequence[str], *, group: int = 0) -> Child:
        """Start `perdure ARGUMENTS...`."""
        return self.start(name, ["perdure.cli.demo.leash", *arguments], group=group)

    def kill_group(self, group: int) -> list[Child]:
        """kill -9 to every process of a group at once; returns those that died of it, when they are dead."""
        died = [child for child in self._children if child.group == group]
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        for child in died:
            child.process.wait()
        return died

    def stop(self, children: Sequence[Child], *, timeout_s: float = END_S) -> None:
        """Ask processes to end and wait for them; what does not end in time is killed."""
        for child in children:
            if child.is_alive:
                child.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + timeout_s
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, end - time.monotonic()))
            with suppress(ProcessLookupError):
                if not child.is_alive and child.group != child.process.pid:
                    continue  # others of its group go on
                os.killpg(child.group, signal.SIGKILL)
            child.process.wait()

    def check(self, is_expected: Callable[[Child], bool] = lambda child: False) -> None:
        """Raise StorageError if a process ended that nobody ended, unless it is expected to."""
        for child in self._children:
            code = child.process.poll()
            if code not in (None, 0, -signal.SIGKILL, -signal.SIGTERM) and not is_expected(child):
                raise child.failure(f"{child.name} ended with code {code}")

    def end(self) -> None:
        """End everything that still runs, and close what was opened. Idempotent."""
        self.stop(self._children)
        for child in self._children:
            if child.process.stdout is not None:
                child.process.stdout.close()
