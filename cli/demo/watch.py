"""What can be seen of a running cluster from beside it: positions, rates, and how far each replica is behind.

Owns the sampling. It reads the words that the processes share anyway and the writers' gauges, and asks
nobody. Invariant: watching takes no lock and changes nothing; each lag sample is at most one sampling
interval short.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ...store import names
from ...store.page import ControlPage, Word, read_boot_id
from .gauge import Count, Gauge, Stage

SAMPLE_S = 0.002
SAMPLES_MAX = 500_000
RATE_S = 1.0


class LagMeter:
    """The lag of one replica: the age of the oldest event that it does not have on disk, 0 when it has all.

    Pure but for the samples that it keeps, at most SAMPLES_MAX.
    """

    def __init__(self) -> None:
        self._appended: deque[tuple[float, int]] = deque()
        self._samples = array("f")
        self.now_ms = 0.0

    def sample(self, now_s: float, appended_lsn: int, held_lsn: int) -> None:
        """Take one look: at `now_s` the primary has this, and the replica that. `appended_lsn` was read
        first."""
        appended = self._appended
        if not appended or appended_lsn > appended[-1][1]:
            appended.append((now_s, appended_lsn))
        while appended and appended[0][1] <= held_lsn:
            appended.popleft()
        self.now_ms = (now_s - appended[0][0]) * 1000 if appended else 0.0
        if len(self._samples) < SAMPLES_MAX:
            self._samples.append(self.now_ms)

    def percentile_ms(self, percent: int) -> float:
        """The lag that so many percent of the samples do not exceed, 0 without samples."""
        if not self._samples:
            return 0.0
        ordered = sorted(self._samples)
        return float(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)])


class NodeSight(msgspec.Struct, frozen=True):
    """One node at one moment. LSNs; `lag_ms` is 0 for the primary."""

    node: str
    is_primary: bool
    appended: int
    flushed: int
    committed: int
    folded: int
    lag_ms: float


class Sight(msgspec.Struct, frozen=True):
    """The whole cluster at one moment. Counts are of all writers together, rates of the last second."""

    elapsed_s: float
    nodes: tuple[NodeSight, ...]
    writes: int
    reads: int
    unknown: int
    mismatches: int
    writes_per_s: float
    reads_per_s: float


class Watch:
    """Looks at nodes and writers from a thread of its own until it is closed."""

    def __init__(self, gauges: Sequence[Gauge]) -> None:
        self._gauges = gauges
        self._pages: dict[str, ControlPage] = {}
        self._primary = ""
        self._is_metering = False
        self._mutex = threading.Lock()
        self._stopping = threading.Event()
        self._started_s = time.monotonic()
        self._history: deque[tuple[float, int, int]] = deque()
        self.meters: dict[str, LagMeter] = {}
        self._thread = threading.Thread(target=self._run, name="demo-watch", daemon=True)
        self._thread.start()

    def follow(self, directories: dict[str, Path], primary: str) -> None:
        """Watch these nodes from now on; the replicas among them are metered against the primary."""
        boot_id = read_boot_id()
        pages = {node: ControlPage(path / names.CONTROL_PAGE, boot_id) for node, path in directories.items()}
        with self._mutex:
            old, self._pages, self._primary = self._pages, pages, primary
            self.meters = {node: LagMeter() for node in pages if node != primary}
        for page in old.values():
            page.close()

    def meter(self, is_metering: bool) -> None:
        """Begin or stop to sample lags."""
        with self._mutex:
            self._is_metering = is_metering

    def word(self, node: str, word: Word) -> int:
        """One word of a node's control page."""
        with self._mutex:
            return int(self._pages[node].words[word])

    def sight(self) -> Sight:
        """Everything as it is now."""
        now_s = time.monotonic()
        writes, reads = self.total(Count.WRITES), self.total(Count.READS)
        history = self._history
        history.append((now_s, writes, reads))
        while len(history) > 2 and now_s - history[0][0] > RATE_S:
            history.popleft()
        span_s = max(now_s - history[0][0], 1e-3)
        with self._mutex:
            nodes = tuple(self._sight_of(node, page) for node, page in self._pages.items())
        return Sight(
            elapsed_s=now_s - self._started_s,
            nodes=nodes,
            writes=writes,
            reads=reads,
            unknown=self.total(Count.UNKNOWN),
            mismatches=self.total(Count.MISMATCHES),
            writes_per_s=(writes - history[0][1]) / span_s,
            reads_per_s=(reads - history[0][2]) / span_s,
        )

    def total(self, count: Count) -> int:
        """A count of all writers together."""
        return sum(gauge[count] for gauge in self._gauges)

    def stages(self) -> list[Stage]:
        """How far each writer is."""
        return [gauge.stage for gauge in self._gauges]

    def close(self) -> None:
        """Stop looking. Idempotent."""
        self._stopping.set()
        self._thread.join()
        with self._mutex:
            for page in self._pages.values():
                page.close()
            self._pages = {}

    def _sight_of(self, node: str, page: ControlPage) -> NodeSight:
        words = page.words
        meter = self.meters.get(node)
        return NodeSight(
            node=node,
            is_primary=node == self._primary,
            appended=words[Word.APPENDED],
            flushed=words[Word.FLUSHED],
            committed=words[Word.COMMITTED],
            folded=words[Word.FOLDED],
            lag_ms=meter.now_ms if meter and self._is_metering else 0.0,
        )

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_S):
            with self._mutex:
                primary = self._pages.get(self._primary)
                if primary is None or not self._is_metering:
                    continue
                appended = primary.words[Word.APPENDED]
                now_s = time.monotonic()
                for node, meter in self.meters.items():
                    meter.sample(now_s, appended, self._pages[node].words[Word.FLUSHED])
