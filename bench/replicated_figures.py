"""Figures of synchronous writes: on two disks before the call returns, beside a bare chain and Redis."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from perdure.shipping import open_gate
from perdure.store import SessionStore

from . import redis_peer
from .chain import BareChain
from .measure import Figure, percentile, processor_us
from .process_figures import make_cluster, ship
from .store_figures import METADATA

Measure = Callable[[str, Path, int], Iterator[Figure]]
Write = Callable[[], object]

WRITERS = 8
ROUNDS = 20
SLICE_WRITES = 100
PROCESSES = 4
WAIT_S = 60.0
OURS = "ours"
REDIS = "Redis, WAIT 1 (two disks)"
CHAIN = "bare chain of three processes (two disks)"

_WRITER = """
import fcntl, os, sys, time
import perdure
path, lock, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
metadata = {"user_id": 12345, "name": "a person of some name", "roles": ["reader"], "csrf": "0" * 32}
descriptor = os.open(lock, os.O_RDWR | os.O_CREAT) if lock else None
with perdure.open(path, create=False) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        store.create(metadata)
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        count += 1
print(count)
"""


def measure_all(only: str, quick: bool, directory: str | None) -> Iterator[Figure]:
    """All figures whose name holds `only`, one after the other."""
    size = 5 if quick else 1
    for name, figure in _FIGURES.items():
        if only in name:
            with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=directory) as folder:
                yield from figure(name, Path(folder), size)


class Source(NamedTuple):
    """Something that writes: how to get the write of one more writer, and the processes that take part."""

    connect: Callable[[], Write]
    pids: tuple[int, ...]


class Slice(NamedTuple):
    """What one slice of a source came to."""

    times_s: list[float]
    seconds: float
    processor_us: float
    """A write, in all processes of the source."""


def _sync_writes(name: str, folder: Path, size: int) -> Iterator[Figure]:
    """Latencies with one writer and with eight, ours and the peers' in turn."""
    one, _, replica = make_cluster(folder, 1)
    me = os.getpid()
    with ExitStack() as stack:
        stack.enter_context(replica)
        shipper = stack.enter_context(ship(one, replica))
        store = stack.enter_context(SessionStore.open(one, gate=open_gate(one)))
        chain = stack.enter_context(BareChain(folder / "chain"))
        ours: Callable[[], Write] = lambda: lambda: store.create(METADATA)  # noqa: E731
        sources = {
            OURS: Source(ours, (me, shipper.pid, replica.pid, *children_of(replica.pid))),
            CHAIN: Source(lambda: chain.write, (me, *chain.pids)),
        }
        missing = redis_peer.why_not()
        if missing:
            print(f"{name}: no Redis beside it: {missing}", file=sys.stderr)
        else:
            redis = stack.enter_context(redis_peer.RedisPair(folder))
            sources[REDIS] = Source(redis.writer, (me, *redis.pids))
        yield from _latencies(name, sources, ROUNDS // size)


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def _latencies(name: str, sources: dict[str, Source], rounds: int) -> Iterator[Figure]:
    """Short slices of each source in turn, so that what else the machine does meets all of them."""
    taken: dict[tuple[str, int], list[Slice]] = {}
    writes = {source: [its.connect() for _ in range(WRITERS)] for source, its in sources.items()}
    for turn in range(rounds + 1):
        for source, its in sources.items():
            for writers in (1, WRITERS):
                if writers > 1 and source == CHAIN:
                    continue
                before = processor_us(its.pids)
                times, seconds = _timed(writes[source][:writers], SLICE_WRITES)
                each = (processor_us(its.pids) - before) / len(times)
                if turn:  # the first round warms up
                    taken.setdefault((source, writers), []).append(Slice(times, seconds, each))
    for writers in (1, WRITERS):
        for peer in sources:
            if peer != OURS and (peer, writers) in taken:
                text = f"{name}, {writers} writer{'s'[: writers - 1]}"
                aim = 1.5 if peer == CHAIN else 1.0
                yield _latency(text, taken[OURS, writers], peer, taken[peer, writers], aim)
    yield _processor_time(f"{name}, processor us a write", taken[OURS, 1], taken[CHAIN, 1])
    rates = {writers: [_rate(each) for each in taken[OURS, writers]] for writers in (1, WRITERS)}
    yield _scaling(name, rates)


def _rate(each: Slice) -> float:
    return len(each.times_s) / each.seconds


def _latency(name: str, mine: list[Slice], peer: str, its: list[Slice], aim: float) -> Figure:
    """The median of the slices' ratios of medians; beside it the percentiles of all slices together."""
    ratios = [
        percentile(ours.times_s, 0.5) / percentile(theirs.times_s, 0.5)
        for ours, theirs in zip(mine, its, strict=True)
    ]
    p50, p99 = _percentiles_us(mine)
    its_p50, its_p99 = _percentiles_us(its)
    ratio = statistics.median(ratios)
    return Figure(
        f"{name}: p50 us (p99 {p99:,.0f})",
        p50,
        p50,
        f"{peer}, p50 us (p99 {its_p99:,.0f})",
        its_p50,
        ratio,
        min(ratios),
        max(ratios),
        f"at most {aim:.2f} of the peer",
        ratio <= aim,
        is_less_better=True,
        rounds=len(ratios),
    )


def _percentiles_us(slices: list[Slice]) -> tuple[float, float]:
    times = [one for each in slices for one in each.times_s]
    return percentile(times, 0.5) * 1e6, percentile(times, 0.99) * 1e6


def _processor_time(name: str, mine: list[Slice], its: list[Slice]) -> Figure:
    ours = statistics.median(each.processor_us for each in mine)
    theirs = statistics.median(each.processor_us for each in its)
    ratios = [one.processor_us / other.processor_us for one, other in zip(mine, its, strict=True)]
    ratio = statistics.median(ratios)
    return Figure(
        name,
        ours,
        ours,
        CHAIN,
        theirs,
        ratio,
        min(ratios),
        max(ratios),
        "at most 3.00 of the peer",
        ratio <= 3.0,
        is_less_better=True,
        rounds=len(ratios),
    )


def _scaling(name: str, rates: dict[int, list[float]]) -> Figure:
    one, many = (rates[writers] for writers in (1, WRITERS))
    ratios = [its / alone for its, alone in zip(many, one, strict=True)]
    ratio = statistics.median(ratios)
    return Figure(
        f"{name}, {WRITERS} writers, writes",
        statistics.median(many),
        max(many),
        "one writer of the same",
        statistics.median(one),
        ratio,
        min(ratios),
        max(ratios),
        "at least 4.00 of the peer",
        ratio >= 4.0,
        rounds=len(ratios),
    )


def _timed(writes: list[Write], count: int) -> tuple[list[float], float]:
    """(how long each call took in s, seconds in all) of `count` calls by each writer at once."""
    times: list[list[float]] = [[] for _ in writes]
    failed: list[BaseException] = []

    def work(write: Write, taken: list[float]) -> None:
        clock = time.perf_counter
        try:
            for _ in range(count):
                started = clock()
                write()
                taken.append(clock() - started)
        except Exception as error:  # noqa: BLE001  # raised below, in the thread that measures
            failed.append(error)

    started = time.perf_counter()
    threads = [threading.Thread(target=work, args=pair) for pair in zip(writes[1:], times[1:], strict=True)]
    for thread in threads:
        thread.start()
    work(writes[0], times[0])
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [one for each in times for one in each], time.perf_counter() - started


def _four_processes(name: str, folder: Path, size: int) -> Iterator[Figure]:
    """Against the same processes, which then hold a lock until each write is confirmed."""
    one, _, replica = make_cluster(folder, 1)
    seconds = 3.0 / size
    free: list[float] = []
    held: list[float] = []
    with replica, ship(one, replica):
        for turn in range(4):
            rates = _writers(one, "", seconds), _writers(one, str(folder / "lock"), seconds)
            if turn:
                free.append(rates[0])
                held.append(rates[1])
    ratios = [ours / its for ours, its in zip(free, held, strict=True)]
    ratio = statistics.median(ratios)
    yield Figure(
        f"{name}, writes",
        statistics.median(free),
        max(free),
        "a lock held over the wait",
        statistics.median(held),
        ratio,
        min(ratios),
        max(ratios),
        "at least 2.00 of the peer",
        ratio >= 2.0,
        rounds=len(ratios),
    )


def _writers(store: Path, lock: str, seconds: float) -> float:
    """Writes a second of so many processes together."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(store), lock, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    for process in running:  # each says that it is ready before any of them begins
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [int(process.communicate(timeout=seconds + WAIT_S)[0]) for process in running]
    return sum(counts) / seconds


_FIGURES: dict[str, Measure] = {
    "synchronous write": _sync_writes,
    "synchronous write, 4 processes": _four_processes,
}
