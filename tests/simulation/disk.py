"""The simulated disks: real files in memory, and what of them would be there after a power cut.

Owns, for every machine's directory, which bytes and which names are durable. What was written and not
synced is kept as a list of writes; a power cut applies none, all, some, some of their pages or part of
them, and builds the directory anew from that. Blocks that were allocated ahead are zeros. Names follow
their own directory's sync. The control page is written through a mapping, which nobody sees: it may come
back as it was, or as zeros.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from .kernel import MS, Host, Kernel, Process

SYNC_NS = 150_000
PAGE_BYTES = 4096
PAGE_NAME = "control"


class Inode:
    """A file's bytes: those on disk, and the writes that are not."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []
        """(offset, bytes), or (size, None) for a change of size; no bytes are zeros up to that offset."""
        self.exclusive: Open | None = None
        self.shared: list[Open] = []

    def apply(self, writes: list[tuple[int, bytes | None]]) -> None:
        apply_writes(self.durable, writes)


def apply_writes(data: bytearray, writes: list[tuple[int, bytes | None]]) -> None:
    for offset, written in writes:
        if written is None:
            if len(data) > offset:
                del data[offset:]
            else:
                data.extend(bytes(offset - len(data)))
            continue
        if len(data) < offset:
            data.extend(bytes(offset - len(data)))
        data[offset : offset + len(written)] = written


def pages_of(offset: int, written: bytes | None) -> list[tuple[int, bytes | None]]:
    """A write as the writes of each page: of one that was not synced, any of them may get to the disk."""
    if not written:
        return [(offset, written)]
    ends = range(offset - offset % PAGE_BYTES + PAGE_BYTES, offset + len(written), PAGE_BYTES)
    starts = [offset, *ends]
    return [
        (start, written[start - offset : end - offset])
        for start, end in zip(starts, [*starts[1:], offset + len(written)], strict=True)
    ]


class Open:
    """An open file description."""

    __slots__ = ("descriptor", "disk", "inode", "is_directory", "offset", "path", "process")

    def __init__(
        self, disk: Disk, process: Process | None, descriptor: int, path: str, inode: Inode | None
    ) -> None:
        self.disk = disk
        self.process = process
        self.descriptor = descriptor
        self.path = path
        self.inode = inode
        self.is_directory = inode is None
        self.offset = 0


class Naming:
    """A change of a name that is not durable yet."""

    __slots__ = ("directories", "inode", "new", "old")

    def __init__(self, old: str | None, new: str | None, inode: Inode | None) -> None:
        self.old, self.new, self.inode = old, new, inode
        self.directories = {os.path.dirname(path) for path in (old, new) if path}


class Disk:
    """One machine's directory."""

    def __init__(self, kernel: Kernel, host: Host, root: Path) -> None:
        self.kernel = kernel
        self.host = host
        self.root = str(root)
        self.inodes: dict[int, Inode] = {}
        self.names: dict[str, Inode | None] = {}
        """What is on disk: path -> file, None for a directory."""
        self.namings: list[Naming] = []
        self.on_write: Callable[[Disk, str, int, bytes], None] = lambda *_: None
        self.on_change: Callable[[Disk, str], None] = lambda *_: None

    def adopt(self) -> None:
        """Take what is there as durable."""
        self.names.clear()
        self.namings.clear()
        for inode in self.inodes.values():
            inode.pending.clear()
        for folder, folders, files in os.walk(self.root):
            for name in folders:
                self.names[f"{folder}/{name}"] = None
            for name in files:
                path = f"{folder}/{name}"
                found = self.inode_at(path)
                if found is not None:
                    found.durable[:] = Path(path).read_bytes()
                    self.names[path] = found

    def inode(self, descriptor: int) -> Inode:
        number = os.fstat(descriptor).st_ino
        found = self.inodes.get(number)
        if found is None:
            found = self.inodes[number] = Inode(number)
        return found

    def inode_at(self, path: str) -> Inode | None:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            return None
        return self.inodes.setdefault(status.st_ino, Inode(status.st_ino))

    def renumber(self, numbers: dict[int, int]) -> None:
        """The same files, in a copy of the directory: their numbers are others."""
        self.inodes = {numbers[number]: inode for number, inode in self.inodes.items() if number in numbers}
        for number, inode in self.inodes.items():
            inode.number = number

    def named(self, old: str | None, new: str | None, inode: Inode | None) -> None:
        self.namings.append(Naming(old, new, inode))
        for path in (old, new):
            if path:
                self.on_change(self, path)

    # -- durability ------------------------------------------------------------------------------

    def sync(self, file: Open) -> None:
        """fsync: what was written when it began is durable when it returns."""
        kernel = self.kernel
        writes = len(file.inode.pending) if file.inode is not None else 0
        namings = self.namings[:] if file.inode is None else []
        if kernel.task is not None:
            began_ns = kernel.now_ns
            kernel.pass_time(int(SYNC_NS * (0.5 + kernel.random.random())))
            while self.host.stalled_until_ns > kernel.now_ns:
                kernel.pass_time(self.host.stalled_until_ns - kernel.now_ns)
            if kernel.now_ns - began_ns > 100 * MS:
                kernel.note("slow sync", self.host.name)
        if file.inode is not None:
            done = file.inode.pending[:writes]
            del file.inode.pending[:writes]
            file.inode.apply(done)
            return
        for naming in namings:
            if file.path in naming.directories and naming in self.namings:
                self.namings.remove(naming)
                self._apply(self.names, naming)

    def _apply(self, names: dict[str, Inode | None], naming: Naming) -> None:
        if naming.old is not None:
            moved = [path for path in names if path.startswith(naming.old + "/")]
            for path in moved:
                inode = names.pop(path)
                if naming.new is not None:
                    names[naming.new + path[len(naming.old) :]] = inode
            names.pop(naming.old, None)
        if naming.new is not None:
            names[naming.new] = naming.inode

    def sync_all(self) -> None:
        """Everything is durable (the machine was shut down in order, or is being set up)."""
        for naming in self.namings:
            self._apply(self.names, naming)
        self.namings.clear()
        for inode in self.inodes.values():
            inode.apply(inode.pending)
            inode.pending.clear()

    # -- power -----------------------------------------------------------------------------------

    def power_cut(self) -> None:
        """Make the directory what a power cut leaves of it. No process of the machine lives."""
        random = self.kernel.random
        names = dict(self.names)
        mode = random.random()
        keep = len(self.namings) if mode < 0.3 else random.randrange(len(self.namings) + 1)
        for number, naming in enumerate(self.namings):
            if number < keep if mode < 0.7 else random.random() < 0.5:
                self._apply(names, naming)
        page = self._page()
        content: dict[str, bytes | None] = {}
        seen: dict[int, bytes] = {}
        for path in sorted(names):
            inode = names[path]
            if inode is None:
                content[path] = None
                continue
            if inode.number not in seen:
                seen[inode.number] = self._left_of(inode)
            content[path] = seen[inode.number]
        for path in list(content):
            if os.path.basename(path) == PAGE_NAME and page is not None:
                content[path] = page if random.random() < 0.7 else bytes(len(page))
        self._rebuild(content)

    def _left_of(self, inode: Inode) -> bytes:
        """The bytes of a file after the cut: durable ones, and of the others whatever got there."""
        random = self.kernel.random
        data = bytearray(inode.durable)
        pending = inode.pending
        if pending:
            mode = random.random()
            if mode < 0.25:
                apply_writes(data, pending)
            elif mode < 0.5:
                whole = random.randrange(len(pending))
                apply_writes(data, pending[:whole])
                offset, written = pending[whole]
                if written is not None:
                    apply_writes(data, [(offset, written[: random.randrange(len(written) + 1)])])
            elif mode < 0.75:
                for write in pending:
                    for piece in pages_of(*write):
                        if random.random() < 0.5:
                            apply_writes(data, [piece])
        return bytes(data)

    def _page(self) -> bytes | None:
        for folder, _, files in os.walk(self.root):
            if PAGE_NAME in files:
                return Path(folder, PAGE_NAME).read_bytes()
        return None

    def _rebuild(self, content: dict[str, bytes | None]) -> None:
        shutil.rmtree(self.root)
        os.mkdir(self.root)
        self.inodes.clear()
        self.names.clear()
        self.namings.clear()
        for path, data in sorted(content.items()):
            if not os.path.isdir(os.path.dirname(path)):
                continue  # its directory did not get there
            if data is None:
                os.mkdir(path)
                self.names[path] = None
                continue
            with open(path, "wb") as file:
                file.write(data)
                inode = self.inode(file.fileno())
            inode.durable[:] = data
            self.names[path] = inode
