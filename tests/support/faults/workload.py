"""Run a command under the fault shim, and bring its whole family of processes to an end.

Owns the child processes and the layout of a run: `store/` (what the shim watches), ACK and ACK.* (the
ledgers), `counts`, `trace`. Invariant: when `run` returns, no process of the run is alive.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .content import Content
from .shim import Injection, ProcessCounts, Rule, read_counts
from .trace import Base, Trace
from .zygote import ROOT, Zygote, import_path


@dataclass(frozen=True)
class Workload:
    """A program that works in a directory and keeps ledgers: a function, or a command.

    function: "module:function", called as function(directory, ledger, *arguments) in a fresh process;
    a second writer appends .NAME to the ledger's name. argv: a command instead; `{dir}` in it becomes the
    store's directory, `{ack}` the ledger. env: variables on top of the own ones. prepare: called with the
    run's folder before it starts; makes what should be there already (`store`, `ACK`). timeout_s: for the
    whole program. role: of its first process.
    """

    function: str = ""
    arguments: Sequence[str] = ()
    argv: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    prepare: Callable[[Path], None] | None = None
    timeout_s: float = 60.0
    role: str = ""


@dataclass(frozen=True)
class Run:
    """What came of one run. exit_code: negative for a signal. seconds: of the program alone."""

    folder: Path
    exit_code: int
    output: str
    counts: list[ProcessCounts]
    seconds: float
    is_timed_out: bool
    command_line: str

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def struck(self) -> int:
        """How many calls the plan struck, in all processes."""
        return sum(row.struck for row in self.counts)

    def acks(self) -> list[bytes]:
        """The lines of all ledgers, whole ones only."""
        return read_ledgers(self.folder)


@dataclass(frozen=True)
class Recording:
    """A run with its trace, and the store's files as they were at its end."""

    run: Run
    trace: Trace
    final: dict[str, Content]


def read_ledgers(folder: Path) -> list[bytes]:
    """The whole lines of all ledgers in a run's folder."""
    lines: list[bytes] = []
    for path in sorted(folder.glob("ACK*")):
        lines += [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return lines


def run(
    library: Path, workload: Workload, folder: Path, *, plan: Sequence[Rule] = (), is_traced: bool = False
) -> Run:
    """Run the program in a new folder with a plan. Raises FileExistsError if the folder is there."""
    _prepare(workload, folder)
    return _run_prepared(library, workload, folder, plan, is_traced=is_traced)


def record(library: Path, workload: Workload, folder: Path, *, plan: Sequence[Rule] = ()) -> Recording:
    """Run the program and load its trace. Raises RuntimeError if it failed without a plan."""
    _prepare(workload, folder)
    base = Base.capture(folder / "store")
    done = _run_prepared(library, workload, folder, plan, is_traced=True)
    if done.is_timed_out or (done.exit_code and not plan):
        raise RuntimeError(f"exit code {done.exit_code}: {done.command_line}\n{done.output}")
    return Recording(done, Trace.load(folder / "trace", base), Base.capture(done.store).files)


def _prepare(workload: Workload, folder: Path) -> None:
    folder.mkdir(parents=True)
    if workload.prepare is not None:
        workload.prepare(folder)


def _run_prepared(
    library: Path, workload: Workload, folder: Path, plan: Sequence[Rule], *, is_traced: bool
) -> Run:
    injection = Injection(
        directory=folder / "store",
        plan=tuple(plan),
        trace=folder / "trace" if is_traced else None,
        counts=folder / "counts",
        role=workload.role,
    )
    variables = {**workload.env, **injection.variables(library)}
    began = time.monotonic()
    start = _run_function if workload.function else _run_command
    code = start(library, workload, folder, variables)
    seconds = time.monotonic() - began
    output = (folder / "output").read_bytes()[-4000:].decode(errors="replace")
    argv = argv_of(workload, folder / "store", folder / "ACK")
    words = ["env", *(f"{name}={value}" for name, value in variables.items()), *argv]
    line = "RUN=$(mktemp -d); " + shlex.join(words).replace(str(folder), "$RUN")
    counts = read_counts(folder / "counts")
    return Run(folder, code or 0, output, counts, seconds, code is None, line)


def argv_of(workload: Workload, store: Path, ledger: Path) -> list[str]:
    """The command that makes a run, without the shim."""
    if workload.function:
        python = ["env", f"PYTHONPATH={import_path()}", sys.executable, "-m", Zygote.__module__]
        return [*python, workload.function, str(store), str(ledger), *workload.arguments]
    return [part.replace("{dir}", str(store)).replace("{ack}", str(ledger)) for part in workload.argv]


def _run_command(library: Path, workload: Workload, folder: Path, variables: Mapping[str, str]) -> int | None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FAULTS_")}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            argv_of(workload, folder / "store", folder / "ACK"),
            env={**kept, **variables, "FAULTS_DIE_WITH_PARENT": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
        )
    code: int | None = None
    try:
        code = process.wait(workload.timeout_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if code is None:
            process.kill()
            process.wait()
        end_family(process.pid, folder / "counts")
    return code


_zygotes: dict[tuple[int, Path, str], Zygote] = {}


def _run_function(
    library: Path, workload: Workload, folder: Path, variables: Mapping[str, str]
) -> int | None:
    key = (os.getpid(), library, workload.function)
    if key not in _zygotes:
        _zygotes[key] = Zygote(library, workload.function)
    zygote = _zygotes[key]
    session = zygote.begin(
        {
            "directory": str(folder / "store"),
            "ledger": str(folder / "ACK"),
            "arguments": list(workload.arguments),
            "output": str(folder / "output"),
            "environment": dict(variables),
        }
    )
    code: int | None = None
    try:
        code = zygote.end(workload.timeout_s)
    finally:
        end_family(session, folder / "counts")
        if code is None:
            zygote.end(10.0)
    return code


def end_zygotes() -> None:
    """End the zygotes of the calling process."""
    for key in [key for key in _zygotes if key[0] == os.getpid()]:
        _zygotes.pop(key).close()


def end_family(session: int, counts: Path) -> None:
    """Kill what is left of a session, and those processes of the run that left the session."""
    deadline = time.monotonic() + 10.0
    # A dying process loses its mappings, and with them what shows whose it is, before its locks.
    dying: set[tuple[int, int]] = set()
    while True:
        dying |= {(pid, stat.started) for pid in living(session, counts) if (stat := _stat(pid)) is not None}
        dying = {(pid, started) for pid, started in dying if _is_alive(pid, started)}
        if not dying:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {dying} outlive SIGKILL")
        for pid, _ in dying:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.002)


def living(session: int, counts: Path) -> list[int]:
    """The living processes of a session, and those that have this counts file mapped."""
    try:
        os.killpg(session, 0)
        everyone = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except ProcessLookupError:
        everyone = []
    members = {pid for pid in everyone if (stat := _stat(pid)) is not None and stat.session == session}
    known = {row.pid for row in read_counts(counts) if _is_under(row.pid, counts)}
    return [pid for pid in members | known if (stat := _stat(pid)) is not None and stat.state not in "ZX"]


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    session: int
    started: int


def _stat(pid: int) -> _Stat | None:
    """What the system says of a process, None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            words = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(words[0], int(words[3]), int(words[19]))


def _is_alive(pid: int, started: int) -> bool:
    stat = _stat(pid)
    return stat is not None and stat.started == started and stat.state not in "ZX"


def _is_under(pid: int, counts: Path) -> bool:
    """True if the process has this very counts file mapped: its pid was not given to a stranger since."""
    try:
        return str(counts).encode() in Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return False
