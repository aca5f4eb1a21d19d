"""The calls of a store, through SessionStore alone: every back end answers the same, whatever it is.

Each test works folded and not folded, from two handles of one store, and after the store was opened anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.store import (
    Batch,
    MetadataError,
    Outcome,
    Priority,
    Session,
    SessionNotFoundError,
    SessionStore,
    SessionTooLargeError,
    StorageError,
    StoreClosedError,
    VersionConflictError,
)

Opener = Callable[[], SessionStore]


@pytest.fixture
def opener(backend_name: str, tmp_path: Path) -> Iterator[Opener]:
    """Opens one more handle on the same store; all are closed at the end."""
    stores: list[SessionStore] = []

    def open_one() -> SessionStore:
        stores.append(SessionStore.open(tmp_path / "store", backend=backend_name))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture(params=["tail", "folded"])
def settle(request: pytest.FixtureRequest) -> Callable[[SessionStore], object]:
    """Done between a write and a read: nothing, or a fold."""
    return SessionStore.fold if request.param == "folded" else lambda store: None


Settle = Callable[[SessionStore], object]


def test_what_one_handle_writes_the_other_reads_at_once(opener: Opener, settle: Settle) -> None:
    one, other = opener(), opener()
    id = one.create({"n": 1, "raw": b"\0\xff", "list": [1, None]}, group="g", tags=["t"])
    settle(one)
    session = other.get(id)
    assert session == one.peek(id)
    assert session is not None
    assert session.metadata == {"n": 1, "raw": b"\0\xff", "list": [1, None]}
    other.update(id, lambda session: session.merge({"n": 2}))
    settle(other)
    assert one[id].metadata["n"] == 2
    assert one[id].version == 2
    one.patch(id, {"m": 3})
    assert other[id].metadata == {"n": 2, "raw": b"\0\xff", "list": [1, None], "m": 3}
    assert other.delete(id)
    settle(other)
    assert one.get(id) is None
    assert not one.delete(id)


def test_a_store_opened_anew_holds_what_it_held(opener: Opener, settle: Settle) -> None:
    store = opener()
    kept = {store.create({"n": n}, group=f"g{n % 3}", priority=Priority(n % 4)) for n in range(50)}
    for id in sorted(kept)[:10]:
        store.delete(id)
        kept.remove(id)
    settle(store)
    before = {id: store.peek(id) for id in kept}
    position, digest = store.position(), store.stats()["digest"]
    store.close()
    again = opener()
    assert {id: again.peek(id) for id in again.ids()} == before
    assert (again.count(), again.position(), again.stats()["digest"]) == (40, position, digest)
    assert {again.count(group=f"g{n}") for n in range(3)} == {
        sum(1 for session in before.values() if session is not None and session.group == f"g{n}")
        for n in range(3)
    }


def test_ids_are_in_order_by_prefix_and_resumable_over_many_chunks(opener: Opener, settle: Settle) -> None:
    one, other = opener(), opener()
    ids = [f"{number % 7}-{number:05d}" for number in range(2500)]
    with one.batch() as batch:
        for id in ids:
            batch.put(id, {})
    settle(other)
    one.put("3-", {})
    one.delete("3-00003")
    expected = sorted({*ids, "3-"} - {"3-00003"})
    for store in (one, other):
        assert list(store.ids()) == expected
        assert list(store.ids("3-")) == [id for id in expected if id.startswith("3-")]
        assert list(store.ids("3-", after="3-01004")) == [id for id in expected if "3-01004" < id < "4"]
        assert store.count() == len(expected)
        assert len(store.sample(20)) == 20


def test_folds_go_on_while_another_handle_lists_and_reads(opener: Opener) -> None:
    one, other = opener(), opener()
    stays = sorted(one.create({}) for _ in range(1500))
    stop = threading.Event()
    errors: list[BaseException] = []

    def write() -> None:
        try:
            while not stop.is_set():
                gone = [one.create({"x": number}) for number in range(20)]
                one.fold()
                for id in gone:
                    one.delete(id)
        except BaseException as error:  # noqa: BLE001 - it fails the test below
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            seen = list(other.ids())
            assert seen == sorted(seen)
            assert set(stays) <= set(seen)
            other.fold()
            assert other.peek(stays[700]) is not None
    finally:
        stop.set()
        writer.join()
    assert not errors


def test_a_write_under_a_version_that_is_gone_changes_nothing(opener: Opener, settle: Settle) -> None:
    one, other = opener(), opener()
    id = one.create({"n": 1})
    settle(one)
    other.touch(id, if_version=1)
    other.update(id, lambda session: session.merge({"n": 2}), if_version=1)
    settle(one)
    for write in (
        lambda: one.update(id, lambda session: session, if_version=1),
        lambda: one.patch(id, {}, if_version=1),
        lambda: one.put(id, {}, if_version=0),
        lambda: one.delete(id, if_version=3),
        lambda: one.touch(id, if_version=1),
        lambda: one.regenerate_id(id, if_version=1),
    ):
        with pytest.raises(VersionConflictError) as caught:
            write()
        assert caught.value.actual == 2
    assert one[id].metadata == {"n": 2}


def test_what_is_missing_is_an_error_only_where_something_is_to_be_done_with_it(opener: Opener) -> None:
    store = opener()
    assert (store.get("x"), store.peek("x"), store.exists("x"), store.delete("x")) == (
        None,
        None,
        False,
        False,
    )
    for call in (
        lambda: store["x"],
        lambda: store.touch("x"),
        lambda: store.patch("x", {}),
        lambda: store.update("x", lambda session: session),
        lambda: store.regenerate_id("x"),
    ):
        with pytest.raises(SessionNotFoundError):
            call()
    assert store.count() == 0


def test_refused_input_writes_nothing(opener: Opener) -> None:
    store = opener()
    id = store.create({"n": 1})
    at = store.position()
    with pytest.raises(SessionTooLargeError):
        store.create({"n": "x" * 70_000})
    with pytest.raises(MetadataError):
        store.patch(id, {"n": object()})
    with pytest.raises(ZeroDivisionError):
        store.update(id, lambda session: session.merge({"n": 1 // 0}))
    with pytest.raises(ZeroDivisionError), store.batch() as batch:
        delete_and_fail(batch, id)
    assert store.position() == at
    assert store[id].metadata == {"n": 1}


def delete_and_fail(batch: Batch, id: str) -> None:
    batch.delete(id)
    raise ZeroDivisionError


def test_a_new_id_carries_the_session_and_the_old_one_is_gone(opener: Opener, settle: Settle) -> None:
    one, other = opener(), opener()
    id = one.create({"n": 1}, group="g")
    settle(one)
    new = other.regenerate_id(id)
    settle(other)
    assert one.get(id) is None
    assert one[new].metadata == {"n": 1}
    assert list(one.ids(group="g")) == list(other.ids(group="g")) == [new]


def test_labels_are_found_as_they_are_now(opener: Opener, settle: Settle) -> None:
    one, other = opener(), opener()
    ids = sorted(one.create({}, group="a", tags=["x", "y"], home_node="n1") for _ in range(30))
    settle(one)
    for id in ids[:10]:
        other.update(id, lambda session: session.replace(group="b", tags=["y"], priority=Priority.HIGH))
    settle(other)
    for store in (one, other):
        assert list(store.ids(group="a")) == list(store.ids(tag="x")) == ids[10:]
        assert list(store.ids(group="b")) == list(store.ids(priority=Priority.HIGH)) == ids[:10]
        assert (set(store.groups()), set(store.tags())) == ({"a", "b"}, {"x", "y"})
        assert store.count_orphans(["n2"]) == 30
    assert one.delete_group("b") == (10, True)
    settle(other)
    assert (other.count(group="b"), other.count()) == (0, 20)
    assert one.adopt_orphans(["n2"], "n2") == 20
    assert list(other.home_nodes()) == ["n2"]


def test_what_has_expired_is_gone_for_all_and_removed_once(opener: Opener, settle: Settle) -> None:
    one, other = opener(), opener()
    short = [one.put(f"short-{number}", {}, 30).id for number in range(25)]
    long = one.create({})
    settle(one)
    settle(other)
    deadline = time.monotonic() + 20
    while any(id in other for id in short) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not any(store.get(id) for store in (one, other) for id in short)
    assert one.count() == 26
    swept: list[int] = []
    sweeps = [
        threading.Thread(target=lambda s=store: swept.append(s.cleanup_expired())) for store in (one, other)
    ]
    for sweep in sweeps:
        sweep.start()
    for sweep in sweeps:
        sweep.join()
    assert sum(swept) == 25
    assert list(one.ids()) == list(other.ids()) == [long]
    assert (one.cleanup_expired(), other.cleanup_expired()) == (0, 0)


def test_counters_of_two_handles_and_four_threads_add_up(opener: Opener) -> None:
    stores = [opener(), opener()]
    id = stores[0].create({"n": 0})

    def add_one(session: Session) -> Session:
        return session.merge({"n": session.metadata["n"] + 1})

    def count(store: SessionStore) -> None:
        for _ in range(50):
            store.update(id, add_one)

    threads = [threading.Thread(target=count, args=(store,)) for store in stores * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0][id].metadata == stores[1][id].metadata == {"n": 200}


def test_outcome_and_position_speak_of_the_log(opener: Opener) -> None:
    one, other = opener(), opener()
    before = one.position()
    one.create({})
    position = one.flush()
    assert position.lsn == before.lsn + 1
    assert other.outcome(position) is Outcome.COMMITTED
    assert other.position() == position
    assert other.fold() == position.lsn
    assert other.stats()["folded_lsn"] == position.lsn


def test_another_back_end_is_refused_and_the_store_is_as_it_was(
    opener: Opener, backend_name: str, tmp_path: Path
) -> None:
    id = opener().create({})
    wrong = "sqlite" if backend_name == "lmdb" else "lmdb"
    with pytest.raises(StorageError, match=backend_name):
        SessionStore.open(tmp_path / "store", backend=wrong)
    with SessionStore.open(tmp_path / "store") as store:
        assert (store.stats()["backend"], list(store.ids())) == (backend_name, [id])


def test_a_closed_store_says_so(opener: Opener) -> None:
    store = opener()
    id = store.create({})
    store.close()
    store.close()
    for call in (lambda: store.get(id), lambda: store.create({}), store.count, lambda: list(store.ids())):
        with pytest.raises(StoreClosedError):
            call()
