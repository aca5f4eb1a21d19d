"""Crash images: what the directory may hold after a power cut at any point of a recorded run.

Owns the choice of what survives. After the method of ALICE (Pillai and others, OSDI 2014): what a sync
covers is there; of the rest, names survive as a prefix of their order, and data page by page, each page
as it stood after some write to it, now and then torn at a 512 B sector; a file may have grown without
its data (zeros). Writes before a failed sync may be missing even if a later sync succeeded (Rebello and
others, ATC 2020). Judges nothing.

Invariant: an image depends only on (trace, model, seed, shape), so a shape's name rebuilds it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .content import Content
from .trace import DATA_KINDS, NAME_KINDS, NEVER, ROOT, Kind, Model, Op, Trace

PAGE_BYTES = 4096
SECTOR_BYTES = 512
NOISE_BYTES_MAX = 1 << 18
"""Of a blind file that is longer, so much is noise and the rest zeros."""
MODES = ("none", "all", "names", "torn", "rand")
"""none: only what is durable. all: everything. names: all names, only durable data. torn: everything up
to one un-synced write, and a part of that one. rand: chosen at random."""


@dataclass(frozen=True)
class Shape:
    """Which image: the cut stands before operation `point`."""

    point: int
    mode: str
    variant: int = 0

    def __str__(self) -> str:
        return f"{self.point}/{self.mode}/{self.variant}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The shape of which `text` is the name."""
        point, mode, variant = text.split("/")
        return cls(int(point), mode, int(variant))


@dataclass
class Image:
    """A directory's content in memory; the contents may be shared with other images: read only."""

    shape: Shape
    contents: dict[str, Content]
    directories: list[str]
    acks: list[bytes]

    @property
    def files(self) -> dict[str, bytes]:
        """All files with all their bytes. Raises ContentTooLargeError."""
        return {name: content.whole() for name, content in self.contents.items()}

    def write(self, directory: Path) -> None:
        """Make the image real in `directory`, which must not hold anything."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in self.directories:
            (directory / name).mkdir()
        for name, content in self.contents.items():
            content.save(f"{directory}/{name}")

    def digest(self) -> bytes:
        """Equal for images that no check can tell apart."""
        found = hashlib.blake2b(repr((self.directories, len(self.acks))).encode(), digest_size=16)
        for name, content in sorted(self.contents.items()):
            found.update(f"{name}:{content.size}:{len(content.data)}:".encode())
            found.update(content.data)
        return found.digest()


class CrashImages:
    """All crash images of a trace. Asking for rising points is fast; going back starts over."""

    def __init__(
        self,
        trace: Trace,
        *,
        model: Model = Model.STRICT,
        subtree: str = "",
        blind: Sequence[str] = (),
        final: Mapping[str, Content] | None = None,
        seed: int = 1,
    ) -> None:
        """subtree: only this part loses power. blind: globs of files that are written through a mapping,
        which no trace sees: they become zeros, noise, what `final` says they held at the end, or what
        was traced. seed: of every random choice."""
        trace.annotate(model, subtree)
        self.trace = trace
        self.seed = seed
        self._blind = tuple(blind)
        self._final = dict(final or {})
        self._acks = [(op.index, op.data) for op in trace.ops if op.kind is Kind.ACK]
        self._cursor = _Cursor(trace)

    def points(self) -> list[int]:
        """The cuts worth looking at: before everything, and after each operation that changes something."""
        silent = (Kind.SYNC_BEGIN, Kind.START)
        return [0, *(op.index + 1 for op in self.trace.ops if op.kind not in silent)]

    def shapes(self, *, random_per_point: int = 3, limit: int | None = None) -> list[Shape]:
        """A plan of images in rising order. limit: at most about so many, by leaving out points evenly."""
        per_point = len(MODES) - 1 + random_per_point
        points = self.points()
        if limit is not None and len(points) * per_point > limit:
            wanted = max(1, limit // per_point)
            points = [points[i * len(points) // wanted] for i in range(wanted)]
        found: list[Shape] = []
        for point in points:
            found += [Shape(point, mode) for mode in MODES if mode != "rand"]
            found += [Shape(point, "rand", variant) for variant in range(random_per_point)]
        return found

    def build(self, shape: Shape) -> Image:
        """One image."""
        if shape.point < self._cursor.point:
            self._cursor = _Cursor(self.trace)
        self._cursor.advance(shape.point)
        rng = random.Random(f"{self.seed}/{shape}")
        image = _Builder(self._cursor, shape, rng).image()
        image.acks = [data for index, data in self._acks if index < shape.point]
        for name in image.contents:
            if any(fnmatch.fnmatch(name, glob) for glob in self._blind):
                image.contents[name] = self._unseen(name, image.contents[name], shape, rng)
        return image

    def _unseen(self, name: str, traced: Content, shape: Shape, rng: random.Random) -> Content:
        at_end = self._final.get(name, traced)
        zeros = Content(size=traced.size)
        if shape.mode in ("none", "names"):
            return zeros
        if shape.mode == "all":
            return at_end
        noise = Content(rng.randbytes(min(traced.size, NOISE_BYTES_MAX)), traced.size)
        mixed = Content(size=traced.size)  # some of its pages were written back, others never
        for start in range(0, min(traced.size, len(at_end.data)), PAGE_BYTES):
            if rng.random() < 0.5:
                mixed.write(start, at_end.part(start, min(PAGE_BYTES, traced.size - start)))
        return rng.choice((zeros, noise, at_end, traced, mixed))


class _Cursor:
    """What is durable at a point, and the operations behind that which may or may not be there.

    Per file (and for all names together) the longest prefix of durable operations is applied for good,
    so that an image costs only what is pending.
    """

    def __init__(self, trace: Trace) -> None:
        self.point = 0
        self.ops = trace.ops
        self.contents: dict[int, Content] = {}
        self.pending: dict[int, list[Op]] = {}
        self.tree: dict[int, dict[str, int]] = {ROOT: {}}
        self.pending_names: list[Op] = []
        for path, obj in trace.base_objects.items():
            folder, _, name = path.rpartition("/")
            self.tree[trace.base_objects[folder] if folder else ROOT][name] = obj
            if path in trace.base.files:
                self.contents[obj] = trace.base.files[path].copy()
            else:
                self.tree[obj] = {}

    def advance(self, point: int) -> None:
        for op in self.ops[self.point : point]:
            if op.kind in DATA_KINDS:
                self.pending.setdefault(op.obj, []).append(op)
                if op.durable_at <= op.index:
                    self._settle(op.obj, op.index)
            elif op.kind in NAME_KINDS:
                self.pending_names.append(op)
                if op.durable_at <= op.index:
                    self._settle_names(op.index)
            elif op.kind is Kind.SYNC_END:
                self._settle(op.obj, op.index)
                self._settle_names(op.index)
        self.point = max(self.point, point)

    def _settle(self, obj: int, now: int) -> None:
        waiting = self.pending.get(obj, [])
        done = 0
        while done < len(waiting) and waiting[done].durable_at <= now:
            apply(self.contents.setdefault(obj, Content()), waiting[done])
            done += 1
        del waiting[:done]

    def _settle_names(self, now: int) -> None:
        done = 0
        while done < len(self.pending_names) and self.pending_names[done].durable_at <= now:
            rename(self.tree, self.pending_names[done])
            done += 1
        del self.pending_names[:done]


def apply(content: Content, op: Op) -> None:
    """Carry out one data operation as a whole."""
    if op.kind is Kind.WRITE:
        content.write(op.offset, op.data)
    elif op.kind is Kind.GROW:
        content.grow(op.offset)
    else:
        content.resize(op.offset)


def rename(tree: dict[int, dict[str, int]], op: Op) -> None:
    """Carry out one change of names; an entry that is not there because it was lost stays away."""
    entries = tree.setdefault(op.parent, {})
    if op.kind in (Kind.CREATE, Kind.LINK, Kind.MKDIR):
        entries[op.name] = op.obj
        if op.kind is Kind.MKDIR:
            tree.setdefault(op.obj, {})
    elif op.kind is Kind.RENAME:
        moved = entries.pop(op.name, None)
        target = tree.setdefault(op.to_parent, {})
        if op.offset & 2 and op.to_name in target:
            entries[op.name] = target[op.to_name]
        if moved is not None:
            target[op.to_name] = moved
    else:
        entries.pop(op.name, None)


class _Builder:
    """Makes one image from a cursor."""

    def __init__(self, cursor: _Cursor, shape: Shape, rng: random.Random) -> None:
        self.cursor = cursor
        self.shape = shape
        self.rng = rng
        self.likelihood = rng.choice((0.15, 0.5, 0.85))
        self.torn = self._torn_write() if shape.mode == "torn" else None

    def image(self) -> Image:
        tree = self._tree()
        files: dict[str, Content] = {}
        directories: list[str] = []
        found: dict[int, Content] = {}
        for path, obj in _walk(tree):
            if obj in tree:
                directories.append(path)
            else:
                if obj not in found:
                    found[obj] = self._content(obj)
                files[path] = found[obj]
        return Image(self.shape, files, directories, [])

    def _is_durable(self, op: Op) -> bool:
        return op.durable_at < self.shape.point

    def _torn_write(self) -> Op | None:
        writes = [
            op
            for ops in self.cursor.pending.values()
            for op in ops
            if op.kind is Kind.WRITE and not self._is_durable(op)
        ]
        if not writes:
            return None
        writes.sort(key=lambda op: op.index)
        return writes[-1] if self.shape.variant == 0 else self.rng.choice(writes)

    def _tree(self) -> dict[int, dict[str, int]]:
        pending = self.cursor.pending_names
        if not pending:
            return self.cursor.tree
        tree = {obj: dict(entries) for obj, entries in self.cursor.tree.items()}
        unsure = [op for op in pending if not self._is_durable(op)]
        kept = {"none": 0, "rand": self.rng.randint(0, len(unsure))}.get(self.shape.mode, len(unsure))
        limit = unsure[kept].index if kept < len(unsure) else NEVER
        for op in pending:
            if self._is_durable(op) or op.index < limit:
                rename(tree, op)
        return tree

    def _content(self, obj: int) -> Content:
        content = self.cursor.contents.get(obj) or Content()
        pending = self.cursor.pending.get(obj)
        if not pending:
            return content
        content = content.copy()
        if self.shape.mode == "rand":
            self._apply_at_random(content, pending)
            return content
        for op in pending:
            if self._is_durable(op) or self.shape.mode == "all":
                apply(content, op)
            elif self.torn is not None and op.index < self.torn.index:
                apply(content, op)
            elif op is self.torn:
                content.write(op.offset, op.data[: self._tear(op)])
        return content

    def _tear(self, op: Op) -> int:
        at = self.rng.randint(0, len(op.data))
        if self.rng.random() < 0.5:
            at -= (op.offset + at) % SECTOR_BYTES
        return max(0, at)

    def _apply_at_random(self, content: Content, pending: list[Op]) -> None:
        pages = self._page_versions(pending)
        for op in pending:
            if self._is_durable(op):
                apply(content, op)
            elif op.kind is not Kind.WRITE or op.is_poisoned:
                if self.rng.random() < self.likelihood:
                    apply(content, op)
            else:
                for offset, data in _pieces(op.offset, op.data):
                    for start, part in pages[offset // PAGE_BYTES].surviving(op.index, offset, data):
                        content.write(start, part)
        ends = [op.offset + len(op.data) for op in pending if op.kind is Kind.WRITE]
        if ends and self.rng.random() < 0.25:
            content.grow(max(ends))

    def _page_versions(self, pending: list[Op]) -> dict[int, _PageVersion]:
        touching: dict[int, list[int]] = {}
        for op in pending:
            if op.kind is Kind.WRITE and not op.is_poisoned and op.data and not self._is_durable(op):
                last = (op.offset + len(op.data) - 1) // PAGE_BYTES
                for page in range(op.offset // PAGE_BYTES, last + 1):
                    touching.setdefault(page, []).append(op.index)
        return {page: self._version(page, writes) for page, writes in touching.items()}

    def _version(self, page: int, writes: list[int]) -> _PageVersion:
        choices = [-1, *writes]
        if len(writes) == 1:
            kept = int(self.rng.random() < self.likelihood)
        else:
            kept = self.rng.randrange(len(choices))
        if self.rng.random() < 0.9 or kept + 1 == len(choices):
            return _PageVersion(choices[kept], choices[kept], 0, False)
        split = page * PAGE_BYTES + SECTOR_BYTES * self.rng.randint(1, PAGE_BYTES // SECTOR_BYTES - 1)
        newer = self.rng.choice(choices[kept + 1 :])
        return _PageVersion(choices[kept], newer, split, self.rng.random() < 0.5)


@dataclass(frozen=True, slots=True)
class _PageVersion:
    """A page as it stood after write `upto`, and on one side of `split` as after write `newer`."""

    upto: int
    newer: int
    split: int
    is_upper_newer: bool

    def surviving(self, index: int, offset: int, data: bytes) -> Iterable[tuple[int, bytes]]:
        if index <= self.upto:
            return ((offset, data),)
        if index > self.newer:
            return ()
        cut = min(max(self.split - offset, 0), len(data))
        part = (offset + cut, data[cut:]) if self.is_upper_newer else (offset, data[:cut])
        return (part,) if part[1] else ()


def _pieces(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        size = PAGE_BYTES - (offset + at) % PAGE_BYTES
        yield offset + at, data[at : at + size]
        at += size


def _walk(tree: Mapping[int, Mapping[str, int]]) -> Iterator[tuple[str, int]]:
    """(path, object) of all that can be reached from the root, folders before what is in them."""
    waiting: list[tuple[str, int]] = [("", ROOT)]
    while waiting:
        prefix, folder = waiting.pop()
        for name, obj in sorted(tree.get(folder, {}).items()):
            yield prefix + name, obj
            if obj in tree:
                waiting.append((f"{prefix}{name}/", obj))
