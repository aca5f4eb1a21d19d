"""What the nodes of a cluster do, as their own files tell: who promises, who reigns, what is committed.

Owns a thread that looks at every node each LOOK_EVERY_S; it asks no process anything and writes nothing.
Invariant: what it calls committed stood in the control page of a node in an epoch that this node began.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from ...store import PerdureError, names
from ...store.cursor import list_segments
from ...store.page import ControlPage, Word, read_boot_id
from ...store.promise import Promise, read_promise

LOOK_EVERY_S = 0.002


class Seen(msgspec.Struct, frozen=True):
    """Something that began: a node promised an epoch, or a candidate's epoch was committed."""

    at_ns: int
    node: str
    epoch: int
    candidate: str
    is_reign: bool
    """False: a promise."""


class _Sight:
    """One node."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path
        self._boot = read_boot_id()
        self._page: ControlPage | None = None
        self._inode = 0
        self._promise_ns = 0
        self.promise = Promise(0, "")
        self.reigned = 0
        self.committed: dict[int, int] = {}
        """By epoch that this node began: the highest LSN of it that was committed."""

    def look(self) -> list[tuple[bool, Promise]]:
        """What is new since the last look: (is it a reign, the promise)."""
        news: list[tuple[bool, Promise]] = []
        changed_ns = _changed_ns(self._path / names.PROMISE)
        if changed_ns != self._promise_ns:
            self._promise_ns = changed_ns
            promise = read_promise(self._path)
            if promise.epoch > self.promise.epoch:
                news.append((False, promise))
            self.promise = promise
        page = self._current_page()
        if page is None or self.promise.candidate != self.name:
            return news
        words = page.words
        before = words[Word.GENERATION], words[Word.EPOCH]
        first, committed = words[Word.SEGMENT], words[Word.COMMITTED]
        epoch = before[1]
        is_settled = before == (words[Word.GENERATION], words[Word.EPOCH])
        if is_settled and epoch == self.promise.epoch and committed > first > 0:
            self.committed[epoch] = max(committed, self.committed.get(epoch, 0))
            if epoch > self.reigned:
                self.reigned = epoch
                news.append((True, self.promise))
        return news

    def _current_page(self) -> ControlPage | None:
        """The page; opened anew where a node that was made anew has another one."""
        file = self._path / names.CONTROL_PAGE
        try:
            inode = file.stat().st_ino
        except FileNotFoundError:
            return None
        if inode != self._inode:
            self.close()
            self._page, self._inode = ControlPage(file, self._boot), inode
        return self._page

    def close(self) -> None:
        if self._page is not None:
            self._page.close()
            self._page = None


class Watch:
    """Looks at all nodes until it is closed."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._sights = [_Sight(name, path) for name, path in paths.items()]
        self._seen: list[Seen] = []
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_stopping.set()
        self._thread.join()
        for sight in self._sights:
            sight.close()

    @property
    def seen(self) -> list[Seen]:
        return list(self._seen)

    def reigns(self) -> list[Seen]:
        return [seen for seen in self._seen if seen.is_reign]

    def reign(self) -> Seen | None:
        """The newest reign."""
        return max(self.reigns(), key=lambda seen: seen.epoch, default=None)

    def wait_reign(self, after_epoch: int, timeout_s: float) -> Seen | None:
        """The first reign of a later epoch; None if there is none in time."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for seen in self.reigns():
                if seen.epoch > after_epoch:
                    return seen
            time.sleep(LOOK_EVERY_S)
        return None

    def first_candidacy_ns(self, after_epoch: int, since_ns: int) -> int | None:
        """When a node first promised a later epoch to itself."""
        times = [
            seen.at_ns
            for seen in self._seen
            if not seen.is_reign
            and seen.epoch > after_epoch
            and seen.node == seen.candidate
            and seen.at_ns >= since_ns
        ]
        return min(times, default=None)

    def find_acknowledged_twice(self, last_primary: str) -> list[str]:
        """Where a node called an LSN of its own epoch committed that is of another epoch in the end."""
        segments = list_segments(names.log_path(self._paths[last_primary]))
        found: list[str] = []
        for sight in self._sights:
            for epoch, lsn in sight.committed.items():
                holding = [file for file in segments if file.first_lsn <= lsn]
                if holding and holding[-1].epoch != epoch:
                    found.append(
                        f"{sight.name} committed LSN {lsn} of epoch {epoch}; it is of {holding[-1].epoch}"
                    )
        return found

    def _run(self) -> None:
        while not self._is_stopping.wait(LOOK_EVERY_S):
            for sight in self._sights:
                for is_reign, promise in _tried(sight.look):
                    self._seen.append(
                        Seen(time.monotonic_ns(), sight.name, promise.epoch, promise.candidate, is_reign)
                    )


def _tried(look: Callable[[], list[tuple[bool, Promise]]]) -> list[tuple[bool, Promise]]:
    """A node's files may change while they are read; the next look sees them whole."""
    try:
        return look()
    except (PerdureError, OSError):
        return []


def _changed_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
