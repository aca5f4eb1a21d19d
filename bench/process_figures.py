"""Figures that need several processes: writers side by side, memory, snapshots, shipping and its lag."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from perdure.recovery import take_snapshot
from perdure.shipping import Child, Task, open_gate, open_node_log, start_child
from perdure.store import Config, SessionStore, begin_cluster, init_store
from perdure.store.page import ControlPage, Word, read_boot_id

from .measure import Figure, Slice, compare, percentile, rate_of
from .store_figures import METADATA, raw_sync

CLUSTER = bytes(range(16))
SECRET = b"the secret of a benchmark, as is"
HOST = "127.0.0.1"
WAIT_S = 60.0
LAG_MS_MAX = 2.0
CATCH_UPS = 3
FIRST_FRAME_MS_MAX = 2_000.0

Measure = Callable[[str, Path, int], Iterator[Figure]]

_WRITER = """
import sys, time
from perdure.store import SessionStore
path, durability, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
metadata = {"user_id": 12345, "name": "a person of some name", "roles": ["reader"], "csrf": "0" * 32}
with SessionStore.open(path, durability=durability) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    clock = time.perf_counter
    slowest = count = 0
    end = clock() + seconds
    started = clock()
    while started < end:
        store.create(metadata)
        now = clock()
        if now - started > slowest:
            slowest = now - started
        started = now
        count += 1
print(count, slowest)
"""

_MEMORY = """
import os, sys
from perdure.store import SessionStore
path, count = sys.argv[1], int(sys.argv[2])
def private_bytes():
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
with SessionStore.open(path) as store:
    before = private_bytes()
    for _ in range(count // 100):
        with store.batch() as batch:
            for number in range(100):
                batch.create({"user": number, "csrf": "0" * 32})
    store.fold()
    for id, _ in zip(store.ids(), range(10_000)):
        store.get(id).metadata
    print(before, private_bytes())
"""


def measure_all(only: str, quick: bool, directory: str | None) -> Iterator[Figure]:
    """All figures whose name holds `only`, one after the other."""
    size = 5 if quick else 1
    for name, figure in _FIGURES.items():
        if only in name:
            with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=directory) as folder:
                yield from figure(name, Path(folder), size)


def _writers(folder: Path, durability: str, processes: int, seconds: float) -> tuple[int, float]:
    """(creates acknowledged, slowest call in s) of so many processes on one store."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(folder / "store"), durability, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in running:  # each says that it is ready before any of them begins
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=seconds + WAIT_S)[0].split() for process in running]
    return sum(int(count) for count, _ in answers), max(float(slowest) for _, slowest in answers)


def _four_processes(durability: str) -> Measure:
    def figure(name: str, folder: Path, size: int) -> Iterator[Figure]:
        seconds = 5.0 / size
        with SessionStore.open(folder / "store"):
            count, slowest = _writers(folder, durability, 4, seconds)
        rate = count / seconds
        if durability == "disk":
            peer = rate_of(raw_sync(folder, 500))
            yield _plain(name, rate, "raw write + fdatasync, one thread", peer, 1.0)
        else:
            one, _ = _writers(folder, durability, 1, seconds)
            yield _plain(name, rate, "one process of the same", one / seconds, 0.5)
        milliseconds = slowest * 1000
        yield Figure(
            f"{name}: slowest call, ms",
            milliseconds,
            milliseconds,
            "limit in ms",
            100.0,
            milliseconds / 100.0,
            milliseconds / 100.0,
            milliseconds / 100.0,
            "no call longer than 100 ms",
            milliseconds <= 100.0,
            is_less_better=True,
        )

    return figure


def _plain(name: str, rate: float, peer_name: str, peer: float, aim: float) -> Figure:
    ratio = rate / peer
    return Figure(
        name,
        rate,
        rate,
        peer_name,
        peer,
        ratio,
        ratio,
        ratio,
        f"at least {aim:.2f} of the peer",
        ratio >= aim,
    )


def _memory(name: str, folder: Path, size: int) -> Iterator[Figure]:
    count = 1_000_000 // (size * 2 if size > 1 else 1)
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(folder / "store"), str(count)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = (int(word) for word in done.stdout.split())
    grown = (after - before) / 2**20
    total = after / 2**20
    yield Figure(
        f"{name} ({count:,}), MiB in all",
        total,
        grown,
        "limit in MiB",
        100.0,
        total / 100.0,
        total / 100.0,
        total / 100.0,
        "less than 100 MiB of anonymous memory",
        total < 100.0,
        is_less_better=True,
    )


def _snapshot(name: str, folder: Path, size: int) -> Iterator[Figure]:
    count = 200_000 // size
    with SessionStore.open(folder / "store") as store:
        for _ in range(count // 100):
            with store.batch() as batch:
                for _ in range(100):
                    batch.create(METADATA)
        store.fold()

        def work() -> int:
            take_snapshot(store._opened)
            store.create(METADATA)
            return count

        yield compare(
            name,
            work,
            "raw write of as many bytes + fsync",
            _raw_file(folder, count),
            slices=3,
            ratio_aim=0.1,
        )


def _raw_file(folder: Path, count: int) -> Slice:
    data = os.urandom(1 << 20)

    def work() -> int:
        descriptor = os.open(folder / "raw-file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for _ in range(count * 250 // len(data) + 1):
            os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)
        return count

    return work


def open_page(path: Path) -> ControlPage:
    return ControlPage(path / "control", read_boot_id())


def wait_for(page: ControlPage, word: Word, lsn: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while page.words[word] < lsn:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{word.name} stayed at {page.words[word]}, {lsn} was expected")
        time.sleep(0.0005)


def make_cluster(folder: Path, sync_replicas: int) -> tuple[Path, Path, Child]:
    """Two nodes and the replica's processes: (primary, replica, processes). The primary ships with ship()."""
    one, ((two, replica),) = make_nodes(folder, 1, sync_replicas)
    return one, two, replica


def make_nodes(folder: Path, replicas: int, sync_replicas: int) -> tuple[Path, list[tuple[Path, Child]]]:
    """A primary, and so many replicas: its directory, and of each of them directory and processes."""
    names = [f"n{number + 1}" for number in range(replicas + 1)]
    one, *others = (folder / name for name in names)
    now_ms = time.time_ns() // 1_000_000
    for name in names:
        init_store(folder / name, node=name, cluster_id=CLUSTER, now_ms=now_ms)
    node = open_node_log(one, [])
    node.log.lock_any()
    begin_cluster(node.log, Config(tuple(names), sync_replicas))
    node.log.unlock()
    node.close()
    with ExitStack() as stack:
        nodes = [
            (path, stack.enter_context(start_child(Task("replica", str(path), host=HOST, secret=SECRET))))
            for path in others
        ]
        for _, replica in nodes:
            replica.wait_ready()
        stack.pop_all()
    return one, nodes


def ship(one: Path, *replicas: Child) -> Child:
    """The shipper of a primary, to its replicas n2, n3 and so on."""
    ports = {f"n{number + 2}": (HOST, replica.port) for number, replica in enumerate(replicas)}
    shipper = start_child(Task("shipper", str(one), replicas=ports, secret=SECRET))
    shipper.wait_ready()
    return shipper


def _catch_up(name: str, folder: Path, size: int) -> Iterator[Figure]:
    """Of the median of some replicas that have nothing yet, from the first frame that each gets to the last.

    A shipper that runs already loses no time before the first one; what a start takes is a figure of its own.
    """
    events = 200_000 // size
    times = [_one_catch_up(folder / str(number), events) for number in range(1 if size > 1 else CATCH_UPS)]
    shipped, folded, first = (statistics.median(its) for its in zip(*times, strict=True))
    sent = sum(file.stat().st_size for file in (folder / "0" / "n1" / "log").iterdir())
    loopback = events / _loopback_s(sent)
    yield _plain(
        f"{name}: on the replica's disk, events", events / shipped, "loopback, same bytes", loopback, 0.02
    )
    per_event = sent / events / 1e6
    yield _plain(
        f"{name}: on the replica's disk, MB",
        events / shipped * per_event,
        "loopback, same bytes",
        loopback * per_event,
        0.02,
    )
    yield _plain(f"{name}: folded, events", events / folded, "aim, events", 100_000.0, 1.0)
    ratio = first * 1000 / FIRST_FRAME_MS_MAX
    yield Figure(
        f"{name}: the first frame behind the start of a shipper, ms",
        first * 1000,
        first * 1000,
        "limit in ms",
        FIRST_FRAME_MS_MAX,
        ratio,
        ratio,
        ratio,
        f"below {FIRST_FRAME_MS_MAX:,.0f} ms",
        ratio < 1,
        is_less_better=True,
    )


def _one_catch_up(folder: Path, events: int) -> tuple[float, float, float]:
    """Seconds until all frames are on the replica's disk, and until all are folded, at the rate at which
    they come from the first one on; and from the start of the shipper to that one."""
    folder.mkdir()
    one, two, replica = make_cluster(folder, 0)
    with replica, SessionStore.open(one) as store:
        for _ in range(events):
            store.create(METADATA)
        end = store.position().lsn
        page = open_page(two)
        begun = time.perf_counter()
        with ship(one, replica):
            wait_for(page, Word.APPENDED, 1)
            first, had = time.perf_counter(), page.words[Word.APPENDED]
            wait_for(page, Word.FLUSHED, end)
            shipped = time.perf_counter()
            wait_for(page, Word.FOLDED, end)
            folded = time.perf_counter()
        page.close()
    left = (end - had) / end
    return (shipped - first) / left, (folded - first) / left, first - begun


def _loopback_s(size: int) -> float:
    """Seconds to send so many bytes over loopback."""
    listener = socket.create_server((HOST, 0))
    done = threading.Event()

    def take() -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(1 << 18):
                pass
        done.set()

    thread = threading.Thread(target=take)
    thread.start()
    data = os.urandom(1 << 18)
    started = time.perf_counter()
    with socket.create_connection(listener.getsockname()) as link:
        for _ in range(size // len(data) + 1):
            link.sendall(data)
    done.wait(WAIT_S)
    thread.join()
    listener.close()
    return time.perf_counter() - started


def _lag(name: str, folder: Path, size: int) -> Iterator[Figure]:
    """Each write's time from its append to its being on the replica's disk, at 5,000 writes a second."""
    rate, seconds = 5000, 8.0 / size
    one, two, replica = make_cluster(folder, 0)
    gate = open_gate(one)
    with replica, SessionStore.open(one, gate=gate) as store, ship(one, replica):
        page = open_page(two)
        store.create(METADATA)
        wait_for(page, Word.FLUSHED, store.position().lsn)
        lags = _sample_lags(store, page, rate, seconds)
        page.close()
    p99 = percentile(lags, 0.99) * 1000
    yield Figure(
        f"{name}: p99 in ms (p50 {percentile(lags, 0.5) * 1000:.2f})",
        p99,
        percentile(lags, 0.5) * 1000,
        "limit in ms",
        LAG_MS_MAX,
        p99 / LAG_MS_MAX,
        p99 / LAG_MS_MAX,
        p99 / LAG_MS_MAX,
        f"p99 below {LAG_MS_MAX:.0f} ms",
        p99 < LAG_MS_MAX,
        is_less_better=True,
    )


def _sample_lags(store: SessionStore, page: ControlPage, rate: int, seconds: float) -> list[float]:
    """Of each write, also of those that are on their way when the time is over: a stall at the end counts."""
    lags: list[float] = []
    waiting: list[tuple[int, float]] = []
    started = time.perf_counter()
    written = 0
    while (now := time.perf_counter()) - started < seconds or waiting:
        if now - started > seconds + WAIT_S:
            raise TimeoutError(f"{len(waiting)} writes were not on the replica's disk within {WAIT_S} s")
        while written < min(now - started, seconds) * rate:
            store.create(METADATA)
            written += 1
            waiting.append((store._log.cursor.at.lsn, time.perf_counter()))
        flushed = page.words[Word.FLUSHED]
        now = time.perf_counter()
        reached = [at for lsn, at in waiting if lsn <= flushed]
        lags += [now - at for at in reached]
        waiting = waiting[len(reached) :]
        time.sleep(0.0002)
    return lags


_FIGURES: dict[str, Measure] = {
    "create, disk, 4 processes": _four_processes("disk"),
    "create, os, 4 processes": _four_processes("os"),
    "sessions in memory": _memory,
    "snapshot, sessions": _snapshot,
    "catch-up of a replica": _catch_up,
    "replication lag at 5,000 writes/s": _lag,
}
