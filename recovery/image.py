"""The state of a store as an image: copied away, and read by a child process.

Owns how a state that may be damaged is looked at. Engines trust their files: a damaged one can crash the
process that maps it, and opening one makes lock files. So the files are copied (holes stay holes), a
child opens the copy and writes every record to a pipe, and how the child ends is part of the answer.
Nothing of the store is changed.

The pipe: one line of JSON (position, or an error); then records, each key length (u16), record length
(u32), key, record; then both lengths 0, and a second line.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from ..store.event import VALUE_BYTES_MAX
from ..store.files import translated
from ..store.fold import HASH_BYTES
from ..store.ids import StatePosition
from ..store.ports import Record

ENTRY = struct.Struct("<HI")
END = ENTRY.pack(0, 0)
KEY_BYTES_LIMIT = 0xFFFF
RECORD_BYTES_LIMIT = 2 * (VALUE_BYTES_MAX + HASH_BYTES)
LINE_BYTES_MAX = 64 << 10
COPY_BYTES = 1 << 20
SILENCE_S = 60.0
"""A child that writes nothing for so long hangs."""
LOCK_NAMES = frozenset({"lock.mdb", "sessions.sqlite3-shm"})
"""Files that engines make for the processes of one boot; a copy has its own."""


class Line(msgspec.Struct, frozen=True):
    """The child's first and last line: where the state stands, or why it cannot be read (on)."""

    position: tuple[int, int, int, int, int] | None = None
    error: str = ""
    is_damage: bool = False
    index_error: str = ""
    """What is wrong with the index of labels, said at the end."""


class ImageError(Exception):
    """The image could not be read to its end."""

    def __init__(self, message: str, *, is_damage: bool) -> None:
        super().__init__(message)
        self.message = message
        self.is_damage = is_damage


class ImageReader:
    """The records of a state's copy, in the engine's order, and where it says that it stands.

    Opening and iterating raise ImageError if the child crashes, hangs, or finds the state damaged.
    """

    def __init__(self, backend: str, copy: Path) -> None:
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "perdure.recovery.image_child", backend, os.fspath(copy)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            raise ImageError(f"no process could be started to read it: {error}", is_damage=False) from error
        self._buffer = b""
        self._at = 0
        self.index_error = ""
        """Set at the end of the records: how the index of labels differs from what they make."""
        try:
            self.position = self._line()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __iter__(self) -> Iterator[tuple[bytes, Record]]:
        take = self._take
        while True:
            key_bytes, record_bytes = ENTRY.unpack(take(ENTRY.size))
            if not key_bytes and not record_bytes:
                break
            if record_bytes > RECORD_BYTES_LIMIT:
                raise ImageError(f"a record of {record_bytes} bytes", is_damage=True)
            body = take(key_bytes + record_bytes)
            yield body[:key_bytes], body[key_bytes:]
        self._line()

    def _line(self) -> StatePosition:
        line = b""
        while not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
            line += self._take(1)
        try:
            said = msgspec.json.decode(line, type=Line)
        except msgspec.DecodeError as error:
            raise ImageError("the process that read the state answered nonsense", is_damage=True) from error
        if said.position is None:
            raise ImageError(said.error, is_damage=said.is_damage)
        self.index_error = said.index_error
        return StatePosition(*said.position)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) - self._at < size:
            pipe = self._pipe()
            if not select.select([pipe], [], [], SILENCE_S)[0]:
                raise ImageError(f"reading the state hangs for {SILENCE_S:.0f} s", is_damage=True)
            more = os.read(pipe.fileno(), COPY_BYTES)
            if not more:
                raise self._death()
            self._buffer, self._at = self._buffer[self._at :] + more, 0
        start = self._at
        self._at += size
        return self._buffer[start : self._at]

    def _pipe(self) -> IO[bytes]:
        if self._process.stdout is None:
            raise ImageError("the process that reads the state has no output", is_damage=False)
        return self._process.stdout

    def _death(self) -> ImageError:
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return ImageError(f"the process that read the state was ended by {name}", is_damage=True)
        said = self._process.stderr.read(4096).decode(errors="replace") if self._process.stderr else ""
        last = said.strip().splitlines()[-1:] or ["without a word"]
        return ImageError(
            f"the process that read the state ended with code {code}: {last[0]}", is_damage=True
        )


def copy_state(state: Path, copy: Path) -> Path:
    """Copy a back end's files into the new directory `copy`; holes stay holes.

    The log of changes of an engine is copied before the file that it is applied to. Raises StorageError.
    """
    with translated("cannot copy the state to look at it", copy):
        copy.mkdir(mode=0o700)
        found = [name for name in os.listdir(state) if name not in LOCK_NAMES]
        for name in sorted(found, key=lambda name: (not name.endswith("-wal"), name)):
            if (state / name).is_file():
                _copy_file(state / name, copy / name)
    return copy


def _copy_file(source: Path, target: Path) -> None:
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(reader).st_size
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(writer, size)
            at = 0
            while (at := _next_data(reader, at, size)) < size:
                data = os.pread(reader, COPY_BYTES, at)
                if not data:
                    break
                os.pwrite(writer, data, at)
                at += len(data)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _next_data(descriptor: int, at: int, size: int) -> int:
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA) if at < size else size
    except OSError:
        return size  # only a hole is left
