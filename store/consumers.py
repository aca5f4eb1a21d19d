"""Consumers: how far each named reader of the event feed has come, in one small file each.

Owns the files in `feeds/`: the progress NAME.feed, and NAME.lock, held by the process that reads under
this name. Invariant: every event up to the progress was acknowledged; retention keeps the log behind it.

An acknowledgement is written over the file in place, by one write of less than a sector, where its length
stays; else the file is replaced. It survives the death of the process at once, power loss once sync() has
run; after a power loss before that the older progress stands, and events come again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from . import names
from .cursor import list_segments
from .errors import BusyError, CorruptError, FormatError, UsageError
from .event_reader import EventPlace
from .files import make_directory, read_small, remove_durably, translated
from .ids import Position
from .lock import FileLock
from .smallfile import SIZE_BYTES_MAX, decode_small, encode_small, publish_small

MAGIC: Final = b"PDRFEED1"
VERSION: Final = 1
LOCK_TIMEOUT_MS: Final = 200
"""Whoever only looks whether a consumer runs holds its lock for a moment."""
_READS_MAX: Final = 3


class Progress(msgspec.Struct, frozen=True):
    """How far a consumer is."""

    name: str
    lsn: int
    """All events up to it are acknowledged; 0 for none."""
    epoch: int
    frame_lsn: int
    """The frame of that event, by (epoch, LSN of its end, chain): whether the log still has it."""
    chain: int
    acked_ms: int
    """When that was written, ms since 1970."""

    @property
    def place(self) -> EventPlace:
        """Where the consumer goes on."""
        frame = Position(self.epoch, self.frame_lsn, self.chain) if self.frame_lsn else None
        return EventPlace(self.lsn + 1, frame)


class Consumer(msgspec.Struct, frozen=True):
    """A consumer as store.consumers() shows it."""

    name: str
    lsn: int
    """Acknowledged up to here."""
    lag_events: int
    """Committed events behind that; those that it does not ask for count, too."""
    acked_ms: int
    """When it last acknowledged, ms since 1970."""
    is_active: bool
    """Does some process read under this name?"""
    is_gone: bool
    """Does the log no longer hold what it would read next?"""


class ConsumerFile:
    """The progress of one consumer, held by this process alone until close()."""

    def __init__(self, store: Path, name: str) -> None:
        """Raises UsageError for a bad name, BusyError if another feed reads under it, FormatError if its
        file is damaged, StorageError.
        """
        self.name = check_consumer_name(name)
        self._folder = store / names.FEEDS
        self._path = self._folder / names.consumer_name(name)
        self._descriptor = -1
        self._size_bytes = 0
        self._is_unsynced = False
        with translated("cannot make the directory of consumers", self._folder):
            make_directory(self._folder)
        self._lock = _lock(self._folder, name)

    def read(self) -> Progress | None:
        """The progress, None for a new consumer. Raises CorruptError or FormatVersionError."""
        return _read(self._path)

    def write(self, progress: Progress) -> None:
        """Note the progress, so that it survives the death of this process. Raises StorageError."""
        data = encode_small(MAGIC, VERSION, progress)
        if self._descriptor < 0 or len(data) != self._size_bytes:
            self._replace(progress, len(data))
            return
        with translated("cannot write the progress of a consumer", self._path):
            if os.pwrite(self._descriptor, data, 0) == len(data):
                self._is_unsynced = True
                return
        self._replace(progress, len(data))

    def sync(self) -> None:
        """Make what was written survive power loss, too. Raises StorageError."""
        if self._is_unsynced:
            with translated("cannot sync the progress of a consumer", self._path):
                os.fdatasync(self._descriptor)
            self._is_unsynced = False

    def close(self) -> None:
        """Let another feed read under the name. What was written is not synced."""
        self._close_file()
        self._lock.close()

    def _replace(self, progress: Progress, size_bytes: int) -> None:
        self._close_file()
        publish_small(self._path, MAGIC, VERSION, progress)
        with translated("cannot open the progress of a consumer", self._path):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self._size_bytes = size_bytes

    def _close_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        self._is_unsynced = False
        if descriptor >= 0:
            os.close(descriptor)


def check_consumer_name(name: object) -> str:
    """A consumer's name: 1 to 64 of a-z, 0-9, dot, dash and underscore. Raises UsageError."""
    if isinstance(name, str) and names.parse_consumer_name(names.consumer_name(name)) == name:
        return name
    raise UsageError(
        f"{name!r} is no name of a consumer",
        hint="Take 1 to 64 of a-z, 0-9, dot, dash and underscore, the first a letter or a digit.",
    )


def read_progress(store: Path) -> tuple[list[Progress], list[tuple[str, FormatError]]]:
    """(the progress of every consumer by name, those whose file is damaged with the reason)."""
    folder = store / names.FEEDS
    if not folder.is_dir():
        return [], []
    with translated("cannot list the consumers", folder):
        found = sorted(name for name in map(names.parse_consumer_name, os.listdir(folder)) if name)
    good: list[Progress] = []
    damaged: list[tuple[str, FormatError]] = []
    for name in found:
        try:
            progress = _read(folder / names.consumer_name(name))
        except FormatError as error:
            damaged.append((name, error))
        else:
            good += [progress] if progress is not None else []
    return good, damaged


def list_consumers(store: Path, committed_lsn: int) -> list[Consumer]:
    """Every consumer by name, with its lag behind `committed_lsn`. Raises CorruptError, naming the file."""
    good, damaged = read_progress(store)
    if damaged:
        raise damaged[0][1]
    oldest = next((file.first_lsn for file in list_segments(names.log_path(store))), 1)
    return [
        Consumer(
            progress.name,
            progress.lsn,
            max(0, committed_lsn - progress.lsn),
            progress.acked_ms,
            _is_held(store / names.FEEDS, progress.name),
            progress.lsn + 1 < oldest,
        )
        for progress in good
    ]


def drop_consumer(store: Path, name: str) -> bool:
    """Forget a consumer, so that no log is kept for it; says whether there was one.

    Raises UsageError for a bad name, BusyError if it is read under at this moment, StorageError.
    """
    folder = store / names.FEEDS
    path = folder / names.consumer_name(check_consumer_name(name))
    if not path.exists():
        return False
    lock = _lock(folder, name)
    try:
        with translated("cannot forget a consumer", path):
            was_there = path.exists()
            remove_durably(path)
            remove_durably(lock.path)
        return was_there
    finally:
        lock.close()


def _read(path: Path) -> Progress | None:
    """The progress in a file. Its consumer may write over it at this moment: damage is looked at again."""
    for attempt in range(_READS_MAX):
        data = read_small(path, SIZE_BYTES_MAX)
        if data is None:
            return None
        try:
            return decode_small(data, MAGIC, VERSION, Progress, path=path)
        except CorruptError as error:
            if attempt == _READS_MAX - 1:
                raise CorruptError(
                    error.message,
                    path=path,
                    offset=error.offset,
                    hint="How far this consumer was is lost: `perdure feed drop DIR NAME`, then begin anew.",
                ) from error
    return None


def _lock_path(folder: Path, name: str) -> Path:
    return folder / f"{name}{names.CONSUMER_LOCK_SUFFIX}"


def _lock(folder: Path, name: str) -> FileLock:
    """The lock of a consumer, held. Raises BusyError."""
    path = _lock_path(folder, name)
    while True:
        lock = FileLock(path)
        try:
            lock.acquire(LOCK_TIMEOUT_MS)
            if os.path.samestat(os.fstat(lock.descriptor), os.stat(path)):
                return lock
        except FileNotFoundError:
            pass  # whoever dropped the consumer removed it meanwhile
        except BusyError as error:
            lock.close()
            raise BusyError(
                f"another feed reads under the name {name!r}",
                path=path,
                hint="Close it, or take another name: each consumer is told every event.",
            ) from error
        except BaseException:
            lock.close()
            raise
        lock.close()


def _is_held(folder: Path, name: str) -> bool:
    path = _lock_path(folder, name)
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        return not lock.try_acquire(shared=True)
    finally:
        lock.close()
