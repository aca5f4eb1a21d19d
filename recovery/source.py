"""A store's directory as evidence: everything is read, nothing is opened for writing or locked.

Owns how recovery looks at a store that may be damaged, dead, in use by other processes, or on a
read-only file system. No file is made or changed here, not even a lock.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import xxhash

from ..store import names
from ..store.control import ALONE, Config, config_of
from ..store.cursor import LogCursor, SegmentFile, T, Take, list_segments
from ..store.errors import CorruptError, FormatError, PositionGoneError, StorageError
from ..store.files import read_small
from ..store.frame import cluster_key
from ..store.identity import Identity, read_identity
from ..store.mark import Mark, SlotVerdict, read_marks
from ..store.page import MAGIC, PAGE_BYTES, Word, read_boot_id
from ..store.settle import Known, inspect
from ..store.tail import Judgement, TailVerdict

CONFIG_READ_BYTES = 64 << 10
_WORDS = struct.Struct(f"<{len(Word)}Q")


class PageWords(msgspec.Struct, frozen=True):
    """The control page as it was at one moment."""

    words: tuple[int, ...]

    def __getitem__(self, word: Word) -> int:
        return self.words[word]


class SourceCursor(LogCursor):
    """A cursor that only reads, and that stops at damage instead of raising: `damage` says which."""

    def __init__(self, log: Path, identity: Identity, key: int) -> None:
        super().__init__(log, identity.cluster_id, key, identity.shard, is_writable=False)
        self.damage: CorruptError | None = None

    def advance(self, take: Take[T], upto_lsn: int, limit_bytes: int) -> T | None:
        """As LogCursor.advance, for read() and fold(); None also where the log is damaged, and ever after."""
        if self.damage is not None:
            return None
        try:
            return super().advance(take, upto_lsn, limit_bytes)
        except CorruptError as error:
            self.damage = error
            return None


class Source:
    """What stands in a store's directory. `boot_id` is that of the running kernel."""

    def __init__(self, store: Path, identity: Identity, boot_id: str) -> None:
        self.store = store
        self.identity = identity
        self.key = cluster_key(identity.cluster_id)
        self.boot_id = boot_id

    @property
    def log(self) -> Path:
        return names.log_path(self.store)

    @property
    def snapshots(self) -> Path:
        return self.store / names.SNAPSHOTS

    def segments(self) -> list[SegmentFile]:
        return list_segments(self.log)

    def cursor(self) -> SourceCursor:
        return SourceCursor(self.log, self.identity, self.key)

    def mark(self) -> tuple[Mark | None, list[SlotVerdict]]:
        return read_marks(self.log / names.MARK, self.key)

    def page(self) -> PageWords | None:
        """The control page if the running boot wrote it, else None: it then says nothing."""
        data = read_small(self.store / names.CONTROL_PAGE, PAGE_BYTES)
        if data is None or len(data) < _WORDS.size:
            return None
        page = PageWords(_WORDS.unpack_from(data))
        boot = xxhash.xxh3_64_intdigest(self.boot_id.encode())
        return page if page[Word.MAGIC] == MAGIC and page[Word.BOOT] == boot else None

    def known(self) -> Known:
        """What is known from outside the log about how far it must reach.

        What is committed is on the disks of replicas, so that it bears witness as they would.
        """
        mark, _ = self.mark()
        page = self.page()
        committed = max(mark.committed_lsn if mark else 0, page[Word.COMMITTED] if page else 0)
        return Known(
            self.identity.node,
            mark.position.lsn if mark else 0,
            page[Word.FOLDED] if page else 0,
            page is not None,
            committed,
        )

    def committed_lsn(self) -> int:
        """LSN that this directory knows to be committed; with sync_replicas 0 it says nothing."""
        mark, _ = self.mark()
        page = self.page()
        return max(mark.committed_lsn if mark else 0, page[Word.COMMITTED] if page else 0)


def open_source(store: str | os.PathLike[str], boot_id: Callable[[], str] = read_boot_id) -> Source:
    """Look at the store at `store`.

    Raises StoreMissingError if there is none, FormatError if its identity is damaged or newer.
    """
    path = Path(store)
    return Source(path, read_identity(path), boot_id())


def newest_config(source: Source) -> Config:
    """The newest CONFIG in the log, by the first frame of its last segment; ALONE if that cannot be read."""
    files = source.segments()
    if not files:
        return ALONE
    cursor = source.cursor()
    try:
        cursor.open_segment(files[-1])
        run = cursor.read(limit_bytes=CONFIG_READ_BYTES)
        if run is None:
            return ALONE
        offset, frame = run.frames[0]
        return config_of(run.events(offset, frame)) or ALONE
    except (FormatError, StorageError):
        return ALONE
    finally:
        cursor.close()


def is_in_use(store: Path) -> bool:
    """Does some process of this machine have the store open? Told by the kernel's table of locks.

    Nothing is locked to find out. Processes of another container are not seen.
    """
    try:
        inode = os.stat(store / names.USERS_LOCK).st_ino
        with open("/proc/locks", encoding="ascii", errors="replace") as table:
            lines = [line.split() for line in table]
    except OSError:
        return False
    return any(
        "FLOCK" in line and any(field.endswith(f":{inode}") and field.count(":") == 2 for field in line)
        for line in lines
    )


def judge_end(cursor: SourceCursor, known: Known) -> Judgement:
    """Judge what stands behind a cursor that has read to the end of what can be read."""
    try:
        return inspect(cursor, known)
    except CorruptError as error:
        return Judgement(TailVerdict.CORRUPT, error.message)


def frame_time_ms(cursor: LogCursor, lsn: int) -> int | None:
    """Time of the frame that ends at `lsn`, None if the log does not hold it."""
    files = [file for file in list_segments(cursor.log) if file.first_lsn <= lsn]
    if not files:
        return None
    cursor.open_segment(files[-1])
    cursor.time_ms = 0
    before = max(lsn - 1, files[-1].first_lsn - 1)
    try:
        cursor.seek(before)
    except PositionGoneError:
        pass  # `before` lies inside the frame that is wanted: the cursor stands before it
    cursor.read(lsn)
    return cursor.time_ms if cursor.at.lsn == lsn and cursor.time_ms else None
