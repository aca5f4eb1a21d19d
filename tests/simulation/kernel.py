"""The simulated machines: time, processes, and which thread runs next.

Owns the only clock and the only queue of a schedule. A thread of a simulated process is a greenlet that
runs until it waits; then the next event in the queue runs. Everything that could differ from run to run
comes from one random source, so that a seed gives the same schedule again.

Invariant: a process that was killed never runs again, not even its `finally` blocks.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable
from typing import Any

import greenlet

MS = 1_000_000
SECOND = 1_000 * MS
START_NS = 1_000 * SECOND
STEPS_MAX = 3_000_000
"""Events of one schedule; more mean that something spins."""


class Spinning(Exception):
    """A schedule took more steps than any sound one does."""


class Killed(BaseException):
    """Thrown where a dead process tries to go on."""


class Host:
    """One machine: its clocks, its power, its processes."""

    def __init__(self, kernel: Kernel, name: str, address: str) -> None:
        self.kernel = kernel
        self.name = name
        self.address = address
        self.is_up = True
        self.boots = 0
        self.boot_id = ""
        self.booted_ns = 0
        self.wall_skew_ns = 0
        self.stalled_until_ns = 0
        """The disk answers no sync before."""
        self.processes: dict[str, Process] = {}
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self.boot_id = f"boot-{self.name}-{self.boots}"
        self.booted_ns = self.kernel.now_ns - (20 + self.boots) * SECOND
        self.is_up = True

    def monotonic_ns(self) -> int:
        return self.kernel.now_ns - self.booted_ns


class Process:
    """One process: its threads, and what the system frees when it dies."""

    def __init__(self, host: Host, name: str, pid: int) -> None:
        self.host = host
        self.kernel = host.kernel
        self.name = name
        self.pid = pid
        self.is_dead = False
        self.is_paused = False
        self.tasks: list[Task] = []
        self.held: list[tuple[Task, int, Any]] = []
        self.descriptors: set[int] = set()
        """Real ones, of files."""
        self.sockets: dict[int, Any] = {}
        self.error: BaseException | None = None
        self.on_end: Callable[[Process], None] | None = None
        self.at_death: list[Callable[[Process], None]] = []

    def __repr__(self) -> str:
        return f"{self.host.name}/{self.name}"

    def kill(self) -> None:
        """kill -9: it never runs again, and the system frees what it held."""
        if self.is_dead:
            return
        self.kernel.note("killed", self)
        self._free()
        self.kernel.graves.append(self)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        held, self.held = self.held, []
        for task, turn, value in held:
            self.kernel.at(0, self.kernel.resume, task, turn, value)

    def ended(self, error: BaseException | None) -> None:
        """Its first thread has returned, or broken off."""
        if self.is_dead:
            return
        self.error = error
        self._free()
        self.kernel.graves.append(self)
        if self.on_end is not None:
            self.on_end(self)

    def _free(self) -> None:
        self.is_dead = True
        self.host.processes.pop(self.name, None)
        for free in self.at_death:
            free(self)


class Task:
    """One thread of a process."""

    def __init__(self, process: Process, name: str, run: Callable[[], object], number: int) -> None:
        self.process = process
        self.name = name
        self.number = number
        self.turn = 0
        """Grows with every wait, so that an old wake-up counts for nothing."""
        self.naps = 0
        """Short sleeps since it last waited for something."""
        self.is_waiting = False
        self.is_done = False
        self.waiters: list[Task] = []
        self._run = run
        self.greenlet = greenlet.greenlet(self._main, process.kernel.hub)

    def _main(self, _value: object) -> None:
        error: BaseException | None = None
        try:
            self._run()
        except Killed:
            return
        except Exception as caught:  # noqa: BLE001 - it is the process's end, as the supervisor sees it
            error = caught
        self.is_done = True
        process = self.process
        for waiter in self.waiters:
            process.kernel.wake(waiter)
        if process.tasks[0] is self:
            process.ended(error)
        elif error is not None:
            process.kernel.note("thread broke off", process, self.name, repr(error))


class Kernel:
    """Time, randomness, and the queue of what happens next."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now_ns = START_NS
        self.hub = greenlet.getcurrent()
        self.task: Task | None = None
        """The thread that runs at this moment, None in the simulator itself."""
        self.graves: list[Process] = []
        """Dead processes are kept: were they freed, their greenlets would be unwound."""
        self.steps = 0
        self.after_step: Callable[[Host], None] | None = None
        """Called when a thread of a host ran: nothing else changes what the host holds."""
        self.failure: Exception | None = None
        """What ends the schedule, wherever it was raised."""
        self.hash = 0
        self.trace: Callable[[str], object] | None = None
        self.preempt = 0.0
        """How likely a system call lets others run first."""
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._pids = 100

    # -- events ----------------------------------------------------------------------------------

    def at(self, delay_ns: int, action: Callable[..., None], *arguments: Any) -> None:
        """Have `action` called `delay_ns` from now."""
        self._number += 1
        heapq.heappush(self._queue, (self.now_ns + delay_ns, self._number, action, arguments))

    def run(self, until_ns: int) -> None:
        """Run all that happens up to `until_ns`. Raises what `after_step` raises, and `failure`."""
        queue = self._queue
        while queue and queue[0][0] <= until_ns:
            self.now_ns, _, action, arguments = heapq.heappop(queue)
            self.steps += 1
            action(*arguments)
            if self.failure is not None:
                raise self.failure
            if self.steps > STEPS_MAX:
                raise Spinning(f"{self.steps} steps, at {self.now_ns}")
        self.now_ns = max(self.now_ns, until_ns)

    def note(self, what: str, *details: object) -> None:
        """Something that must come out the same at every run of a seed."""
        line = f"{(self.now_ns - START_NS) / MS:10.3f} {what} {' '.join(map(str, details))}"
        self.hash = zlib.crc32(line.encode(), self.hash)
        if self.trace is not None:
            self.trace(line)

    # -- processes and threads -------------------------------------------------------------------

    def spawn(self, host: Host, name: str, run: Callable[[], object]) -> Process:
        """A new process of `host` whose first thread is `run`."""
        self._pids += 1
        process = Process(host, name, self._pids)
        host.processes[name] = process
        self.start_thread(process, name, run)
        return process

    def start_thread(self, process: Process, name: str, run: Callable[[], object]) -> Task:
        self._number += 1
        task = Task(process, name, run, self._number)
        process.tasks.append(task)
        self.at(0, self.resume, task, 0, None)
        return task

    def resume(self, task: Task, turn: int, value: Any) -> None:
        """Let a thread go on, unless it did already, or never may again."""
        process = task.process
        if task.turn != turn or process.is_dead or task.is_done:
            return
        if process.is_paused:
            process.held.append((task, turn, value))
            return
        task.turn += 1
        task.is_waiting = False
        self.task = task
        try:
            task.greenlet.switch(value)
        finally:
            self.task = None
        if self.after_step is not None:
            self.after_step(process.host)

    def wait(self, timeout_ns: int | None) -> bool:
        """The running thread waits until it is woken (True) or the time is up (False)."""
        task = self.running()
        task.is_waiting = True
        task.naps = 0
        if timeout_ns is not None:
            self.at(max(0, timeout_ns), self.resume, task, task.turn, False)
        woken: bool = self.hub.switch()
        return woken

    def wake(self, task: Task) -> None:
        """Let a waiting thread go on, as woken."""
        if task.is_waiting:
            task.is_waiting = False
            self.at(0, self.resume, task, task.turn, True)

    def pass_time(self, ns: int) -> None:
        """The running thread is busy, or sleeps, for so long; nothing wakes it."""
        task = self.running()
        self.at(ns, self.resume, task, task.turn, False)
        self.hub.switch()

    def system_call(self) -> None:
        """Now and then others run before a system call is done."""
        if self.task is not None and self.preempt and self.random.random() < self.preempt:
            self.pass_time(int(self.random.random() * 200_000))

    def running(self) -> Task:
        task = self.task
        if task is None:
            raise RuntimeError("only a simulated thread can wait")
        if task.process.is_dead:
            self.hub.switch()
            raise Killed
        return task
