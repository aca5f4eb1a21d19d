"""What stands for the operating system in the modules of perdure.

Owns which names of which modules are replaced: every global of a perdure module that is a module or a
function of the standard library with a say in time, threads, sockets, files or chance. The standard
library itself, and what else runs in this process, is not touched.
"""

from __future__ import annotations

import concurrent.futures
import errno
import fcntl
import io
import os
import random
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from perdure.shipping.readiness import Readiness

from .disk import Disk, Inode, Open
from .kernel import MS, Host, Kernel, Process
from .network import FIRST_NUMBER, Network, Pipe, Poll, Selector, socket_of
from .threads import Pool, threading_of

WALL_NS = 1_760_000_000 * 1_000 * MS
BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"
_CALL_NS = 2_000


class System:
    """The operating system that the simulated processes see."""

    def __init__(self, kernel: Kernel, network: Network) -> None:
        self.kernel = kernel
        self.network = network
        self.disks: dict[str, Disk] = {}
        self.opened: dict[int, Open] = {}
        network.path_of = self._local_path
        network.make_file = _make_empty

    def add(self, disk: Disk) -> None:
        self.disks[disk.root] = disk

    # -- who calls -------------------------------------------------------------------------------

    def process(self) -> Process | None:
        task = self.kernel.task
        return task.process if task is not None else None

    def host(self) -> Host:
        process = self.process()
        return process.host if process is not None else next(iter(self.network.hosts.values()))

    def disk_of(self, path: str) -> Disk | None:
        for root, disk in self.disks.items():
            if path.startswith(root):
                return disk
        return None

    # -- time ------------------------------------------------------------------------------------

    def monotonic_ns(self) -> int:
        return self.host().monotonic_ns()

    def time_ns(self) -> int:
        return WALL_NS + self.kernel.now_ns + self.host().wall_skew_ns

    def sleep(self, seconds: float) -> None:
        ns = max(_CALL_NS, int(seconds * 1_000 * MS))
        task = self.kernel.running()
        if ns < 2 * MS:  # who naps again and again waits for a lock: look less often, or a stalled disk costs
            task.naps += 1  # thousands of steps
            ns = min(10 * MS, ns * (1 + task.naps // 8))
        self.kernel.pass_time(ns)

    # -- files -----------------------------------------------------------------------------------

    def open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        self.kernel.system_call()
        text = os.fspath(path)
        disk = self.disk_of(text)
        is_new = disk is not None and bool(flags & os.O_CREAT) and not os.path.lexists(text)
        descriptor = os.open(path, flags, mode, **more)
        if disk is None:
            return descriptor
        process = self.process()
        is_directory = bool(flags & os.O_DIRECTORY)
        inode = None if is_directory else disk.inode(descriptor)
        self.opened[descriptor] = Open(disk, process, descriptor, text, inode)
        if process is not None:
            process.descriptors.add(descriptor)
        if inode is not None and is_new:
            disk.named(None, text, inode)
        if inode is not None and flags & os.O_TRUNC and not is_new:
            inode.pending.append((0, None))
        return descriptor

    def close(self, descriptor: int) -> None:
        if descriptor >= FIRST_NUMBER:
            self.network.files[descriptor].close()
            return
        file = self.opened.pop(descriptor, None)
        if file is not None:
            if file.process is not None:
                file.process.descriptors.discard(descriptor)
            _unlock(file)
        os.close(descriptor)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        self.kernel.system_call()
        written = os.pwrite(descriptor, data, offset)
        file = self.opened.get(descriptor)
        if file is not None and file.inode is not None:
            raw = bytes(data[:written])
            file.inode.pending.append((offset, raw))
            file.disk.on_write(file.disk, file.path, offset, raw)
        return written

    def write(self, descriptor: int, data: Any) -> int:
        if descriptor >= FIRST_NUMBER:
            return int(self.network.files[descriptor].write(bytes(data)))
        file = self.opened.get(descriptor)
        if file is None or file.inode is None:
            return os.write(descriptor, data)
        self.kernel.system_call()
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        written = os.write(descriptor, data)
        raw = bytes(data[:written])
        file.inode.pending.append((offset, raw))
        file.disk.on_write(file.disk, file.path, offset, raw)
        return written

    def read(self, descriptor: int, size: int) -> bytes:
        if descriptor >= FIRST_NUMBER:
            return bytes(self.network.files[descriptor].read(size))
        return os.read(descriptor, size)

    def ftruncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        file = self.opened.get(descriptor)
        if file is not None and file.inode is not None:
            file.inode.pending.append((size, None))
            file.disk.on_change(file.disk, file.path)

    def posix_fallocate(self, descriptor: int, offset: int, size: int) -> None:
        grown = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, max(grown, offset + size))
        file = self.opened.get(descriptor)
        if file is not None and file.inode is not None and offset + size > grown:
            file.inode.pending.append((offset + size, b""))

    def fsync(self, descriptor: int) -> None:
        file = self.opened.get(descriptor)
        if file is not None:
            file.disk.sync(file)

    def rename(self, source: Any, target: Any) -> None:
        self.kernel.system_call()
        old, new = os.fspath(source), os.fspath(target)
        disk = self.disk_of(old)
        inode = disk.inode_at(old) if disk is not None else None
        os.rename(old, new)
        if disk is not None:
            disk.named(old, new, inode)

    def unlink(self, path: Any, **more: Any) -> None:
        self.kernel.system_call()
        text = os.fspath(path)
        os.unlink(text, **more)
        disk = self.disk_of(text)
        if disk is not None:
            disk.named(text, None, None)

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        text = os.fspath(path)
        os.mkdir(text, mode)
        disk = self.disk_of(text)
        if disk is not None:
            disk.named(None, text, None)

    def pipe(self, _flags: int = 0) -> tuple[int, int]:
        process = self.kernel.running().process
        reader, writer = Pipe(self.network, process), Pipe(self.network, process)
        writer.other = reader
        return reader.number, writer.number

    def flock(self, descriptor: int, operation: int) -> None:
        """flock(2), never waiting. Only the simulated processes see these locks."""
        file = self.opened.get(descriptor)
        if file is None or file.inode is None:
            if descriptor < 0:
                raise ValueError("file descriptor cannot be a negative integer")
            raise OSError(errno.EBADF, "not open")
        if operation & fcntl.LOCK_UN:
            _unlock(file)
            return
        self.kernel.system_call()
        inode = file.inode
        if operation & fcntl.LOCK_SH:
            if inode.exclusive not in (None, file):
                raise BlockingIOError(errno.EAGAIN, "locked")
            inode.exclusive = None
            if file not in inode.shared:
                inode.shared.append(file)
            return
        if inode.exclusive not in (None, file) or any(other is not file for other in inode.shared):
            raise BlockingIOError(errno.EAGAIN, "locked")
        inode.shared.clear()
        inode.exclusive = file

    def release(self, process: Process) -> None:
        """A process died: the system closes its files, which frees their locks."""
        for descriptor in list(process.descriptors):
            file = self.opened.pop(descriptor, None)
            if file is not None:
                _unlock(file)
            os.close(descriptor)
        process.descriptors.clear()

    def open_text(self, path: Any, *given: Any, **options: Any) -> Any:
        """The built-in open, for the one file of the system that perdure reads with it."""
        if path == BOOT_ID_PATH:
            return io.StringIO(self.host().boot_id + "\n")
        return open(path, *given, **options)

    def _local_path(self, address: str) -> str:
        folder, name = os.path.split(address)
        return f"{os.path.realpath(folder).removeprefix(os.getcwd())}/{name}"

    # -- the modules -----------------------------------------------------------------------------

    def modules(self) -> dict[int, Any]:
        """What stands for what, by the identity of the real thing."""
        kernel, network = self.kernel, self.network
        chance = kernel.random
        fake_os = _copy(
            os,
            open=self.open,
            close=self.close,
            pwrite=self.pwrite,
            write=self.write,
            read=self.read,
            ftruncate=self.ftruncate,
            posix_fallocate=self.posix_fallocate,
            fsync=self.fsync,
            fdatasync=self.fsync,
            rename=self.rename,
            replace=self.rename,
            unlink=self.unlink,
            remove=self.unlink,
            mkdir=self.mkdir,
            pipe=self.pipe,
            pipe2=self.pipe,
            urandom=chance.randbytes,
            getpid=lambda: kernel.task.process.pid if kernel.task else 1,
            kill=self._kill,
            sched_yield=lambda: kernel.pass_time(_CALL_NS),
            register_at_fork=lambda **_: None,
            uname=lambda: SimpleNamespace(machine="simulated"),  # has no futex: a wait at a bell is a sleep
        )
        fake_time = _copy(
            time,
            monotonic_ns=self.monotonic_ns,
            monotonic=lambda: self.monotonic_ns() / 1e9,
            perf_counter_ns=self.monotonic_ns,
            perf_counter=lambda: self.monotonic_ns() / 1e9,
            clock_gettime_ns=lambda _clock: self.monotonic_ns(),
            time_ns=self.time_ns,
            time=lambda: self.time_ns() / 1e9,
            sleep=self.sleep,
        )
        fake_random = _copy(
            random,
            Random=lambda *_: random.Random(chance.getrandbits(64)),
            random=chance.random,
            randrange=chance.randrange,
            uniform=chance.uniform,
        )
        fake_threading = threading_of(kernel)
        pool: Callable[..., Pool] = lambda *given, **names: Pool(kernel, *given, **names)  # noqa: E731
        pairs: list[tuple[Any, Any]] = [
            (os, fake_os),
            (time, fake_time),
            (random, fake_random),
            (threading, fake_threading),
            (socket, socket_of(network)),
            (select, _copy(select, poll=lambda: Poll(network))),
            (selectors, _copy(selectors, DefaultSelector=lambda: Selector(network))),
            (Readiness, lambda: Selector(network)),
            (fcntl, _copy(fcntl, flock=self.flock)),
            (fcntl.flock, self.flock),
            (concurrent.futures.ThreadPoolExecutor, pool),
            (os.urandom, chance.randbytes),
            (random.randrange, chance.randrange),
            (threading.get_ident, fake_threading.get_ident),
            (threading.Lock, fake_threading.Lock),
        ]
        pairs += [
            (getattr(time, name), getattr(fake_time, name))
            for name in ("monotonic_ns", "monotonic", "time_ns", "sleep", "clock_gettime_ns")
        ]
        return {id(real): fake for real, fake in pairs}

    def _kill(self, pid: int, _signal: int) -> None:
        for process in self.host().processes.values():
            if process.pid == pid:
                return
        raise ProcessLookupError(errno.ESRCH, "no such process")

    def install(self) -> None:
        """Put all of this into the modules of perdure that are loaded."""
        replaced = self.modules()
        for name, module in sorted(sys.modules.items()):
            if name == "perdure" or name.startswith("perdure."):
                _replace(module, replaced)
                if name == "perdure.store.page":
                    setattr(module, "open", self.open_text)  # noqa: B010 - it hides the built-in there


def _replace(module: ModuleType, replaced: dict[int, Any]) -> None:
    for name, value in list(vars(module).items()):
        fake = replaced.get(id(value))
        if fake is not None:
            setattr(module, name, fake)


def _copy(module: ModuleType, **changed: Any) -> SimpleNamespace:
    return SimpleNamespace(**(dict(vars(module)) | changed))


def _unlock(file: Open) -> None:
    inode: Inode | None = file.inode
    if inode is None:
        return
    if inode.exclusive is file:
        inode.exclusive = None
    if file in inode.shared:
        inode.shared.remove(file)


def _make_empty(address: str) -> None:
    Path(address).touch()
