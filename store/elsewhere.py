"""Elsewhere: carrying out on the primary, wherever it is, what this node may not write itself.

Owns the life of one call that met a node which is not (or no longer) the primary: find the primary, submit,
meet conflicts, resolve an answer that was lost, and wait until the local state has the result. Invariant: a
change is in the history at most once, because it is submitted again only after a primary has said that what
was submitted before is lost and can never come; and the call answers only what is certain.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final, TypeAlias

from .commit import Durability, Evaluate, Writer
from .errors import (
    BusyError,
    Indeterminate,
    NotPrimaryError,
    PerdureError,
    PositionLostError,
    StaleReadError,
    WireError,
)
from .forwarding import RecordingStage, encode_change, encode_touches
from .ids import Position
from .outcome import Outcome, find_forwarded
from .ports import Forwarder, Record, Sought
from .progress import wait_until
from .promise import Promise, leaps

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.01
"""Pause before the primary is looked for again, or a frame that is not committed is asked after again."""
ROUND_MS: Final = 1_000
"""At most so long one answer is waited for, before the primary is looked for again."""
LOOK_MS: Final = 500
REFRESH_MS: Final = 1_000
REFRESHES_WAITING_MAX: Final = 10_000

Result: TypeAlias = Any


class Elsewhere:
    """What one handle does on the primary."""

    def __init__(self, writer: Writer, forwarder: Forwarder, durability: Durability) -> None:
        self._writer = writer
        self._forwarder = forwarder
        self._durability = durability
        self._log = writer.log
        self._view = writer.view
        self._refreshes = Refreshes(forwarder)

    @property
    def refreshes(self) -> Refreshes:
        return self._refreshes

    def is_reachable(self) -> bool:
        """Is there any other node that could be the primary, and a way to it?"""
        try:
            return self._forwarder.knows(self._log.config.members)
        except PerdureError as error:
            logger.warning("no way to other nodes: %s", error)
            return False

    def _need_others(self, why: PerdureError) -> None:
        """Raise `why` if there is nobody to ask; what is missing for it is said where nothing was written."""
        try:
            is_there = self._forwarder.knows(self._log.config.members)
        except PerdureError as error:
            if not isinstance(why, NotPrimaryError):
                raise why from error
            raise NotPrimaryError(
                f"{why.message}; and no other node can be asked: {error.message}",
                node=why.node,
                hint=error.hint or why.hint,
            ) from error
        if not is_there:
            raise why

    def carry_out(
        self,
        evaluate: Evaluate,
        level: Durability | None,
        operation_id: bytes,
        why: PerdureError,
        *,
        finished: tuple[Result, Position] | None = None,
    ) -> Result:
        """The result of a change, once it is committed and the local state has it.

        `why` is what kept the local writer from it: NotPrimaryError, or Indeterminate for a change that it
        has appended; then `finished` are its result and the position of its frame. Raises `why` if there is
        no other node to ask or no time left, what `evaluate` raises, and Indeterminate.
        """
        budget_ms = self._writer.write_timeout_ms
        if isinstance(why, Indeterminate):
            budget_ms = budget_ms if why.left_ms is None else why.left_ms
            if finished is None or not self._has_lost_role(finished[1]):
                raise why
        self._need_others(why)
        call = _Call(self, evaluate, level, operation_id, time.monotonic() + budget_ms / 1000, why)
        if finished is not None:
            call.suspect(*finished)
        return call.run()

    def _has_lost_role(self, position: Position) -> bool:
        with self._view.mutex:
            self._view.catch_up()
        log = self._log
        return not log.is_primary or log.cursor.at.epoch != position.epoch

    def newer_primary(self) -> Promise | None:
        """The primary of a later epoch than this node knows of, if any node says so."""
        if not self.is_reachable():
            return None
        epoch, primary = self._forwarder.primary(LOOK_MS)
        known = self._log.promise.epoch
        return Promise(epoch, primary) if epoch > known and not leaps(known, epoch) else None

    def position(self, *, is_confirmed: bool, timeout_ms: int) -> Position:
        """Where readers of the primary stand. It is looked for until the time is up: StaleReadError."""
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            left_ms = _left_ms(deadline)
            try:
                return self._forwarder.position(is_confirmed=is_confirmed, timeout_ms=min(left_ms, ROUND_MS))
            except (WireError, NotPrimaryError, BusyError, StaleReadError) as error:
                if time.monotonic() + RETRY_S >= deadline:
                    raise StaleReadError(
                        f"no primary could say within {timeout_ms} ms what was written: {error.message}",
                        node=self._log.identity.node,
                        hint="Read without asking for the newest, or try again.",
                    ) from error
            time.sleep(RETRY_S)
            if not is_confirmed and self.knows_all():
                return self._view.visible.position

    def reach(self) -> None:
        """Wait until the local state has all that readers of the primary see now. Raises StaleReadError."""
        timeout_ms = self._writer.write_timeout_ms
        deadline = time.monotonic() + timeout_ms / 1000
        position = self.position(is_confirmed=False, timeout_ms=timeout_ms)
        wait_until(self._log, self._view, position, deadline)

    def knows_all(self) -> bool:
        """Is this node the primary, and knows all that is committed: its own beginning, too?"""
        view = self._view
        with view.mutex:
            view.catch_up()
            view.advance()
            return self._log.is_primary and view.visible.epoch == self._log.cursor.at.epoch

    def sweep(self, limit: int | None, why: PerdureError) -> int:
        """Expire what is due, on the primary; answers how many. Raises `why` if there is none in time."""
        self._need_others(why)
        deadline = time.monotonic() + self._writer.write_timeout_ms / 1000
        while True:
            try:
                expired, position = self._forwarder.sweep(limit or 0, _left_ms(deadline))
            except (WireError, NotPrimaryError) as error:
                if time.monotonic() + RETRY_S >= deadline:
                    raise why from error
                time.sleep(RETRY_S)
                continue
            self.wait_local(position, deadline, None)
            return expired

    def wait_local(self, position: Position, deadline: float, operation_id: bytes | None) -> None:
        """Wait until readers here see what is committed at `position`. Raises Indeterminate."""
        try:
            wait_until(self._log, self._view, position, deadline)
        except (StaleReadError, PositionLostError) as error:
            raise Indeterminate(
                f"the primary has committed the write, and this node does not show it: {error.message}",
                position=position,
                operation_id=operation_id.hex() if operation_id else None,
                hint="It is carried out. Wait for its position with wait_for() before you read it here.",
            ) from error

    def close(self) -> None:
        self._refreshes.close()
        self._forwarder.close()


class _Call:
    """One change on its way."""

    def __init__(
        self,
        home: Elsewhere,
        evaluate: Evaluate,
        level: Durability | None,
        operation_id: bytes,
        deadline: float,
        why: PerdureError,
    ) -> None:
        self._home = home
        self._evaluate = evaluate
        self._level = home._durability if level is None else max(level, home._durability)
        self._operation_id = operation_id
        self._deadline = deadline
        self._why = why
        self._attempt = 0
        self._overlay: dict[bytes, Record | None] = {}
        self._sought: Sought | None = None
        """What may have been written, and is not known to be."""
        self._result: Result = None
        """What the call answers if that was written."""

    def suspect(self, result: Result, position: Position) -> None:
        """The local writer has appended it, and lost its role before it was committed."""
        base = Position(position.epoch, max(0, position.lsn - 1), 0)
        self._sought = Sought(self._operation_id, base, 0, position)
        self._result = result

    def run(self) -> Result:
        while True:
            try:
                if self._sought is not None:
                    if self._resolve(self._sought):
                        return self._result
                elif self._home._log.is_primary:
                    return self._write_here()
                elif self._submit():
                    return self._result
                if time.monotonic() < self._deadline:
                    continue
            except NotPrimaryError as error:
                self._note(error)
            except Indeterminate:
                raise
            except (WireError, BusyError) as error:
                self._note(error)
            if time.monotonic() + RETRY_S >= self._deadline:
                raise self._give_up()
            time.sleep(RETRY_S)
            self._look_here()

    def _note(self, error: PerdureError) -> None:
        if not isinstance(self._why, Indeterminate):
            self._why.__cause__ = error

    def _look_here(self) -> None:
        """This node may have become the primary."""
        view = self._home._view
        with view.mutex:
            view.catch_up()

    def _give_up(self) -> PerdureError:
        sought = self._sought
        if sought is not None:
            return Indeterminate(
                "the write may have been carried out, and no primary could say so in time",
                position=sought.position,
                operation_id=self._operation_id.hex(),
            )
        cause = self._why.__cause__
        if isinstance(cause, BusyError):
            return cause
        timeout_ms = self._home._writer.write_timeout_ms
        return NotPrimaryError(
            f"no primary was found within {timeout_ms} ms"
            + (f": {cause.message}" if isinstance(cause, PerdureError) else ""),
            node=self._why.node,
            hint="Nothing was written. " + self._why.hint,
        )

    def _write_here(self) -> Result:
        """This node has become the primary meanwhile."""
        writer = self._home._writer
        self._attempt += 1
        result, position = writer.commit(self._evaluate, self._operation_id)
        if position is None:
            writer.wait_visible()
            return result
        try:
            writer.finish(position, self._level, self._operation_id)
        except Indeterminate as error:
            if not self._home._has_lost_role(position.position):
                error.operation_id = self._operation_id.hex()
                raise
            self.suspect(result, position.position)
            raise NotPrimaryError("this node lost its role again") from error
        return result

    def _submit(self) -> bool:
        """Evaluate and submit once; says whether it was carried out. Raises what the change raises."""
        home = self._home
        view, forwarder = home._view, home._forwarder
        with view.mutex:
            view.catch_up()
            view.advance()
            base = view.visible.position
        stage = RecordingStage(view, self._overlay, self._reach_for_range)
        raised: BaseException | None = None
        try:
            self._result = self._evaluate(stage)
        except Exception as error:
            if not stage.reads:
                raise
            raised = error
            stage.discard()
        change = encode_change(stage.change())
        self._attempt += 1
        try:
            done = forwarder.submit(
                change,
                self._operation_id,
                self._attempt,
                self._level >= Durability.INTERVAL,
                min(_left_ms(self._deadline), ROUND_MS),
            )
        except Indeterminate as error:
            if not stage.parts:
                return False  # it writes nothing: ask again
            position = None if error.position is None else Position(*error.position)
            self._sought = Sought(self._operation_id, base, self._attempt, position)
            return False
        if done.conflicts is not None:
            self._overlay.update(done.conflicts)
            if not done.is_whole:
                home.wait_local(done.position, self._deadline, None)
            return False
        home.wait_local(done.position, self._deadline, self._operation_id)
        if raised is not None:
            raise raised
        return True

    def _reach(self) -> None:
        """Wait until the local state has all that readers of the primary see now.

        Raises StaleReadError, PositionLostError.
        """
        home = self._home
        position = home.position(is_confirmed=False, timeout_ms=_left_ms(self._deadline))
        wait_until(home._log, home._view, position, self._deadline)

    def _reach_for_range(self) -> None:
        try:
            self._reach()
        except (StaleReadError, PositionLostError) as error:
            raise NotPrimaryError(f"this node is behind the primary: {error.message}") from error

    def _resolve(self, sought: Sought) -> bool:
        """Ask what became of it; True: it is committed. False: it is lost, or not decided yet."""
        home = self._home
        if home._log.is_primary:
            return self._resolve_here(sought)
        found = home._forwarder.outcome(sought, min(_left_ms(self._deadline), ROUND_MS))
        if found == Outcome.COMMITTED.value:
            self._sought = None
            try:
                self._reach()
            except (StaleReadError, PositionLostError) as error:
                raise Indeterminate(
                    f"the write is carried out, and this node does not show it yet: {error.message}",
                    position=sought.position,
                    operation_id=self._operation_id.hex(),
                ) from error
            return True
        if found == Outcome.LOST.value:
            self._sought = None
            return False
        if found == Outcome.UNKNOWN.value:
            raise self._give_up()
        time.sleep(RETRY_S)
        return False

    def _resolve_here(self, sought: Sought) -> bool:
        """As _resolve, where this node has become the primary itself."""
        home = self._home
        if not home.knows_all():
            time.sleep(RETRY_S)
            return False
        found = find_forwarded(home._log, home._view, sought)
        if found is Outcome.UNKNOWN:
            raise self._give_up()
        if found is Outcome.LOST:
            self._sought = None
        elif found is Outcome.PENDING:
            time.sleep(RETRY_S)
        return found is Outcome.COMMITTED


class Refreshes:
    """Refreshes of get() on their way to the primary, in batches. The thread lives while there are any."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._mutex = threading.Lock()
        self._waiting: dict[bytes, int] = {}
        self._thread: threading.Thread | None = None
        self.forwarded = 0
        self.dropped = 0
        """Could not be written, or were too many."""

    def send(self, touches: dict[bytes, int]) -> None:
        """Take them over. Never raises, never waits."""
        with self._mutex:
            for key, used_ms in touches.items():
                if key in self._waiting or len(self._waiting) < REFRESHES_WAITING_MAX:
                    self._waiting[key] = used_ms
                else:
                    self.dropped += 1
            if self._thread is None and self._waiting:
                self._thread = threading.Thread(target=self._run, name="perdure-refreshes", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Wait for what is under way."""
        thread = self._thread
        if thread is not None:
            thread.join(2 * REFRESH_MS / 1000)

    def _run(self) -> None:
        while True:
            with self._mutex:
                taken, self._waiting = self._waiting, {}
                if not taken:
                    self._thread = None
                    return
            try:
                self._forwarder.refresh(encode_touches(taken), REFRESH_MS)
                self.forwarded += len(taken)
            except (PerdureError, OSError):
                self.dropped += len(taken)


def _left_ms(deadline: float) -> int:
    return max(1, int((deadline - time.monotonic()) * 1000))
