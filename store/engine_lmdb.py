"""LMDB environments: one per process and directory. The only module that imports lmdb.

Owns how an environment is opened, shared, grown and closed, and how the engine's errors become
perdure's. What is kept in it, backend_lmdb.py says.

The engine is LMDB 0.9, one of the two that py-lmdb 3 bundles and that cannot read each other's files:
1.0 was no faster when measured, no other tool reads its files yet, and those of 0.9 have been in use
for a decade. Nothing is ever synced: the log can rebuild all of it, and a marker says when it has to be
(state.py).

Where the file system keeps a block once allocated, the file is written through the map (a third to a
half less time per fold, as measured), and every block that a transaction could reach is allocated
before: a full disk is an error, never a SIGBUS. Elsewhere it is written with pwrite. The lock file is
always mapped, and therefore always allocated as a whole before it is opened.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import lmdb

from .blocks import (
    KEEPS_ALLOCATED_BLOCKS,
    PAGE_BYTES,
    READ_AHEAD_BYTES,
    AheadFile,
    Tree,
    Work,
    allocate_whole,
    pages_needed,
)
from .errors import CorruptError, FormatVersionError, PerdureError, StorageError, StorageFullError
from .files import DIRECTORY_MODE, translate, translated
from .forks import forget_in_children
from .mounts import place_of

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
ENGINE: Final = "lmdb 0.9, layout 2"
ENGINE_MAJOR: Final = 0
MAP_BYTES: Final = 1 << 40
MAP_BYTES_MIN: Final = 1 << 30
"""The map is made smaller, down to this, where address space or file size is limited (ulimit)."""
READERS_MAX: Final = 1024
LOCK_FILE_BYTES: Final = 69_632
FOLDS_PER_READER_CHECK: Final = 256
READER_CHECK_S: Final = 2.0
"""How long the slot of a reader that died stays taken, at the most, while any process renews its read view.

A look at a slot costs a microsecond: 75 us with 60 processes, a millisecond with all slots taken.
"""
SHORT_WRITE_BYTES_MAX: Final = 4 << 20
"""A write that the disk had no room for left less than this free."""

EngineError = lmdb.Error
Txn: TypeAlias = "lmdb.Transaction[bytes]"
Database: TypeAlias = "lmdb._Database"
Cursor: TypeAlias = "lmdb.Cursor[Any]"

OUTGROWN: Final = (lmdb.MapFullError, lmdb.MapResizedError)
"""The file needs, or has already got, a larger map than this process has."""
_DAMAGED = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.InvalidError,
    lmdb.CursorFullError,
    lmdb.PageFullError,
    lmdb.IncompatibleError,
    lmdb.BadDbiError,
)
_REBUILD = "`perdure repair DIR` makes it anew from snapshot and log."


def translate_lmdb(error: Exception, path: Path) -> PerdureError:
    """The perdure error for one of the engine; raise it `from` the original."""
    code = getattr(error, "code", 0)
    if isinstance(error, OUTGROWN):
        return StorageFullError(
            "the state's memory map is too small and cannot grow",
            path=path,
            hint="It grows once this process has no other read view and no scan of it open.",
        )
    if isinstance(error, lmdb.VersionMismatchError):
        return FormatVersionError(
            f"the state was written by another engine than {ENGINE}", path=path, hint=_REBUILD
        )
    if isinstance(error, _DAMAGED):
        return CorruptError(f"the state is damaged: {error}", path=path, hint=_REBUILD)
    if isinstance(error, lmdb.ReadersFullError):
        return StorageError(
            "all reader slots of the state are taken: too many processes or scans have it open",
            path=path,
            hint=f"Close some: there are slots for at least {READERS_MAX} at once.",
        )
    if isinstance(error, lmdb.DiskError) or (code == errno.EIO and _is_full(path)):
        code = errno.ENOSPC
    if code > 0:
        return translate(OSError(code, str(error)), "the state cannot be used", path)
    return StorageError(f"the state cannot be used: {error}", path=path)


def _is_full(path: Path) -> bool:
    """LMDB reports a write that was cut short, as the last one before a full disk is, as EIO."""
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < SHORT_WRITE_BYTES_MAX


class Environment:
    """One LMDB environment of this process, shared by its handles. Get it from join_environment()."""

    def __init__(self, directory: Path, map_bytes: int | None, mapped: bool | None) -> None:
        self.directory = directory
        self.data_path = directory / DATA_FILE
        place = place_of(directory)
        self.key = (place.device, place.inode)
        self.mapped = place.file_system in KEEPS_ALLOCATED_BLOCKS if mapped is None else mapped
        self.users = 0
        self.readers: set[object] = set()
        """Handles of this process that read: the map cannot be moved under them."""
        self._write_lock = threading.Lock()
        self._folds = 0
        self._next_reader_check_s = time.monotonic() + READER_CHECK_S
        self.databases: list[Database] = []
        allocate_whole(directory / LOCK_FILE, LOCK_FILE_BYTES)
        with translated("cannot open the state's directory", directory):
            # Kept, so that the inode that this environment is known by is not given to another directory.
            self._kept = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._ahead = AheadFile(self.data_path)
        except PerdureError:
            os.close(self._kept)
            raise
        try:
            self.env = self._open(map_bytes or MAP_BYTES)
        except PerdureError:
            self._ahead.close()
            os.close(self._kept)
            raise
        try:
            self._cut()
            self.env.reader_check()
            self.unnamed = self.env.open_db(None)
            self.databases = self._open_databases()
        except (lmdb.Error, PerdureError) as error:
            self.close()
            if isinstance(error, lmdb.Error):
                raise translate_lmdb(error, self.data_path) from error
            raise
        self.sessions, self.long, self.deadlines, self.labels, self.long_labels = self.databases

    def _open(self, map_bytes: int) -> lmdb.Environment:
        try:
            return lmdb.open(
                os.fspath(self.directory),
                map_size=map_bytes,
                metasync=False,
                sync=False,
                mode=DIRECTORY_MODE,
                create=False,
                readahead=False,
                writemap=self.mapped,
                max_readers=READERS_MAX,
                max_dbs=5,
                max_spare_txns=1,
                lib_version=ENGINE_MAJOR,
            )
        except lmdb.Error as error:
            limited = getattr(error, "code", 0) in (errno.ENOMEM, errno.EFBIG)
            if limited and map_bytes > MAP_BYTES_MIN:
                return self._open(map_bytes // 4)
            raise translate_lmdb(error, self.data_path) from error

    def _open_databases(self) -> list[Database]:
        names = (b"sessions", b"long", b"deadlines", b"labels", b"long labels")
        try:
            # Without a transaction of ours: handles opened in a read transaction die with it.
            return [self.env.open_db(name, create=False) for name in names]
        except lmdb.NotFoundError:
            with self.env.begin(write=True) as txn:
                self._reserve(txn, Work(len(names), 0, 256, 64))
                return [self.env.open_db(name, txn) for name in names]

    def begin_read(self, database: Database) -> Txn:
        """A read transaction; the slots of readers that died are given back now and then."""
        if time.monotonic() >= self._next_reader_check_s:
            self.check_readers()
        try:
            return self.env.begin(database)
        except lmdb.ReadersFullError:
            self.check_readers()
            return self.env.begin(database)

    def check_readers(self) -> None:
        """Give back the slots of readers that died: they would pin the pages that those were reading."""
        self._next_reader_check_s = time.monotonic() + READER_CHECK_S
        self.env.reader_check()

    def write(self, apply: Callable[[Txn], None], work: Work, release: Callable[[], None]) -> None:
        """Run `apply` in one write transaction, which does no more than `work`.

        `release` ends the caller's own read view; it is called only if the map has to grow.

        Raises StorageFullError (nothing was changed, and the environment goes on), CorruptError,
        StorageError.
        """
        while True:
            try:
                with self._write_lock, self.env.begin(write=True) as txn:
                    self._reserve(txn, work)
                    apply(txn)
                self._folds += 1
                if self._folds % FOLDS_PER_READER_CHECK == 0:
                    self.check_readers()
                return
            except OUTGROWN:
                release()
                self.grow()
            except lmdb.Error as error:
                raise translate_lmdb(error, self.data_path) from error

    def _reserve(self, txn: Txn, work: Work) -> None:
        """Have blocks for whatever `txn`, which has just begun and keeps other writers out, may reach."""
        if not self.mapped:
            return
        stats = [self.env.stat(), *(txn.stat(database) for database in self.databases)]
        info = self.env.info()
        tree = Tree(
            max(stat["depth"] for stat in stats),
            sum(stat["leaf_pages"] for stat in stats),
            sum(stat["branch_pages"] for stat in stats),
            info["last_pgno"],
        )
        used = (tree.last_page + 1) * PAGE_BYTES
        end = min(used + pages_needed(tree, work) * PAGE_BYTES, info["map_size"])
        self._ahead.allocate(end)
        self._ahead.read_ahead(used, min(end, used + READ_AHEAD_BYTES + work.value_bytes))

    def _cut(self) -> None:
        if self.mapped:
            self._ahead.cut_if_alone(lambda: (self.env.info()["last_pgno"] + 1) * PAGE_BYTES)

    def grow(self) -> None:
        """Take on the map size that another process gave the file, or else double it.

        Raises StorageFullError while this process reads through the map.
        """
        try:
            if self.readers:
                raise lmdb.MapFullError("the map cannot move while it is read")
            size = self.env.info()["map_size"]
            self.env.set_mapsize(0)
            if self.env.info()["map_size"] <= size:
                self.env.set_mapsize(2 * size)
        except lmdb.Error as error:
            raise translate_lmdb(error, self.data_path) from error

    def close(self) -> None:
        try:
            self._cut()
        except (lmdb.Error, PerdureError):
            pass  # who opens it next cuts it
        self.env.close()
        self._ahead.close()
        os.close(self._kept)


_environments: dict[tuple[int, int], Environment] = {}
_environments_lock = threading.Lock()


def join_environment(
    directory: Path, *, map_bytes: int | None = None, mapped: bool | None = None
) -> Environment:
    """This process's environment of an existing directory, opened if it is not yet.

    `map_bytes` and `mapped` count for the first handle only. Raises StorageError and its kinds,
    CorruptError, FormatVersionError.
    """
    place = place_of(directory)
    with _environments_lock:
        shared = _environments.get((place.device, place.inode))
        if shared is None:
            shared = Environment(directory, map_bytes, mapped)
            _environments[shared.key] = shared
        shared.users += 1
        return shared


def stay_in_environment(shared: Environment) -> None:
    """One more that reads through an environment which is open: a scan outlives the handle it came from."""
    with _environments_lock:
        shared.users += 1


def leave_environment(shared: Environment) -> None:
    """One handle or scan less; the last one closes the environment."""
    with _environments_lock:
        shared.users -= 1
        if not shared.users and _environments.get(shared.key) is shared:
            del _environments[shared.key]
            shared.close()


def _forget_environments() -> object:
    """In a child: the parent's environments are not to be used, closed or freed, but opened anew.

    py-lmdb refuses to open files that are open in the process, and has no way to be told that those of
    the parent do not count. Closing an inherited environment would, but also give up the reader slots
    of the parent, whose pages would then be reused under it. So the files get another identity here.
    """
    global _environments_lock  # noqa: PLW0603 - another thread may have held it at the fork
    inherited = dict(_environments)
    _environments.clear()
    _environments_lock = threading.Lock()
    identities = sys.modules.get("lmdb._envid")
    identify = getattr(identities, "env_keys", None)
    if inherited and identify is not None:
        pid = os.getpid()

        def identify_in_child(path: Any, subdir: bool) -> tuple[Any, ...]:
            return tuple((pid, key) for key in identify(path, subdir))

        setattr(identities, "env_keys", identify_in_child)  # noqa: B010 - it has no typed name
    return inherited


forget_in_children(_forget_environments)
