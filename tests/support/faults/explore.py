"""Check the recovery of many crash images, in parallel.

Owns the loop over images and their temporary directories. What a right recovery is, the check says.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .images import CrashImages, Shape
from .shards import Report, run_sharded

Check = Callable[[Path, list[bytes]], Iterable[object]]
"""check(directory, acks) -> what is wrong, each item with a text. It may change the directory. `acks`:
the lines of the witness."""
_BLOCK_SHAPES = 24


@dataclass(frozen=True)
class ExploreResult:
    """What an exploration found. images: distinct images that were checked. repeated: skipped, since the
    same worker had checked an equal one. is_complete: False if it was stopped by its findings."""

    violations: list[str]
    images: int
    repeated: int
    seconds: float
    is_complete: bool


def explore(
    images: CrashImages,
    check: Check,
    *,
    shapes: Sequence[Shape] | None = None,
    random_per_point: int = 3,
    limit: int | None = None,
    workers: int = 2,
    deadline_s: float = 20.0,
    stop_after: int = 5,
    scratch: Path | None = None,
) -> ExploreResult:
    """Build each image, check it, throw it away.

    shapes: which; by default images.shapes(random_per_point, limit). deadline_s: for one check. scratch:
    where to build (default: in memory, if there is /dev/shm). A violation names seed and shape:
    `rebuild(images, "412/rand/2", directory)` makes that very image again.
    """
    plan = list(shapes or images.shapes(random_per_point=random_per_point, limit=limit))
    blocks = [plan[i : i + _BLOCK_SHAPES] for i in range(0, len(plan), _BLOCK_SHAPES)]
    seen: set[bytes] = set()
    with ExitStack() as stack:
        place = scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(dir=quick_place())))

        def work(index: int, report: Report) -> None:
            target = place / f"image-{os.getpid()}"
            for shape in blocks[index]:
                if report.at(f"seed {images.seed} image {shape}"):
                    _check_one(images, shape, check, target, seen, report)

        result = run_sharded(len(blocks), work, workers=workers, deadline_s=deadline_s, stop_after=stop_after)
    totals = result.totals
    return ExploreResult(
        result.violations, totals["images"], totals["repeated"], result.seconds, result.is_complete
    )


def rebuild(images: CrashImages, name: str, directory: Path) -> list[bytes]:
    """Make the image called `name` in an empty directory; returns the witness's lines."""
    image = images.build(Shape.parse(name))
    image.write(directory)
    return lines_of(image.acks)


def lines_of(words: Iterable[bytes]) -> list[bytes]:
    """The whole lines in what was written to ACK files, one write after the other."""
    return [line for word in words for line in word.splitlines(keepends=True) if line.endswith(b"\n")]


def quick_place() -> str | None:
    """A directory in memory for short-lived files, None (the default) if there is none."""
    place = "/dev/shm"
    if not os.access(place, os.W_OK):
        return None
    room = os.statvfs(place)
    return place if room.f_bavail * room.f_frsize > 256 << 20 else None


def _check_one(
    images: CrashImages, shape: Shape, check: Check, target: Path, seen: set[bytes], report: Report
) -> None:
    began = time.perf_counter()
    image = images.build(shape)
    digest = image.digest()
    if digest in seen:
        report.add("repeated")
        return
    seen.add(digest)
    shutil.rmtree(target, ignore_errors=True)
    image.write(target)
    report.add("build_us", int((time.perf_counter() - began) * 1e6))
    report.add("images")
    cut = images.trace.describe(shape.point) if shape.point < len(images.trace.ops) else "the end"
    report.collect(lambda: check(target, lines_of(image.acks)), f" (power lost before {cut})")
    shutil.rmtree(target, ignore_errors=True)
