"""Calls of a store on behalf of asyncio: threads of their own, and what a cancelled caller is told.

Owns the two bounded pools and the moment at which a call can no longer be taken back: when its write
reaches the Writer. A caller that is cancelled before has asked for nothing; one that is cancelled behind it
gets its CancelledError from an Indeterminate with the operation id, while the write goes on to its end.

The error stays a plain CancelledError, because asyncio.timeout() of Python 3.11 and 3.12 turns nothing but
exactly that class into a TimeoutError.

Invariant: no work is broken off in its thread; a call either never reaches the Writer or is finished.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from .commit import Evaluate, Writer
from .errors import ForkedError, Indeterminate, StaleReadError, StoreClosedError
from .ports import Record
from .view import View

WRITE_THREADS: Final = 8
"""Calls that write at once; more wait in their turn. They share frames and syncs."""
READ_THREADS: Final = 4
"""Calls that read at once, of those that could wait for a lock or take long."""
CAUSES_MAX: Final = 8
T = TypeVar("T")


class _Abandoned(Exception):
    """Ends work whose caller was cancelled before it reached the Writer. Nobody sees it."""


class Call(Generic[T]):
    """One call, and what became of it in its thread."""

    def __init__(self, work: Callable[[], T], *, is_under_way: bool = False) -> None:
        """`is_under_way`: work without an operation id, that counts as begun as soon as it runs."""
        self._work = work
        self._lock = threading.Lock()
        self._is_work = is_under_way
        self._is_abandoned = False
        self.has_begun = False
        self.operation_id: bytes | None = None
        self.error: BaseException | None = None
        self.future: Future[None]
        self._result: list[T] = []

    def run(self) -> None:
        """Do the work, in its thread. Raises nothing: a future could not carry a StopIteration."""
        _running.call = self
        try:
            if self._is_work:
                self.begin(None)
            self._result.append(self._work())
        except BaseException as error:  # noqa: BLE001 - it is for the caller
            self.error = error
        finally:
            _running.call = None

    def begin(self, operation_id: bytes | None) -> None:
        """From here on the call cannot be taken back. Raises _Abandoned if it was before."""
        with self._lock:
            if self._is_abandoned:
                raise _Abandoned
            self.has_begun = True
            self.operation_id = operation_id

    def abandon(self) -> bool:
        """Take the call back; says whether that was in time."""
        with self._lock:
            self._is_abandoned = not self.has_begun
            return self._is_abandoned

    def result(self) -> T:
        """What the work answered. Raises what it raised."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            return self._result[0]
        finally:
            del error  # its traceback holds this frame: no cycle


class _Running(threading.local):
    call: Call[Any] | None = None


_running: Final = _Running()


class TrackedWriter:
    """A Writer that tells the running call when its write begins."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def create(self, key: bytes, value: bytes, operation_id: bytes, *rest: Any, **options: Any) -> Any:
        _begin(operation_id)
        return self._writer.create(key, value, operation_id, *rest, **options)

    def change(self, key: bytes, operation_id: bytes, *rest: Any, **options: Any) -> Any:
        _begin(operation_id)
        return self._writer.change(key, operation_id, *rest, **options)

    def commit(self, evaluate: Evaluate, operation_id: bytes | None = None, **options: Any) -> Any:
        if operation_id is not None:  # without one it is no call's own write: coalesced refreshes
            _begin(operation_id)
        return self._writer.commit(evaluate, operation_id, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def _begin(operation_id: bytes) -> None:
    call = _running.call
    if call is not None:
        call.begin(operation_id)


class WouldWaitError(Exception):
    """A read from the event loop's thread found the view in use. Never leaves the store."""


class PatientReader:
    """A view's read() that the event loop's thread can ask not to wait."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._mutex = view.mutex
        self.asking = _Asking()

    def __call__(self, key: bytes) -> Record | None:
        """As View.read. Raises WouldWaitError where the caller may not wait, and would have to."""
        if self.asking.may_wait:
            return self._view.read(key)
        if not self._mutex.acquire(blocking=False):
            raise WouldWaitError
        try:
            return self._view.read(key, self)
        except StaleReadError as error:
            raise WouldWaitError from error

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self._mutex.release()


class _Asking(threading.local):
    may_wait = True


class CallPools:
    """The threads of one AsyncSessionStore, used from any number of event loops."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()
        self._writers = ThreadPoolExecutor(WRITE_THREADS, "perdure-async-write")
        self._readers = ThreadPoolExecutor(READ_THREADS, "perdure-async-read")
        self._is_closed = False
        self._unfinished: dict[str, Future[None]] = {}
        """Writes whose callers were cancelled, by operation id, until they end."""

    async def read(self, work: Callable[[], T]) -> T:
        """Do what changes nothing in a thread; a cancelled caller leaves nothing behind."""
        return await self._run(self._readers, Call(work))

    async def write(self, work: Callable[[], T]) -> T:
        """Do one write in a thread.

        A caller that is cancelled once it has begun gets its CancelledError from an Indeterminate.
        """
        return await self._run(self._writers, Call(work))

    async def work(self, work: Callable[[], T]) -> T:
        """As write, for work that has no operation id: it counts as begun when it runs."""
        return await self._run(self._writers, Call(work, is_under_way=True))

    async def settle(self, operation_id: str) -> None:
        """Wait for a write of this handle that goes on without its caller, if there is such a one."""
        future = self._unfinished.get(operation_id)
        if future is not None:
            await finished(future)

    @property
    def is_inherited(self) -> bool:
        """Is this a child, and the threads the parent's?"""
        return self._pid != os.getpid()

    def check_usable(self) -> None:
        """Raises ForkedError in a child, StoreClosedError once the pools are closed."""
        if self.is_inherited:
            raise ForkedError(
                "this handle was opened before a fork; it belongs to the parent process",
                path=self._path,
                hint="Open the store anew in the child.",
            )
        if self._is_closed:
            raise StoreClosedError("the store was closed", path=self._path)

    def refuse(self) -> None:
        """Take no more calls."""
        self._is_closed = True

    def close(self) -> None:
        """Wait for the calls that were taken. Blocks."""
        self._is_closed = True
        self._writers.shutdown()
        self._readers.shutdown()

    async def _run(self, pool: ThreadPoolExecutor, call: Call[T]) -> T:
        self.check_usable()
        try:
            call.future = pool.submit(contextvars.copy_context().run, call.run)
        except RuntimeError as error:  # another thread closed it just now, or the interpreter ends
            raise StoreClosedError("the store was closed", path=self._path) from error
        try:
            await finished(call.future)
        except asyncio.CancelledError as error:
            if call.future.cancel() or call.abandon():
                raise
            self._tell(call, error)
        return call.result()

    def _tell(self, call: Call[T], cancelled: asyncio.CancelledError) -> None:
        """Raise `cancelled` from what is known of a call that had begun."""
        if call.future.done() and call.error is not None:
            if isinstance(call.error, Indeterminate):
                raise cancelled from call.error
            raise cancelled  # it was refused: nothing was written
        operation_id = None if call.operation_id is None else call.operation_id.hex()
        if operation_id is not None:
            self._unfinished[operation_id] = call.future
            call.future.add_done_callback(lambda _: self._unfinished.pop(operation_id, None))
        raise cancelled from Indeterminate(
            "the caller was cancelled while the call was under way; it goes on to its end",
            position=None,
            operation_id=operation_id,
            hint="Ask outcome() with the operation id before you repeat it."
            if operation_id
            else "It can be called again.",
        )


async def finished(future: Future[Any]) -> None:
    """Wait until work in a thread has ended, however it did. Being cancelled leaves it alone."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: Future[Any]) -> None:
        try:
            loop.call_soon_threadsafe(_set, waiter)
        except RuntimeError:
            pass  # the loop was closed: nobody waits any more

    future.add_done_callback(wake)
    await waiter


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def in_own_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Begin work in a thread that ends with it, for what must not wait behind calls."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is for who waits
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def indeterminate_of(error: BaseException) -> Indeterminate | None:
    """What is known of a write whose caller was cancelled, from its CancelledError or TimeoutError.

    None: nothing was written for it, and nothing will be. Otherwise the write was under way: its
    `operation_id` is what `outcome()` takes (None for flush, fold and cleanup_expired: repeat them).
    """
    found: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if found is None or isinstance(found, Indeterminate):
            break
        found = found.__cause__ or found.__context__
    return found if isinstance(found, Indeterminate) else None
