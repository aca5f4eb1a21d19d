"""Threads that share each sync and do nothing else: what a group commit reaches with this interpreter.

Owns the least that it takes: who comes first writes and syncs what waits by then, wakes those whose record
that was, and hands over to the first of those that came meanwhile.
"""

from __future__ import annotations

import os
import threading
import time

THREADS = 8


class _Waiter:
    __slots__ = ("is_done", "lock")

    def __init__(self) -> None:
        self.is_done = False
        self.lock = threading.Lock()
        self.lock.acquire()


class SharedSync:
    """One log, and threads that each wait for their own record."""

    def __init__(self, log: int, record: bytes) -> None:
        self._log = log
        self._record = record
        self._mutex = threading.Lock()
        self._waiting: list[_Waiter] = []
        self._is_led = False

    def write(self) -> None:
        """Returns once this record is on disk."""
        own = _Waiter()
        with self._mutex:
            self._waiting.append(own)
            leads, self._is_led = not self._is_led, True
        if not leads:
            own.lock.acquire()
            if own.is_done:
                return
        with self._mutex:
            taken, self._waiting = self._waiting, []
        os.write(self._log, self._record * len(taken))
        os.fdatasync(self._log)
        for one in taken:
            one.is_done = True
            one.lock.release()
        with self._mutex:
            if self._waiting:
                self._waiting[0].lock.release()
            else:
                self._is_led = False

    def rate_per_s(self, seconds: float, threads: int = THREADS) -> float:
        """Records a second of so many threads that write for so long, each at least once."""
        counts = [0] * threads
        began = time.perf_counter()
        end = began + seconds

        def work(number: int) -> None:
            while not counts[number] or time.perf_counter() < end:
                self.write()
                counts[number] += 1

        running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return sum(counts) / (time.perf_counter() - began)
