"""A crowd of processes that write one store while one of them is killed every so often.

Run as `python -m tests.crash.crowd PLAN`, a JSON file with the fields of `Plan`: it forks the writers, kills
and replaces them, and writes `Result` beside it. Owns what the writers do and the ledgers that they keep;
judging is test_crowd's.

A ledger holds a line for each attempt before the call, and one for its acknowledgement behind it; what was
written before a kill stands, whatever process wrote it. Times are monotonic seconds.

    THREAD try WHAT ARGUMENT        THREAD ack [ID]        THREAD slow BEGAN ENDED WHAT STARVED
    control late BEGAN ENDED        THREAD error TEXT      opened SECONDS
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path

import msgspec

from perdure.store import Session, SessionStore

COUNTERS = 4
NOTED_S = 0.05
LATE_S = 0.05
CONTROL_S = 0.05
SAMPLES = 400
END_S = 60.0
_DIE_WITH_PARENT = 1


class Plan(msgspec.Struct):
    """What is to be done. `kills_min`: it goes on, up to twice as long, until so many were killed."""

    store: str
    folder: str
    seed: int
    processes: int
    threads: int
    seconds: float
    kill_every_ms: int
    kills_min: int
    backend: str
    durability: str = "os"


class Result(msgspec.Struct):
    kills: int
    started: int
    seconds: float
    exit_codes: list[int]
    """Of the writers that were left alone to end."""


def counter_id(number: int) -> str:
    return f"counter-{number}"


def make(plan: Plan) -> None:
    """The store with its counters."""
    with SessionStore.open(plan.store, backend=plan.backend) as store:
        for number in range(COUNTERS):
            store.put(counter_id(number), {"n": 0}, None)


def added_one(session: Session) -> Session:
    return session.merge({"n": session.metadata["n"] + 1})


class Control:
    """A thread that has nothing to do with the store.

    How late it is is the machine's doing, and so is how long the threads of its process stood in the
    processors' queue: whoever waits for one of them waits for a processor.
    """

    def __init__(self, out: int, scratch: Path) -> None:
        self._out = out
        self._scratch = os.open(scratch, os.O_WRONLY | os.O_CREAT, 0o600)
        self._samples: deque[tuple[float, float]] = deque([(time.monotonic(), _queued_s())], SAMPLES)

    def run(self, stop: mmap.mmap) -> None:
        began_s = time.monotonic()
        while not stop[0]:
            time.sleep(CONTROL_S)
            os.pwrite(self._scratch, b"x" * 256, 0)  # a file system that stands still makes it late, too
            ended_s = time.monotonic()
            if ended_s - began_s > CONTROL_S + LATE_S:
                os.write(self._out, f"control late {began_s + CONTROL_S:.3f} {ended_s:.3f}\n".encode())
            self._samples.append((ended_s, _queued_s()))
            began_s = time.monotonic()

    def starved_since(self, began_s: float) -> float:
        """Seconds that the threads of this process were ready to run and had no processor."""
        now = _queued_s()
        before = [queued_s for at_s, queued_s in list(self._samples) if at_s >= began_s]
        return max(0.0, now - before[0]) if before else 0.0


def _queued_s() -> float:
    total = 0
    for place in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{place}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[1])
        except OSError:
            continue  # the thread has ended
    return total / 1e9


class Writer:
    """One thread of one process."""

    def __init__(
        self, store: SessionStore, out: int, control: Control, process: int, thread: int, seed: int
    ) -> None:
        self._store = store
        self._control = control
        self._out = out
        self._name = f"{process}-{thread}"
        self._thread = thread
        self._rng = random.Random(seed * 1_000_003 + process * 101 + thread)
        self._mine: list[str] = []
        self._number = 0

    def run(self, stop: mmap.mmap) -> None:
        try:
            while not stop[0]:
                self._number += 1
                self._one()
        except Exception as error:  # noqa: BLE001 - the check fails by what it says
            self._say(f"error {type(error).__name__}: {error}".replace("\n", " "))

    def _one(self) -> None:
        kind = self._rng.random()
        if kind < 0.35:
            number = self._rng.randrange(COUNTERS)
            self._timed(f"count {number}", lambda: self._store.update(counter_id(number), added_one))
        elif kind < 0.65:
            id = self._timed("create -", lambda: self._store.create({"by": self._name}, timeout_ms=None))
            self._mine.append(str(id))
        elif kind < 0.75 and self._mine:
            id = self._mine.pop(self._rng.randrange(len(self._mine)))
            self._timed(f"delete {id}", lambda: self._store.delete(id))
        elif kind < 0.9:
            self._timed(f"pair {self._number}", self._pair)
        elif self._mine and self._store.get(self._rng.choice(self._mine)) is None:
            raise LookupError("a session that was acknowledged to this thread is gone")

    def _pair(self) -> None:
        with self._store.batch() as batch:
            for side in "ab":
                batch.put(f"pair-{self._name}-{side}", {"n": self._number}, None)

    def _timed(self, what: str, call: object) -> object:
        self._say(f"try {what}")
        began_s = time.monotonic()
        answer = call()  # type: ignore[operator]
        ended_s = time.monotonic()
        self._say(f"ack {answer if what[:2] == 'cr' else ''}")
        if ended_s - began_s > NOTED_S:
            starved_s = self._control.starved_since(began_s)
            self._say(f"slow {began_s:.3f} {ended_s:.3f} {what.partition(' ')[0]} {starved_s:.3f}")
        return answer

    def _say(self, line: str) -> None:
        os.write(self._out, f"{self._thread} {line}\n".encode())


def write(plan: Plan, process: int, stop: mmap.mmap) -> None:
    """One process of the crowd, until it is told to stop."""
    ledger = Path(plan.folder, f"ledger-{process}")
    out = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    began_s = time.monotonic()
    with SessionStore.open(plan.store, durability=plan.durability) as store:
        os.write(out, f"opened {time.monotonic() - began_s:.3f}\n".encode())
        control = Control(out, Path(plan.folder, f"scratch-{process}"))
        writers = [Writer(store, out, control, process, thread, plan.seed) for thread in range(plan.threads)]
        threads = [threading.Thread(target=writer.run, args=(stop,)) for writer in writers]
        threads.append(threading.Thread(target=control.run, args=(stop,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def fork_writer(plan: Plan, process: int, stop: mmap.mmap) -> int:
    driver = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() == driver:
            write(plan, process, stop)
            code = 0
    except BaseException as error:  # noqa: BLE001 - the check fails by what it says
        text = f"0 error {type(error).__name__}: {error}".replace("\n", " ")
        Path(plan.folder, f"failed-{process}").write_text(text + "\n")
    finally:
        os._exit(code)


def drive(plan: Plan) -> Result:
    """Keep `processes` writers going; kill one every so often and start another one in its place."""
    gc.freeze()
    rng = random.Random(plan.seed)
    stop = mmap.mmap(-1, 1)  # shared with the children
    began_s = time.monotonic()
    running: list[int] = []
    kills = started = 0
    next_kill_s = began_s + plan.kill_every_ms / 1000
    while _goes_on(plan, time.monotonic() - began_s, kills):
        while len(running) < plan.processes:
            running.append(fork_writer(plan, started, stop))
            started += 1
        time.sleep(max(0.0, next_kill_s - time.monotonic()))
        next_kill_s = max(next_kill_s + plan.kill_every_ms / 1000, time.monotonic())
        victim = running.pop(rng.randrange(len(running)))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        kills += 1
    stop[0] = 1
    codes = [_ended(pid) for pid in running]
    return Result(kills, started, time.monotonic() - began_s, codes)


def _goes_on(plan: Plan, passed_s: float, kills: int) -> bool:
    return passed_s < plan.seconds or (kills < plan.kills_min and passed_s < 2 * plan.seconds)


def _ended(pid: int) -> int:
    """The exit code of a writer; one that does not come to its end is killed."""
    deadline_s = time.monotonic() + END_S
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def main() -> int:
    file = Path(sys.argv[1])
    plan = msgspec.json.decode(file.read_bytes(), type=Plan)
    make(plan)
    result = drive(plan)
    (file.parent / "result.json").write_bytes(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
