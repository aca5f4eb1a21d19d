"""The calls of SessionStore, on each back end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.store import (
    ForeignError,
    InvalidIdError,
    MetadataError,
    Outcome,
    Priority,
    ReentrantWriteError,
    Session,
    SessionNotFoundError,
    SessionStore,
    SessionTooLargeError,
    StorageError,
    StoreClosedError,
    StoreMissingError,
    UsageError,
    VersionConflictError,
)
from tests.support.machine import stop_background


@pytest.fixture(params=["lmdb", "sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "store", backend=request.param) as opened:
        yield opened


def test_create_answers_an_id_of_32_hex_characters_and_stores_the_metadata(store: SessionStore) -> None:
    id = store.create({"user": 42, "roles": ["admin"], "raw": b"\x00\xff", "none": None})
    assert len(id) == 32
    assert int(id, 16) >= 0
    session = store.get(id)
    assert session is not None
    assert session.metadata == {"user": 42, "roles": ["admin"], "raw": b"\x00\xff", "none": None}
    assert (session.version, session.timeout_ms, session.priority) == (1, 3_600_000, Priority.NORMAL)
    assert session.expires_at == session.last_accessed + 3_600_000


def test_every_field_survives_fold_and_reopen(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path) as store:
        id = store.create(
            {"a": 1}, timeout_ms=None, priority=Priority.CRITICAL, group="user 42", tags=["web", "eu"]
        )
        before = store.peek(id)
        position, digest = store.position(), store.stats()["digest"]
    with SessionStore.open(path) as store:
        assert store.peek(id) == before
        assert before is not None
        assert (before.group, before.tags, before.priority) == ("user 42", ("web", "eu"), Priority.CRITICAL)
        assert before.expires_at is None
        assert (store.position(), store.stats()["digest"]) == (position, digest)


def test_put_replaces_and_counts_versions(store: SessionStore) -> None:
    first = store.put("mine", {"n": 1})
    second = store.put("mine", {"n": 2})
    assert (first.version, second.version) == (1, 2)
    assert second.created_at == first.created_at
    found = store.get("mine")
    assert found == second
    assert store.count() == 1


def test_put_with_a_stale_version_changes_nothing(store: SessionStore) -> None:
    store.put("mine", {"n": 1})
    with pytest.raises(VersionConflictError) as caught:
        store.put("mine", {"n": 2}, if_version=7)
    assert (caught.value.expected, caught.value.actual) == (7, 1)
    with pytest.raises(VersionConflictError):
        store.put("mine", {"n": 2}, if_version=0)
    assert store.put("mine", {"n": 3}, if_version=1).version == 2


def test_update_stores_what_the_function_returns(store: SessionStore) -> None:
    id = store.create({"hits": 1})
    changed = store.update(id, lambda session: session.merge({"hits": session.metadata["hits"] + 1}))
    assert changed.metadata == {"hits": 2}
    assert changed.version == 2
    relabelled = store.update(id, lambda session: session.replace(group="g", tags=["t"], timeout_ms=None))
    assert (relabelled.group, relabelled.tags, relabelled.timeout_ms) == ("g", ("t",), None)
    assert relabelled.metadata == {"hits": 2}
    assert store.peek(id) == relabelled


def test_update_that_raises_leaves_the_session_as_it_was(store: SessionStore) -> None:
    id = store.create({"hits": 1})
    before = (store.peek(id), store.position())

    def fail(_: Session) -> Session:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.update(id, fail)
    with pytest.raises(UsageError, match="returned dict"):
        store.update(id, lambda _: {"hits": 2})  # type: ignore[arg-type, return-value]
    assert (store.peek(id), store.position()) == before
    assert store.update(id, lambda session: session.merge({"hits": 5})).version == 2


def test_a_write_inside_an_update_function_is_refused(store: SessionStore) -> None:
    id = store.create({})

    def nested(session: Session) -> Session:
        store.create({})
        return session

    with pytest.raises(ReentrantWriteError):
        store.update(id, nested)
    assert store.count() == 1


def test_what_is_missing_is_none_or_not_found(store: SessionStore) -> None:
    assert store.get("nobody") is None
    assert store.peek("nobody") is None
    assert store.delete("nobody") is False
    for call in (store.touch, store.regenerate_id, lambda id: store.update(id, lambda s: s)):
        with pytest.raises(SessionNotFoundError):
            call("nobody")


def test_delete_says_whether_it_was_there(store: SessionStore) -> None:
    id = store.create({})
    assert store.delete(id) is True
    assert store.delete(id) is False
    assert store.get(id) is None
    store.fold()
    assert store.get(id) is None
    assert store.count() == 0


def test_regenerate_id_moves_the_session_in_one_step(store: SessionStore) -> None:
    id = store.create({"cart": [1, 2]})
    store.fold()
    new = store.regenerate_id(id)
    assert store.get(id) is None
    moved = store.get(new)
    assert moved is not None
    assert moved.metadata == {"cart": [1, 2]}
    store.fold()
    assert store.count() == 1
    assert list(store.ids()) == [new]


def test_a_batch_is_one_frame_or_nothing(store: SessionStore) -> None:
    before = store.position()
    with store.batch() as batch:
        ids = [batch.create({"n": number}) for number in range(50)]
        batch.put("fixed", {"x": 1})
        batch.delete(ids[0])
        batch.touch(ids[1])
    assert store.position().lsn - before.lsn == 53
    assert store.count() == 50

    def abandon() -> None:
        with store.batch() as batch:
            batch.create({})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        abandon()
    assert store.count() == 50


def test_patch_sets_the_keys_that_it_names_and_leaves_the_others(store: SessionStore) -> None:
    store.put("mine", {"a": 1, "b": 2}, None)
    patched = store.patch("mine", {"b": 3, "c": 4}, if_version=1)
    assert patched.metadata == {"a": 1, "b": 3, "c": 4}
    assert store.peek("mine") == patched
    with pytest.raises(VersionConflictError):
        store.patch("mine", {"b": 5}, if_version=1)
    with pytest.raises(MetadataError):
        store.patch("mine", {"b": object()})
    with pytest.raises(SessionNotFoundError):
        store.patch("other", {})
    assert store.peek("mine") == patched


@pytest.mark.parametrize("call", ["touch", "regenerate_id"])
def test_a_call_with_a_stale_version_changes_nothing(store: SessionStore, call: str) -> None:
    store.put("mine", {"n": 1}, None)
    before = store.position()
    with pytest.raises(VersionConflictError) as caught:
        getattr(store, call)("mine", if_version=2)
    assert (caught.value.expected, caught.value.actual) == (2, 1)
    assert store.position() == before
    getattr(store, call)("mine", if_version=1)
    assert store.position() != before
    with pytest.raises(SessionNotFoundError):
        getattr(store, call)("other")


def test_a_store_is_asked_like_a_mapping(store: SessionStore) -> None:
    store.put("mine", {"n": 1}, None)
    assert store["mine"].metadata == {"n": 1}
    assert "mine" in store
    assert store.exists("mine")
    assert "other" not in store
    assert not store.exists("")
    with pytest.raises(KeyError, match="other"):
        store["other"]
    with pytest.raises(SessionNotFoundError):
        store[""]


def test_sessions_are_listed_by_predicate_in_key_order_without_those_that_expired(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        store.put(f"key-{number:02}", {"n": number}, 1000 if number % 10 == 0 else None)
    store.fold()
    for number in range(30, 40):
        store.put(f"key-{number:02}", {"n": number}, None)
    now_ms = store._now_ms() + 5000
    monkeypatch.setattr(store, "_now_ms", lambda: now_ms)
    even = [session.metadata["n"] for session in store.sessions(lambda found: found.metadata["n"] % 2 == 0)]
    assert even == [number for number in range(0, 40, 2) if number not in (0, 10, 20)]
    assert [found.id for found in store.sessions(prefix="key-3", after="key-36")] == [
        "key-37",
        "key-38",
        "key-39",
    ]


def test_a_sample_is_drawn_without_repetition_and_evenly(store: SessionStore) -> None:
    with store.batch() as batch:
        for number in range(20):
            batch.put(f"key-{number:02}", {"n": number}, None)
    drawn = [session.id for _ in range(400) for session in store.sample(5)]
    assert len(drawn) == 2000
    counts = [drawn.count(f"key-{number:02}") for number in range(20)]
    assert sum(counts) == 2000
    assert min(counts) > 40  # 100 are expected; so few come once in a thousand million runs
    assert len({session.id for session in store.sample(20)}) == 20
    assert len(store.sample(100)) == 20
    for wrong in (0, -1, 10_001, 1.5):
        with pytest.raises(UsageError):
            store.sample(wrong)  # type: ignore[arg-type]


def test_a_batch_creates_with_a_largest_lifetime_and_deletes_no_session_that_has_expired(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.batch() as batch:
        capped = batch.create({}, timeout_ms=None, max_lifetime_ms=60_000)
    session = store[capped]
    assert session.max_expires_at == session.created_at + 60_000
    late = store._now_ms() + 120_000
    monkeypatch.setattr(store, "_now_ms", lambda: late)
    monkeypatch.setattr(store._log, "now_ms", lambda: late)
    before = store.position()
    with store.batch() as batch:
        batch.delete(capped)
    assert store.position() == before
    assert not store.delete(capped)


def test_a_batch_stores_the_metadata_as_they_were_when_they_were_put(store: SessionStore) -> None:
    metadata: dict[str, object] = {}
    with store.batch() as batch:
        for number in range(3):
            metadata["n"] = number
            batch.put(str(number), metadata, 60_000)
        metadata["n"] = "x" * 1_000_000
    found = [store.peek(str(number)) for number in range(3)]
    assert [session.metadata if session else None for session in found] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert all(session and session.max_expires_at == session.created_at + 60_000 for session in found)


def test_a_batch_is_entered_once(store: SessionStore) -> None:
    batch = store.batch()
    with batch:
        batch.create({"n": 1})
    with pytest.raises(UsageError, match="once"), batch:
        pass
    again = store.batch()
    with pytest.raises(UsageError, match="once"), again, again:
        pass
    assert store.count() == 1


@pytest.mark.parametrize("priority", [4, 255, 256, -1, 1.0, "high", None])
def test_a_priority_that_is_none_is_refused(store: SessionStore, priority: Any) -> None:
    before = store.position()
    for call in (
        lambda: store.create({}, priority=priority),
        lambda: store.put("mine", {}, priority=priority),
        lambda: store.batch().create({}, priority=priority),
        lambda: store.batch().put("mine", {}, priority=priority),
    ):
        with pytest.raises(UsageError, match="priority"):
            call()
    assert store.position() == before


def test_a_timeout_that_only_equals_the_default_is_refused_if_it_is_no_whole_number(
    store: SessionStore,
) -> None:
    for create in (store.create, store.batch().create):
        with pytest.raises(UsageError, match="timeout"):
            create({}, timeout_ms=3_600_000.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_session_size_bytes": (8 << 20) + 1},
        {"max_session_size_bytes": 0},
        {"max_session_size_bytes": 1.5},
        {"interval_ms": 0},
        {"write_timeout_ms": -1},
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused_before_anything_is_made(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SessionStore.open(tmp_path / "store", **wrong)
    assert not (tmp_path / "store").exists()


def test_a_session_of_the_largest_size_survives_reopening(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store", max_session_size_bytes=8 << 20) as store:
        id = store.create({"pad": "x" * ((8 << 20) - 100)})
        with pytest.raises(SessionTooLargeError):
            store.create({"pad": "x" * (8 << 20)})
        with SessionStore.open(tmp_path / "store") as other:
            assert other.exists(id)
    with SessionStore.open(tmp_path / "store") as store:
        assert store.exists(id)


def test_ids_come_in_key_order_with_prefix_and_resume(store: SessionStore) -> None:
    names = [f"user-{number:03d}" for number in range(30)]
    for name in names[::2]:
        store.put(name, {})
    store.fold()
    for name in names[1::2]:
        store.put(name, {})
    store.delete("user-004")
    store.put("other", {})
    names.remove("user-004")
    assert list(store.ids("user-")) == names
    assert list(store.ids("user-", after="user-010")) == [name for name in names if name > "user-010"]
    assert list(store.ids()) == ["other", *names]


def test_expired_sessions_are_absent_and_swept_as_logged_events(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [store._now_ms()]

    def clock() -> int:
        return now[0]

    monkeypatch.setattr(store, "_now_ms", clock)
    monkeypatch.setattr(store._log, "now_ms", clock)
    short = store.create({}, timeout_ms=1000)
    capped = store.put("capped", {}, 5000).id
    kept = store.create({}, timeout_ms=None)
    now[0] += 1050
    assert store.peek(short) is not None, "the refresh window of a tenth is granted"
    now[0] += 100
    assert store.get(short) is None
    assert store.peek(short) is None
    assert store.cleanup_expired() == 1
    now[0] += 4000
    assert store.peek(capped) is None
    assert store.cleanup_expired() == 1
    assert list(store.ids()) == [kept]
    assert store.cleanup_expired() == 0


def test_use_keeps_a_sliding_session_alive(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_background(store)  # or it may hold a refresh while flush() looks for it
    now = [store._now_ms()]
    monkeypatch.setattr(store, "_now_ms", lambda: now[0])
    monkeypatch.setattr(store._log, "now_ms", lambda: now[0])
    id = store.create({}, timeout_ms=10_000)
    for _ in range(5):
        now[0] += 8_000
        assert store.get(id) is not None
        store.flush()
    assert store.cleanup_expired() == 0
    now[0] += 12_000
    assert store.get(id) is None
    assert store.cleanup_expired() == 1


@pytest.mark.parametrize("bad", ["", "x" * 1025, "\ud800"])
def test_bad_ids_are_refused_before_anything_is_written(store: SessionStore, bad: str) -> None:
    before = store.position()
    with pytest.raises(InvalidIdError):
        store.put(bad, {})
    assert store.position() == before


@pytest.mark.parametrize("id", ["", "\ud800", "x" * 1025])
def test_text_that_can_be_no_id_names_no_session(store: SessionStore, id: str) -> None:
    assert store.get(id) is None
    assert store.peek(id) is None


@pytest.mark.parametrize("id", [None, 5, b"bytes"])
def test_what_is_no_text_is_refused_as_an_id(store: SessionStore, id: object) -> None:
    for call in (store.get, store.peek):
        with pytest.raises(InvalidIdError, match="text"):
            call(id)  # type: ignore[arg-type]


def test_ids_up_to_1024_bytes_work(store: SessionStore) -> None:
    long_ids = ["k" * size for size in (510, 511, 512, 1024)]
    for number, id in enumerate(long_ids):
        store.put(id, {"n": number})
    store.fold()
    for number, id in enumerate(long_ids):
        found = store.get(id)
        assert found is not None
        assert found.metadata == {"n": number}
    assert list(store.ids()) == long_ids


def test_what_cannot_be_stored_is_refused_with_the_path_to_it(store: SessionStore) -> None:
    before = store.position()
    with pytest.raises(MetadataError, match=r"metadata\['a'\]\[1\]"):
        store.create({"a": [1, object()]})
    with pytest.raises(MetadataError):
        store.create([1])  # type: ignore[arg-type]
    with pytest.raises(SessionTooLargeError, match="limit is 65536"):
        store.create({"blob": b"x" * 70_000})
    with pytest.raises(UsageError):
        store.create({}, timeout_ms=0)
    assert store.position() == before
    assert store.count() == 0


def test_outcome_tells_committed_from_lost(store: SessionStore) -> None:
    id = store.create({})
    position = store.position()
    assert store.outcome(position) is Outcome.COMMITTED
    assert store.outcome(str(position)) is Outcome.COMMITTED
    assert store.outcome((position.epoch, position.lsn, position.chain ^ 1)) is Outcome.LOST
    assert store.outcome((position.epoch, position.lsn + 10, 0)) is Outcome.UNKNOWN
    with store.batch() as batch:
        batch.delete(id)
    assert store.outcome(batch.operation_id) is Outcome.COMMITTED
    assert store.outcome("00" * 15 + "77") is Outcome.LOST
    for nonsense in ("short", "1:2", "1:2:xyz", f"1:{1 << 64}:{0:016x}"):
        with pytest.raises(UsageError):
            store.outcome(nonsense)


@pytest.mark.parametrize("durability", ["os", "interval", "disk"])
def test_every_durability_acknowledges_and_says_what_is_on_disk(tmp_path: Path, durability: str) -> None:
    with SessionStore.open(tmp_path / "store", durability=durability) as store:
        for _ in range(20):
            store.create({})
        stats = store.stats()
        if durability == "disk":
            assert stats["flushed_lsn"] == stats["appended_lsn"]
        store.create({}, durability="disk")
        assert store.stats()["flushed_lsn"] == store.stats()["appended_lsn"]
    with pytest.raises(UsageError):
        SessionStore.open(tmp_path / "store", durability="sometimes")


def test_threads_share_commits_and_lose_nothing(store: SessionStore) -> None:
    store.put("counter", {"n": 0}, None)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                store.create({}, durability="disk")
                store.update("counter", lambda s: s.merge({"n": s.metadata["n"] + 1}))
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.count() == 401
    counter = store.get("counter")
    assert counter is not None
    assert counter.metadata == {"n": 400}


def test_threads_that_read_and_write_follow_another_writer_side_by_side(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with SessionStore.open(tmp_path / "store") as one, SessionStore.open(tmp_path / "store") as two:
        ids = [one.create({"n": number}) for number in range(20)]
        stop = threading.Event()

        def repeat(call: Callable[[int], object]) -> None:
            number = 0
            try:
                while not stop.is_set():
                    number += 1
                    call(number)
            except BaseException as error:  # noqa: BLE001 - shown by the main thread
                errors.append(error)
                stop.set()

        calls: list[Callable[[int], object]] = [
            lambda number: two.create({"n": number}),
            lambda number: one.update(ids[number % 20], lambda session: session.merge({"n": number})),
            lambda number: one.get(ids[number % 20]),
            lambda number: one.count(),
        ]
        threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        stop.wait(1.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert one.count() == two.count() == len(list(one.ids()))


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SessionStore.open(tmp_path / "store")
    store.close()
    store.close()
    with pytest.raises(StoreClosedError):
        store.create({})
    with pytest.raises(StoreClosedError):
        store.get("x")


def test_missing_and_foreign_directories_are_refused_untouched(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError):
        SessionStore.open(tmp_path / "nothing", create=False)
    assert not (tmp_path / "nothing").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(ForeignError, match=r"letter\.txt"):
        SessionStore.open(foreign)
    assert [file.name for file in foreign.iterdir()] == ["letter.txt"]
    SessionStore.open(tmp_path / "store", backend="sqlite").close()
    with pytest.raises(StorageError, match="sqlite"):
        SessionStore.open(tmp_path / "store", backend="lmdb")


@pytest.mark.parametrize("below", ["", "store"])
def test_a_file_where_the_directory_belongs_is_named_and_left_alone(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(StorageError, match="A file stands where a directory belongs") as caught:
        SessionStore.open(file / below)
    assert str(file) in str(caught.value)
    assert file.read_text() == "mine"


def test_two_handles_of_one_process_see_each_other(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store") as one, SessionStore.open(tmp_path / "store") as two:
        id = one.create({"n": 1})
        found = two.get(id)
        assert found is not None
        two.update(id, lambda session: session.merge({"n": 2}))
        seen = one.get(id)
        assert seen is not None
        assert seen.metadata == {"n": 2}
        assert one.delete(id)
        two.fold()
        assert two.get(id) is None
        assert one.position() == two.position()
