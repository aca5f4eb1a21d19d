"""What a migration has written down: how far it is, and which states and logs it needs.

Owns the directory `migration/` (the plan, the snapshot that is its base, the state that is built) and the
note that goes with a state that is kept after a migration. From both, retention learns which log to keep.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.backends import shares_state
from ..store.errors import FormatError, StorageError, StoreInUseError
from ..store.files import make_directory, remove_durably, rename_durably, sync_directory, translated
from ..store.lock import FileLock
from ..store.smallfile import publish_small, read_small_file

PLAN_MAGIC: Final = b"PDRMIGR1"
KEPT_MAGIC: Final = b"PDRKEPT1"
VERSION: Final = 1
PLAN: Final = "plan"
BASE: Final = "base.snap"
BUILT: Final = "state"
KEPT: Final = "kept"


class MigrationPlan(msgspec.Struct, frozen=True):
    """A migration, or a repair, that was begun."""

    to_backend: str
    from_backend: str
    phase: str
    """`backfill`, `catch up`, `compare` or `switch`."""
    boot_id: str
    """Under which the building began: what was built before another boot is not to be trusted."""
    inode: int
    """Of the directory `migration`: what was built in a copied one is not to be trusted either."""
    base: str
    """Name of the snapshot that it began from, empty if from the first frame of the log."""
    lsn: int
    """Where the building began: the log behind it is needed."""
    is_back: bool
    """It leads back to the state that was kept."""
    is_repair: bool
    started_ms: int

    def is_switched(self, backend: str) -> bool:
        """Was this migration's switch made, in a store that now has this back end?"""
        return not self.is_repair and self.to_backend == backend


class KeptState(msgspec.Struct, frozen=True):
    """A state that a migration left, for the way back."""

    backend: str
    lsn: int
    """Where it stands: the log behind it brings it up to date."""
    switched_ms: int


def work_place(store: Path) -> Path:
    return store / names.MIGRATION


def built_place(store: Path) -> Path:
    return store / names.MIGRATION / BUILT


def kept_place(store: Path) -> Path:
    return store / names.STATE_PREVIOUS


def take_migration_lock(store: Path) -> FileLock:
    """The lock that makes its process the only one that migrates or repairs. Raises StoreInUseError."""
    lock = FileLock(store / names.MIGRATION_LOCK)
    if not lock.try_acquire():
        lock.close()
        raise StoreInUseError(
            "another process migrates or repairs this store",
            path=lock.path,
            hint="`perdure migrate DIR --status` says how far it is.",
        )
    return lock


def read_plan(store: Path) -> MigrationPlan | None:
    """The migration that was begun, None if there is none. Raises FormatError."""
    return read_small_file(work_place(store) / PLAN, PLAN_MAGIC, VERSION, MigrationPlan)


def begin_work(store: Path) -> int:
    """Make the directory; answers its inode."""
    with translated("cannot write down the migration", store):
        make_directory(work_place(store))
        return work_place(store).stat().st_ino


def write_plan(store: Path, plan: MigrationPlan) -> MigrationPlan:
    """Make a plan durable, in the directory of begin_work(); nothing is left where the first can't be."""
    try:
        publish_small(work_place(store) / PLAN, PLAN_MAGIC, VERSION, plan)
    except StorageError:
        if not (work_place(store) / PLAN).exists():
            clear_work(store)
        raise
    return plan


def keep_base(store: Path, snapshot: Path) -> Path:
    """Give a snapshot a name of its own, so that pruning does not take it away; answers its path."""
    base = work_place(store) / BASE
    remove_durably(base)
    try:
        os.link(snapshot, base)
    except OSError:
        return snapshot  # there are no such links here: if it is pruned the building begins anew
    sync_directory(base.parent)
    return base


def clear_work(store: Path) -> None:
    """Remove what a migration built and wrote down. Survives a crash: the plan goes first."""
    place = work_place(store)
    remove_durably(place / PLAN)
    with translated("cannot remove what a migration built", place):
        if place.exists():
            shutil.rmtree(place)
            sync_directory(store)


def give_up(store: Path) -> bool:
    """End what was begun, with the kept state where it was; says whether there was anything.

    The state in use is not touched. The caller holds the migration's lock, and no switch is half done.
    """
    was_there = work_place(store).exists()
    plan = None
    try:
        plan = read_plan(store)
    except FormatError:
        pass  # it goes, whatever it says
    built, kept = built_place(store), kept_place(store)
    if plan is not None and plan.is_back and built.exists() and not kept.exists():
        note_kept(built, KeptState(plan.to_backend, plan.lsn, plan.started_ms))
        with translated("cannot put the kept state back", kept):
            rename_durably(built, kept)
    clear_work(store)
    return was_there


def note_kept(state: Path, kept: KeptState) -> None:
    """Leave a note in a state that is about to be kept aside."""
    publish_small(state / KEPT, KEPT_MAGIC, VERSION, kept)


def forget_note(state: Path) -> None:
    remove_durably(state / KEPT)


def read_kept(store: Path) -> KeptState | None:
    """The state that a migration left, None if there is none. Raises FormatError for a damaged note."""
    place = kept_place(store)
    return read_small_file(place / KEPT, KEPT_MAGIC, VERSION, KeptState) if place.exists() else None


def log_held(store: Path) -> list[tuple[str, int]]:
    """(what needs it, LSN behind which the log is needed), for retention."""
    held = []
    try:
        if plan := read_plan(store):
            held.append((f"the {'repair' if plan.is_repair else 'migration'} under way", plan.lsn))
        if (kept := read_kept(store)) and shares_state(kept.backend):
            held.append(("the state before the migration", kept.lsn))
    except FormatError:
        pass  # who goes on with it says that; without its number nothing can be held
    return held
