"""One app process of the demo: it embeds the store, carries a stream of operations out, and keeps a ledger.

Owns the driving: what each operation is as a call, what is on file before and after it, and where a later
life of the same writer takes up the stream. Invariant: an attempt is in the ledger before its call, and is
answered there only when the store answered; a call that could not say is asked for its outcome, and stays
unanswered when nobody knows.

Run as `python -m perdure.cli.demo.writer TASK.json`; it is made to be killed at any instruction.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from ... import open as open_replicated
from ...store import BusyError, Indeterminate, Outcome, Session, SessionNotFoundError, SessionStore
from . import mapping, traffic
from .accesslog import LineCounts, in_time_order, read_hits
from .gauge import Count, Gauge, Stage
from .leash import end_with_parent
from .ledger import Attempt, Ledger, Progress, progress_of, read_ledger
from .operations import (
    Content,
    Create,
    Delete,
    Expire,
    Get,
    Kind,
    Operation,
    Peek,
    Regenerate,
    Touch,
    Update,
    content_hash,
)

TIMEOUT_MS = 3_600_000
EXPIRE_NOW_MS = 1
"""The idle timeout that a session gets when the log's own clock has passed it: the store then expires it."""
PATIENCE_S = 20.0
"""How long a refused call is repeated, and an unknown one asked for, before the writer gives up."""
ASK_EVERY_S = 0.02
SWEEP_EVERY_S = 0.25
MISMATCHES_SHOWN = 5
FILL_SESSIONS = 100
HOLD_S = 0.02


class Task(msgspec.Struct, frozen=True):
    """Everything that one writer is told. The plan decides the traffic unless there is an access log."""

    store: str
    ledger: str
    gauge: str
    writer: int
    plan: traffic.Plan
    access_log: str | None = None
    write_timeout_ms: int = 5000
    pace_s: float = 0.0
    """An operation takes at least so long, so that a short stream is not over before anything happens."""
    hold_at: int | None = None
    """Before this operation of its stream the writer waits for whatever ends it."""
    sweeps: bool = False
    """This writer's process also expires what is due."""


class Driver:
    """Carries operations out on a store, with every write in the ledger."""

    def __init__(self, store: SessionStore, ledger: Ledger, gauge: Gauge) -> None:
        self._store = store
        self._ledger = ledger
        self._gauge = gauge

    def carry_out(self, operation: Operation, sequence: int) -> None:
        """Carry out one operation. Raises what the store raises, past this writer's patience."""
        match operation:
            case Get(key=key, counter=counter):
                self._read(self._store.get(key), key, counter)
            case Peek(key=key, counter=counter):
                self._read(self._store.peek(key), key, counter)
            case Touch(key=key):
                self._touch(key)
            case _:
                self._write(operation, sequence)
        self._gauge.add(Count.OPERATIONS)

    def fill(self, first: int, creates: Sequence[Create]) -> None:
        """Create sessions in one atomic batch; the first of them is operation `first` of the stream."""

        def call() -> bool:
            with self._store.batch() as batch:
                for create in creates:
                    batch.put(create.key, create.content, TIMEOUT_MS, sliding=True)
            return True

        numbers = [
            self._ledger.attempt(
                Kind.CREATE,
                create.key,
                sequence=first + number,
                counter=create.counter,
                content_hash=content_hash(create.content),
            )
            for number, create in enumerate(creates)
        ]
        self._insist(call)
        for number in numbers:
            self._ledger.acknowledge(number)
        self._ledger.flush()
        self._gauge.add(Count.WRITES, len(creates))
        self._gauge.add(Count.OPERATIONS, len(creates))

    def settle(self, attempt: Attempt) -> bool:
        """Was an attempt that nobody answered carried out? If so it is answered now."""
        if not self._is_done(attempt):
            return False
        self._ledger.acknowledge(attempt.number)
        return True

    def _write(self, operation: Create | Update | Regenerate | Delete | Expire, sequence: int) -> None:
        kind, new_key, hashed, call = self._call_of(operation)
        number = self._ledger.attempt(
            kind,
            operation.key,
            new_key=new_key,
            sequence=sequence,
            counter=operation.counter,
            content_hash=hashed,
        )
        start = time.perf_counter_ns()
        existed = self._insist(call)
        taken_us = (time.perf_counter_ns() - start) // 1000
        self._ledger.acknowledge(number, existed=existed)
        self._ledger.flush()  # on file before the next kill can make an unknown of it
        self._gauge.add(Count.WRITES)
        if taken_us > self._gauge[Count.SLOWEST_US]:
            self._gauge[Count.SLOWEST_US] = taken_us

    def _call_of(
        self, operation: Create | Update | Regenerate | Delete | Expire
    ) -> tuple[Kind, str, int, Callable[[], bool]]:
        """(kind, new key, content hash afterwards, the call, which answers whether the session was there)."""
        match operation:
            case Create(key=key, content=content):
                return Kind.CREATE, "", content_hash(content), lambda: self._create(key, content)
            case Update(key=key, counter=counter, content=content):
                return Kind.UPDATE, "", content_hash(content), lambda: self._update(key, counter, content)
            case Regenerate(key=key, new_key=new_key, content=content):
                return (
                    Kind.REGENERATE,
                    new_key,
                    content_hash(content),
                    lambda: self._move(key, new_key, content),
                )
            case Delete(key=key):
                return Kind.DELETE, "", 0, lambda: self._store.delete(key)
            case Expire(key=key, counter=counter):
                return Kind.EXPIRE, "", 0, lambda: self._expire(key, counter)

    # -- the calls -------------------------------------------------------------------------------

    def _create(self, key: str, content: Content) -> bool:
        stored = self._store.put(key, content, TIMEOUT_MS, sliding=True)
        if stored.version != 1:
            self._mismatch(f"session {key} was there already")
        return True

    def _update(self, key: str, counter: int, content: Content) -> bool:
        def change(session: Session) -> Session:
            self._check(session, key, counter - 1)
            return session.replace(metadata=content)

        try:
            self._store.update(key, change)
        except SessionNotFoundError:
            # Only after a promotion that lost writes: an app goes on with a new session.
            self._mismatch(f"session {key} is gone")
            self._store.put(key, content, TIMEOUT_MS, sliding=True)
        return True

    def _move(self, key: str, new_key: str, content: Content) -> bool:
        """The id is the writer's choice, so that it is in the ledger before the call: one atomic batch."""
        with self._store.batch() as batch:
            batch.put(new_key, content, TIMEOUT_MS, sliding=True)
            batch.delete(key)
        return True

    def _expire(self, key: str, counter: int) -> bool:
        def change(session: Session) -> Session:
            self._check(session, key, counter)
            return session.replace(timeout_ms=EXPIRE_NOW_MS)

        try:
            self._store.update(key, change)
        except SessionNotFoundError:
            self._mismatch(f"session {key} is gone")
            return False
        return True

    def _touch(self, key: str) -> None:
        def call() -> bool:
            self._store.touch(key)
            return True

        try:
            self._insist(call)
        except SessionNotFoundError:
            self._mismatch(f"session {key} is gone")

    def _read(self, session: Session | None, key: str, counter: int) -> None:
        self._gauge.add(Count.READS)
        if session is None:
            self._mismatch(f"session {key} is gone")
        else:
            self._check(session, key, counter)

    # -- answers ---------------------------------------------------------------------------------

    def _insist(self, call: Callable[[], bool]) -> bool:
        """Repeat a call that was refused, and ask for the outcome of one that could not say."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except BusyError as error:
                self._gauge.add(Count.REFUSED)
                if time.monotonic() > end:
                    raise
                time.sleep(error.retry_after_ms / 1000)
            except Indeterminate as error:
                self._gauge.add(Count.UNKNOWN)
                if self._ask(error, end) is not Outcome.COMMITTED:
                    raise
                return True

    def _ask(self, error: Indeterminate, end: float) -> Outcome:
        outcome = Outcome.UNKNOWN
        while error.position is not None and time.monotonic() < end:
            outcome = self._store.outcome(error.position)
            if outcome is not Outcome.PENDING:
                break
            time.sleep(ASK_EVERY_S)
        return outcome

    def _is_done(self, attempt: Attempt) -> bool:
        session = self._store.peek(attempt.key)
        match attempt.kind:
            case Kind.DELETE:
                return session is None
            case Kind.EXPIRE:
                return session is None or session.timeout_ms == EXPIRE_NOW_MS
            case Kind.REGENERATE:
                return session is None and _has(self._store.peek(attempt.new_key), attempt.content_hash)
            case _:
                return _has(session, attempt.content_hash)

    def _check(self, session: Session, key: str, counter: int) -> None:
        hits = session.metadata.get("hits")
        if hits != counter:
            self._mismatch(f"session {key} has {hits} hits, its writer knows of {counter}")

    def _mismatch(self, text: str) -> None:
        self._gauge.add(Count.MISMATCHES)
        if self._gauge[Count.MISMATCHES] <= MISMATCHES_SHOWN:
            print(text, file=sys.stderr, flush=True)


def stream_of(task: Task) -> Iterator[Operation]:
    """The operations of a writer, from the first: the access log's where there is one, else made-up ones."""
    if task.access_log is None:
        return traffic.operations(task.plan, task.writer)
    hits = in_time_order(read_hits(task.access_log, LineCounts()))
    return mapping.operations(hits, writer=task.writer, writers=task.plan.writers)


def drive(task: Task, gauge: Gauge, is_stopping: Callable[[], bool]) -> Stage:
    """Carry a writer's stream out from where its ledger ends. Returns how it ended."""
    before = progress_of(read_ledger(task.ledger)) if Path(task.ledger).exists() else Progress(0, ())
    with (
        open_replicated(task.store, write_timeout_ms=task.write_timeout_ms) as store,
        Ledger.open(task.ledger, writer=task.writer) as ledger,
    ):
        driver = Driver(store, ledger, gauge)
        first = _first_sequence(driver, before)
        stream = islice(stream_of(task), first, None)
        gauge[Count.STAGE] = Stage.RUNNING
        first = _fill(driver, task, first, stream, gauge, is_stopping)
        swept_s = time.monotonic()
        for sequence, operation in enumerate(stream, first):
            while sequence == task.hold_at and not is_stopping():
                time.sleep(HOLD_S)
            if is_stopping():
                return Stage.STOPPED
            due_s = time.monotonic() + task.pace_s
            driver.carry_out(operation, sequence)
            gauge[Count.SEQUENCE] = sequence + 1
            if task.pace_s:
                time.sleep(max(0.0, due_s - time.monotonic()))
            if task.sweeps and time.monotonic() - swept_s > SWEEP_EVERY_S:
                _sweep(store, gauge)
                swept_s = time.monotonic()
    return Stage.FINISHED


def _fill(
    driver: Driver,
    task: Task,
    first: int,
    stream: Iterator[Operation],
    gauge: Gauge,
    is_stopping: Callable[[], bool],
) -> int:
    """Create what the plan wants to be there before its mix begins, in batches; answers where the stream
    then is."""
    places = traffic.places_of(task.plan, task.writer) if task.access_log is None else 0
    while first < places and not is_stopping():
        creates = list(islice(stream, min(FILL_SESSIONS, places - first)))
        driver.fill(first, [create for create in creates if isinstance(create, Create)])
        first += len(creates)
        gauge[Count.SEQUENCE] = first
    return first


def _first_sequence(driver: Driver, before: Progress) -> int:
    """Where to take up the stream: behind the last call, or at it again if it was not carried out.

    A call is one attempt, or those of one batch. An older one without an answer was taken up by the life
    after it, so that only the attempts that stand unanswered at the very end count.
    """
    first = before.next_sequence
    for attempt in reversed(before.unanswered):
        if attempt.sequence != first - 1:
            break
        first = attempt.sequence
    last_call = [attempt for attempt in before.unanswered if attempt.sequence >= first]
    settled = [driver.settle(attempt) for attempt in last_call]
    return before.next_sequence if all(settled) else first


def _sweep(store: SessionStore, gauge: Gauge) -> None:
    try:
        gauge.add(Count.SWEPT, store.cleanup_expired())
    except (BusyError, Indeterminate):
        return  # the next sweep meets the same sessions


def _has(session: Session | None, hashed: int) -> bool:
    return session is not None and content_hash(session.metadata) == hashed


def main() -> None:
    """Read the task, drive it, and leave the result in the gauge. Ends with exit code 0 or an error."""
    end_with_parent()
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the director's: it ends all of us in order
    task: Task = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Task)
    gauge = Gauge(Path(task.gauge))
    try:
        gauge[Count.STAGE] = drive(task, gauge, lambda: bool(stopping))
    except BaseException:
        gauge[Count.STAGE] = Stage.FAILED
        raise


if __name__ == "__main__":
    main()
