"""Forks at any time: a child is refused what it inherited, opens its own, and nothing is ever damaged."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import summarise, verify
from perdure.shipping import open_gate
from perdure.store import ForkedError, SessionStore
from perdure.store.backends import BACKENDS

FORKS = 15
PACE_S = 0.002
"""Between writes of a thread: a state in memory is made anew from all of them by each child."""
CHILDREN = 4
EACH = 60
DEADLINE_S = 60


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def in_child(action: Callable[[], object]) -> int:
    """Fork a child that does `action`; answers its pid. It ends with 0 if that returned."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(DEADLINE_S)
            action()
            code = 0
        except BaseException:  # noqa: BLE001 - for whoever reads the test's output
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(path: Path, expected: set[str]) -> None:
    """The store holds these sessions, verifies, and reopens as it was."""
    with SessionStore.open(path, create=False) as store:
        assert set(store.ids()) == expected
        before = (store.position(), store.stats()["digest"], store.count())
    findings = verify(path, level="chain")
    assert summarise(findings).exit_code == 0, [str(finding) for finding in findings]
    with SessionStore.open(path, create=False) as again:
        assert (again.position(), again.stats()["digest"], again.count()) == before


def test_every_call_on_an_inherited_handle_is_refused_by_name(tmp_path: Path, backend: str) -> None:
    with SessionStore.open(tmp_path / "store", backend=backend) as store:
        id = store.create({"n": 1})
        store.fold()
        ids, sessions = store.ids(), store.sessions()
        batch = store.batch()
        batch.__enter__().create({"n": 2})
        calls: list[Callable[[], Any]] = [
            lambda: store.get(id),
            lambda: store[id],
            lambda: id in store,
            store.count,
            store.create,
            lambda: store.put("mine", {}),
            lambda: store.update(id, lambda session: session),
            lambda: store.patch(id, {}),
            lambda: store.touch(id),
            lambda: store.delete(id),
            lambda: store.regenerate_id(id),
            lambda: batch.__exit__(None, None, None),
            lambda: next(ids),
            lambda: next(sessions),
            lambda: store.sample(1),
            store.position,
            lambda: store.outcome("00" * 16),
            store.stats,
            store.flush,
            store.fold,
            store.cleanup_expired,
        ]

        def refused() -> None:
            for number, call in enumerate(calls):
                with pytest.raises(ForkedError):
                    raise AssertionError(f"call {number} answered {call()!r}")
            store.close()

        assert ended(in_child(refused)) == 0
        batch.__exit__(None, None, None)
        assert next(ids) == min(store.ids())
        assert store.count() == 2


def test_an_iterator_in_its_middle_is_refused_in_a_child_and_goes_on_in_the_parent(
    tmp_path: Path, backend: str
) -> None:
    with SessionStore.open(tmp_path / "store", backend=backend) as store:
        with store.batch() as batch:
            expected = sorted(batch.create() for _ in range(3000))
        ids = store.ids()
        first = next(ids)

        def refused() -> None:
            with pytest.raises(ForkedError):
                raise AssertionError(len(list(ids)))

        assert ended(in_child(refused)) == 0
        assert [first, *ids] == expected


def test_forks_while_threads_write_damage_nothing(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "store"
    made: list[str] = []
    stopping = threading.Event()
    errors: list[BaseException] = []

    with SessionStore.open(path, backend=backend) as store:

        def write() -> None:
            try:
                while not stopping.wait(PACE_S):
                    id = store.create({"n": 1}, durability="disk" if len(made) % 50 == 0 else None)
                    store.update(id, lambda session: session.merge({"n": 2}))
                    made.append(id)
                    if len(made) % 200 == 0:
                        store.fold()
            except BaseException as error:  # noqa: BLE001 - the test fails by it
                errors.append(error)

        def child(number: int) -> None:
            with pytest.raises(ForkedError):
                store.create()
            with pytest.raises(ForkedError):
                store.count()
            store.close()
            with SessionStore.open(path) as own:
                own.put(f"child-{number}", {"n": number}, None)
                own.fold()
                assert own.peek(f"child-{number}") is not None

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            codes = [ended(in_child(lambda number=number: child(number))) for number in range(FORKS)]  # type: ignore[misc]
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
    assert errors == []
    assert codes == [0] * FORKS
    check(path, {*made, *(f"child-{number}" for number in range(FORKS))})


def test_a_child_that_is_forked_under_the_write_lock_does_not_keep_it(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, backend=backend) as store:
        store.put("mine", {"n": 0}, None)
        children: list[int] = []
        goes_on, told = os.pipe()

        def fork_inside(session: Any) -> Any:
            children.append(in_child(lambda: os.read(goes_on, 1)))
            return session.merge({"n": 1})

        try:
            store.update("mine", fork_inside)
            began = time.monotonic()
            with SessionStore.open(path, write_timeout_ms=60_000) as other:  # while the child lives
                other.put("mine", {"n": 2}, None)
            assert time.monotonic() - began < 50.0  # no time-out of the lock
            assert os.waitpid(children[0], os.WNOHANG) == (0, 0)
        finally:
            os.close(told)
            os.close(goes_on)
            os.kill(children[0], signal.SIGKILL)
            os.waitpid(children[0], 0)


def _write_some(path: Path, number: int) -> None:
    with SessionStore.open(path) as store:
        for turn in range(EACH):
            store.put(f"m-{number}-{turn}", {"n": turn}, None)
            store.update("count", lambda session: session.merge({"n": session.metadata["n"] + 1}))


def test_forked_processes_of_multiprocessing_write_at_once(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, backend=backend) as store:
        store.put("count", {"n": 0}, None)
        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=_write_some, args=(path, number)) for number in range(CHILDREN)]
        for child in children:
            child.start()
        _write_some(path, CHILDREN)  # a second handle of the parent, beside them
        for child in children:
            child.join(DEADLINE_S)
        assert [child.exitcode for child in children] == [0] * CHILDREN
        counted = store.peek("count")
        assert counted is not None
        assert counted.metadata == {"n": (CHILDREN + 1) * EACH}
    made = {f"m-{number}-{turn}" for number in range(CHILDREN + 1) for turn in range(EACH)}
    check(path, made | {"count"})


def test_a_child_of_a_child_is_refused_and_opens_its_own(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, backend=backend) as store:
        store.put("parent", {}, None)

        def grandchild(inherited: list[SessionStore]) -> None:
            for one in inherited:
                with pytest.raises(ForkedError):
                    one.put("stray", {}, None)
            with SessionStore.open(path) as own:
                own.put("grandchild", {}, None)

        def child() -> None:
            with SessionStore.open(path) as own:
                own.put("child", {}, None)
                assert ended(in_child(lambda: grandchild([store, own]))) == 0
                assert own.exists("grandchild")

        assert ended(in_child(child)) == 0
    check(path, {"parent", "child", "grandchild"})


def test_a_child_holds_no_socket_of_its_parents_gate(tmp_path: Path) -> None:
    path = tmp_path / "store"
    SessionStore.open(path).close()
    with SessionStore.open(path, gate=open_gate(path)) as store:
        store.create()

        def sockets() -> list[str]:
            links = []
            for name in os.listdir("/proc/self/fd"):
                try:
                    links.append(os.readlink(f"/proc/self/fd/{name}"))
                except OSError:
                    continue
            return [link for link in links if link.startswith("socket:")]

        inherited = set(sockets())

        def looks() -> None:
            gate: Any = store._gate
            assert gate._poke.fileno() == -1
            assert len(sockets()) < len(inherited)

        assert ended(in_child(looks)) == 0
        store.create()
