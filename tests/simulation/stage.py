"""The cluster before its first fault: set up once for many schedules, of which each gets a copy.

Owns the directory of a simulated cluster. A stage is a process in which a cluster was set up and has begun;
a schedule is a child forked from it. What parent and child still share then, and must not, are the files:
`branch` gives a child its own directory, descriptors and mappings in place of its parent's.

Invariant: a schedule is the same one whether it runs in the process that set the stage, or in a branch of it.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from .bugs import SHOWN_BY_CONSEQUENCE, put_in
from .checks import Violation
from .cluster import Cluster
from .kernel import MS, Kernel
from .shapes import Shape

HOME: Final = Path("/proc/self/cwd")
"""Names the directory of whichever process asks: the paths that a stage holds are right in its branches."""
_COPIED_BYTES = 4 << 20
_FIXED: Final = 0x10  # MAP_FIXED of mmap(2), which the module mmap does not name


@contextmanager
def new_directory() -> Iterator[str]:
    """A directory in memory for the files of one cluster, gone afterwards."""
    path = tempfile.mkdtemp(prefix="perdure-sim-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        yield os.path.realpath(path)
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def set_up(
    shape: Shape, directory: str, *, bug: str = "", trace: Callable[[str], object] | None = None
) -> Cluster:
    """A cluster of this shape, which has begun, in `directory`. Raises Violation if it never begins.

    `bug` names what is put into the code before; `trace` is called with each line of what happens.
    """
    os.chdir(directory)
    kernel = Kernel(shape.number)
    kernel.trace = trace
    cluster = Cluster(kernel, HOME, shape)
    if bug:
        put_in(bug)
        cluster.checker.counts_disks = bug not in SHOWN_BY_CONSEQUENCE
    kernel.note("cluster", shape)
    cluster.start()
    for _ in range(400):  # until it has a log each node vouches for nothing: no fault before that
        if all(node.view.committed for node in cluster.data_nodes()) and cluster.primary() is not None:
            return cluster
        kernel.run(kernel.now_ns + 25 * MS)
    raise Violation("a new cluster begins", str([node.view.committed for node in cluster.data_nodes()]))


def branch(cluster: Cluster, directory: str) -> None:
    """Make this process, forked from one with a cluster, a cluster of its own, in `directory`."""
    parent = os.getcwd()
    numbers = _copy(parent, directory)
    for descriptor, path in _descriptors(parent):
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        own = os.open(directory + path, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))
        if not flags & os.O_DIRECTORY:
            os.lseek(own, os.lseek(descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
        os.dup2(own, descriptor, inheritable=False)
        os.close(own)
    for start, end, offset, path in list(_mappings(parent)):
        _map_anew(start, end - start, offset, directory + path)
    os.chdir(directory)
    for node in cluster.nodes.values():
        node.disk.renumber(numbers)


def _copy(source: str, target: str) -> dict[int, int]:
    """Copy a tree of small files. Returns the number of each copy by that of its original."""
    numbers: dict[int, int] = {}
    for folder, folders, files in os.walk(source):
        into = target + folder[len(source) :]
        for name in folders:
            os.mkdir(f"{into}/{name}")
        for name in files:
            read = os.open(f"{folder}/{name}", os.O_RDONLY)
            write = os.open(f"{into}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            data = os.read(read, _COPIED_BYTES)
            if len(data) == _COPIED_BYTES:
                raise ValueError(f"{folder}/{name} is larger than a stage should have")
            os.write(write, data.rstrip(b"\0"))
            os.ftruncate(write, len(data))
            numbers[os.fstat(read).st_ino] = os.fstat(write).st_ino
            os.close(read)
            os.close(write)
    return numbers


def _descriptors(parent: str) -> Iterator[tuple[int, str]]:
    """The open files below `parent`: (descriptor, path from there on)."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own descriptor
            path = os.readlink(f"/proc/self/fd/{name}")
            if path.startswith(parent + "/"):
                yield int(name), path[len(parent) :]


def _mappings(parent: str) -> Iterator[tuple[int, int, int, str]]:
    """The mapped files below `parent`: (first address, end, offset in the file, path from there on)."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        for line in lines:
            place, _, offset, _, _, *named = line.rstrip("\n").split(maxsplit=5)
            if named and named[0].startswith(parent + "/"):
                start, _, end = place.partition("-")
                yield int(start, 16), int(end, 16), int(offset, 16), named[0][len(parent) :]


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def _map_anew(start: int, size: int, offset: int, path: str) -> None:
    """Map a file where another one is mapped, shared and writable as perdure maps its control page."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        found = _LIBC.mmap(start, size, protection, mmap.MAP_SHARED | _FIXED, descriptor, offset)
        if found != start:
            raise OSError(ctypes.get_errno(), "mmap")
    finally:
        os.close(descriptor)
