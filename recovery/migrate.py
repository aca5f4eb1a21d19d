"""Migration: the state of a store moved to another back end, while any number of processes use it.

Owns what a migration may do and what it leaves. The new state is built beside the old one (replace_state)
and switched in once both stand at the same LSN with the same digest and count; the old one is kept, so
that the way back costs the log since then, until it is dropped. Each node migrates by itself: the log
and the snapshots do not know of back ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.backends import backend_kind, shares_state
from ..store.cache import refuse_cache
from ..store.errors import PerdureError, StorageFullError, UsageError
from ..store.files import make_directory, rename_durably, translated
from ..store.identity import read_identity
from ..store.ids import StatePosition
from ..store.opening import Opened, OpenOptions, open_store
from ..store.page import Word, read_boot_id
from ..store.snapshot import list_snapshots
from ..store.state import inspect_state, remove_state
from ..store.switch import finish_switch
from .build_state import OnProgress, allocated_bytes
from .migration_plan import (
    KeptState,
    MigrationPlan,
    begin_work,
    built_place,
    clear_work,
    forget_note,
    give_up,
    kept_place,
    note_kept,
    read_kept,
    read_plan,
    take_migration_lock,
    work_place,
    write_plan,
)
from .replace_state import Replacement
from .take import take_snapshot

SWITCH_TIMEOUT_MS: Final = 30_000
SNAPSHOT_EVENTS: Final = 50_000
"""A snapshot is taken if the newest is so far behind the state (or as many as it has sessions, if more)."""
ROOM_FACTOR: Final = 3
"""A state takes at most so many times what another back end takes for it, as measured; else it is refused."""
ROOM_BYTES_MIN: Final = 8 << 20
AHEAD_BYTES: Final = 32 << 20
"""Blocks that a back end may have allocated for what is yet to come."""


class MigrationReport(msgspec.Struct, frozen=True):
    """What a migration did."""

    store: Path
    from_backend: str
    to_backend: str
    sessions: int
    digest: str
    lsn: int
    """Where both states stood at the switch, with that many sessions and that digest."""
    base: str
    """Snapshot that the new state was filled from; empty: the log's first frame, or a kept state."""
    events: int
    """Of the log, folded by this run."""
    restarts: int
    write_pause_us: int
    """For how long no process could write."""
    fold_pause_us: int
    """For how long no process could fold; reads and writes went on."""
    kept: Path
    """Where the state before stands, until it is dropped."""
    elapsed_ms: int


class MigrationState(msgspec.Struct, frozen=True):
    """How far a store's migration is."""

    backend: str
    """In use."""
    phase: str
    """Of the migration (or repair) under way; empty if there is none."""
    to_backend: str
    base: str
    is_back: bool
    is_repair: bool
    built_bytes: int
    kept_backend: str
    """Of the state before, empty if none is kept."""
    kept_bytes: int
    kept_lsn: int


def migrate(
    store: str | os.PathLike[str],
    *,
    to_backend: str,
    on_progress: OnProgress | None = None,
    boot_id: Callable[[], str] = read_boot_id,
) -> MigrationReport:
    """Move a store's state to another back end; goes on with a migration there that was broken off.

    Readers and writers in other processes go on; they notice the new state at their next call. Survives a
    crash: up to the switch the store is as it was, from then on it has the new back end; called again, it
    goes on. Raises UsageError if the store has that back end, another migration was begun, or an earlier
    state is still kept; StorageFullError if there is not enough room (nothing is left then);
    StoreInUseError if another process migrates; CorruptError, DivergedError, PositionGoneError if
    snapshot and log do not give the state; LockTimeoutError, StorageError.
    """
    path = Path(store)
    backend_kind(to_backend)
    refuse_cache(read_identity(path), path)
    lock = take_migration_lock(path)
    try:
        return _Migration(path, on_progress or _silent, boot_id()).forward(to_backend)
    finally:
        lock.close()


def migrate_back(
    store: str | os.PathLike[str],
    *,
    on_progress: OnProgress | None = None,
    boot_id: Callable[[], str] = read_boot_id,
) -> MigrationReport:
    """Go back to the state before the migration: it is caught up with the log, compared and switched in.

    If it can't be (the log it needs is gone, the machine was started anew), a state in its back end is
    built from snapshot and log. The state that is left is kept in turn. Raises UsageError if none was
    kept, else as migrate.
    """
    path = Path(store)
    read_identity(path)
    lock = take_migration_lock(path)
    try:
        return _Migration(path, on_progress or _silent, boot_id()).back()
    finally:
        lock.close()


def drop_previous(store: str | os.PathLike[str]) -> int:
    """Remove the state before the migration; answers how many bytes that gave back, 0 if there was none.

    Raises UsageError while a migration is under way, StoreInUseError, StorageError.
    """
    path = Path(store)
    read_identity(path)
    lock = take_migration_lock(path)
    try:
        finish_switch(path, read_boot_id(), SWITCH_TIMEOUT_MS)
        plan = read_plan(path)
        if plan is not None and not plan.is_switched(read_identity(path).backend):
            raise _under_way(path, plan)
        size = allocated_bytes(kept_place(path))
        remove_state(kept_place(path))
        clear_work(path)
        return size
    finally:
        lock.close()


def abort_migration(store: str | os.PathLike[str]) -> bool:
    """Give up a migration that was broken off; says whether there was one. The state in use is untouched.

    Raises StoreInUseError while its process lives, StorageError.
    """
    path = Path(store)
    read_identity(path)
    lock = take_migration_lock(path)
    try:
        finish_switch(path, read_boot_id(), SWITCH_TIMEOUT_MS)
        return give_up(path)
    finally:
        lock.close()


def migration_state(store: str | os.PathLike[str]) -> MigrationState:
    """How far a store's migration is. Read-only. Raises StoreMissingError, FormatError."""
    path = Path(store)
    identity, plan, kept = read_identity(path), read_plan(path), read_kept(path)
    return MigrationState(
        backend=identity.backend,
        phase=plan.phase if plan else "",
        to_backend=plan.to_backend if plan else "",
        base=plan.base if plan else "",
        is_back=plan.is_back if plan else False,
        is_repair=plan.is_repair if plan else False,
        built_bytes=allocated_bytes(built_place(path)),
        kept_backend=kept.backend if kept else "",
        kept_bytes=allocated_bytes(kept_place(path)),
        kept_lsn=kept.lsn if kept else 0,
    )


class _Migration:
    """One call, on a store that is open."""

    def __init__(self, store: Path, on_progress: OnProgress, boot_id: str) -> None:
        self._store = store
        self._on_progress = on_progress
        self._boot_id = boot_id
        self._started_ns = time.monotonic_ns()

    def forward(self, to_backend: str) -> MigrationReport:
        opened = open_store(self._store, OpenOptions(create=False))
        try:
            plan = read_plan(self._store)
            backend = opened.identity.backend
            if plan is not None and plan.is_switched(backend):
                if backend == to_backend:
                    return self._switched_before(opened, plan)
                clear_work(self._store)
                plan = None
            if backend == to_backend:
                raise UsageError(f"the store keeps its state in {to_backend} already", path=self._store)
            if plan is not None and (plan.is_repair or plan.to_backend != to_backend):
                raise _under_way(self._store, plan)
            if plan is None:
                self._check_unkept()
                if shares_state(to_backend):
                    self._check_room(opened)
                plan = self._begin(backend, to_backend, is_back=False)
            return self._run(opened, plan)
        finally:
            opened.close()

    def back(self) -> MigrationReport:
        opened = open_store(self._store, OpenOptions(create=False))
        try:
            plan = read_plan(self._store)
            if plan is not None and plan.is_switched(opened.identity.backend):
                if plan.is_back:
                    return self._switched_before(opened, plan)
                clear_work(self._store)
                plan = None
            if plan is not None and not plan.is_back:
                raise _under_way(self._store, plan)
            if plan is None:
                kept = read_kept(self._store)
                if kept is None:
                    raise UsageError("no state before a migration is kept here", path=self._store)
                plan = self._begin(opened.identity.backend, kept.backend, is_back=True, lsn=kept.lsn)
            self._take_kept(plan)
            return self._run(opened, plan)
        finally:
            opened.close()

    def _begin(self, from_backend: str, to_backend: str, *, is_back: bool, lsn: int = 0) -> MigrationPlan:
        plan = MigrationPlan(
            to_backend=to_backend,
            from_backend=from_backend,
            phase="catch up" if is_back else "backfill",
            boot_id=self._boot_id,
            inode=begin_work(self._store),
            base="",
            lsn=lsn,
            is_back=is_back,
            is_repair=False,
            started_ms=time.time_ns() // 1_000_000,
        )
        return write_plan(self._store, plan)

    def _take_kept(self, plan: MigrationPlan) -> None:
        """Make the kept state the one that is built, if it is to be trusted; the same again after a crash."""
        kept, built = kept_place(self._store), built_place(self._store)
        if not kept.exists():
            return
        cluster_id = read_identity(self._store).cluster_id
        verdict = inspect_state(self._store, plan.to_backend, cluster_id, self._boot_id, place=kept)
        if not verdict.is_trusted:
            remove_state(kept)
            write_plan(self._store, msgspec.structs.replace(plan, phase="backfill"))
        elif not built.exists():
            with translated("cannot take the kept state", kept):
                rename_durably(kept, built)
            forget_note(built)

    def _run(self, opened: Opened, plan: MigrationPlan) -> MigrationReport:
        plan = read_plan(self._store) or plan
        origin = _OpenState(opened, self._store)
        done = Replacement(opened.log, plan, origin, self._boot_id, self._on_progress).run()
        clear_work(self._store)
        at = done.position
        return MigrationReport(
            self._store,
            plan.from_backend,
            plan.to_backend,
            at.session_count,
            f"{at.digest:016x}",
            at.lsn,
            done.base,
            done.events,
            done.restarts,
            done.write_pause_us,
            done.fold_pause_us,
            kept_place(self._store),
            self._elapsed_ms(),
        )

    def _switched_before(self, opened: Opened, plan: MigrationPlan) -> MigrationReport:
        """The switch was made, and its process ended before it could say so."""
        clear_work(self._store)
        at = _position(opened)
        return MigrationReport(
            self._store,
            plan.from_backend,
            plan.to_backend,
            at.session_count,
            f"{at.digest:016x}",
            at.lsn,
            plan.base,
            0,
            0,
            0,
            0,
            kept_place(self._store),
            self._elapsed_ms(),
        )

    def _elapsed_ms(self) -> int:
        return (time.monotonic_ns() - self._started_ns) // 1_000_000

    def _check_unkept(self) -> None:
        if kept_place(self._store).exists():
            raise UsageError(
                "the state before the last migration is still kept",
                path=kept_place(self._store),
                hint="`perdure migrate DIR --drop` removes it, `--back` goes back to it.",
            )

    def _check_room(self, opened: Opened) -> None:
        sizes = [file.size_bytes for file in list_snapshots(self._store / names.SNAPSHOTS)[-1:]]
        sizes.append(allocated_bytes(names.state_path(self._store)) - AHEAD_BYTES)
        need = ROOM_FACTOR * max(0, *sizes)
        with translated("cannot look at the file system", self._store):
            status = os.statvfs(self._store)
        free = status.f_bavail * status.f_frsize
        if free < need + ROOM_BYTES_MIN:
            raise StorageFullError(
                f"a second state may take {need:,} bytes, {free:,} are free",
                path=self._store,
                hint="Free some space; nothing was begun.",
            )


class _OpenState:
    """The state of an open store, as what a new one is compared with (the Origin port)."""

    def __init__(self, opened: Opened, store: Path) -> None:
        self._opened = opened
        self._store = store

    def prepare(self) -> None:
        """Take a snapshot if the newest one is far behind the state."""
        at = _position(self._opened)
        newest = max((file.lsn for file in list_snapshots(self._store / names.SNAPSHOTS)), default=0)
        if at.lsn - newest > max(SNAPSHOT_EVENTS, at.session_count):
            take_snapshot(self._opened)

    def end_lsn(self) -> int:
        if self._opened.view.make_own is not None:
            return _position(self._opened).lsn
        return int(self._opened.log.words[Word.FOLDED])

    def final(self) -> tuple[int, StatePosition | None]:
        at = _position(self._opened)
        return at.lsn, at

    def leave(self) -> Path:
        at = _position(self._opened)
        state = names.state_path(self._store)
        with translated("cannot keep the state", state):
            make_directory(state)  # of a state in memory, the note is all that is kept
        note_kept(state, KeptState(self._opened.identity.backend, at.lsn, time.time_ns() // 1_000_000))
        return kept_place(self._store)


def _position(opened: Opened) -> StatePosition:
    """Where the state in use stands; one of this process's own is folded for that."""
    view = opened.view
    with view.fold_threads, view.mutex:
        view.catch_up()
        plan = view.fold_plan() if view.make_own is not None else None
        if plan is not None:
            opened.backend.fold(*plan)
            view.folded(plan.position)
        view.release()
        view.refresh()
        at = view.state
        view.release()
        return at


def _under_way(store: Path, plan: MigrationPlan) -> PerdureError:
    what = "a repair" if plan.is_repair else f"a migration to {plan.to_backend}"
    hint = "`perdure repair DIR` goes on with it" if plan.is_repair else "Begin it again and it goes on"
    return UsageError(
        f"{what} was begun and not completed",
        path=work_place(store),
        hint=f"{hint}; `perdure migrate DIR --abort` gives it up.",
    )


def _silent(_phase: str, _done: int, _total: int) -> None: ...
