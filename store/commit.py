"""The write path, on one page: lock, evaluate, append, publish, become durable, answer.

Threads of one process queue their changes; whoever gets the lock commits for all who wait, in one
frame. No LMDB, no sync and no network wait happens under the write lock.

Owns what an acknowledgement means. A call returns only when its frame is as durable as asked;
whatever goes wrong after the append is Indeterminate, never success and never a false failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import xxhash

from .errors import (
    BacklogError,
    FencedError,
    Indeterminate,
    NoQuorumError,
    PerdureError,
    ReentrantWriteError,
    UsageError,
)
from .event import EVENTS_LIMIT, Kind, Reason
from .event import pack_header as pack_event
from .fold import HASH_BYTES
from .ids import MASK64, StatePosition
from .log import EventLog
from .page import Word
from .ports import CommitGate, Record
from .promise import Promise
from .session import NEVER_MS
from .stage import Stage
from .tail_map import NEW_MS
from .view import View

PENDING_FRAMES_MAX = 1000
TAIL_ENTRIES_MAX = 65_536
"""Sessions that may wait to be folded; beyond it writers wait for the fold, or are refused."""
GROUP_OPERATIONS_MAX = 512
GROUP_BYTES_MAX = 1 << 20
QUORUM_POLL_S = 0.002
MOVED_MS = 300
"""A write that has waited so long asks whether another node is the primary by now."""
FOLD_ENTRIES = 1024
"""A writer that finds so many sessions in its tail map folds them, and its call takes as much longer."""
_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
_RELEASE = fcntl.LOCK_UN
flock = fcntl.flock
get_ident = threading.get_ident
_APPENDED = int(Word.APPENDED)
_EPOCH = int(Word.EPOCH)
_GENERATION = int(Word.GENERATION)
_SHIPPER_IDLE = int(Word.SHIPPER_IDLE)
_VOTERS = int(Word.VOTERS_CONNECTED)
_TURN = int(Word.TURN)
_PUT = int(Kind.PUT)
_CREATED = int(Reason.CREATED)
xxh3_64 = xxhash.xxh3_64_intdigest
T = TypeVar("T")
StoredT = TypeVar("StoredT", bytes, None)


class Durability(IntEnum):
    """What a write has survived when its call returns."""

    CACHE = -1
    """The death of any process; but the store keeps no log to make its state anew from (see cache)."""
    OS = 0
    """The death of any process."""
    INTERVAL = 1
    """As OS; power loss, too, at the latest after the store's interval."""
    DISK = 2
    """Power loss."""


def parse_durability(text: str) -> Durability:
    """The durability that `text` names. Raises UsageError."""
    try:
        return Durability[text.upper()]
    except (KeyError, AttributeError) as error:
        raise UsageError(f"durability is 'os', 'interval', 'disk' or 'cache', not {text!r}") from error


Evaluate: TypeAlias = Callable[[Stage], Any]
"""What a change does, under the lock: reads the stage, puts events on it, gives the call's result."""


class Operation:
    """A change that waits to be committed, and what became of it."""

    __slots__ = ("error", "evaluate", "is_done", "operation_id", "position", "result")

    def __init__(self, evaluate: Evaluate, operation_id: bytes | None = None) -> None:
        self.evaluate = evaluate
        self.operation_id = operation_id
        self.result: Any = None
        self.error: BaseException | None = None
        self.position: StatePosition | None = None
        self.is_done = False


class Writer:
    """One process's way into the log of one store."""

    def __init__(
        self,
        log: EventLog,
        view: View,
        *,
        gate: CommitGate | None,
        write_timeout_ms: int,
        after_append: Callable[[], None],
        make_room: Callable[[], None],
    ) -> None:
        self.log = log
        self.view = view
        self.gate = gate
        self.write_timeout_ms = write_timeout_ms
        self._after_append = after_append
        self._make_room = make_room
        self.threads = threading.Lock()
        """Held by the thread that writes, and by whoever closes the store."""
        log.thread_locks.append(self.threads)
        self._queue: deque[Operation] = deque()
        self._writing_thread = 0
        self.find_newer: Callable[[], Promise | None] | None = None
        """Asks the other nodes whether one of them is the primary of a later epoch by now."""
        self.dirty_since_ms = 0
        """Monotonic ms of the oldest append that no flush of this process covers; 0 if none."""

    @property
    def is_busy(self) -> bool:
        """Does a thread of this process write, or wait to?"""
        return bool(self._queue) or self.threads.locked()

    # -- the calls -------------------------------------------------------------------------------

    def create(
        self, key: bytes, value: bytes, operation_id: bytes, now_ms: int, expiry_ms: int
    ) -> StatePosition:
        """Append the creation of a session under a key that was never used. The fast path.

        The same as commit() with a put, in one plain function, because calls are what it would spend
        its time on; answers its frame's position, not yet durable.
        """
        log, view = self.log, self.view
        if self._queue or self.threads.locked():  # is_busy, in place
            return self._submit(
                Operation(lambda stage: stage.put(key, value, Reason.CREATED, operation_id), operation_id)
            )
        if len(view.tail) > TAIL_ENTRIES_MAX:
            self._make_room()
        position = None
        with self.threads:
            if log.words[_TURN]:
                log.give_way()
            descriptor = log.write_lock.descriptor
            try:  # also around the lock: a signal's exception must not leave it held
                self._writing_thread = get_ident()
                try:
                    flock(descriptor, _EXCLUSIVE)
                except (OSError, ValueError):
                    log.lock()
                else:
                    log.locked()
                if view.needs_commit:
                    self._admit()
                if log.cursor.offset >= log.segment_bytes or log.must_roll:
                    log.roll_if_due(now_ms)
                at = log.cursor.at
                hashed = xxh3_64(value, xxh3_64(key))
                position = log.append(
                    pack_event(_PUT, _CREATED, len(key), len(value), operation_id) + key + value,
                    1,
                    (at[3] + hashed) & MASK64,
                    at[4] + 1,
                    now_ms,
                )
                view.took_one(
                    key,
                    hashed.to_bytes(8, "little") + value,
                    expiry_ms if expiry_ms != NEVER_MS else NEW_MS,
                    position,
                )
            except BaseException as error:
                self._broke_off(error, position, operation_id)
                raise
            finally:
                self._writing_thread = 0
                flock(descriptor, _RELEASE)
        if len(view.tail) >= FOLD_ENTRIES:
            self._after_append()
        return position

    def commit(
        self, evaluate: Evaluate, operation_id: bytes | None = None, *, makes_room: bool = True
    ) -> tuple[Any, StatePosition | None]:
        """Evaluate a change under the lock and append what it says, with others that wait.

        Answers (its result, the position of its frame, or None if it wrote nothing). Raises what
        `evaluate` raises; then nothing was written for it. Who holds the fold lock must not ask for room.
        """
        operation = Operation(evaluate, operation_id)
        if makes_room and len(self.view.tail) > TAIL_ENTRIES_MAX:
            self.refuse_reentry()
            self._make_room()
        position = self._submit(operation)
        return operation.result, position if operation.position else None

    def change(
        self,
        key: bytes,
        operation_id: bytes,
        evaluate: Callable[[bytes, Record | None, int, T], tuple[bytes, StoredT, int]],
        asked: T,
    ) -> tuple[StatePosition, StoredT]:
        """Read, change and append one session in the caller's own thread, in a frame of its own.

        `evaluate` gets the key, its record (None if there is none, its hash not checked yet), the time in
        ms, and `asked`; it answers the event, the new stored session (None: it was there, and is removed) and
        what that leaves to arm (see view). What it raises comes through, and nothing is written. Answers the
        frame's position and the new stored session. One plain function, as create().
        """
        if self._writing_thread:
            self.refuse_reentry()
        log, view = self.log, self.view
        if len(view.tail) > TAIL_ENTRIES_MAX:
            self._make_room()
        position = None
        with self.threads:
            if log.words[_TURN]:
                log.give_way()
            descriptor = log.write_lock.descriptor
            try:
                self._writing_thread = get_ident()
                try:
                    flock(descriptor, _EXCLUSIVE)
                except (OSError, ValueError):
                    log.lock()
                else:
                    log.locked()
                if view.needs_commit:
                    self._admit()
                now_ms = log.now_ms()
                if log.cursor.offset >= log.segment_bytes or log.must_roll:
                    log.roll_if_due(now_ms)
                old = view.newest(key)
                event, value, arm_ms = evaluate(key, old, now_ms, asked)
                at = log.cursor.at
                term = 0 if old is None else -int.from_bytes(old[:HASH_BYTES], "little")
                record = None
                if value is not None:
                    hashed = xxh3_64(value, xxh3_64(key))
                    term += hashed
                    record = hashed.to_bytes(8, "little") + value
                position = log.append(
                    event, 1, (at[3] + term) & MASK64, at[4] + (old is None) - (value is None), now_ms
                )
                view.took_one(key, record, arm_ms, position)
            except BaseException as error:
                self._broke_off(error, position, operation_id)
                raise
            finally:
                self._writing_thread = 0
                flock(descriptor, _RELEASE)
        if len(view.tail) >= FOLD_ENTRIES:
            self._after_append()
        return position, value

    # -- durability ------------------------------------------------------------------------------

    def finish(self, position: StatePosition, durability: Durability, operation_id: bytes | None) -> None:
        """Return once a frame is as durable as asked.

        Raises Indeterminate for whatever goes wrong: the frame is in the log already.
        """
        log, gate = self.log, self.gate
        try:
            if self.view.needs_commit:
                self._wait_committed(position)
            else:
                if durability is Durability.DISK or log.config.degraded_from:
                    # Left alone, this disk stands for those of the replicas.
                    log.flush(position.lsn, is_writer=True)
                elif durability is Durability.INTERVAL and not self.dirty_since_ms:
                    self.dirty_since_ms = time.monotonic_ns() // 1_000_000
                if gate is not None and log.words[_SHIPPER_IDLE]:
                    gate.poke(position.lsn)
            # Another thread may have looked at the new role already: the epoch of the log tells as well.
            if log.words[_GENERATION] != log.generation or log.words[_EPOCH] != position.epoch:
                self._check_still_ours(position)
        except Indeterminate:
            raise
        except (PerdureError, OSError, ValueError) as error:  # ValueError: the page was closed meanwhile
            raise self._indeterminate(str(error), position, operation_id) from error

    def wait_visible(self) -> None:
        """Wait until every frame that was appended is committed: an answer that rests on one of them."""
        if not self.view.needs_commit:
            return
        if self.view.pending_frames:
            self._wait_committed(self.log.cursor.at)
        self._confirm()

    def _confirm(self) -> None:
        """What writes nothing is certain only if no other node was the primary by then."""
        epoch = self.log.cursor.at.epoch
        if self.gate is None:
            raise self._no_way_to_replicas()
        if not self.gate.confirm(self.write_timeout_ms) and not self._is_over(epoch):
            raise NoQuorumError(
                f"{self.log.config.sync_replicas} replica(s) did not confirm that this node is the primary",
                node=self.log.identity.node,
                hint="Nothing was written. Start the replicas, or see `perdure status`.",
            )
        if self._is_over(epoch):
            raise self.log.not_primary()

    def _wait_committed(self, position: StatePosition) -> None:
        if self.gate is None:
            raise self._no_way_to_replicas()
        begun = time.monotonic()
        if not self._wait_at_gate(self.gate, position):
            replicas, waited_ms = self.log.config.sync_replicas, int((time.monotonic() - begun) * 1000)
            error = Indeterminate(
                f"not confirmed by {replicas} replica(s) within {waited_ms} ms",
                position=position.position,
                operation_id=None,
            )
            error.left_ms = max(0, self.write_timeout_ms - waited_ms)
            raise error

    def _wait_at_gate(self, gate: CommitGate, position: StatePosition) -> bool:
        """Wait for the commit LSN; looks now and then whether another node has become the primary."""
        if self.find_newer is None:
            return gate.wait(position.position, self.write_timeout_ms)
        left_ms = self.write_timeout_ms
        while left_ms > MOVED_MS:
            if gate.wait(position.position, MOVED_MS):
                return True
            left_ms -= MOVED_MS
            self.hear_of_others()
            if self._is_over(position.epoch):
                return gate.wait(position.position, 0)
        return gate.wait(position.position, left_ms)

    def hear_of_others(self) -> None:
        """If another node is the primary of a later epoch, fence this one, as its shipper would.

        Not for a thread that writes: it holds what this takes.
        """
        newer = self._newer()
        if newer is not None:
            with self.threads:
                self._fence_by(newer)

    def _newer(self) -> Promise | None:
        return self.find_newer() if self.find_newer is not None and self.log.is_primary else None

    def _fence_by(self, newer: Promise | None) -> None:
        """Record that another node reigns, so that all writers of this one stop. The caller has `threads`."""
        log = self.log
        if newer is None or newer.epoch <= log.promise.epoch:
            return
        log.lock_any()
        try:
            if log.promise.epoch < newer.epoch:
                log.give_promise(newer)
        finally:
            log.unlock()

    def _is_over(self, epoch: int) -> bool:
        """Is this node not the primary of that epoch any more, by its own files?"""
        log = self.log
        if log.words[_GENERATION] != log.generation:
            with self.view.mutex:
                self.view.catch_up()
        return not log.is_primary or log.cursor.at.epoch != epoch

    def _check_still_ours(self, position: StatePosition) -> None:
        """The node's role changed while the frame was in flight: was it before the change?"""
        log = self.log
        with self.view.mutex:
            self.view.catch_up()
        if not log.is_primary or log.cursor.at.epoch != position.epoch:
            raise FencedError(
                f"this node lost its role while a write was under way: {log.not_primary()}",
                node=log.identity.node,
                lsn=position.lsn,
            )

    def _indeterminate(self, why: str, position: StatePosition, operation_id: bytes | None) -> Indeterminate:
        return Indeterminate(
            f"the write is in the log, but it is not known to be durable: {why}",
            position=(position.epoch, position.lsn, position.chain),
            operation_id=operation_id.hex() if operation_id else None,
        )

    def _broke_off(self, error: BaseException, position: StatePosition | None, operation_id: bytes) -> None:
        """Something was raised under the lock. Raises Indeterminate if it was behind the append."""
        self.view.recheck()
        if position is not None and isinstance(error, Exception):
            raise self._indeterminate(str(error), position, operation_id) from error

    # -- one frame -------------------------------------------------------------------------------

    def _submit(self, operation: Operation) -> StatePosition:
        self.refuse_reentry()
        try:
            self._queue.append(operation)
            with self.threads:
                while not operation.is_done:  # more may wait before it than one group takes
                    self._commit()
        except BaseException:
            if not operation.is_done:  # what was asked for must not be done later, behind the caller's back
                with contextlib.suppress(ValueError):
                    self._queue.remove(operation)
            raise
        self._after_append()
        self._result(operation)
        return operation.position or self.log.cursor.at

    def _result(self, operation: Operation) -> Any:
        if operation.error is not None:
            raise operation.error
        return operation.result

    def _commit(self) -> None:
        """Commit the head of the queue in one frame; each operation learns what became of it.

        They stay in the queue until they are done, so that none is lost if this thread is interrupted.
        """
        log, queue = self.log, self._queue
        group = self._waiting()
        settled_lsn = -1
        try:
            self._writing_thread = get_ident()
            log.words[_APPENDED]
            descriptor = log.write_lock.descriptor
            try:
                log.lock()
                if self.view.needs_commit:
                    self._admit()
                left = group
                while left:
                    settled_lsn = log.cursor.at.lsn
                    left = self._append_some(left)
                settled_lsn = log.cursor.at.lsn
            except BaseException:
                self.view.recheck()
                raise
            finally:
                flock(descriptor, _RELEASE)
        except BaseException as error:
            self._fail(group, error, settled_lsn)
            if not isinstance(error, Exception):
                raise  # Ctrl-C is for the thread that it met; the others commit what is theirs
        finally:
            self._writing_thread = 0
            while queue and queue[0].is_done:
                queue.popleft()

    def _waiting(self) -> list[Operation]:
        """The head of the queue, which other threads join without a lock."""
        while True:
            try:
                return list(islice(self._queue, GROUP_OPERATIONS_MAX))
            except RuntimeError:  # one joined in the middle: a garbage collection may run others there
                continue

    def _fail(self, group: list[Operation], error: BaseException, settled_lsn: int) -> None:
        """Tell the operations of a group that broke off; one that may be in the log is Indeterminate."""
        at = self.log.cursor.at
        may_stand = settled_lsn >= 0 and at.lsn != settled_lsn
        for operation in group:
            if operation.is_done:
                continue
            if may_stand:
                why = (
                    str(error)
                    if isinstance(error, Exception)
                    else "the thread that appended it was interrupted"
                )
                operation.error = self._indeterminate(why, at, operation.operation_id)
                operation.is_done = True
            elif isinstance(error, Exception):
                operation.error, operation.is_done = error, True

    def _append_some(self, group: list[Operation]) -> list[Operation]:
        """Append one frame of as many operations as fit; answers those that are left."""
        log = self.log
        now_ms = log.now_ms()
        log.roll_if_due(now_ms)
        stage = Stage(self.view)
        taken = 0
        for operation in group:
            parts = len(stage.parts)
            try:
                operation.error = None
                operation.result = operation.evaluate(stage)
            except Exception as error:  # noqa: BLE001 - it is for the caller of this one operation
                operation.error = error
                if len(stage.parts) != parts or not isinstance(error, PerdureError):
                    # It may have left half of itself in the stage: the others are evaluated anew, without it.
                    operation.is_done = True
                    return [other for other in group if other is not operation]
            if stage.is_too_large():
                if taken:  # beside the others: it gets a frame of its own
                    return self._append_some(group[:taken]) + group[taken:]
                operation.error, operation.is_done = stage.too_large(), True
                return group[1:]
            taken += 1
            if stage.size_bytes >= GROUP_BYTES_MAX or stage.event_count >= EVENTS_LIMIT // 2:
                break
        self._append(stage, group[:taken], now_ms)
        return group[taken:]

    def _append(self, stage: Stage, group: list[Operation], now_ms: int) -> None:
        if stage.parts:
            position = self.log.append(
                b"".join(stage.parts), stage.event_count, stage.digest & MASK64, stage.session_count, now_ms
            )
            with self.view.mutex:
                self.view.took(stage.entries)
        else:
            position = None
        for operation in group:
            operation.position, operation.is_done = position, True

    def _admit(self) -> None:
        """With sync_replicas >= 1: refuse before anything is appended what could not be confirmed."""
        view, log = self.view, self.log
        if self.gate is None:
            raise self._no_way_to_replicas()
        with view.mutex:
            view.advance()
        if len(view.pending_frames) > PENDING_FRAMES_MAX:
            raise BacklogError(
                f"more than {PENDING_FRAMES_MAX} frames wait for replicas",
                hint="Try again shortly; `perdure status` shows how far the replicas are.",
            )
        deadline = 0.0
        while log.words[_VOTERS] < log.config.sync_replicas:  # which may be another after the wait
            deadline = deadline or time.monotonic() + self.write_timeout_ms / 1000
            log.unlock()
            try:
                self._await_voters(log.config.sync_replicas, deadline)
            finally:
                log.lock()

    def _no_way_to_replicas(self) -> NoQuorumError:
        return NoQuorumError(
            "the store asks for replicas, and this handle has no way to them",
            node=self.log.identity.node,
            hint="Open it with perdure.open(), which wires the shipper.",
        )

    def _await_voters(self, need: int, deadline: float) -> None:
        """Give the replicas until the write's deadline to connect; NoQuorumError if they do not.

        Returns earlier if the role (nobody connects to what is no primary any more: the lock tells), or what
        has to be confirmed, may have changed.
        """
        words, generation = self.log.words, self.log.generation
        look_at = time.monotonic() + MOVED_MS / 1000
        while words[_VOTERS] < need and words[_GENERATION] == generation:
            now = time.monotonic()
            if now >= look_at:
                look_at = now + MOVED_MS / 1000
                self._fence_by(self._newer())
            if now < deadline:
                time.sleep(QUORUM_POLL_S)
                continue
            raise NoQuorumError(
                f"{words[_VOTERS]} of the {need} replica(s) that must confirm a write are connected",
                node=self.log.identity.node,
                hint="Nothing was written. Start the replicas, or see `perdure status`.",
            )

    def refuse_reentry(self) -> None:
        """Raise ReentrantWriteError in a thread that is inside an update function."""
        if self._writing_thread and self._writing_thread == get_ident():
            raise ReentrantWriteError(
                "a write to the store from inside an update function",
                hint="Return the changed session, and do other writes after update() has returned.",
            )
