"""Putting another state in the place of a store's, under running processes.

Owns the planned switch and how a process notices one. The new state stands complete and marked in a
directory of its own, on the same file system. Steps, under the fold lock and, from 2 on, the write lock; a
crash after any of them is finished by finish_switch, which whoever opens the store calls:

    1. the plan, durable: which directory comes, where the old one goes
    2. the old state's directory moves away, the new one to `state`
    3. the identity names its back end (durable, with the names of 2)
    4. the control page says where the new state stands; its generation grows
    5. the plan is removed

Nobody folds into the old state once the new one stands: who folds holds the fold lock and looks at the
generation under it, and the switch changes both states' names and the generation under that lock. Until
a process looks, it reads through the handles that it has: directories were renamed, not changed, so the
old state and the log behind it still give every session. If the one who switches dies, the others go on
that way until the next opening finishes the switch. After a power loss neither state is trusted, and
whichever the identity names is made anew.

A state in the memory of each process has an empty directory, so that it comes and goes by the same steps;
who goes over to one makes it from snapshot and log. Who folds into one holds no lock of the store, and so
goes over to another state only between folds.

Invariant: a new state stands where the old one stood or further, so that a process which looks never
goes back in time; from a state that is no file's, what it lacks is in the log, which is followed first.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from . import names
from .backends import backend_kind, open_backend, shares_state
from .errors import PerdureError
from .files import remove_durably, sync_directory, translated
from .identity import Identity, change_backend, read_identity
from .lock import FileLock
from .log import EventLog
from .own_state import Fill, own_maker
from .page import ControlPage, Word
from .ports import Backend
from .smallfile import publish_small, read_small_file
from .state import inspect_state
from .view import View

MAGIC: Final = b"PDRSWCH1"
VERSION: Final = 1
LOOK_TRIES: Final = 5


class SwitchPlan(msgspec.Struct, frozen=True):
    """A switch that was decided. Paths are relative to the store."""

    backend: str
    """Of the new state."""
    source: str
    """Where its directory stands."""
    device: int
    inode: int
    """Of that directory: what tells it from the old one, whatever the names are."""
    kept: str
    """Where the old state goes."""
    lsn: int
    """LSN that the new state holds."""
    segment_lsn: int
    """First LSN of the segment in which the frame behind it begins, 0 if unknown."""
    offset: int
    """Offset (bytes) there."""


def is_switching(store: Path) -> bool:
    """Was a switch begun and not completed (yet)?"""
    return (store / names.SWITCH_PLAN).exists()


def plan_switch(store: Path, backend: str, source: Path, kept: Path, at: tuple[int, int, int]) -> SwitchPlan:
    """The plan for a new state at `source`; `at` is its LSN, and segment and offset behind that."""
    with translated("cannot look at the new state", source):
        status = source.stat()
    return SwitchPlan(
        backend,
        os.fspath(source.relative_to(store)),
        status.st_dev,
        status.st_ino,
        os.fspath(kept.relative_to(store)),
        *at,
    )


def switch_state(log: EventLog, plan: SwitchPlan) -> int:
    """Carry out a plan; answers for how long writers were kept out, in microseconds.

    The caller holds the fold lock, has marked the new state, and nothing stands where the old one goes.
    Raises LockTimeoutError, PoisonedError or StorageError with the old state in its place.
    """
    store = log.store
    publish_small(store / names.SWITCH_PLAN, MAGIC, VERSION, plan)
    try:
        log.lock_any()
        began_ns = time.monotonic_ns()
        try:
            _carry_out(store, plan, log.page)
        except PerdureError:
            _take_back(store, plan)
            raise
        finally:
            log.unlock()
        ended_ns = time.monotonic_ns()
    except PerdureError:
        remove_durably(store / names.SWITCH_PLAN)
        raise
    with translated("cannot complete the switch of the state", store):
        sync_directory((store / plan.source).parent)
        sync_directory((store / plan.kept).parent)
        remove_durably(store / names.SWITCH_PLAN)
    return (ended_ns - began_ns) // 1000


def finish_switch(store: Path, boot_id: str, timeout_ms: int) -> bool:
    """Complete a switch that was broken off; says whether there was one. Takes the fold and write locks.

    Raises LockTimeoutError, StorageError, FormatError for a damaged plan.
    """
    if not is_switching(store):
        return False
    folding = FileLock(store / names.FOLD_LOCK)
    writing = FileLock(store / names.WRITE_LOCK)
    try:
        folding.acquire(timeout_ms, "a process that switches the state")
        writing.acquire(timeout_ms)
        return finish_locked(store, boot_id)
    finally:
        writing.close()
        folding.close()


def finish_locked(store: Path, boot_id: str) -> bool:
    """As finish_switch, for a caller that holds both locks."""
    plan = read_small_file(store / names.SWITCH_PLAN, MAGIC, VERSION, SwitchPlan)
    if plan is None:
        return False
    page = ControlPage(store / names.CONTROL_PAGE, boot_id)
    try:
        _carry_out(store, plan, page)
    finally:
        page.close()
    remove_durably(store / names.SWITCH_PLAN)
    return True


def lock_settled(log: EventLog, boot_id: str, timeout_ms: int) -> None:
    """Take the write lock with no switch half done, and the identity as it is then."""
    while True:
        log.write_lock.acquire(timeout_ms)
        if not is_switching(log.store):
            log.identity = read_identity(log.store)
            return
        log.write_lock.release()
        finish_switch(log.store, boot_id, timeout_ms)


def _carry_out(store: Path, plan: SwitchPlan, page: ControlPage) -> None:
    """Steps 2 to 4; the same again after a crash."""
    state, source, kept = names.state_path(store), store / plan.source, store / plan.kept
    with translated("cannot switch the state", state):
        if not _is_planned(state, plan):
            if not _is_planned(source, plan):
                _take_back(store, plan)  # somebody removed it: there is nothing to switch to
                return
            if state.exists():
                os.rename(state, kept)
            os.rename(source, state)
        identity = read_identity(store)
        if identity.backend != plan.backend:
            change_backend(store, identity, plan.backend)
        else:
            sync_directory(store)
    words = page.words
    words[Word.FOLDED_SEGMENT], words[Word.FOLDED_OFFSET] = 0, 0
    words[Word.FOLDED] = plan.lsn
    words[Word.FOLDED_SEGMENT], words[Word.FOLDED_OFFSET] = plan.segment_lsn, plan.offset
    page.bump()


def _take_back(store: Path, plan: SwitchPlan) -> None:
    """Nothing was switched: the old state goes back to its place if it left it."""
    state, source, kept = names.state_path(store), store / plan.source, store / plan.kept
    with translated("cannot put the state back", state):
        if _is_planned(state, plan) and not source.exists():
            os.rename(state, source)
        if not state.exists() and kept.exists():
            os.rename(kept, state)
        sync_directory(store)


def _is_planned(place: Path, plan: SwitchPlan) -> bool:
    try:
        status = place.stat()
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino) == (plan.device, plan.inode)


class StatePlace:
    """Which directory is the state's at this moment. Keeps it, so that its inode is not given again."""

    def __init__(self, store: Path) -> None:
        self._path = names.state_path(store)
        with translated("cannot look at the state", self._path):
            try:
                self._descriptor = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._descriptor = -1  # each process has its own, or somebody is at it

    def is_same(self) -> bool:
        """Is it still that one? False, too, while it is not there."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except OSError:
            return self._descriptor < 0 and not os.path.lexists(self._path)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class StateWatch:
    """Notices that another state stands in the store, and has the view go over to it."""

    def __init__(self, log: EventLog, view: View, boot_id: str, place: StatePlace, fill: Fill) -> None:
        """`place` is that of the state which the view has; `fill` makes one of this process's own."""
        self._log = log
        self._view = view
        self._boot_id = boot_id
        self._place = place
        self._fill = fill
        self._backend_name = log.identity.backend
        log.on_look, log.looks_long = self.look, self.would_make

    def look(self) -> bool:
        """Go over to another state if one stands there, complete. The caller holds the view's mutex.

        One that is not (yet) to be trusted is being made by somebody, who raises the generation when it
        is: until then the open one serves. False if it must be looked at again: a thread folds into the
        open one, which is this process's own, and holds no lock for another. Raises StorageError or
        FormatError; then nothing has changed.
        """
        for tries_left in reversed(range(LOOK_TRIES)):
            if self._is_same():
                self._view.is_mended = True
                return True
            free = self._view.fold_threads if self._view.make_own is not None else None
            if free is not None and not free.acquire(blocking=False):
                return False
            try:
                if self._go_over():
                    return True
            except PerdureError:
                if not tries_left:
                    raise  # else: perhaps it was switched once more meanwhile
            finally:
                if free is not None:
                    free.release()
        return False

    def would_make(self) -> bool:
        """Would look() make a state of this process's own? That takes as long as to open the store."""
        if self._view.make_own is not None or self._is_same():
            return False
        return not shares_state(read_identity(self._log.store).backend)

    def _is_same(self) -> bool:
        """Also by name: a directory that is to hold no state comes before the name says so."""
        return self._place.is_same() and read_identity(self._log.store).backend == self._backend_name

    def _go_over(self) -> bool:
        """One try; False if the state was switched once more in the middle of it."""
        place = StatePlace(self._log.store)
        backend: Backend | None = None
        try:
            identity = read_identity(self._log.store)
            own = None
            if not backend_kind(identity.backend).is_shared:
                own = own_maker(self._log, identity.backend, self._fill)
                if identity.backend != self._backend_name:
                    backend = own()
            elif not self._is_trusted(identity):
                place.close()
                return True
            else:
                backend = open_backend(identity.backend, names.state_path(self._log.store) / identity.backend)
            if not place.is_same():
                place.close()
                if backend is not None:
                    backend.close()
                return False
        except BaseException:
            place.close()
            if backend is not None:
                backend.close()
            raise
        old, self._place = self._place, place
        old.close()
        self._log.identity, self._backend_name = identity, identity.backend
        if backend is not None:
            self._view.move_to(backend, own)
        return True

    def _is_trusted(self, identity: Identity) -> bool:
        store = self._log.store
        if not names.state_path(store).is_dir():
            return False
        verdict = inspect_state(store, identity.backend, identity.cluster_id, self._boot_id, in_use=True)
        return verdict.is_trusted

    def close(self) -> None:
        self._place.close()
