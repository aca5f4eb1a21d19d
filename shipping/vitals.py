"""A node's vital signs: what its monitor tells of it, without ever waiting for a disk.

Owns the look at the control page, and a thread for what needs the disk: the promise, faults, the list of
nodes that are not monitored, and a probe that is written and synced again and again. Invariant: whoever asks
for a vital sign gets it from memory; a disk that does not answer is itself a vital sign.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from time import monotonic_ns
from typing import Final

import msgspec

from ..store import names
from ..store.errors import PerdureError
from ..store.files import FILE_MODE
from ..store.page import ControlPage, Word, read_boot_id
from ..store.promise import NO_PROMISE, Promise, read_promise
from .rebuild import why_unfit
from .unmonitored import NOBODY, Unmonitored, read_unmonitored, write_unmonitored

DISK_STALL_MS: Final = 3_000
PROBE_MS: Final = 1_000
KEEP_MS: Final = 500
"""What needs the disk is read anew this often, even if the page says of no change."""
_PLANS: Final = (names.INSTALL_PLAN, names.CUT_PLAN)


class Vitals(msgspec.Struct, frozen=True):
    """One node at one moment."""

    is_primary: bool
    epoch: int
    lsn: int
    """On its disk."""
    promise: Promise
    is_fit: bool
    failing: str


class VitalSigns:
    """How the node of one store is."""

    def __init__(self, store: Path, node: str, *, disk_stall_ms: int = DISK_STALL_MS) -> None:
        self._store = store
        self._node = node
        self._disk_stall_ms = disk_stall_ms
        self._page = ControlPage(store / names.CONTROL_PAGE, read_boot_id())
        self._words = self._page.words
        self._flushed = 0
        self._flushed_ms = -1
        """Since when the disk is behind the log at the same LSN; -1 while it is not."""
        self._begun = self._ended = 0
        """How many visits to the disk the thread began, and came back from."""
        self._visit = -1
        self._visit_ms = 0
        self._disk_error = ""
        self._promise = NO_PROMISE
        self._fault = ""
        self._generation = -1
        self.unmonitored = NOBODY
        self._to_keep: Unmonitored | None = None
        self._wake = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._keep, name="perdure-vitals", daemon=True)
        self._thread.start()

    @property
    def has_news(self) -> bool:
        """Did the page's generation change since the disk was looked at? Then that is under way now."""
        if int(self._words[Word.GENERATION]) == self._generation:
            return False
        self._wake.set()
        return True

    def look(self, clock_ms: int) -> Vitals:
        """How the node is. `clock_ms` stands still while this process did not run, so that its own pauses
        are no stall of the disk."""
        words, promise = self._words, self._promise
        if not self._page.is_current():
            return Vitals(False, 0, 0, promise, False, self._failing(clock_ms))
        epoch, lsn = int(words[Word.EPOCH]), int(words[Word.FLUSHED])
        is_primary = (
            promise.candidate == self._node
            and promise.epoch == epoch
            and not words[Word.LOST_FRAMES]
            and not words[Word.POISON]
            and words[Word.GIVEN_UP] != epoch
        )
        is_fit = lsn > 0 and not self._fault and not words[Word.POISON]
        return Vitals(is_primary, epoch, lsn, promise, is_fit, self._failing(clock_ms))

    def keep_unmonitored(self, decided: Unmonitored) -> None:
        """Take over a newer decision, and write it down soon."""
        self.unmonitored = self._to_keep = decided
        self._wake.set()

    def close(self) -> None:
        """End the thread, unless the disk holds it; the process's end then ends it."""
        self._is_over = True
        self._wake.set()
        self._thread.join(0.2)
        if not self._thread.is_alive():
            self._page.close()

    # -- is the disk well? -----------------------------------------------------------------------

    def _failing(self, clock_ms: int) -> str:
        words, limit_ms = self._words, self._disk_stall_ms
        if words[Word.POISON]:
            return "a sync to disk failed"
        if self._disk_error:
            return self._disk_error
        begun = self._begun
        if begun == self._ended:
            self._visit = -1
        elif begun != self._visit:
            self._visit, self._visit_ms = begun, clock_ms
        elif clock_ms - self._visit_ms >= limit_ms:
            return f"its disk has not answered for {clock_ms - self._visit_ms} ms"
        return self._flush_stalls(clock_ms)

    def _flush_stalls(self, clock_ms: int) -> str:
        """With replicas that follow, everything appended is flushed at once; if not, the disk stalls."""
        words = self._words
        flushed = int(words[Word.FLUSHED])
        is_behind = words[Word.APPENDED] > flushed and words[Word.SHIPPER] and words[Word.VOTERS_CONNECTED]
        if not is_behind:
            self._flushed_ms = -1
        elif self._flushed_ms < 0 or flushed != self._flushed:
            self._flushed, self._flushed_ms = flushed, clock_ms
        elif clock_ms - self._flushed_ms >= self._disk_stall_ms:
            return f"its log is not on disk for {clock_ms - self._flushed_ms} ms"
        return ""

    # -- the thread that visits the disk ---------------------------------------------------------

    def _keep(self) -> None:
        probed_ms = 0
        while not self._is_over:
            self._wake.clear()
            generation = int(self._words[Word.GENERATION])
            self._begun += 1
            try:
                self._read()
                now_ms = monotonic_ns() // 1_000_000
                if now_ms - probed_ms >= PROBE_MS:
                    probed_ms = now_ms
                    self._probe()
                self._disk_error = ""
            except OSError as error:
                self._disk_error = f"its disk refuses: {error.strerror or error}"
            except PerdureError as error:
                self._disk_error = error.message
            self._ended = self._begun
            self._generation = generation
            self._wake.wait(KEEP_MS / 1000)

    def _read(self) -> None:
        store = self._store
        self._promise = read_promise(store)
        plans = [name for name in _PLANS if (store / name).exists()]
        self._fault = plans[0] if plans else why_unfit(store)
        to_keep, self._to_keep = self._to_keep, None
        if to_keep is not None and to_keep.changed_ms > read_unmonitored(store).changed_ms:
            write_unmonitored(store, to_keep)
        found = read_unmonitored(store)
        if found.changed_ms > self.unmonitored.changed_ms:
            self.unmonitored = found

    def _probe(self) -> None:
        """A write and its sync, as a frame would need them."""
        descriptor = os.open(self._store / names.PROBE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            os.pwrite(descriptor, monotonic_ns().to_bytes(8, "little"), 0)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
