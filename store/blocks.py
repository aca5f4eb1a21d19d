"""Blocks allocated ahead for a file that is written through a memory map.

A write through a map into a hole of a file on a full disk is a SIGBUS, which kills the application. So
the blocks are asked for before the map is touched, where a refusal is an error like any other. Owns
that request, and the bound on how many pages a transaction can reach.

On which file systems a block once allocated is certain to take a write: where a write never moves to
another block (ext4, tmpfs). Not where it may, as with copy-on-write (btrfs, zfs, xfs with reflinks,
overlay over any of them): there the map is not written through.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from .files import FILE_MODE, translated

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
STEP_BYTES: Final = 4 << 20
CUT_BYTES_MIN: Final = 1 << 30
"""A file that reaches this far beyond its blocks was stretched to the size of a map."""
SLACK_PAGES: Final = 64
READ_AHEAD_BYTES: Final = 4 << 20
"""So much behind the data, and as much as it puts, a transaction finds in memory. It seldom takes more."""
_READ_BYTES: Final = 256 << 10
KEEPS_ALLOCATED_BLOCKS: Final = frozenset({"ext4", "tmpfs"})


class Tree(NamedTuple):
    """Size of a B-tree, in pages, before a transaction."""

    depth: int
    leaf_pages: int
    branch_pages: int
    last_page: int


class Work(NamedTuple):
    """What a transaction is about to do, in key order."""

    puts: int
    deletes: int
    value_bytes: int
    """Of all puts, keys included."""
    value_bytes_max: int


def pages_needed(tree: Tree, work: Work) -> int:
    """The most pages that a transaction can take from the end of the file. Pure.

    Counted as if no free page could be reused. The terms: each page of the tree is copied at most once,
    and a put touches one on each level, a delete up to three (a neighbour it is merged with, and that
    one's branch); a full leaf splits once, and again only after at least a third of a page was put into
    it; branches likewise; a long value has pages of its own; freed pages are listed, eight bytes each.
    """
    puts, deletes, value_bytes, value_bytes_max = work
    touched = puts + 3 * deletes
    copied = min(touched, tree.leaf_pages) + min(touched * tree.depth, tree.branch_pages)
    splits = min(puts, tree.leaf_pages) + 3 * value_bytes // PAGE_BYTES + 1
    branches = min(splits, tree.branch_pages) + splits // 3 + tree.depth + 1
    apart = value_bytes // PAGE_BYTES + puts if 4 * value_bytes_max > PAGE_BYTES else 0
    freed = 8 * (tree.last_page + copied + apart) // PAGE_BYTES
    return copied + splits + branches + apart + freed + SLACK_PAGES


class AheadFile:
    """A file whose first bytes have blocks, and that ends behind them although its map is far larger.

    LMDB stretches a file that it maps for writing to the size of the map, in every process that opens
    it: a hole of a tebibyte, which tools that copy files would fill with zeros. So it is cut again: by
    who is alone with it, or inside a write transaction. Hence the end of the file is looked at before
    what is known to be allocated is believed. Each process that has the file open holds it by a shared
    flock (LMDB locks in another way, and another file).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.allocated = 0
        """The bytes before this have blocks, if the file still reaches that far."""
        self._read_end = 0
        """The bytes before this were read ahead, or held data then."""
        with translated("cannot open a file", path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def allocate(self, end: int) -> None:
        """Have blocks for the bytes before `end`; ahead in steps, or exactly if only that much is free.

        Only while no other process can write to the file. Raises StorageFullError, and nothing is lost.
        """
        size = os.fstat(self._descriptor).st_size
        if end <= self.allocated <= size:
            if size > self.allocated + CUT_BYTES_MIN:
                self._cut(self.allocated)
            return
        self.allocated = min(self.allocated, size)
        stepped = -(-end // STEP_BYTES) * STEP_BYTES
        if size > stepped + CUT_BYTES_MIN:
            self._cut(stepped)
        try:
            self._allocate(stepped)
        except OSError:
            with translated("cannot allocate blocks", self.path):
                self._allocate(end)

    def _allocate(self, end: int) -> None:
        if end > self.allocated:
            os.posix_fallocate(self._descriptor, self.allocated, end - self.allocated)
            self.allocated = end

    def read_ahead(self, used: int, end: int) -> None:
        """Have the bytes from `used`, the end of the data, up to `end` in memory. They must have blocks.

        A page that is first met through the map costs its writer four times what it costs here. Raises
        StorageError.
        """
        at = max(used, self._read_end)
        if at >= end:
            return
        into = bytearray(min(end - at, _READ_BYTES))
        with translated("cannot read blocks", self.path):
            while at < end and (count := os.preadv(self._descriptor, [into], at)):
                at += count
        self._read_end = at

    def cut_if_alone(self, end_of_data: Callable[[], int]) -> None:
        """Let the file end behind its data, unless another process has it open: that one's folds will.

        `end_of_data` is asked once nobody else can write any more.
        """
        with translated("cannot cut a file", self.path):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                end = end_of_data()
                if os.fstat(self._descriptor).st_size > end + STEP_BYTES:
                    self._cut(end)
            except BlockingIOError:
                pass
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def _cut(self, end: int) -> None:
        with translated("cannot cut a file", self.path):
            os.ftruncate(self._descriptor, end)
        self.allocated = min(self.allocated, end)
        self._read_end = min(self._read_end, end)

    def close(self) -> None:
        os.close(self._descriptor)


def allocate_whole(path: Path, size_bytes: int) -> None:
    """Make a file (or a hole in one) of at least `size_bytes` with all its blocks.

    Raises StorageFullError. Not while this process holds a POSIX lock on the file: closing it here
    would drop that.
    """
    with translated("cannot allocate blocks", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        finally:
            os.close(descriptor)
