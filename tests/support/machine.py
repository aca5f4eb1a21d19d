"""A machine's clocks for tests: time that passes, a wall clock that jumps, a boot that ends.

Owns the raw sources that a store takes in place of the machine's own, and how a test opens a store on
them without background work, so that the test alone decides when anything happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.store.opening import OpenOptions, open_store
from perdure.store.sessions import SessionStore

HOUR_MS = 3_600_000
TICK_MS = 1000


@dataclass
class Machine:
    """One machine. `wall` and `boottime` are what its clocks show, ms."""

    wall: int = 1_700_000_000_000
    boottime: int = 5_000_000
    boots: int = 1

    def pass_ms(self, ms: int) -> None:
        """Real time passes; nobody looks at the clock meanwhile."""
        self.wall += ms
        self.boottime += ms

    def live_ms(self, store: SessionStore, ms: int) -> None:
        """Real time passes, while the store's background work looks at the clock."""
        while ms > 0:
            step = min(ms, TICK_MS)
            self.pass_ms(step)
            store._opened.clock.tick(is_primary=store._log.is_primary)
            ms -= step

    def reboot(self, down_ms: int = 0) -> None:
        """The machine is off for a while, and starts anew."""
        self.wall += down_ms
        self.boottime = 10_000
        self.boots += 1

    def open(self, path: Path, **options: Any) -> SessionStore:
        """A handle on this machine, without its background thread."""
        return open_quietly(
            path,
            wall_ms=lambda: self.wall,
            boottime_ms=lambda: self.boottime,
            boot_id=lambda: f"boot {self.boots}",
            **options,
        )


@dataclass
class Clock:
    """A session time that a test sets."""

    ms: int = 1_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


def open_quietly(path: Path, **options: Any) -> SessionStore:
    """A handle without its background thread."""
    chosen = OpenOptions(**options)
    store = SessionStore(open_store(path, chosen), chosen, None)
    stop_background(store)
    return store


def stop_background(store: SessionStore) -> None:
    """End the background thread of a handle; what it had begun is done."""
    thread = store._keeper._thread
    assert thread is not None
    store._keeper._stopping.set()
    thread.join()
