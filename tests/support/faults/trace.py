"""A recorded run: the system calls of all its processes in one order, and when each became durable.

Owns the record format (shim_record.h) and the rules of durability. Builds no images (images.py).
Invariant: an operation is called durable only from the end of a sync on that began after it, succeeded,
and covers it by the rules of the file system model.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath

from .content import Content

_HEAD = struct.Struct("<IHHIIqQ")
assert _HEAD.size == 32
NEVER = 1 << 60
"""`durable_at` of an operation that no sync covers."""
ROOT = 0
"""The object that is the watched directory."""


class Kind(IntEnum):
    """Kinds of record, in the order of `enum op` in shim_record.h."""

    WRITE = 1
    SYNC_BEGIN = 2
    SYNC_END = 3
    SYNC_FAIL = 4
    TRUNC = 5
    GROW = 6
    CREATE = 7
    RENAME = 8
    LINK = 9
    UNLINK = 10
    MKDIR = 11
    RMDIR = 12
    ACK = 13
    START = 14


DATA_KINDS = frozenset({Kind.WRITE, Kind.TRUNC, Kind.GROW})
NAME_KINDS = frozenset({Kind.CREATE, Kind.RENAME, Kind.LINK, Kind.UNLINK, Kind.MKDIR, Kind.RMDIR})


class Model(Enum):
    """What makes a name durable.

    STRICT: only an fsync of each directory that the operation changed (POSIX, and no more). EXT4: any
    fsync that began later, of whatever file, since it commits the journal; the order of names holds.
    """

    STRICT = "strict"
    EXT4 = "ext4"


@dataclass(slots=True)
class Op:
    """One record, with paths resolved to objects (files and directories by identity, not by name).

    obj: the object written, synced, made or moved. parent, name: the directory entry that changes;
    to_parent, to_name: where a rename leads. offset: of the data, or the new length.
    """

    index: int
    kind: Kind
    pid: int
    tid: int
    path: str
    offset: int
    data: bytes
    inode: int
    obj: int = -1
    parent: int = -1
    name: str = ""
    to_parent: int = -1
    to_name: str = ""
    durable_at: int = NEVER
    is_poisoned: bool = False


@dataclass
class Base:
    """What stood in the directory before the recording began; all of it counts as durable."""

    files: dict[str, Content] = field(default_factory=dict[str, Content])
    directories: list[str] = field(default_factory=list[str])
    inodes: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def capture(cls, directory: Path) -> Base:
        """Read a directory tree as it is now; an absent one is an empty base."""
        base = cls()
        for folder, names, files in os.walk(directory):
            for name in sorted(names):
                path = Path(folder, name)
                base._note(path, directory)
                base.directories.append(path.relative_to(directory).as_posix())
            for name in sorted(files):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    base.files[base._note(path, directory)] = Content.load(path)
        return base

    def save(self, directory: Path) -> None:
        """Write the tree into a new directory; holes stay holes."""
        directory.mkdir(parents=True)
        for name in self.directories:
            (directory / name).mkdir()
        for name, content in self.files.items():
            content.save(f"{directory}/{name}")

    def _note(self, path: Path, directory: Path) -> str:
        relative = path.relative_to(directory).as_posix()
        self.inodes[relative] = path.stat().st_ino
        return relative


class TraceError(Exception):
    """The trace does not fit together: its message names the record and the path."""


@dataclass
class Trace:
    """All records of a run, the objects that existed before it, and the witness's words."""

    ops: list[Op]
    base: Base
    base_objects: dict[str, int]
    object_count: int

    @classmethod
    def load(cls, path: Path, base: Base | None = None) -> Trace:
        """Read a trace file. base: Base.capture() of the directory before the run. Raises TraceError."""
        return _resolve(list(_records(path.read_bytes())), base or Base())

    def acks(self, upto: int) -> list[bytes]:
        """The witness's words (one item a write) before operation `upto`."""
        return [op.data for op in self.ops[:upto] if op.kind is Kind.ACK]

    def describe(self, index: int) -> str:
        """One operation for a person to read."""
        op = self.ops[index]
        where = f" -> {op.data.decode(errors='replace')}" if op.kind is Kind.RENAME else ""
        size = f" {len(op.data)} B at {op.offset}" if op.kind is Kind.WRITE else ""
        return f"#{index} pid {op.pid} {op.kind.name} {op.path}{where}{size}"

    def annotate(self, model: Model, subtree: str = "") -> None:
        """Set `durable_at` and `is_poisoned` of every operation.

        subtree: only operations below this path can be lost; the rest belongs to machines that keep
        their power, and is durable at once.
        """
        _annotate(self.ops, model, subtree)


def _records(blob: bytes) -> Iterable[Op]:
    position = 0
    index = 0
    while position + _HEAD.size <= len(blob):
        size, kind, path_bytes, pid, tid, offset, inode = _HEAD.unpack_from(blob, position)
        if size < _HEAD.size + path_bytes or position + size > len(blob):
            break  # cut short by a kill from outside, between the effect and its record
        start = position + _HEAD.size
        path = blob[start : start + path_bytes].decode(errors="surrogateescape")
        data = blob[start + path_bytes : position + size]
        yield Op(index, Kind(kind), pid, tid, path, offset, data, inode)
        position += size
        index += 1


class _Names:
    """The directory tree as it was at each moment of the run: paths to objects."""

    def __init__(self, base: Base) -> None:
        self.entries: dict[int, dict[str, int]] = {ROOT: {}}
        self.by_inode: dict[int, int] = {}
        self.count = 1
        self.base_objects: dict[str, int] = {}
        for path in [*sorted(base.directories), *base.files]:
            obj = self.new(base.inodes.get(path, 0), is_directory=path not in base.files)
            parent, name = self.slot(path)
            self.entries[parent][name] = obj
            self.base_objects[path] = obj

    def new(self, inode: int, *, is_directory: bool = False) -> int:
        obj = self.count
        self.count += 1
        self.by_inode[inode] = obj
        if is_directory:
            self.entries[obj] = {}
        return obj

    def find(self, path: str) -> int:
        if path in (".", ""):
            return ROOT
        obj = ROOT
        for part in PurePosixPath(path).parts:
            if part not in self.entries.get(obj, {}):
                raise TraceError(f"{path}: not known; was the directory captured before the run?")
            obj = self.entries[obj][part]
        return obj

    def slot(self, path: str) -> tuple[int, str]:
        pure = PurePosixPath(path)
        return self.find(pure.parent.as_posix()), pure.name


def _resolve(ops: list[Op], base: Base) -> Trace:
    names = _Names(base)
    kept: list[Op] = []
    for op in ops:
        if op.kind in NAME_KINDS:
            if op.path == "." and op.kind is Kind.MKDIR:
                names.by_inode[op.inode] = ROOT  # the watched directory itself: it stands in every image
                continue
            _resolve_name(names, op)
        elif op.kind not in (Kind.ACK, Kind.START):
            if op.inode not in names.by_inode:
                names.by_inode[op.inode] = names.find(op.path)
            op.obj = names.by_inode[op.inode]
        op.index = len(kept)
        kept.append(op)
    return Trace(kept, base, names.base_objects, names.count)


def _resolve_name(names: _Names, op: Op) -> None:
    if op.kind is Kind.CREATE and not op.path:
        op.obj = names.new(op.inode)  # O_TMPFILE: a file without a name
        return
    op.parent, op.name = names.slot(op.path)
    entries = names.entries[op.parent]
    if op.kind in (Kind.CREATE, Kind.MKDIR):
        op.obj = entries[op.name] = names.new(op.inode, is_directory=op.kind is Kind.MKDIR)
    elif op.kind is Kind.LINK:
        op.obj = entries[op.name] = names.by_inode[op.inode]
    else:
        if op.name not in entries:
            raise TraceError(f"#{op.index} {op.kind.name} {op.path}: no such name")
        op.obj = entries.pop(op.name)
        if op.kind is Kind.RENAME:
            op.to_parent, op.to_name = names.slot(op.data.decode())
            displaced = names.entries[op.to_parent].get(op.to_name)
            if op.offset & 2 and displaced is not None:  # RENAME_EXCHANGE
                entries[op.name] = displaced
            names.entries[op.to_parent][op.to_name] = op.obj


@dataclass
class _Begun:
    data: list[Op]
    names: list[Op]


def _annotate(ops: Sequence[Op], model: Model, subtree: str) -> None:
    data: dict[int, list[Op]] = {}
    names: list[Op] = []
    missing: dict[int, set[int]] = {}
    begun: dict[tuple[int, int, int], _Begun] = {}
    for op in ops:
        op.durable_at, op.is_poisoned = NEVER, False
        if op.kind in DATA_KINDS or op.kind in NAME_KINDS:
            if subtree and not (op.path == subtree or op.path.startswith(subtree + "/")):
                op.durable_at = op.index
            elif op.kind in DATA_KINDS:
                data.setdefault(op.obj, []).append(op)
            elif op.path:
                names.append(op)
                missing[op.index] = {op.parent} | ({op.to_parent} if op.kind is Kind.RENAME else set())
        elif op.kind is Kind.SYNC_BEGIN:
            begun[op.pid, op.tid, op.obj] = _Begun(list(data.get(op.obj, ())), list(names))
        elif op.kind is Kind.SYNC_END:
            covered = begun.pop((op.pid, op.tid, op.obj), _Begun([], []))
            _settle_data(covered.data, data, op)
            for name in covered.names:
                missing[name.index].discard(op.obj)
                if not name.is_poisoned and (model is Model.EXT4 or not missing[name.index]):
                    name.durable_at = min(name.durable_at, op.index)
            names = [name for name in names if name.durable_at == NEVER]
        elif op.kind is Kind.SYNC_FAIL:
            pending = begun.pop((op.pid, op.tid, op.obj), None) or _Begun(list(data.get(op.obj, ())), names)
            for lost in pending.data:
                lost.is_poisoned = lost.durable_at == NEVER
            data[op.obj] = [write for write in data.get(op.obj, ()) if not write.is_poisoned]
            for name in pending.names:
                if op.obj in missing[name.index]:
                    name.is_poisoned = name.durable_at == NEVER


def _settle_data(covered: Iterable[Op], data: dict[int, list[Op]], end: Op) -> None:
    for write in covered:
        if not write.is_poisoned:
            write.durable_at = min(write.durable_at, end.index)
    data[end.obj] = [write for write in data.get(end.obj, ()) if write.durable_at == NEVER]
