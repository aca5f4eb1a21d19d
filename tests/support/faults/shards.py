"""Run many small checks in a few forked workers, so that a check that dies or hangs is a finding.

Owns the worker processes and what they say. A check may kill its process (a damaged LMDB file does) or
never end: both become violations that name the step, and the work goes on behind it.
Invariant: every step of every item is made once, unless the run is stopped early.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import selectors
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_PR_SET_PDEATHSIG = 1
_GRACE_S = 5.0
_DATA_BYTES_MAX = 3 << 30
"""A check that runs away ends with a MemoryError, not with the machine; shared mappings do not count."""


class Report:
    """What a worker says while it works. One item consists of one or more steps."""

    def __init__(self, channel: socket.socket, skip: int) -> None:
        self._channel = channel
        self._skip = skip
        self._step = 0

    def at(self, label: str) -> bool:
        """Begin a step. False: an earlier worker died in or behind it, leave it out."""
        self._step += 1
        if self._step <= self._skip:
            return False
        self._say(["at", self._step, label])
        return True

    def violation(self, text: str) -> None:
        """Say that the current step found something."""
        self._say(["violation", text])

    def collect(self, check: Callable[[], Iterable[object]], where: str = "") -> bool:
        """Make a check; whatever it gives or raises is a violation of the current step, and no more.

        Returns True if there was none.
        """
        is_right = True
        try:
            for found in check():
                is_right = False
                self.violation(f"{found}{where}")
        except Exception:  # noqa: BLE001  whatever a check raises is its finding
            is_right = False
            self.violation("the check raised\n" + traceback.format_exc(limit=-6) + where)
        return is_right

    def add(self, name: str, n: int = 1) -> None:
        """Add to a total."""
        self._say(["add", name, n])

    def _say(self, words: list[object]) -> None:
        self._channel.sendall(json.dumps(words).encode() + b"\n")


Work = Callable[[int, Report], None]


@dataclass
class ShardResult:
    """What all workers found together. is_complete: False if `stop_after` cut the run short."""

    violations: list[str] = field(default_factory=list[str])
    totals: Counter[str] = field(default_factory=Counter[str])
    seconds: float = 0.0
    is_complete: bool = True


@dataclass
class _Worker:
    pid: int
    channel: socket.socket
    heard_at: float
    item: int = -1
    step: int = 0
    label: str = ""
    buffer: bytes = b""


def run_sharded(
    count: int, work: Work, *, workers: int = 2, deadline_s: float = 30.0, stop_after: int = 10
) -> ShardResult:
    """Call work(i, report) for i in 0..count-1 in forked workers, in rising order in each of them.

    workers: how many processes. deadline_s: the longest silence of a worker before its step counts as
    hung. stop_after: number of violations at which the run ends. An exception of `work` is a violation.
    """
    began = time.monotonic()
    run = _Run(count, work, deadline_s, stop_after)
    try:
        for _ in range(min(workers, count)):
            run.spawn(skip=0, item=run.take())
        run.attend()
    finally:
        run.end()
    run.result.seconds = time.monotonic() - began
    return run.result


class _Run:
    def __init__(self, count: int, work: Work, deadline_s: float, stop_after: int) -> None:
        self.count = count
        self.work = work
        self.deadline_s = deadline_s
        self.stop_after = stop_after
        self.result = ShardResult()
        self.selector = selectors.DefaultSelector()
        self.workers: dict[int, _Worker] = {}
        self.next_item = 0

    def take(self) -> int:
        item = self.next_item
        self.next_item += 1
        return item

    def spawn(self, item: int, skip: int) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _work_forever(theirs, self.work, skip)
        theirs.close()
        worker = _Worker(pid, ours, time.monotonic())
        self.workers[pid] = worker
        self.selector.register(ours, selectors.EVENT_READ, worker)
        self.give(worker, item)

    def give(self, worker: _Worker, item: int) -> None:
        worker.item, worker.step, worker.label = item, 0, f"item {item}"
        try:
            worker.channel.sendall(item.to_bytes(8, "big", signed=True))
        except OSError:
            pass  # it is dead, which its closed channel will say

    def attend(self) -> None:
        while self.workers:
            ready = self.selector.select(min(1.0, self.deadline_s / 4))
            for key, _ in ready:
                self.listen(key.data)
                if len(self.result.violations) >= self.stop_after:
                    self.result.is_complete = self.next_item >= self.count and not self.workers
                    return
            now = time.monotonic()
            for worker in list(self.workers.values()):
                if now - worker.heard_at > self.deadline_s:
                    _end([worker.pid])
                    self.bury(worker, f"(7) {worker.label}: no end within {self.deadline_s:g} s")

    def listen(self, worker: _Worker) -> None:
        try:
            data = worker.channel.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.bury(worker, "")
            return
        worker.heard_at = time.monotonic()
        *lines, worker.buffer = (worker.buffer + data).split(b"\n")
        for line in lines:
            self.hear(worker, json.loads(line))

    def hear(self, worker: _Worker, words: list[object]) -> None:
        match words:
            case ["at", int(step), str(label)]:
                worker.step, worker.label = step, label
            case ["violation", str(text)]:
                self.result.violations.append(f"{worker.label}: {text}")
            case ["add", str(name), int(n)]:
                self.result.totals[name] += n
            case ["done"]:
                self.give(worker, self.take() if self.next_item < self.count else -1)
            case _:
                raise ValueError(f"a worker said {words}")

    def bury(self, worker: _Worker, cause: str) -> None:
        self.selector.unregister(worker.channel)
        worker.channel.close()
        del self.workers[worker.pid]
        code = 0 if cause else os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if not cause and (worker.item == -1 or code == 0):
            return
        death = f"died by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self.result.violations.append(cause or f"{worker.label}: the checking process {death}")
        self.spawn(worker.item, skip=max(1, worker.step))

    def end(self) -> None:
        for worker in self.workers.values():
            worker.channel.close()
        _end(list(self.workers))
        self.selector.close()


def _end(pids: list[int]) -> None:
    """End and reap workers: asked first, so that they can unmount and tidy up what they hold, then killed."""
    waiting = set(pids)
    for pid in waiting:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while waiting:
        waiting = {pid for pid in waiting if os.waitpid(pid, os.WNOHANG)[0] == 0}
        if waiting and time.monotonic() > deadline:
            for pid in waiting:
                os.kill(pid, signal.SIGKILL)
            deadline += _GRACE_S
        time.sleep(0.002)


def _leave(*_: object) -> None:
    raise SystemExit(0)


def _work_forever(channel: socket.socket, work: Work, skip: int) -> None:
    try:
        faulthandler.disable()  # a worker's death is a finding; its stack would only clutter the output
        signal.signal(signal.SIGTERM, _leave)
        resource.setrlimit(resource.RLIMIT_DATA, (_DATA_BYTES_MAX, _DATA_BYTES_MAX))
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        while True:
            words = channel.recv(8)
            item = int.from_bytes(words, "big", signed=True)
            if len(words) < 8 or item < 0:
                os._exit(0)
            report = Report(channel, skip)
            try:
                work(item, report)
            except Exception:  # noqa: BLE001  whatever a check raises is its finding
                report.violation("the check raised\n" + traceback.format_exc(limit=-6))
            skip = 0
            channel.sendall(b'["done"]\n')
    finally:
        os._exit(1)
