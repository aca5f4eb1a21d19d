"""What of `threading` and `concurrent.futures` the simulated processes use.

Owns locks, conditions, events and threads whose waiting is simulated time. There is no preemption but at
waits and system calls, so that each operation here is atomic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace, TracebackType
from typing import Any

from .kernel import SECOND, Kernel, Task


def _ns(timeout_s: float | None) -> int | None:
    return None if timeout_s is None or timeout_s < 0 else int(timeout_s * SECOND)


class _Waits:
    """Threads that wait for the same thing, in their order."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._waiting: list[Task] = []

    def wait(self, timeout_ns: int | None) -> bool:
        task = self._kernel.running()
        self._waiting.append(task)
        woken = self._kernel.wait(timeout_ns)
        if task in self._waiting:
            self._waiting.remove(task)
        return woken

    def wake(self, count: int | None = None) -> None:
        woken, self._waiting = self._waiting[:count], self._waiting[len(self._waiting[:count]) :]
        for task in woken:
            self._kernel.wake(task)


class Lock:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._is_held = False
        self._waits = _Waits(kernel)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        timeout_ns = _ns(timeout)
        deadline_ns = None if timeout_ns is None else self._kernel.now_ns + timeout_ns
        while self._is_held:
            if not blocking:
                return False
            left_ns = None if deadline_ns is None else deadline_ns - self._kernel.now_ns
            if left_ns is not None and left_ns <= 0:
                return False
            self._waits.wait(left_ns)
        self._is_held = True
        return True

    def release(self) -> None:
        if not self._is_held:
            raise RuntimeError("release unlocked lock")
        self._is_held = False
        self._waits.wake(1)

    def locked(self) -> bool:
        return self._is_held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class RLock(Lock):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self._owner: Task | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        task = self._kernel.task
        if self._is_held and self._owner is task:
            self._depth += 1
            return True
        if not super().acquire(blocking, timeout):
            return False
        self._owner, self._depth = task, 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            super().release()


class Condition:
    def __init__(self, kernel: Kernel, lock: Lock | None = None) -> None:
        self._kernel = kernel
        self._lock = lock or RLock(kernel)
        self._waits = _Waits(kernel)
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def wait(self, timeout: float | None = None) -> bool:
        self._lock.release()
        try:
            return self._waits.wait(_ns(timeout))
        finally:
            self._lock.acquire()

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        deadline_ns = None if timeout is None else self._kernel.now_ns + int(timeout * SECOND)
        while not predicate():
            left_ns = None if deadline_ns is None else deadline_ns - self._kernel.now_ns
            if left_ns is not None and left_ns <= 0:
                return False
            self.wait(None if left_ns is None else left_ns / SECOND)
        return True

    def notify(self, count: int = 1) -> None:
        self._waits.wake(count)

    def notify_all(self) -> None:
        self._waits.wake()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class Event:
    def __init__(self, kernel: Kernel) -> None:
        self._is_set = False
        self._waits = _Waits(kernel)

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._waits.wake()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            self._waits.wait(_ns(timeout))
        return self._is_set


class Thread:
    def __init__(
        self,
        kernel: Kernel,
        *,
        target: Callable[..., object],
        name: str = "thread",
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        daemon: bool = False,
    ) -> None:
        self._kernel = kernel
        self._target, self._args, self._kwargs = target, tuple(args), dict(kwargs or {})
        self.name = name
        self.daemon = daemon
        self._task: Task | None = None

    def start(self) -> None:
        process = self._kernel.running().process
        self._task = self._kernel.start_thread(
            process, self.name, lambda: self._target(*self._args, **self._kwargs)
        )

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.is_done

    def join(self, timeout: float | None = None) -> None:
        task = self._task
        if task is None or task.is_done:
            return
        task.waiters.append(self._kernel.running())
        self._kernel.wait(_ns(timeout))


class Pool:
    """ThreadPoolExecutor: each call gets a thread of its own."""

    def __init__(self, kernel: Kernel, _workers: int = 0, **_names: object) -> None:
        self._kernel = kernel
        self._all: list[_Call] = []

    def submit(self, call: Callable[..., object], *arguments: object) -> _Call:
        made = _Call(self._kernel, lambda: call(*arguments))
        self._all.append(made)
        return made

    def shutdown(self, wait: bool = True, **_options: object) -> None:
        for call in self._all if wait else ():
            call.thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


class _Call:
    def __init__(self, kernel: Kernel, call: Callable[[], object]) -> None:
        self._call = call
        self._result: object = None
        self._error: Exception | None = None
        self.thread = Thread(kernel, target=self._run, name="pool")
        self.thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except Exception as error:  # noqa: BLE001 - it is raised where the result is taken
            self._error = error

    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self, timeout: float | None = None) -> object:
        self.thread.join(timeout)
        if not self.done():
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result


def threading_of(kernel: Kernel) -> SimpleNamespace:
    """What stands for the module `threading`."""

    def get_ident() -> int:
        return kernel.task.number if kernel.task is not None else 1

    def current_thread() -> SimpleNamespace:
        return SimpleNamespace(name=kernel.task.name if kernel.task else "main", ident=get_ident())

    names = {name: value for name, value in vars(threading).items() if not name.startswith("__")}
    names |= {
        "Lock": lambda: Lock(kernel),
        "RLock": lambda: RLock(kernel),
        "Condition": lambda lock=None: Condition(kernel, lock),
        "Event": lambda: Event(kernel),
        "Thread": lambda **given: Thread(kernel, **given),
        "get_ident": get_ident,
        "current_thread": current_thread,
    }
    return SimpleNamespace(**names)
