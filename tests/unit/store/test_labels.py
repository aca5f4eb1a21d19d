"""Finding sessions by group, tag, home node and priority, changing all of them, and what they cost."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.store import Priority, Session, SessionStore, UsageError
from perdure.store.backends import BACKENDS
from perdure.store.bulk import Bulk
from perdure.store.labels import GROUP, TERM_BYTES_MAX, term_of, terms_of_record
from perdure.store.opening import OpenOptions, open_store

LONG_LABEL = "ä" * 100
ID_TOO_LONG_FOR_A_KEY = "i" * 1000


class SteppingClock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock()


@pytest.fixture
def store(tmp_path: Path, backend: str, clock: SteppingClock) -> Iterator[SessionStore]:
    with opened(tmp_path / "store", backend, clock) as store:
        yield store


def opened(path: Path, backend: str | None, clock: SteppingClock, **more: Any) -> SessionStore:
    options = OpenOptions(backend=backend, clock=clock, **more)
    return SessionStore(open_store(path, options), options, None)


def test_sessions_are_found_by_each_label_folded_or_not(store: SessionStore) -> None:
    for number in range(60):
        store.put(
            f"{number:03d}",
            {},
            group=f"user {number % 7}",
            tags=[f"t{number % 2}", f"u{number % 3}", "t0"],
            priority=Priority(number % 4),
            home_node=f"app-{number % 5}",
        )
        if number == 30:
            store.fold()
    store.put("plain", {})
    for _ in range(2):
        numbers = range(60)
        assert list(store.ids(group="user 3")) == [f"{n:03d}" for n in numbers if n % 7 == 3]
        assert list(store.ids(tag="u1", group="user 3")) == [
            f"{n:03d}" for n in numbers if n % 7 == 3 and n % 3 == 1
        ]
        assert list(store.ids(tag="t0")) == [f"{n:03d}" for n in numbers]
        assert list(store.ids("01", "012", home_node="app-4")) == ["014", "019"]
        assert [s.id for s in store.sessions(priority=Priority.LOW)] == [
            f"{n:03d}" for n in numbers if n % 4 == 3
        ]
        assert list(store.ids(priority=Priority.NORMAL)) == [f"{n:03d}" for n in numbers if n % 4 == 2] + [
            "plain"
        ]
        assert store.count(priority=Priority.CRITICAL) == 15
        assert store.count(priority=Priority.NORMAL, tag="t1") == 0
        assert store.count(priority=Priority.NORMAL, group="user 2") == 3
        assert store.count() == 61
        assert store.count(group="user 9") == 0
        assert list(store.groups()) == [f"user {n}" for n in range(7)]
        assert list(store.tags()) == ["t0", "t1", "u0", "u1", "u2"]
        assert list(store.home_nodes()) == [f"app-{n}" for n in range(5)]
        store.fold()


def test_labels_that_are_changed_or_gone_are_found_no_more(store: SessionStore) -> None:
    store.put("a", {}, group="g", tags=["x"])
    store.put("b", {}, group="g")
    for _ in range(2):
        store.update("a", lambda session: session.replace(group="h", tags=["x", "y"]))
        assert list(store.ids(group="g")) == ["b"]
        store.fold()
        assert list(store.ids(group="g")) == ["b"]
        assert list(store.ids(group="h")) == list(store.ids(tag="x")) == list(store.ids(tag="y")) == ["a"]
        store.update("a", lambda session: session.replace(group="g", tags=["x"]))
        assert list(store.ids(group="g")) == ["a", "b"]
        assert list(store.groups()) == ["g"]
        store.fold()
    store.delete("b")
    new = store.regenerate_id("a")
    assert list(store.ids(group="g")) == list(store.ids(tag="x")) == [new]
    store.fold()
    assert list(store.ids(group="g")) == list(store.ids(tag="x")) == [new]
    store.delete(new)
    store.fold()
    assert list(store.groups()) == list(store.tags()) == []
    assert index_of(store) == []


def test_long_labels_and_long_ids_are_kept_apart_and_named_in_full(store: SessionStore) -> None:
    for end in "ab":
        store.put(
            ID_TOO_LONG_FOR_A_KEY + end, {}, group=LONG_LABEL + end, tags=["t" * 200 + end, "nul\0" + end]
        )
    for _ in range(2):
        assert list(store.ids(group=LONG_LABEL + "a")) == [ID_TOO_LONG_FOR_A_KEY + "a"]
        assert (
            list(store.ids(tag="nul\0b"))
            == list(store.ids(tag="t" * 200 + "b"))
            == [ID_TOO_LONG_FOR_A_KEY + "b"]
        )
        assert sorted(store.groups()) == [LONG_LABEL + "a", LONG_LABEL + "b"]
        assert sorted(store.tags()) == ["nul\0a", "nul\0b", "t" * 200 + "a", "t" * 200 + "b"]
        store.fold()
    assert store.delete_group(LONG_LABEL + "a") == Bulk(1, True)
    store.fold()
    assert store.count(group=LONG_LABEL + "b") == 1
    assert store.count() == 1


def test_no_label_makes_a_term_that_is_too_long_or_that_of_another() -> None:
    texts = ["x" * size for size in (1, 61, 62, 63, 64, 255)] + ["a\0", "a", "#" + "0" * 62]
    terms = [term_of(GROUP, text.encode()) for text in texts]
    terms.append(term_of(GROUP, terms[4][1:]))
    assert len(set(terms)) == len(terms)
    assert all(len(term) <= TERM_BYTES_MAX and b"\0" not in term for term in terms)


def test_the_index_is_that_of_the_sessions_after_any_changes(tmp_path: Path, backend: str) -> None:
    seed = int(os.environ.get("PERDURE_SEED", random.randrange(1 << 30)))
    print(f"PERDURE_SEED={seed}")
    source = random.Random(seed)
    clock = SteppingClock()
    first = opened(tmp_path / "store", backend, clock)
    second = opened(tmp_path / "store", None, clock)
    ids = [f"id{number}" for number in range(12)]
    with first, second:
        for _ in range(300):
            store, id = source.choice([first, second]), source.choice(ids)
            labels: dict[str, Any] = {
                "group": source.choice(["", "a", "b"]),
                "tags": source.sample(["x", "y", "z"], source.randrange(3)),
                "priority": Priority(source.randrange(4)),
                "home_node": source.choice(["", "n1", "n2"]),
            }
            do = source.randrange(9)
            if do < 3:
                store.put(id, {}, source.choice([None, 100, 10**6]), sliding=source.random() < 0.5, **labels)
            elif do == 3:
                store.delete(id)
            elif do == 4 and store.exists(id):
                store.update(id, lambda session, labels=labels: session.replace(**labels))  # type: ignore[misc]
            elif do == 5 and store.exists(id):
                ids[ids.index(id)] = store.regenerate_id(id)
            elif do == 6:
                ids.append(store.create({}, **labels))
            elif do == 7:
                store.fold()
            else:
                clock.ms += 40
                store.cleanup_expired()
        for store in (first, second):
            store.fold()
            sessions = [stored(store, id) for id in store.ids()]
            for label in ("a", "b"):
                assert list(store.ids(group=label)) == [s.id for s in sessions if s.group == label]
            for tag in "xyz":
                assert list(store.ids(tag=tag)) == [s.id for s in sessions if tag in s.tags]
            for priority in Priority:
                assert list(store.ids(priority=priority)) == [
                    s.id for s in sessions if s.priority == priority
                ]
            for node in ("n1", "n2"):
                assert list(store.ids(home_node=node)) == [s.id for s in sessions if s.home_node == node]
            assert index_of(store) == expected_index(store)


def test_the_index_of_a_rebuilt_state_is_that_of_its_sessions(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "store"
    clock = SteppingClock()
    with opened(path, backend, clock) as store:
        for number in range(50):
            store.put(f"{number}", {}, group=f"g{number % 3}", tags=["t"] if number % 2 else [])
        expected = list(store.ids(group="g1"))
        store.fold()
        before = index_of(store)
    for file in (path / "state").rglob("*"):
        if file.is_file():
            file.unlink()
    with opened(path, backend, clock) as store:
        assert list(store.ids(group="g1")) == expected
        assert index_of(store) == before == expected_index(store)


# -- groups --------------------------------------------------------------------------------------


def test_a_group_is_deleted_in_one_commit(store: SessionStore) -> None:
    for number in range(300):
        store.put(str(number), {}, group="a" if number % 3 else "b")
        if number == 150:
            store.fold()
    before = store.position()
    assert store.delete_group("a") == Bulk(200, True)
    assert store.position().lsn == before.lsn + 200
    assert store.count() == store.count(group="b") == 100
    assert store.delete_group("a") == Bulk(0, True)
    with pytest.raises(UsageError, match="not empty"):
        store.delete_group("")


def test_a_large_group_is_deleted_in_batches_that_say_so(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.bulk.ATOMIC_MAX", 50)
    monkeypatch.setattr("perdure.store.bulk.BATCH_SESSIONS", 20)
    for number in range(130):
        store.put(f"{number:03d}", {}, group="a", tags=["t"])
    assert store.touch_group("a") == Bulk(130, False)
    assert store.delete_group("a") == Bulk(130, False)
    assert store.count() == 0
    store.fold()
    assert index_of(store) == []


def test_touching_a_group_extends_the_life_of_each_session(store: SessionStore, clock: SteppingClock) -> None:
    for number in range(20):
        store.put(str(number), {}, 60_000, sliding=True, group="a")
    store.put("other", {}, 60_000, sliding=True)
    clock.ms += 50_000
    assert store.touch_group("a") == Bulk(20, True)
    clock.ms += 50_000
    assert store.peek("other") is None
    assert all(store.peek(str(number)) for number in range(20))


def test_expired_members_are_not_counted_and_do_not_stay(store: SessionStore, clock: SteppingClock) -> None:
    store.put("old", {}, 1000, group="a")
    store.put("new", {}, None, group="a")
    clock.ms += 5000
    assert store.delete_group("a") == Bulk(1, True)
    assert store.count() == 0


def test_groups_deleted_by_threads_at_once_are_gone_for_each_of_them(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.bulk.ATOMIC_MAX", 50)
    monkeypatch.setattr("perdure.store.bulk.BATCH_SESSIONS", 20)
    store.put("held", {})
    with store.batch() as batch:
        for number in range(500):
            batch.put(f"{number:03d}", {}, group="a")
    done: list[tuple[int, int]] = []

    def delete() -> None:
        deleted = store.delete_group("a").sessions
        done.append((deleted, store.count(group="a")))

    threads = [threading.Thread(target=delete) for _ in range(3)]

    def wait_for_queue(session: Session) -> Session:
        for thread in threads:
            thread.start()
        deadline_s = time.monotonic() + 10
        while len(store._writer._queue) < len(threads) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        return session

    store.update("held", wait_for_queue)  # all three are in the first frame
    for thread in threads:
        thread.join()
    assert [left for _, left in done] == [0, 0, 0]
    assert sum(deleted for deleted, _ in done) == 500


# -- orphans -------------------------------------------------------------------------------------


def test_orphans_are_those_whose_home_node_is_no_member(store: SessionStore) -> None:
    for number in range(30):
        store.put(f"{number:02d}", {"n": number}, home_node=f"app-{number % 3}")
    store.put("homeless", {})
    store.fold()
    members = ["app-0", "app-2", "app-7"]
    expected = [f"{number:02d}" for number in range(30) if number % 3 == 1]
    assert list(store.orphans(members)) == expected
    assert store.count_orphans(members) == 10
    before = store.peek(expected[0])
    assert before is not None
    assert store.adopt_orphans(members, "app-7") == 10
    assert list(store.orphans(members)) == []
    assert list(store.ids(home_node="app-7")) == expected
    after = store.peek(expected[0])
    assert after is not None
    assert (after.version, after.metadata, after.last_accessed) == (
        before.version + 1,
        before.metadata,
        before.last_accessed,
    )
    assert store.cleanup_orphans(["app-0", "app-7"]) == 10
    assert store.count() == 21
    assert store.cleanup_orphans(["app-0", "app-7"]) == 0
    assert store.peek("homeless")


def test_orphans_that_have_expired_do_not_keep_others_from_being_adopted(
    store: SessionStore, clock: SteppingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.bulk.ATOMIC_MAX", 20)
    monkeypatch.setattr("perdure.store.bulk.BATCH_SESSIONS", 10)
    for number in range(50):
        store.put(f"{number:02d}", {}, 1000 if number < 25 else None, home_node="gone")
    clock.ms += 5000
    assert store.adopt_orphans(["here"], "here") == 25
    assert store.count(home_node="here") == 25
    assert store.adopt_orphans(["here"], "here") == 0


def test_orphans_that_one_frame_does_not_take_are_adopted(
    tmp_path: Path, backend: str, clock: SteppingClock
) -> None:
    store = opened(tmp_path / "large", backend, clock, session_bytes_max=2_000_000)
    for number in range(20):
        store.put(str(number), {"large": "x" * 1_000_000}, home_node="gone")
    assert store.adopt_orphans(["here"], "here") == 20
    assert store.count_orphans(["here"]) == 0
    store.close()


def test_members_that_are_one_text_are_refused(store: SessionStore) -> None:
    store.put("a", {}, home_node="app-1")
    with pytest.raises(UsageError, match="a list of node names"):
        store.cleanup_orphans("app-1")
    with pytest.raises(UsageError, match="Unicode"):
        list(store.orphans(["app-2"], after="\ud800"))
    assert store.count() == 1


def test_orphans_against_no_members_or_adopted_by_a_stranger_are_refused(store: SessionStore) -> None:
    store.put("a", {}, home_node="app-1")
    with pytest.raises(UsageError, match="members"):
        store.cleanup_orphans([])
    with pytest.raises(UsageError, match="not among the members"):
        store.adopt_orphans(["app-2"], "app-3")
    assert store.count() == 1


def test_new_sessions_get_the_home_node_of_the_store(tmp_path: Path, backend: str) -> None:
    with SessionStore.open(tmp_path / "store", backend=backend, home_node="app-9") as store:
        id = store.create()
        store.put("b", {})
        store.put("c", {}, home_node="app-1")
        with store.batch() as batch:
            batch.put("d", {})
            other = batch.create()
        assert set(store.ids(home_node="app-9")) == {id, "b", "d", other}


# -- inside --------------------------------------------------------------------------------------


def stored(store: SessionStore, id: str) -> Session:
    session = store._labelled(id.encode())
    assert session is not None
    return session


def index_of(store: SessionStore) -> list[tuple[bytes, bytes]]:
    with store._view.mutex:
        store._view.release()
        store._view.refresh()
        return store._view.backend.find((b"", b""), b"\x7f", 100_000)


def expected_index(store: SessionStore) -> list[tuple[bytes, bytes]]:
    keys = [id.encode() for id in store.ids()]
    return sorted((term, key) for key in keys for term in terms_of_record(store._read_record(key)))


@pytest.mark.parametrize("tags", ["mobile", [""], ["a", ""]])
def test_one_text_or_an_empty_one_is_no_tags_and_nothing_is_written(tmp_path: Path, tags: Any) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        store.put("a", {})
        for call in (
            lambda: store.create({}, tags=tags),
            lambda: store.put("b", {}, tags=tags),
            lambda: store.update("a", lambda session: session.replace(tags=tags)),
        ):
            with pytest.raises(UsageError, match="tags are a list of texts"):
                call()
        for add in ("create", "put"):
            with pytest.raises(UsageError, match="tags are"), store.batch() as batch:
                batch.create({}, tags=tags) if add == "create" else batch.put("b", {}, tags=tags)
        assert (store.count(), store["a"].version) == (1, 1)


def test_one_text_is_no_list_of_members_and_no_session_is_removed(tmp_path: Path) -> None:
    """Its characters would be the members, and every session an orphan."""
    with SessionStore.open(tmp_path / "s", home_node="n1") as store:
        store.put("a", {})
        for call in (
            lambda: list(store.orphans("n1")),
            lambda: store.count_orphans("n1"),
            lambda: store.cleanup_orphans("n1"),
            lambda: store.adopt_orphans("n1", "n"),
        ):
            with pytest.raises(UsageError, match="a list of node names"):
                call()
        assert store["a"].home_node == "n1"
