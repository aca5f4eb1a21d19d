"""What a session manager has to do, case by case: twenty-five, each on a fresh store of each back end.

Real processes where there are several; ids and contents are compared, never a count with itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import perdure
from perdure.store import Session, SessionNotFoundError, SessionStore
from perdure.store.backends import BACKENDS
from tests.cluster.nodes import Cluster, cluster_of
from tests.parity.workers import run_all

PARALLEL = 100
SHORT_MS = 60
WAIT_S = 20.0


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path, backend: str) -> Iterator[SessionStore]:
    with perdure.open(tmp_path / "store", backend=backend) as opened:
        yield opened


@pytest.fixture
def cluster(tmp_path: Path, backend: str) -> Iterator[Cluster]:
    """A primary and a replica, each with processes of its own."""
    with cluster_of(tmp_path, 2, backend=backend) as nodes:
        nodes.start_all()
        yield nodes


def until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def contents(store: SessionStore) -> dict[str, Session]:
    return {session.id: session for session in store.sessions()}


def on_replica(cluster: Cluster, store: SessionStore) -> dict[str, Session]:
    """What the replica holds once it has applied all that the primary has; the digests are equal."""
    lsn = store.position().lsn
    cluster.wait_applied(lsn)
    assert cluster.state_of("n2") == cluster.state_of("n1")
    with SessionStore.open(cluster.path("n2"), create=False) as replica:
        return contents(replica)


# -- create, read, update, delete ------------------------------------------------------------------


def test_create_stores_the_metadata(store: SessionStore) -> None:
    id = store.create({"user": 42, "name": "Ada"})
    found = store.get(id)
    assert found is not None
    assert (found.id, found.metadata, found.version) == (id, {"user": 42, "name": "Ada"}, 1)


def test_create_takes_a_timeout_of_its_own(store: SessionStore) -> None:
    found = store.peek(store.create(timeout_ms=5000))
    default = store.peek(store.create())
    assert found is not None and default is not None
    assert (found.timeout_ms, default.timeout_ms) == (5000, 3_600_000)
    assert found.expires_at == found.last_accessed + 5000


def test_get_answers_the_same_session_each_time(store: SessionStore) -> None:
    ids = [store.create({"n": number}) for number in range(10)]
    for number, id in enumerate(ids):
        first, again = store.get(id), store.get(id)
        assert first == again
        assert first is not None and first.metadata == {"n": number}


def test_update_changes_the_metadata_and_keeps_id_and_creation(store: SessionStore) -> None:
    id = store.create({"n": 1, "kept": True})
    before = store.peek(id)
    changed = store.update(id, lambda session: session.merge({"n": 2}))
    assert before is not None
    assert changed.metadata == {"n": 2, "kept": True}
    assert (changed.id, changed.created_at, changed.version) == (id, before.created_at, 2)
    assert store.peek(id) == changed


def test_delete_removes_the_session_and_no_other(store: SessionStore) -> None:
    gone, stays = store.create({"n": 1}), store.create({"n": 2})
    assert store.delete(gone)
    assert store.get(gone) is None
    assert list(store.ids()) == [stays]


def test_list_names_every_session(store: SessionStore) -> None:
    made = {store.create({"n": number}) for number in range(25)}
    assert len(made) == 25
    assert set(store.ids()) == made
    assert {id: session.metadata["n"] for id, session in contents(store).items()}.keys() == made


def test_count_follows_creations_and_deletions(store: SessionStore) -> None:
    ids = [store.create() for _ in range(7)]
    assert store.count() == 7
    for id in ids[:3]:
        store.delete(id)
    assert store.count() == 4


def test_touch_extends_the_life(store: SessionStore) -> None:
    id = store.create()
    before = store.peek(id)
    assert before is not None
    until(lambda: int(time.time() * 1000) > before.last_accessed + 20)
    store.touch(id)
    after = store.peek(id)
    assert after is not None and after.expires_at is not None and before.expires_at is not None
    assert after.expires_at > before.expires_at


# -- what is not there -----------------------------------------------------------------------------


def test_a_session_that_was_never_made_is_none(store: SessionStore) -> None:
    assert store.get("nobody") is None
    assert not store.exists("nobody")
    with pytest.raises(SessionNotFoundError):
        store["nobody"]


def test_an_update_of_a_session_that_is_not_there_is_refused_by_name(store: SessionStore) -> None:
    before = store.position()
    with pytest.raises(SessionNotFoundError):
        store.update("nobody", lambda session: session.merge({"n": 1}))
    assert store.position() == before


def test_a_deletion_of_a_session_that_is_not_there_is_no_error(store: SessionStore) -> None:
    kept = store.create()
    assert not store.delete("nobody")
    assert list(store.ids()) == [kept]


def test_an_update_function_that_fails_leaves_the_session_as_it_was(store: SessionStore) -> None:
    id = store.create({"n": 1})
    before, end = store.peek(id), store.position()

    def fail(session: Session) -> Session:
        session.merge({"n": 2})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.update(id, fail)
    assert (store.peek(id), store.position()) == (before, end)


# -- expiry ----------------------------------------------------------------------------------------


def test_a_session_with_a_short_timeout_expires_and_one_that_is_used_does_not(store: SessionStore) -> None:
    idle, used = store.create(timeout_ms=SHORT_MS), store.create(timeout_ms=200 * SHORT_MS)

    def is_gone() -> bool:
        assert store.get(used) is not None
        return store.peek(idle) is None

    until(is_gone)
    with pytest.raises(SessionNotFoundError):
        store.touch(idle)


def test_cleaning_up_removes_what_has_expired_and_leaves_what_lives(store: SessionStore) -> None:
    living = {store.create({"n": number}) for number in range(5)}
    ended = {store.create(timeout_ms=SHORT_MS) for _ in range(9)}
    until(lambda: all(store.peek(id) is None for id in ended))
    assert store.cleanup_expired() == 9
    assert set(store.ids()) == living
    assert store.count() == 5
    assert store.cleanup_expired() == 0


# -- ids -------------------------------------------------------------------------------------------


def test_no_id_is_given_twice(store: SessionStore) -> None:
    ids = [store.create() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert sorted(ids) == list(store.ids())


def test_an_id_is_thirty_two_hexadecimal_characters(store: SessionStore) -> None:
    for id in [store.create() for _ in range(50)]:
        assert len(id) == 32
        assert id == f"{int(id, 16):032x}"


def _by_threads(path: Path) -> list[str]:
    found: list[str] = []
    with perdure.open(path) as store:
        threads = [threading.Thread(target=lambda: found.append(store.create())) for _ in range(PARALLEL)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def _by_tasks(path: Path) -> list[str]:
    async def main() -> list[str]:
        async with await perdure.open_async(path) as store:
            return await asyncio.gather(*(store.create() for _ in range(PARALLEL)))

    return asyncio.run(main())


def _by_processes(path: Path) -> list[str]:
    each = PARALLEL // 4
    return [id for part in run_all("threads", path, each, 4, 60) for id in part["ids"]]


def _by_processes_of_tasks(path: Path) -> list[str]:
    each = PARALLEL // 4
    return [id for part in run_all("tasks", path, each, 4, 60) for id in part["ids"]]


@pytest.mark.parametrize("by", [_by_threads, _by_tasks, _by_processes, _by_processes_of_tasks])
def test_a_hundred_creations_at_once_give_a_hundred_ids(
    tmp_path: Path, backend: str, by: Callable[[Path], list[str]]
) -> None:
    path = tmp_path / "store"
    perdure.open(path, backend=backend).close()
    ids = by(path)
    assert len(ids) == PARALLEL
    assert len(set(ids)) == PARALLEL
    with perdure.open(path, create=False) as store:
        assert list(store.ids()) == sorted(ids)


# -- values ----------------------------------------------------------------------------------------


def test_metadata_of_every_type_comes_back_as_it_was(store: SessionStore) -> None:
    given: dict[str, Any] = {
        "none": None,
        "bool": [True, False],
        "int": [0, -1, 2**63 - 1, -(2**63)],
        "float": [0.5, -1e300],
        "text": ["", "Zoë", "漢字", "\N{SNOWMAN}"],
        "bytes": b"\x00\xff",
        "time": datetime(2024, 2, 29, 12, 30, 0, 123456, tzinfo=UTC),
        "nested": {"list": [1, [2, [3]]], "map": {"a": {"b": {}}}},
    }
    id = store.create(given)
    store.fold()
    found = store.get(id)
    assert found is not None
    assert found.metadata == given


def test_a_session_without_a_timeout_never_expires(store: SessionStore) -> None:
    id = store.create({"n": 1}, timeout_ms=None)
    found = store.peek(id)
    assert found is not None
    assert found.expires_at is None
    ended = store.create(timeout_ms=SHORT_MS)
    until(lambda: store.peek(ended) is None)
    assert store.cleanup_expired() == 1
    assert store.peek(id) == found


def test_using_a_session_moves_last_accessed(store: SessionStore) -> None:
    id = store.create({"n": 1})
    first = store.peek(id)
    assert first is not None
    until(lambda: int(time.time() * 1000) > first.last_accessed + 20)  # session time is its own, but near
    changed = store.update(id, lambda session: session.merge({"n": 2}))
    assert changed.last_accessed > first.last_accessed
    assert changed.created_at == first.created_at
    assert store.peek(id) == changed  # looking does not


# -- with a replicator, and without ----------------------------------------------------------------


def test_a_session_that_is_created_is_on_the_replica(cluster: Cluster) -> None:
    store = cluster.open("n1")
    made = {(id := store.create({"n": number})): store.peek(id) for number in range(20)}
    assert on_replica(cluster, store) == made


def test_a_session_that_is_updated_is_so_on_the_replica(cluster: Cluster) -> None:
    store = cluster.open("n1")
    ids = [store.create({"n": number}) for number in range(20)]
    for id in ids[::2]:
        store.update(id, lambda session: session.merge({"n": -session.metadata["n"], "changed": True}))
    found = on_replica(cluster, store)
    assert found == contents(store)
    assert [found[id].metadata["n"] for id in ids] == [-n if n % 2 == 0 else n for n in range(20)]


def test_a_session_that_is_deleted_is_gone_from_the_replica(cluster: Cluster) -> None:
    store = cluster.open("n1")
    ids = [store.create({"n": number}) for number in range(20)]
    assert set(on_replica(cluster, store)) == set(ids)
    for id in ids[::2]:
        store.delete(id)
    assert set(on_replica(cluster, store)) == set(ids[1::2])


def test_without_a_replicator_every_call_works(store: SessionStore) -> None:
    id = store.create({"n": 1})
    store.update(id, lambda session: session.merge({"n": 2}))
    store.touch(id)
    new_id = store.regenerate_id(id)
    with store.batch() as batch:
        other = batch.create({"n": 3})
    assert store.delete(other)
    assert {id: session.metadata for id, session in contents(store).items()} == {new_id: {"n": 2}}
    stats = store.stats()
    assert stats["committed_lsn"] == stats["appended_lsn"]


# -- any life --------------------------------------------------------------------------------------

METADATA = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=12),
    max_size=4,
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["create", "merge", "touch", "rename", "delete", "fold", "reopen"]), METADATA),
    max_size=25,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_any_life_of_sessions_ends_as_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, backend: str, steps: list[tuple[str, dict[str, Any]]]
) -> None:
    path = tmp_path_factory.mktemp("life") / "store"
    model: dict[str, dict[str, Any]] = {}
    store = perdure.open(path, backend=backend)
    try:
        for step, metadata in steps:
            id = next(reversed(model), "nobody")
            if step == "create":
                model[store.create(metadata)] = metadata
            elif step == "fold":
                store.fold()
            elif step == "reopen":
                store.close()
                store = perdure.open(path, create=False)
            elif step == "delete":
                assert store.delete(id) == (model.pop(id, None) is not None)
            elif not model:
                with pytest.raises(SessionNotFoundError):
                    store.patch(id, metadata)
            elif step == "merge":
                model[id] = {**model[id], **metadata}
                assert store.patch(id, metadata).metadata == model[id]
            elif step == "touch":
                store.touch(id)
            else:
                model[store.regenerate_id(id)] = model.pop(id)
        assert {id: session.metadata for id, session in contents(store).items()} == model
        assert store.count() == len(model)
    finally:
        store.close()
