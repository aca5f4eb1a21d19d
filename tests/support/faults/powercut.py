"""Real file systems of our own: an ext4 whose power can be cut, and disks that are small enough to fill.

Owns the image files, mounts and loop devices; all are gone when the context ends. Needs root.
The power cut is ext4's GOINGDOWN ioctl: from then on nothing reaches the device, and every later call
fails. The writers are stopped first, since a sync that is under way at that moment may wrongly return 0.
The mount option noauto_da_alloc takes away ext4's kindness of flushing a file that is renamed unsynced.
"""

from __future__ import annotations

import fcntl
import functools
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .explore import Check, quick_place
from .shards import Report, ShardResult, run_sharded
from .workload import Workload, argv_of, living, read_ledgers
from .zygote import ROOT

_GOINGDOWN = 0x8004587D
FLUSH_JOURNAL = 1
"""The journal is written out first: what it holds is kept."""
DROP_JOURNAL = 2
"""Nothing more is written at all."""
_WAIT_S = 10.0


@functools.cache
def reason_not_to_mount() -> str | None:
    """Why there can be no mounts here, None if there can."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    for tool in ("mount", "umount", "mkfs.ext4"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    try:
        with CuttableDisk(size_mib=8):
            return None
    except subprocess.CalledProcessError as error:
        return f"this machine cannot mount an ext4 image: {error.stderr.decode(errors='replace').strip()}"


class CuttableDisk:
    """An ext4 file system in a file. Use as a context; `path` is its root directory."""

    def __init__(self, size_mib: int = 32, options: str = "noauto_da_alloc") -> None:
        self._size_mib = size_mib
        self._options = f"loop,{options}" if options else "loop"
        self._place = Path()
        self._is_mounted = False

    @property
    def path(self) -> Path:
        return self._place / "disk"

    def __enter__(self) -> CuttableDisk:
        self._place = Path(tempfile.mkdtemp(prefix="disk-", dir=quick_place()))
        try:
            self.path.mkdir()
            with (self._place / "image").open("wb") as image:
                image.truncate(self._size_mib << 20)
            _tool("mkfs.ext4", "-q", "-F", "-m", "0", str(self._place / "image"))
            self.mount()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_mounted:
            self.unmount()
        shutil.rmtree(self._place, ignore_errors=True)

    def mount(self) -> None:
        """Mount it, replaying the journal if there is one to replay."""
        _tool("mount", "-t", "ext4", "-o", self._options, str(self._place / "image"), str(self.path))
        self._is_mounted = True

    def unmount(self) -> None:
        """Unmount it; waits for a process that was just killed. Raises CalledProcessError if one stays."""
        unmount(self.path)
        self._is_mounted = False

    def cut_power(self, writers: Callable[[], Sequence[int]] = tuple, flag: int = DROP_JOURNAL) -> None:
        """Stop all writers, cut the power, kill them, and mount what is left.

        writers: gives the pids of all processes that have files open here; asked again until nobody new
        shows up, since one may have forked before it was stopped. They are not reaped.
        """
        stopped: set[int] = set()
        while fresh := set(writers()) - stopped:
            for pid in fresh:
                _send(pid, signal.SIGSTOP)
            for pid in fresh:
                _await_stop(pid)
            stopped |= fresh
        root = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(root, _GOINGDOWN, struct.pack("I", flag))
        finally:
            os.close(root)
        for pid in stopped:
            _send(pid, signal.SIGKILL)
        for pid in stopped:
            _await_death(pid)
        self.unmount()
        self.mount()


def power_cuts(
    workload: Workload,
    check: Check,
    *,
    cuts: int,
    seed: int = 1,
    run_s: float = 0.3,
    least_lines: int = 1,
    size_mib: int = 32,
    workers: int = 1,
    stop_after: int = 5,
) -> ShardResult:
    """Run the workload on a fresh disk, cut the power at random within `run_s` after it wrote `least_lines`
    lines to its ledgers, and check(store, ledger lines) what the disk holds then; `cuts` times.

    The ledgers are not on the disk. Each check runs in a process of its own. totals: cuts, lines.
    """

    def work(index: int, report: Report) -> None:
        rng = random.Random(f"{seed}/{index}")
        if not report.at(f"seed {seed} cut {index}"):
            return
        with CuttableDisk(size_mib) as disk, tempfile.TemporaryDirectory(dir=quick_place()) as place:
            folder = Path(place)
            process = _start(workload, disk, folder)
            try:
                _await_lines(process, folder, least_lines, workload.timeout_s)
                time.sleep(rng.random() * run_s)
            finally:
                flag = FLUSH_JOURNAL if rng.random() < 0.25 else DROP_JOURNAL
                disk.cut_power(lambda: living(process.pid, folder / "counts"), flag)
                process.wait()
            lines = read_ledgers(folder)
            report.add("cuts")
            report.add("lines", len(lines))

            def judge(_: int, inner: Report) -> None:
                inner.collect(lambda: check(disk.path / "store", lines))

            for found in run_sharded(1, judge, workers=1).violations:
                report.violation(found)

    deadline_s = workload.timeout_s + run_s + 60
    return run_sharded(cuts, work, workers=workers, deadline_s=deadline_s, stop_after=stop_after)


def _start(workload: Workload, disk: CuttableDisk, folder: Path) -> subprocess.Popen[bytes]:
    if workload.prepare is not None:
        workload.prepare(disk.path)
        for path in disk.path.glob("ACK*"):
            shutil.move(path, folder)
        os.sync()
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(
            argv_of(workload, disk.path / "store", folder / "ACK"),
            env={**os.environ, **workload.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
        )


def _await_lines(process: subprocess.Popen[bytes], folder: Path, lines: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    before = len(read_ledgers(folder))
    while len(read_ledgers(folder)) < before + lines:
        if process.poll() is not None or time.monotonic() > deadline:
            text = (folder / "output").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"not even {lines} ledger lines after {timeout_s:g} s: {text}")
        time.sleep(0.001)


@contextmanager
def small_tmpfs(size_kib: int) -> Generator[Path]:
    """A tmpfs of this size; full when it is full."""
    with tempfile.TemporaryDirectory(prefix="small-") as place:
        path = Path(place) / "disk"
        path.mkdir()
        _tool("mount", "-t", "tmpfs", "-o", f"size={size_kib}k,mode=700", "tmpfs", str(path))
        try:
            yield path
        finally:
            unmount(path)


@contextmanager
def small_ext4(size_mib: int) -> Generator[Path]:
    """An ext4 of this size, where writes are allocated late: a full disk may show only at the sync."""
    with CuttableDisk(size_mib, options="") as disk:
        yield disk.path


def fill(path: Path, spare_bytes: int = 0) -> Path:
    """Fill the file system with one file, called `ballast`, but for `spare_bytes`; delete it to make room."""
    ballast = path / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        block = 1 << 20
        while block >= 512:
            try:
                if os.write(descriptor, bytes(block)) < block:
                    block //= 2
            except OSError:
                block //= 2
        size = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, max(0, size - spare_bytes))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return ballast


def unmount(path: Path) -> None:
    """Unmount; retries for a while, since the files of a killed process close a little after its death."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            _tool("umount", str(path))
            return
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)
                raise
            time.sleep(0.01)


def _tool(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def _await_stop(pid: int) -> None:
    _await(pid, ("T", "Z", "X", "gone"), "stop")


def _await_death(pid: int) -> None:
    _await(pid, ("Z", "X", "gone"), "die")


def _await(pid: int, states: tuple[str, ...], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while _state(pid) not in states:
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} did not {what} within {_WAIT_S:g} s")
        time.sleep(0.0005)
