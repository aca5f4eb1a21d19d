"""Replacing the state of a store in use by one that is built anew: the way that migration and repair share.

Owns the phases and their order, and how each is gone on with after kill -9 at any moment:

    backfill   the sessions of a snapshot, in transactions; goes on behind the last key that is there
    catch up   the log behind it, in transactions; goes on where the back end says that it stands
    compare    every record read, hashed, counted and summed; made again
    switch     the last frames under the fold lock, then store/switch.py; finished by whoever opens next

Whatever does not come out (a damaged snapshot, log that retention has dropped meanwhile, records that do not
add up) throws away what was built and begins anew from another snapshot, a few times. The state in use is
not touched before the switch. A full disk ends it with nothing left: what was built is for others to use.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, Protocol

import msgspec

from ..store import names
from ..store.backends import shares_state
from ..store.errors import DivergedError, FormatError, PerdureError, PositionGoneError, StorageFullError
from ..store.ids import StatePosition
from ..store.lock import FileLock
from ..store.log import EventLog
from ..store.switch import plan_switch, switch_state
from .build_state import OnProgress, StateBuild, choose_base, discard
from .migration_plan import (
    BASE,
    MigrationPlan,
    begin_work,
    built_place,
    give_up,
    keep_base,
    work_place,
    write_plan,
)

FOLD_LOCK_TIMEOUT_MS: Final = 30_000
TRIES: Final = 3
ROUNDS_MAX: Final = 50
CLOSE_EVENTS: Final = 512
"""So few events behind, the rest is folded with folding held up."""


class Origin(Protocol):
    """What a replacement has to know of the state in use."""

    def prepare(self) -> None:
        """Called before a base is chosen: see to it that there is a good one."""
        ...

    def end_lsn(self) -> int:
        """A frame's end that the new state is to reach."""
        ...

    def final(self) -> tuple[int, StatePosition | None]:
        """With folding held up: the end to reach, and the whole position that must come out, if known."""
        ...

    def leave(self) -> Path:
        """With folding held up, right before the switch: where the state in use is to go."""
        ...


class Replaced(msgspec.Struct, frozen=True):
    """What a replacement did."""

    position: StatePosition
    base: str
    """Name of the snapshot that it began from, empty if from the first frame of the log."""
    events: int
    """Of the log, that were folded by this run."""
    restarts: int
    """How often it began anew."""
    write_pause_us: int
    """For how long no process could write."""
    fold_pause_us: int
    """For how long no process could fold (reads and writes went on)."""


class Replacement:
    """One replacement on its way."""

    def __init__(
        self, log: EventLog, plan: MigrationPlan, origin: Origin, boot_id: str, on_progress: OnProgress
    ) -> None:
        self._log = log
        self._store = log.store
        self._plan = plan
        self._origin = origin
        self._boot_id = boot_id
        self._on_progress = on_progress
        self._passed_over: set[str] = set()
        self._restarts = 0
        self._events = 0

    def run(self) -> Replaced:
        """Carry it out, from wherever the plan and what was built say.

        Raises CorruptError, DivergedError or PositionGoneError if snapshot and log do not give a state,
        StorageFullError and other kinds of StorageError; the state in use is as it was then.
        """
        inode = begin_work(self._store)
        lives_on = shares_state(self._plan.to_backend)
        if self._plan.boot_id != self._boot_id or self._plan.inode != inode or not lives_on:
            discard(built_place(self._store))
            self._enter("backfill", boot_id=self._boot_id, inode=inode, base="", lsn=0)
        while True:
            try:
                return self._run()
            except StorageFullError as error:
                give_up(self._store)
                raise StorageFullError(
                    error.message,
                    path=error.path,
                    hint="What was built was removed, the store goes on. Free some space and begin again.",
                ) from error
            except (PositionGoneError, DivergedError, FormatError) as error:
                self._start_anew(error)

    def _start_anew(self, error: PerdureError) -> None:
        """Throw away what was built. Raises `error` if there is no use in trying again."""
        self._restarts += 1
        if self._plan.base:
            self._passed_over.add(self._plan.base)
        discard(built_place(self._store))
        try:
            if self._restarts >= TRIES:
                raise error
            choose_base(self._log, self._origin.end_lsn(), self._passed_over)
        except PerdureError:
            give_up(self._store)
            raise error from None
        self._enter("backfill", base="", lsn=0)

    def _run(self) -> Replaced:
        base = self._base()
        build = StateBuild(self._log, built_place(self._store), self._plan.to_backend, self._on_progress)
        try:
            build.fill(base)
            self._enter("catch up")
            self._approach(build)
            self._enter("compare")
            build.check()
            self._approach(build)
            build.mark(self._boot_id)
            self._enter("switch")
            return self._switch(build)
        finally:
            self._events += build.events
            build.close()

    def _base(self) -> Path | None:
        """The snapshot to fill from, chosen and written down if that was not done before."""
        plan, store = self._plan, self._store
        if plan.phase != "backfill" or plan.base:
            if not plan.base:
                return None
            for path in (work_place(store) / BASE, store / names.SNAPSHOTS / plan.base):
                if path.exists():
                    return path
            if plan.phase != "backfill":
                return None  # it is filled
            discard(built_place(store))
        self._origin.prepare()
        file = choose_base(self._log, self._origin.end_lsn(), self._passed_over)
        if file is None:
            self._enter("backfill", base="", lsn=0)
            return None
        self._enter("backfill", base=file.name, lsn=file.lsn)
        return keep_base(store, file.path)

    def _approach(self, build: StateBuild) -> None:
        """Fold the log until little of it is left."""
        for _ in range(ROUNDS_MAX):
            end = self._origin.end_lsn()
            if end - build.catch_up(end).lsn <= 0 and self._origin.end_lsn() - end <= CLOSE_EVENTS:
                return

    def _switch(self, build: StateBuild) -> Replaced:
        lock = FileLock(self._store / names.FOLD_LOCK)
        try:
            lock.acquire(FOLD_LOCK_TIMEOUT_MS)
            began_ns = time.monotonic_ns()
            lsn, expected = self._origin.final()
            at = build.catch_up(lsn, "switch")
            if expected is not None and at != expected:
                raise DivergedError(
                    f"the new state stands at {at}, the one in use at {expected}",
                    path=self._store,
                    lsn=at.lsn,
                    hint="One of them is damaged: see `perdure verify`; `perdure repair` makes a state anew.",
                )
            kept = self._origin.leave()
            plan = plan_switch(
                self._store, self._plan.to_backend, built_place(self._store), kept, build.place
            )
            write_us = switch_state(self._log, plan)
            fold_us = (time.monotonic_ns() - began_ns) // 1000
        finally:
            lock.close()
        return Replaced(at, self._plan.base, self._events + build.events, self._restarts, write_us, fold_us)

    def _enter(self, phase: str, **changes: object) -> None:
        if phase != self._plan.phase or changes:
            plan = msgspec.structs.replace(self._plan, phase=phase, **changes)
            self._plan = write_plan(self._store, plan)
        self._on_progress(phase, 0, 0)
