"""Repair: a state that is damaged is made anew from snapshot and log, while the store is in use.

Owns the judgement whether there is anything to repair, and what becomes of the damaged files. The damaged
state is never opened here: a child process reads a copy of it (see image). The new one is built beside
it and compared (replace_state), then switched in; the old one is set aside with the reason. If snapshot
and log do not give a state, nothing is changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..shipping.faults import clear_state_fault, fault_of_log
from ..shipping.nodelog import NodeLog, open_node_log
from ..store import names
from ..store.backends import shares_state
from ..store.cache import refuse_cache
from ..store.errors import UsageError
from ..store.identity import read_identity
from ..store.ids import StatePosition
from ..store.page import read_boot_id
from ..store.state import free_aside, settle_aside
from ..store.switch import finish_switch
from .build_state import OnProgress, committed_end
from .findings import Finding, Level, Summary
from .migrate import SWITCH_TIMEOUT_MS
from .migration_plan import (
    MigrationPlan,
    begin_work,
    clear_work,
    read_plan,
    take_migration_lock,
    work_place,
    write_plan,
)
from .replace_state import Replacement
from .verify import verify

_STATE_MISSING = frozenset({"state-missing", "state-untrusted"})


class RepairReport(msgspec.Struct, frozen=True):
    """What was wrong, and what was done about it."""

    store: Path
    backend: str
    findings: list[Finding]
    """What the check said, what is right left out; empty if none was made."""
    is_repaired: bool
    sessions: int
    digest: str
    lsn: int
    """Where the new state stands, with so many sessions and that digest; 0 if none was made."""
    base: str
    events: int
    write_pause_us: int
    aside: Path | None
    """Where the state before is kept, with the reason."""
    elapsed_ms: int
    fault: str = ""
    """What a new state does not put right: two primaries have committed, or a position has two histories."""

    @property
    def exit_code(self) -> int:
        """0 if all is well (now), 1 if a fault stays, 1 or 4 as the findings of what was not repaired."""
        summary = Summary()
        for finding in () if self.is_repaired else self.findings:
            summary.add(finding)
        return max(summary.exit_code, 1 if self.fault else 0)


def repair(
    store: str | os.PathLike[str],
    *,
    only_check: bool = False,
    unchecked: bool = False,
    scratch: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    boot_id: Callable[[], str] = read_boot_id,
) -> RepairReport:
    """Make a damaged state anew from snapshot and log, and put the damaged one aside.

    First the store is verified, as `verify` at its deepest level (with `scratch`); if the state is right
    nothing is done. `only_check` ends there in any case; `unchecked` begins without, and makes the state
    anew whatever it is. Running processes notice the new state at their next call. Survives a crash: up
    to the switch the store is as it was; called again, it goes on.

    Raises CorruptError, DivergedError or PositionGoneError, with nothing changed, if the log is damaged
    or snapshot and log together do not give a state; UsageError if a migration was begun;
    StoreInUseError, StorageFullError (nothing is left then), StorageError. A state that each process
    makes in its memory has nothing to repair: log and snapshots are checked, unless `unchecked`.
    """
    path = Path(store)
    refuse_cache(read_identity(path), path)
    started_ns = time.monotonic_ns()
    lock = take_migration_lock(path)
    try:
        finish_switch(path, boot_id(), SWITCH_TIMEOUT_MS)
        identity = read_identity(path)
        plan = read_plan(path)
        if plan is not None and plan.is_switched(identity.backend) and not only_check:
            clear_work(path)
            plan = None
        if plan is not None and not plan.is_repair and not only_check:
            raise UsageError(
                f"a migration to {plan.to_backend} was begun and not completed",
                path=work_place(path),
                hint="Complete it, or `perdure migrate DIR --abort`; then repair.",
            )
        findings: list[Finding] = []
        if not unchecked:
            found = verify(path, level="replay", scratch=scratch, boot_id=boot_id)
            findings = [finding for finding in found if finding.level is not Level.OK]
        report = RepairReport(path, identity.backend, findings, False, 0, "", 0, "", 0, 0, None, 0)
        wrong = [finding for finding in findings if _is_of_state(path, finding)]
        if not only_check and (unchecked or wrong) and shares_state(identity.backend):
            reason = "; ".join(str(finding) for finding in wrong[:5]) or "it was asked to be made anew"
            report = _Repair(path, boot_id(), on_progress or _silent).run(report, plan, reason)
        elif plan is not None and plan.is_repair and not only_check:
            clear_work(path)  # its switch was made, and its process ended before it could say so
        elapsed_ms = (time.monotonic_ns() - started_ns) // 1_000_000
        return msgspec.structs.replace(report, elapsed_ms=elapsed_ms, fault=fault_of_log(path))
    finally:
        lock.close()


def _is_of_state(store: Path, finding: Finding) -> bool:
    """Does it say that the state is wrong, or cannot be used?"""
    if finding.path is None or finding.level not in (Level.CORRUPT, Level.UNKNOWN, Level.NOTICE):
        return False
    state = os.fspath(names.state_path(store))
    inside = finding.path == state or finding.path.startswith(state + os.sep)
    return inside and (finding.level is Level.CORRUPT or finding.kind in _STATE_MISSING)


class _Repair:
    """One repair; its log is open, its state is not."""

    def __init__(self, store: Path, boot_id: str, on_progress: OnProgress) -> None:
        self._store = store
        self._boot_id = boot_id
        self._on_progress = on_progress
        self._aside: Path | None = None
        self._node: NodeLog

    def run(self, report: RepairReport, plan: MigrationPlan | None, reason: str) -> RepairReport:
        self._node = open_node_log(self._store, [])
        try:
            if plan is None:
                plan = self._begin(report.backend)
            log = self._node.log
            done = Replacement(log, plan, self, self._boot_id, self._on_progress).run()
        finally:
            self._node.close()
        if self._aside is not None and self._aside.exists():
            settle_aside(self._aside, reason)
        clear_state_fault(self._store)
        clear_work(self._store)
        at = done.position
        return msgspec.structs.replace(
            report,
            is_repaired=True,
            sessions=at.session_count,
            digest=f"{at.digest:016x}",
            lsn=at.lsn,
            base=done.base,
            events=done.events,
            write_pause_us=done.write_pause_us,
            aside=self._aside,
        )

    def _begin(self, backend: str) -> MigrationPlan:
        plan = MigrationPlan(
            to_backend=backend,
            from_backend=backend,
            phase="backfill",
            boot_id=self._boot_id,
            inode=begin_work(self._store),
            base="",
            lsn=0,
            is_back=False,
            is_repair=True,
            started_ms=time.time_ns() // 1_000_000,
        )
        return write_plan(self._store, plan)

    # -- the Origin port: the state in use is not asked ----------------------------------------------

    def prepare(self) -> None:
        """No snapshot can be taken of a damaged state."""

    def end_lsn(self) -> int:
        log = self._node.log
        with log.mutex:
            log.refresh_role()
        return committed_end(log)

    def final(self) -> tuple[int, StatePosition | None]:
        return self.end_lsn(), None

    def leave(self) -> Path:
        self._aside = free_aside(self._store)
        return self._aside


def _silent(_phase: str, _done: int, _total: int) -> None: ...
