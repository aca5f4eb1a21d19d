"""AsyncSessionStore: the same calls as SessionStore, cancelling, timeouts, loops, forks, closing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import inspect
import os
import threading
import time
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.store import (
    AsyncBatch,
    AsyncFeed,
    AsyncSessionStore,
    Batch,
    Feed,
    ForkedError,
    Indeterminate,
    Outcome,
    Session,
    SessionNotFoundError,
    SessionStore,
    StoreClosedError,
    StoreMissingError,
    UsageError,
    VersionConflictError,
    indeterminate_of,
)
from perdure.store.async_calls import WRITE_THREADS, Call
from perdure.store.async_sessions import CHUNK, READS_IN_A_ROW_MAX
from perdure.store.backends import BACKENDS
from perdure.store.outcome import find_outcome
from tests.support.machine import stop_background

WAIT_S = 20.0
OTHERS = {"close": "aclose"}
"""What has another name here."""
OWN = {"aclose", "opened_by"}

Use = Callable[[AsyncSessionStore], Coroutine[Any, Any, None]]


def used(path: Path, use: Use, **options: Any) -> None:
    """Run `use` on the store at `path` in an event loop in debug mode, whose complaints are errors."""

    async def main() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with await AsyncSessionStore.open(path, **options) as store:
            await use(store)
        assert complaints == []

    asyncio.run(main(), debug=True)


@contextlib.contextmanager
def busy(store: AsyncSessionStore) -> Iterator[None]:
    """Another thread writes all the while: writes that have begun wait for it."""
    with store._store._writer.threads:
        yield


async def until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def begun(store: AsyncSessionStore, call: Awaitable[Any], writes: int = 1) -> asyncio.Task[Any]:
    """A task whose write waits for the Writer; the caller keeps that busy."""
    task = asyncio.ensure_future(call)
    queue = store._store._writer._queue
    already = len(queue)
    await until(lambda: len(queue) == already + writes or task.done())
    assert isinstance(task, asyncio.Task)
    return task


# -- the same calls --------------------------------------------------------------------------------


def public_of(kind: type) -> dict[str, Any]:
    return {
        name: member
        for name in dir(kind)
        if not name.startswith("_")
        and callable(member := inspect.getattr_static(kind, name).__get__(None, kind))
    }


def parameters_of(function: Any) -> list[tuple[str, Any, Any, Any]]:
    face = {name: getattr(perdure.store, name) for name in perdure.store.__all__}
    hints = typing.get_type_hints(function, function.__globals__ | face)
    return [
        (one.name, one.kind, one.default, hints.get(one.name))
        for one in inspect.signature(function).parameters.values()
    ]


def test_every_public_method_is_there_with_the_same_parameters() -> None:
    ours, theirs = public_of(AsyncSessionStore), public_of(SessionStore)
    assert ours.keys() - OWN == theirs.keys() - OTHERS.keys()
    for name in theirs:
        assert parameters_of(ours[OTHERS.get(name, name)]) == parameters_of(theirs[name]), name


def test_every_answer_is_the_same_or_comes_as_an_async_iterator_or_batch() -> None:
    ours, theirs = public_of(AsyncSessionStore), public_of(SessionStore)
    for name in theirs.keys() - {"open"}:
        mine = typing.get_type_hints(ours[OTHERS.get(name, name)])["return"]
        its = typing.get_type_hints(theirs[name])["return"]
        if typing.get_origin(its) is not None and "Iterator" in str(typing.get_origin(its)):
            assert str(mine) == str(its).replace("Iterator", "AsyncIterator"), name
        elif its is Batch:
            assert mine is AsyncBatch
        elif its is Feed:
            assert mine is AsyncFeed
        else:
            assert inspect.iscoroutinefunction(ours[OTHERS.get(name, name)]), name
            assert mine == its, name


def test_the_face_opens_with_the_same_options() -> None:
    ours, theirs = inspect.signature(perdure.open_async), inspect.signature(perdure.open)
    assert ours.parameters == theirs.parameters


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_call_does_what_the_plain_one_does(tmp_path: Path, backend: str) -> None:
    async def use(store: AsyncSessionStore) -> None:
        id = await store.create({"n": 1}, tags=["a"])
        found = await store.get(id)
        assert found is not None
        assert (found.metadata, found.tags) == ({"n": 1}, ("a",))
        assert await store.peek(id) == found
        assert (await store.update(id, lambda session: session.merge({"n": 2}))).metadata == {"n": 2}
        assert (await store.patch(id, {"m": 3})).metadata == {"n": 2, "m": 3}
        await store.touch(id)
        new_id = await store.regenerate_id(id)
        assert not await store.exists(id)
        assert await store.exists(new_id)
        put = await store.put("mine", {"x": 1}, None)
        assert put.version == 1
        with pytest.raises(VersionConflictError):
            await store.put("mine", {"x": 2}, if_version=7)
        with pytest.raises(SessionNotFoundError):
            await store.touch("nobody")
        async with store.batch() as batch:
            first = batch.create({"b": 1})
            batch.delete("mine")
        assert [one async for one in store.ids()] == sorted([new_id, first])
        assert [one.id async for one in store.sessions(lambda one: "b" in one.metadata)] == [first]
        assert {one.id for one in await store.sample(10)} == {new_id, first}
        assert await store.outcome(batch.operation_id) is Outcome.COMMITTED
        assert await store.delete(first)
        assert not await store.delete(first)
        short = await store.create(timeout_ms=1)
        await until(lambda: store._store.peek(short) is None)
        await asyncio.sleep(0.2)  # by less than an eighth of that the session time may go back
        assert await store.cleanup_expired() == 1
        assert await store.count() == 1
        seen: list[str] = []
        subscription = await store.on("*", lambda event: seen.append(event.kind))
        for number in range(4):
            await store.put(f"g{number}", {}, group="g", home_node=f"n{number % 2}")
        assert await store.drain_events()
        assert seen == ["created"] * 4
        subscription.cancel()
        assert [one async for one in store.ids(group="g", home_node="n1")] == ["g1", "g3"]
        assert [one async for one in store.groups()] == ["g"]
        assert [one async for one in store.home_nodes()] == ["n0", "n1"]
        assert [one async for one in store.tags()] == ["a"]
        assert [one.id async for one in store.sessions(group="g", after="g2")] == ["g3"]
        assert await store.count(group="g") == 4
        assert [one async for one in store.orphans(["n0"])] == ["g1", "g3"]
        assert await store.count_orphans(["n0"]) == 2
        assert await store.adopt_orphans(["n0"], "n0") == 2
        assert await store.cleanup_orphans(["n9"]) == 4
        assert (await store.touch_group("g")).sessions == (await store.delete_group("g")).sessions == 0
        position = await store.position()
        async with store.feed(0, consumer="c", follow=False) as feed:
            events = [event.lsn async for event in feed]
        assert events[-1] == position.lsn
        assert [consumer.name for consumer in await store.consumers()] == ["c"]
        assert await store.drop_consumer("c")
        assert (await store.reseal()).resealed == 0
        assert await store.stored_as(new_id) == new_id
        assert (await store.flush()) == await store.position()
        assert await store.fold() == (await store.stats())["appended_lsn"]

    used(tmp_path / "store", use, backend=backend)


def test_a_refresh_that_is_written_at_once_is_not_written_in_the_event_loop(tmp_path: Path) -> None:
    async def use(store: AsyncSessionStore) -> None:
        stop_background(store._store)  # which would slew the session time, also back
        id = await store.create(timeout_ms=600_000)
        threads: list[int] = []
        refresh = store._refresh_at_once

        def noting(key: bytes, now_ms: int) -> None:
            threads.append(threading.get_ident())
            refresh(key, now_ms)

        store._refresh_at_once = noting
        made = await store.peek(id)
        assert made is not None
        await until(lambda: store._store._now_ms() > made.last_accessed)
        before = (await store.position()).lsn
        assert await store.get(id)
        assert threads
        assert threading.get_ident() not in threads
        assert (await store.position()).lsn > before

    used(tmp_path / "store", use, refresh_window_ms=0)


def test_a_batch_whose_block_raises_writes_nothing(tmp_path: Path) -> None:
    async def use(store: AsyncSessionStore) -> None:
        async def write() -> None:
            async with store.batch() as batch:
                batch.create({"n": 1})
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await write()
        assert await store.count() == 0

    used(tmp_path / "store", use)


def test_iterators_read_on_in_chunks_and_may_be_left(tmp_path: Path) -> None:
    async def use(store: AsyncSessionStore) -> None:
        async with store.batch() as batch:
            expected = sorted(batch.create({"n": number}) for number in range(2 * CHUNK + 7))
        assert [one async for one in store.ids()] == expected
        assert [one.id async for one in store.sessions(after=expected[9])] == expected[10:]
        async for one in store.ids():
            assert one == expected[0]
            break

    used(tmp_path / "store", use)


def test_an_open_store_gets_its_async_face(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncSessionStore(SessionStore.open(tmp_path / "store")) as store:
            assert await store.exists(await store.create())

    asyncio.run(main(), debug=True)


def test_the_face_makes_and_opens_a_store_with_its_gate(tmp_path: Path) -> None:
    async def main() -> None:
        async with await perdure.open_async(tmp_path / "store") as store:
            assert await store.exists(await store.create())
        with pytest.raises(StoreMissingError):
            await perdure.open_async(tmp_path / "none", create=False)

    asyncio.run(main(), debug=True)


# -- functions that run in threads -----------------------------------------------------------------


class _CallsLater:
    async def __call__(self, session: Session) -> Session:
        return session


async def _later(session: Session) -> Session:
    return session


def _answers_later(session: Session) -> Coroutine[Any, Any, Session]:
    return _later(session)


@pytest.mark.parametrize("function", [_later, functools.partial(_later), _CallsLater(), _answers_later])
def test_a_coroutine_function_is_refused_and_the_session_stays_as_it_was(
    tmp_path: Path, function: Any
) -> None:
    async def use(store: AsyncSessionStore) -> None:
        before = await store.put("mine", {"n": 1})
        with pytest.raises(UsageError, match="coroutine"):
            await store.update("mine", function)
        with pytest.raises(UsageError, match="coroutine"):
            [one async for one in store.sessions(function)]
        assert await store.peek("mine") == before

    used(tmp_path / "store", use)


@pytest.mark.parametrize("raised", [ZeroDivisionError, StopIteration, KeyError])
def test_what_an_update_function_raises_comes_through(tmp_path: Path, raised: type[Exception]) -> None:
    async def use(store: AsyncSessionStore) -> None:
        def fail(_: Session) -> Session:
            raise raised

        before = await store.put("mine", {"n": 1})
        with pytest.raises(RuntimeError if raised is StopIteration else raised):  # as in any coroutine
            await store.update("mine", fail)
        assert await store.peek("mine") == before

    used(tmp_path / "store", use)


def test_an_update_function_sees_the_callers_context_off_its_thread(tmp_path: Path) -> None:
    who = contextvars.ContextVar("who", default="nobody")
    loop_thread = threading.get_ident()

    async def use(store: AsyncSessionStore) -> None:
        who.set("me")
        await store.put("mine", {})

        def name(session: Session) -> Session:
            assert threading.get_ident() != loop_thread
            return session.merge({"who": who.get()})

        assert (await store.update("mine", name)).metadata == {"who": "me"}

    used(tmp_path / "store", use)


# -- the event loop --------------------------------------------------------------------------------


def test_a_read_waits_in_a_thread_while_the_view_is_in_use(tmp_path: Path) -> None:
    async def use(store: AsyncSessionStore) -> None:
        id = await store.create({"n": 1})
        with store._store._view.mutex:
            reads = [asyncio.create_task(read(id)) for read in (store.get, store.peek, store.exists)]
            for _ in range(20):
                await asyncio.sleep(0.001)  # the loop goes on
            assert not any(read.done() for read in reads)
        found, peeked, is_there = await asyncio.gather(*reads)
        assert found == peeked
        assert is_there is True

    used(tmp_path / "store", use)


def test_a_read_that_nothing_holds_up_needs_no_thread(tmp_path: Path) -> None:
    async def use(store: AsyncSessionStore) -> None:
        id = await store.create({"n": 1})
        stop_background(store._store)
        assert await store.get(id) is not None
        threads = {thread.name for thread in threading.enumerate()}
        assert not [name for name in threads if name.startswith("perdure-async-read")]

    used(tmp_path / "store", use)


def test_reads_in_a_row_let_other_tasks_have_their_turn(tmp_path: Path) -> None:
    async def use(store: AsyncSessionStore) -> None:
        id = await store.create({"n": 1})
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(10 * READS_IN_A_ROW_MAX):
            await store.get(id)
        assert turns >= 10
        task.cancel()

    used(tmp_path / "store", use)


def test_a_read_that_would_write_waiting_refreshes_is_made_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_in: list[int] = []
    flush = SessionStore._make_room_for_refreshes

    def noted(store: SessionStore) -> None:
        made_in.append(threading.get_ident())
        flush(store)

    monkeypatch.setattr("perdure.store.reading.REFRESHES_MAX", 1)
    monkeypatch.setattr("perdure.store.async_sessions.REFRESHES_MAX", 1)
    monkeypatch.setattr(SessionStore, "_make_room_for_refreshes", noted)

    async def use(store: AsyncSessionStore) -> None:
        stop_background(store._store)  # it takes the refreshes, and waits with them
        ids = [await store.create(timeout_ms=60_000) for _ in range(2)]
        now_ms = store._store._now_ms
        monkeypatch.setattr(store._store, "_now_ms", lambda: now_ms() + 30_000)
        with store._store._writer.threads:  # nobody writes them meanwhile
            reads = asyncio.gather(*(store.get(id) for id in ids))
            await until(lambda: made_in or reads.done())
        await reads

    used(tmp_path / "store", use)
    assert made_in
    assert threading.get_ident() not in made_in


def test_tasks_share_frames(tmp_path: Path) -> None:
    async def use(store: AsyncSessionStore) -> None:
        before = await store.position()
        with busy(store):
            writes = [await begun(store, store.put(f"s{number}", {})) for number in range(WRITE_THREADS)]
        await asyncio.gather(*writes)
        run = []
        cursor = _cursor(store)
        try:
            cursor.seek(before.lsn)
            for found in cursor.runs():
                run += [frame.event_count for _, frame in found.frames]
        finally:
            cursor.close()
        assert sum(run) == WRITE_THREADS
        assert len(run) < WRITE_THREADS

    used(tmp_path / "store", use)


def _cursor(store: AsyncSessionStore) -> Any:
    from perdure.store.cursor import LogCursor

    log = store._store._log
    return LogCursor(log.cursor.log, log.identity.cluster_id, log.key, log.identity.shard, is_writable=False)


# -- cancelling ------------------------------------------------------------------------------------


async def _a_batch(store: AsyncSessionStore) -> None:
    async with store.batch() as batch:
        batch.create({"n": 1})
        batch.create({"n": 2})


WRITES: dict[str, Callable[[AsyncSessionStore], Awaitable[Any]]] = {
    "create": lambda store: store.create({"n": 1}),
    "put": lambda store: store.put("new", {"n": 1}),
    "update": lambda store: store.update("mine", lambda session: session.merge({"n": 2})),
    "patch": lambda store: store.patch("mine", {"n": 2}),
    "touch": lambda store: store.touch("mine"),
    "delete": lambda store: store.delete("mine"),
    "regenerate_id": lambda store: store.regenerate_id("mine"),
    "batch": _a_batch,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_caller_that_is_cancelled_while_its_write_is_under_way_learns_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begins: list[bytes] = []
    begin = Call.begin

    def noted(call: Call[Any], operation_id: bytes) -> None:
        begin(call, operation_id)
        begins.append(operation_id)

    async def use(store: AsyncSessionStore) -> None:
        await store.put("mine", {"n": 1})
        before = await store.position()
        monkeypatch.setattr(Call, "begin", noted)
        with busy(store):
            task = asyncio.ensure_future(WRITES[name](store))
            pools = store._pools
            await until(lambda: begins)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert type(caught.value) is asyncio.CancelledError
            known = indeterminate_of(caught.value)
            assert known is not None
            assert known.operation_id == begins[0].hex()
            asked = asyncio.create_task(store.outcome(known.operation_id))
            for _ in range(10):
                await asyncio.sleep(0.001)
            assert not asked.done()  # it is not known yet
        assert await asked is Outcome.COMMITTED
        assert pools._unfinished == {}
        assert (await store.position()).lsn > before.lsn
        again = find_outcome(store._store._log, store._store._view, known.operation_id)
        assert again is Outcome.COMMITTED

    used(tmp_path / "store", use)


@pytest.mark.parametrize("name", WRITES)
def test_a_caller_that_is_cancelled_before_its_turn_has_written_nothing(tmp_path: Path, name: str) -> None:
    async def use(store: AsyncSessionStore) -> None:
        await store.put("mine", {"n": 1})
        before = await store.position()
        with busy(store):
            others = [await begun(store, store.delete(f"nobody-{number}")) for number in range(WRITE_THREADS)]
            task = asyncio.ensure_future(WRITES[name](store))
            for _ in range(5):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert indeterminate_of(caught.value) is None
        await asyncio.gather(*others)
        assert await store.position() == before

    used(tmp_path / "store", use)


def test_a_caller_that_is_cancelled_before_its_write_reaches_the_writer_has_written_nothing(
    tmp_path: Path,
) -> None:
    async def use(store: AsyncSessionStore) -> None:
        reached, goes_on = threading.Event(), threading.Event()
        take = store._store._ids.take

        def slow() -> bytes:
            reached.set()
            assert goes_on.wait(WAIT_S)
            return take()

        store._store._ids.take = slow  # type: ignore[method-assign]
        before = await store.position()
        task = asyncio.create_task(store.put("mine", {"n": 1}))
        await until(reached.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert indeterminate_of(caught.value) is None
        goes_on.set()
        store._store._ids.take = take  # type: ignore[method-assign]
        await store.delete("somebody")  # in the same pool, behind it
        assert await store.position() == before

    used(tmp_path / "store", use)


BEGUN_S = (0.2, 2.0, WAIT_S)
"""By one of these times a write has begun, and waits: one that had not is simply given up."""


def _timed_by_context(call: Awaitable[Any], seconds: float) -> Awaitable[Any]:
    async def timed() -> Any:
        async with asyncio.timeout(seconds):
            return await call

    return timed()


def _timed_by_wait_for(call: Awaitable[Any], seconds: float) -> Awaitable[Any]:
    return asyncio.wait_for(call, seconds)


@pytest.mark.parametrize("timed", [_timed_by_context, _timed_by_wait_for])
def test_a_timeout_is_a_timeout_error_that_names_the_operation(
    tmp_path: Path, timed: Callable[[Awaitable[Any], float], Awaitable[Any]]
) -> None:
    async def use(store: AsyncSessionStore) -> None:
        known = None
        with busy(store):
            for seconds in BEGUN_S:
                with pytest.raises(TimeoutError) as caught:
                    await timed(store.put("mine", {"n": 1}), seconds)
                known = indeterminate_of(caught.value)
                if known is not None:
                    break
        assert known is not None
        assert known.operation_id is not None
        assert await store.outcome(known.operation_id) is Outcome.COMMITTED
        assert await store.exists("mine")

    used(tmp_path / "store", use)


def test_a_task_group_that_fails_cancels_its_writes_whole(tmp_path: Path) -> None:
    async def use(store: AsyncSessionStore) -> None:
        async def fail() -> None:
            await asyncio.sleep(0.01)
            raise ZeroDivisionError

        writes: list[asyncio.Task[Session]] = []

        async def write() -> None:
            async with asyncio.TaskGroup() as group:
                writes.extend(group.create_task(store.put(f"s{n}", {"n": n})) for n in range(200))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup) as caught:
            await write()
        assert caught.group_contains(ZeroDivisionError)
        for number, one in enumerate(writes):
            if not one.cancelled():
                assert await store.exists(f"s{number}")

    used(tmp_path / "store", use)


def test_a_write_that_was_refused_is_known_to_be_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(store: AsyncSessionStore) -> None:
        futures: list[concurrent.futures.Future[Any]] = []
        pool = store._pools._writers
        submit = pool.submit

        def noted(*arguments: Any) -> Any:
            futures.append(submit(*arguments))
            return futures[-1]

        monkeypatch.setattr(pool, "submit", noted)
        task = asyncio.create_task(store.touch("nobody"))
        await asyncio.sleep(0)
        concurrent.futures.wait(futures, WAIT_S)  # the loop does not look while the call is refused
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert indeterminate_of(caught.value) is None

    used(tmp_path / "store", use)


def test_work_without_an_operation_goes_on_when_its_caller_is_cancelled(tmp_path: Path) -> None:
    async def use(store: AsyncSessionStore) -> None:
        await store.put("mine", {"n": 1}, None)
        stop_background(store._store)  # it takes the same lock, to seal and to fold
        with store._store._view.mutex:
            task = asyncio.create_task(store.fold())
            await until(store._store._keeper._fold_threads.locked)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            known = indeterminate_of(caught.value)
            assert known is not None
            assert known.operation_id is None
        await until(lambda: not store._store._view.tail)

    used(tmp_path / "store", use)


def test_cancelling_at_any_time_leaves_every_batch_whole(tmp_path: Path, seed: int) -> None:
    import random

    rng = random.Random(seed)

    async def use(store: AsyncSessionStore) -> None:
        async def write(name: str) -> None:
            async with store.batch() as batch:
                for part in range(5):
                    batch.put(f"{name}-{part}", {"n": part}, None)

        tasks = {f"b{number}": asyncio.create_task(write(f"b{number}")) for number in range(150)}
        for name in rng.sample(sorted(tasks), 100):
            await asyncio.sleep(rng.random() * 0.0005)
            tasks[name].cancel()
        expected: dict[str, int] = {}
        for name, task in tasks.items():
            try:
                await task
                expected[name] = 5
            except asyncio.CancelledError as error:
                known = indeterminate_of(error)
                if known is not None and known.operation_id is not None:
                    assert await store.outcome(known.operation_id) is Outcome.COMMITTED
                expected[name] = 5 if known else 0
        found = [one async for one in store.ids()]
        assert {name: sum(one.startswith(f"{name}-") for one in found) for name in tasks} == expected

    used(tmp_path / "store", use)


# -- closing, loops, forks -------------------------------------------------------------------------


def test_closing_waits_for_the_calls_that_were_made(tmp_path: Path) -> None:
    async def main() -> None:
        store = await AsyncSessionStore.open(tmp_path / "store")
        with busy(store):
            writes = [asyncio.create_task(store.put(f"s{n}", {}, None)) for n in range(3 * WRITE_THREADS)]
            await until(lambda: len(store._store._writer._queue) == WRITE_THREADS)
            closing = asyncio.create_task(store.aclose())
            await asyncio.sleep(0.02)
            assert not closing.done()
            with pytest.raises(StoreClosedError):
                await store.put("late", {})
            with pytest.raises(StoreClosedError):
                await store.get("late")
        await closing
        await store.aclose()
        await asyncio.gather(*writes)
        with pytest.raises(StoreClosedError):
            await store.count()
        with pytest.raises(StoreClosedError):
            async with store.batch() as batch:
                batch.create()
        with pytest.raises(StoreClosedError):
            [one async for one in store.ids()]

    asyncio.run(main(), debug=True)
    with SessionStore.open(tmp_path / "store") as store:
        assert store.count() == 3 * WRITE_THREADS


def test_a_closing_that_is_cancelled_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        store = await AsyncSessionStore.open(tmp_path / "store")
        with busy(store):
            await begun(store, store.put("mine", {}, None))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(store.aclose(), 0.02)
        await store.aclose()
        assert store._store._is_closed

    asyncio.run(main(), debug=True)


def test_an_opening_that_is_cancelled_leaves_no_store_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[SessionStore] = []
    goes_on = threading.Event()

    def slow() -> SessionStore:
        assert goes_on.wait(WAIT_S)
        opened.append(SessionStore.open(tmp_path / "store"))
        return opened[0]

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(AsyncSessionStore.opened_by(slow), 0.02)
        goes_on.set()
        await until(lambda: opened and opened[0]._is_closed)

    asyncio.run(main(), debug=True)


def test_a_loop_that_is_closed_early_leaves_the_write_whole(tmp_path: Path) -> None:
    store = AsyncSessionStore(SessionStore.open(tmp_path / "store"))

    async def leave() -> None:
        await begun(store, store.put("mine", {"n": 1}, None))

    with busy(store):
        asyncio.run(leave(), debug=True)  # cancels what is left, and closes the loop

    async def look() -> None:
        async with store:
            await until(lambda: not store._store._writer._queue)
            assert await store.exists("mine")

    asyncio.run(look(), debug=True)


def test_several_loops_use_one_store_at_once(tmp_path: Path) -> None:
    store = AsyncSessionStore(SessionStore.open(tmp_path / "store"))
    found: list[str] = []

    async def create_some() -> None:
        found.extend(await asyncio.gather(*(store.create({"n": n}) for n in range(50))))

    threads = [
        threading.Thread(target=asyncio.run, args=(create_some(),), kwargs={"debug": True}) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 200
    assert sorted(store._store.ids()) == sorted(found)
    asyncio.run(store.aclose())


def test_a_child_of_a_fork_is_refused_by_name_and_opens_its_own(tmp_path: Path) -> None:
    path = tmp_path / "store"

    async def refused(inherited: AsyncSessionStore, batch: AsyncBatch, ids: AsyncIterator[str]) -> None:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: inherited.get("mine"),
            lambda: inherited.put("other", {}),
            inherited.create,
            inherited.count,
            inherited.flush,
            lambda: batch.__aexit__(None, None, None),
            lambda: anext(ids),
        ]
        for call in calls:
            with pytest.raises(ForkedError):
                await call()
        await inherited.aclose()
        async with await AsyncSessionStore.open(path) as own:
            await own.put("child", {}, None)

    async def use(store: AsyncSessionStore) -> None:
        await store.put("mine", {}, None)
        await asyncio.gather(*(store.touch("mine") for _ in range(20)))  # its threads run
        batch = store.batch()
        (await batch.__aenter__()).create()
        ids = store.ids()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                asyncio.run(refused(store, batch, ids), debug=True)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0  # noqa: ASYNC222
        await batch.__aexit__(None, None, None)
        assert {"child", "mine"} < {one async for one in store.ids()}
        assert await store.count() == 3

    used(path, use)


def test_an_indeterminate_write_is_told_as_it_is_when_its_caller_is_cancelled_later(tmp_path: Path) -> None:
    told = Indeterminate("not known", position=(1, 2, 3), operation_id="00" * 16)
    error = asyncio.CancelledError()
    error.__cause__ = told
    timeout = TimeoutError()
    timeout.__context__ = error
    assert indeterminate_of(timeout) is told
    assert indeterminate_of(ValueError()) is None
