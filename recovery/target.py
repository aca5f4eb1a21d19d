"""The directory that a replay makes: taken before, and never mistaken for a store until it is complete.

Owns the file `replaying`. Invariant: it stands in a target from before the first other file until after
the identity, so that what a crash leaves is neither opened nor replayed into.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from ..store import names
from ..store.errors import ForeignError, UsageError
from ..store.files import translated
from ..store.smallfile import publish_small

UNFINISHED = "replaying"
MAGIC = b"PDRREPL1"
VERSION = 1


class Unfinished(msgspec.Struct, frozen=True):
    """Stands in a target until it is complete: what was to be replayed there."""

    source: str
    upto_lsn: int
    upto_ms: int | None


def is_unfinished(target: Path) -> bool:
    """Was a replay into this directory begun and not completed?"""
    return (target / UNFINISHED).exists() and not (target / names.IDENTITY).exists()


def claim(source: Path, target: Path, lsn: int | None, time_ms: int | None) -> None:
    """Make the target ours: it must be new or empty, and not inside the source.

    Raises UsageError if it is not, ForeignError for what a replay left unfinished, StorageError.
    """
    inside = target.resolve().is_relative_to(source.resolve())
    if inside:
        raise UsageError("a store is not replayed into itself", path=target)
    with translated("cannot make the target directory", target):
        target.mkdir(parents=True, exist_ok=True)
        found = [name for name in os.listdir(target) if name != "lost+found"]
    if is_unfinished(target):
        raise ForeignError(
            "a replay into this directory was begun and not completed",
            path=target,
            hint="Remove the directory, or give another one.",
        )
    if found:
        raise UsageError(
            f"the target directory is not empty ({found[0]!r}, ...)",
            path=target,
            hint="Give an empty directory, or one that does not exist yet.",
        )
    note = Unfinished(str(source), -1 if lsn is None else lsn, time_ms)
    publish_small(target / UNFINISHED, MAGIC, VERSION, note)


def empty(target: Path) -> None:
    """Give a target back empty, so that nobody has to remove what came of a wrong number."""
    with translated("cannot clear the target directory", target):
        for entry in os.scandir(target):
            if entry.name == "lost+found":
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
