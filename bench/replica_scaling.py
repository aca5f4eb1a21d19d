"""How the cost of a write grows with the replicas that it is shipped to.

Owns primaries with one replica and more, their processes, and these lines. All primaries of a class are up at
once and measured in turn; a slice ends when every replica has folded what it wrote, so that none of its work
is left to another one's slice. Replicas that only wait take a little processor time in every slice alike.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from perdure.shipping import open_gate
from perdure.store import SessionStore
from perdure.store.page import Word

from .comparison import Plan
from .measure import processor_us
from .process_figures import make_nodes, open_page, ship, wait_for
from .replicated_figures import children_of
from .rows import Row
from .scaling import in_turn, line_rows, may_hold
from .store_figures import METADATA
from .systems.ports import Durability, System

FACTOR: Final = "replicas"
REPLICAS: Final = (1, 2, 3, 4)
_SLICE_S_MIN: Final = 0.1
"""Fewer synchronous writes say little."""
_CLASSES: Final = ((1, Durability.TWO_DISKS), (0, Durability.OS))
"""sync_replicas, and what a write that was answered then survives."""


class Written(NamedTuple):
    """What one slice came to, us a write."""

    call: float
    everywhere: float
    """From the first call until all of them were on the disk of every replica."""
    processor: float
    """Of all processes of all nodes, until every replica had folded them."""


LINES: Final[dict[Durability, dict[str, Callable[[Written], float]]]] = {
    Durability.TWO_DISKS: {
        "synchronous write": lambda its: its.call,
        "synchronous write, processor time": lambda its: its.processor,
    },
    Durability.OS: {
        "asynchronous write": lambda its: its.call,
        "asynchronous write, until on every disk": lambda its: its.everywhere,
        "asynchronous write, processor time": lambda its: its.processor,
    },
}


class Shipped:
    """A primary and its replicas; the primary's writer is this process."""

    def __init__(self, folder: Path, replicas: int, sync_replicas: int) -> None:
        one, nodes = make_nodes(folder, replicas, sync_replicas)
        with ExitStack() as stack:
            for _, replica in nodes:
                stack.enter_context(replica)
            its = [replica for _, replica in nodes]
            shipper = stack.enter_context(ship(one, *its))
            gate = open_gate(one)
            self._store = stack.enter_context(SessionStore.open(one, gate=gate, sweep_interval_ms=0))
            self._pages = [open_page(path) for path, _ in nodes]
            for page in self._pages:
                stack.callback(page.close)
            self._store.create(METADATA)
            self._wait_for(Word.FOLDED)
            pids = (child for replica in its for child in (replica.pid, *children_of(replica.pid)))
            self._pids = (os.getpid(), shipper.pid, *pids)
            self._stack = stack.pop_all()

    def slice(self, seconds: float) -> Written:
        """Write for so long."""
        create, clock, count = self._store.create, time.perf_counter, 0
        gc.collect()
        before_us, started = processor_us(self._pids), clock()
        while not count or clock() - started < seconds:
            create(METADATA)
            count += 1
        called = clock() - started
        self._wait_for(Word.FLUSHED)
        everywhere = clock() - started
        self._wait_for(Word.FOLDED)
        taken_us = processor_us(self._pids) - before_us
        return Written(called * 1e6 / count, everywhere * 1e6 / count, taken_us / count)

    def close(self) -> None:
        self._stack.close()

    def _wait_for(self, word: Word) -> None:
        """Until every replica's word has reached the end of the log."""
        end = self._store.position().lsn
        for page in self._pages:
            wait_for(page, word, end)


def replica_rows(
    system: System, plan: Plan, folder: Callable[[ExitStack], Path], only: str = ""
) -> Iterator[Row]:
    """Rows of synchronous and of asynchronous writes; `system` is named in them. The rest as scaling_rows."""
    for sync_replicas, durability in _CLASSES if may_hold(only, FACTOR) else ():
        with ExitStack() as stack:
            points: dict[int, Callable[[int], Written]] = {}
            for replicas in REPLICAS:
                shipped = Shipped(folder(stack), replicas, sync_replicas)
                stack.callback(shipped.close)
                points[replicas] = partial(_slice, shipped, max(plan.slice_s, _SLICE_S_MIN))
            taken = in_turn(plan, points)
        for what, part in LINES[durability].items():
            line = {replicas: [part(one) for one in its] for replicas, its in taken.items()}
            yield from line_rows(system, f"{what} against {FACTOR}", line, durability)


def _slice(shipped: Shipped, seconds: float, _: int) -> Written:
    return shipped.slice(seconds)
