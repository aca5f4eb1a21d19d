"""A store whose values are compressed or sealed: every call, what stands on disk, what needs which key."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.recovery import Level, dump, replay_to, take_snapshot, verify
from perdure.store import (
    CorruptError,
    KeyMissingError,
    Keyring,
    OpenOptions,
    SessionNotFoundError,
    SessionStore,
    SessionTooLargeError,
    UsageError,
    VersionConflictError,
    WrongKeyError,
)
from perdure.store.commit import parse_durability
from perdure.store.keyring import ALGORITHMS, Key, make_keyring, new_keyring, read_keyring, rotate_keyring
from perdure.store.opening import open_store
from tests.support.machine import stop_background

PLAINTEXTS = ("of-alice",)
FORMS: dict[str, dict[str, Any]] = {
    "compressed": {"compression": "zstd", "compress_min_bytes": 1},
    "sealed": {"keys": True},
    "sealed-compressed": {"keys": True, "compression": "zstd", "compress_min_bytes": 1},
    "hidden": {"keys": True, "hide_ids": True},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    make_keyring(path, ALGORITHMS[0], 1)
    return path


@pytest.fixture(params=["lmdb", "sqlite"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FORMS)
def options(request: pytest.FixtureRequest, file: Path, backend: str) -> dict[str, Any]:
    found = dict(FORMS[request.param], backend=backend)
    return found | ({"keys": file} if "keys" in found else {})


@pytest.fixture
def store(tmp_path: Path, options: dict[str, Any]) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "store", **options) as opened:
        yield opened


LARGE = {"name": "metadata-of-alice" * 40}


def everything_on_disk(place: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file())


# -- every call -----------------------------------------------------------------------------------


def test_each_call_gives_what_it_gives_without_sealing(store: SessionStore) -> None:
    id = store.create(LARGE, group="g", tags=["t", "u"], timeout_ms=50_000)
    found = store.get(id)
    assert found is not None
    assert (found.id, found.metadata, found.group, found.tags) == (id, LARGE, "g", ("t", "u"))
    assert (found.version, found.timeout_ms) == (1, 50_000)
    assert store.peek(id) == found == store[id]
    assert id in store and store.exists(id)
    changed = store.update(id, lambda session: session.merge({"n": 1}))
    assert (changed.version, changed.metadata, changed.tags) == (2, {**LARGE, "n": 1}, ("t", "u"))
    assert store.peek(id) == changed
    assert store.patch(id, {"n": 2}, if_version=2).version == 3
    put = store.put("user-1", {"n": 3}, group="h")
    assert (put.id, put.metadata, put.version) == ("user-1", {"n": 3}, 1)
    assert store.put("user-1", LARGE, if_version=1).version == 2
    with pytest.raises(VersionConflictError):
        store.put("user-1", {}, if_version=1)
    new_id = store.regenerate_id("user-1")
    assert store.peek("user-1") is None
    moved = store[new_id]
    assert (moved.id, moved.metadata, moved.version) == (new_id, LARGE, 2)
    store.touch(new_id)
    assert sorted(store.ids()) == sorted([id, new_id])
    assert sorted(session.id for session in store.sessions()) == sorted([id, new_id])
    assert {session.id for session in store.sample(5)} == {id, new_id}
    assert store.count() == 2
    assert store.delete(new_id) and not store.delete(new_id)
    with pytest.raises(SessionNotFoundError):
        store.update(new_id, lambda session: session)
    with pytest.raises(SessionNotFoundError):
        store[new_id]
    assert store.peek("") is None
    assert store.peek("\ud800") is None
    assert store.peek("x" * 2_000) is None


def test_a_batch_gives_what_it_gives_without_sealing(store: SessionStore) -> None:
    store.put("old", {"n": 1})
    store.put("gone", {})
    with store.batch() as batch:
        id = batch.create(LARGE, tags=["t"])
        batch.put("old", {"n": 2})
        batch.put("new", LARGE)
        batch.touch("old")
        batch.delete("gone")
    assert store[id].metadata == LARGE
    assert store[id].tags == ("t",)
    assert (store["old"].metadata, store["old"].version) == ({"n": 2}, 2)
    assert store["new"].metadata == LARGE
    assert "gone" not in store


def test_fold_reopen_rebuild_and_another_handle_read_the_same(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, **options) as store, SessionStore.open(path, **options) as other:
        ids = [store.create(LARGE | {"n": n}, group=f"g{n}") for n in range(5)]
        renamed = store.regenerate_id(ids[0])
        before = {id: other.peek(id) for id in [*ids[1:], renamed]}
        assert None not in before.values()
        assert other.peek(ids[0]) is None
        store.fold()
        assert {id: other.peek(id) for id in before} == before
        digest = store.stats()["digest"]
    with SessionStore.open(path, **options) as store:
        assert {id: store.peek(id) for id in before} == before
    (path / "state").rename(path / "aside-state")
    with SessionStore.open(path, **options) as store:
        assert {id: store.peek(id) for id in before} == before
        assert store.stats()["digest"] == digest


def test_the_limit_counts_the_plain_uncompressed_value(tmp_path: Path, options: dict[str, Any]) -> None:
    with SessionStore.open(tmp_path / "store", max_session_size_bytes=1_000, **options) as store:
        for call in (
            lambda: store.create({"a": "b" * 1_000}),
            lambda: store.put("x", {"a": "b" * 1_000}),
        ):
            with pytest.raises(SessionTooLargeError):
                call()
        store.put("x", {"a": "b" * 900})
        with pytest.raises(SessionTooLargeError):
            store.patch("x", {"c": "d" * 100})
        assert store["x"].metadata == {"a": "b" * 900}


def test_labels_are_found_listed_and_changed_as_a_whole(store: SessionStore) -> None:
    metadata = {"n": 1}
    for number in range(6):
        store.put(
            f"user-{number}",
            metadata,
            None,
            group=f"group-{number % 2}",
            tags=[f"tag-{number % 3}", "all"],
            home_node=f"node-{number % 2}",
        )
    store.fold()
    store.put("late", metadata, None, group="group-0", tags=["all"])
    assert set(store.groups()) == {"group-0", "group-1"}
    assert set(store.tags()) == {"tag-0", "tag-1", "tag-2", "all"}
    assert set(store.home_nodes()) == {"node-0", "node-1"}
    assert set(store.ids(group="group-0")) == {"user-0", "user-2", "user-4", "late"}
    assert set(store.ids(group="group-0", tag="tag-2")) == {"user-2"}
    assert {session.id for session in store.sessions(tag="tag-1")} == {"user-1", "user-4"}
    assert store.count(tag="all") == 7
    assert list(store.ids(group="nobody")) == []
    assert set(store.orphans(["node-0"])) == {"user-1", "user-3", "user-5"}
    first = next(store.orphans(["node-0"]))
    assert first not in set(store.orphans(["node-0"], after=first))
    assert store.adopt_orphans(["node-0"], "node-0") == 3
    assert store.count_orphans(["node-0"]) == 0
    adopted = store["user-1"]
    assert (adopted.home_node, adopted.metadata, adopted.version) == ("node-0", metadata, 2)
    changed = store.update("user-0", lambda session: session.replace(group="group-9"))
    assert changed.group == "group-9" == store["user-0"].group
    assert set(store.ids(group="group-0")) == {"user-2", "user-4", "late"}
    assert store.touch_group("group-1").sessions == 3
    assert store.delete_group("group-1").sessions == 3
    assert store.count() == 4
    assert set(store.home_nodes()) == {"node-0"}
    assert store.cleanup_orphans(["other"]) == 3
    assert list(store.ids()) == ["late"]


def test_listeners_are_told_of_the_plain_sessions_and_not_of_their_form(store: SessionStore) -> None:
    store.put("a", LARGE)
    store.patch("a", {"n": 1})
    new_id = store.regenerate_id("a")
    store._sealer._compresses = not store._sealer._compresses
    store._sealer._min_bytes = 1
    assert store.reseal().resealed == 1
    store.delete(new_id)
    with store.feed(0, follow=False) as feed:
        events = list(feed)
    assert [str(event.kind) for event in events] == ["created", "updated", "renamed", "deleted"]
    sessions = [event.session for event in events]
    assert [session and session.metadata for session in sessions[:2]] == [LARGE, LARGE | {"n": 1}]
    assert sessions[2:] == [None, None]
    assert [event.id for event in events[:2]] == ["a", "a"]
    assert (events[2].id, events[2].new_id) == (store.stored_as("a"), store.stored_as(new_id))
    assert events[3].id == store.stored_as(new_id)
    assert (store.stored_as("a") == "a") is not store._sealer.hides_ids


def test_a_feed_without_keys_is_an_error_at_a_sealed_session(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file) as store:
        store.put("a", {"n": 1})
    with (
        SessionStore.open(path) as store,
        store.feed(0, follow=False) as feed,
        pytest.raises(KeyMissingError),
    ):
        next(feed)
    with SessionStore.open(path, keys=file) as store, store.feed(0, follow=False) as feed:
        assert [event.id for event in feed] == ["a"]


def test_a_capacity_limit_evicts_the_least_recently_used(tmp_path: Path, options: dict[str, Any]) -> None:
    clock = Clock()
    with _opened(tmp_path / "store", clock, sessions_max=3, **options) as store:
        ids = []
        for number in range(5):
            clock.time_ms += 1_000
            ids.append(store.create({"n": number}))
        assert store.count() == 3
        assert [store.peek(id) is None for id in ids] == [True, True, False, False, False]
        assert store[ids[4]].metadata == {"n": 4}


# -- what stands on disk --------------------------------------------------------------------------


def test_nothing_of_a_sealed_session_stands_in_any_file(tmp_path: Path, file: Path, backend: str) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, backend=backend, keys=file, hide_ids=True) as store:
        store.put("id-of-alice", {"name": "meta-of-alice"}, group="group-of-alice", tags=["tag-of-alice"])
        store.update("id-of-alice", lambda session: session.merge({"more": "more-of-alice"}))
        store.create({"name": "meta-of-alice"}, group="group-of-alice")
        store.touch("id-of-alice")
        store.put("other-of-alice", {"name": "meta-of-alice"})
        store.delete("other-of-alice")
        new_id = store.regenerate_id("id-of-alice")
        store.fold()
        take_snapshot(path)
        store.put("tail-of-alice", {"name": "tail-of-alice"})
        store.flush()
        held = everything_on_disk(path)
    assert {"log", "snapshots", "state"} <= {entry.name for entry in path.iterdir()}
    for data in (held, everything_on_disk(path)):
        assert len(data) > 1_000
        assert b"of-alice" not in data
        assert new_id.encode() not in data


def test_metadata_of_a_sealed_store_stands_in_no_file_and_its_ids_do(
    tmp_path: Path, file: Path, backend: str
) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, backend=backend, keys=file) as store:
        store.put("id-of-alice", {"name": "meta-of-alice"})
        store.patch("id-of-alice", {"name": "meta-of-alice", "n": 1})
        store.fold()
        take_snapshot(path)
    data = everything_on_disk(path)
    assert b"meta-of-alice" not in data
    assert b"id-of-alice" in data


def test_the_columns_of_sqlite_show_what_can_be_read(tmp_path: Path, file: Path) -> None:
    rows = {}
    for name, options in {
        "plain": {},
        "compressed": {"compression": "zstd", "compress_min_bytes": 1},
        "sealed": {"keys": file},
        "hidden": {"keys": file, "hide_ids": True},
    }.items():
        path = tmp_path / name
        with SessionStore.open(path, backend="sqlite", **options) as store:  # type: ignore[arg-type]
            store.put("user", LARGE, group="grp", tags=["a", "b"])
        with sqlite3.connect(next(path.rglob("sessions.sqlite3"))) as connection:
            query = (
                "SELECT id, version, priority, session_group, tags, metadata, expires_at > 0 FROM sessions"
            )
            rows[name] = connection.execute(query).fetchone()
        connection.close()
    assert rows["compressed"] == rows["plain"]
    assert rows["plain"][0] == "user" and rows["plain"][5] is not None
    assert rows["sealed"] == (*rows["plain"][:5], None, 1)
    hidden = rows["hidden"]
    assert (hidden[1:3], hidden[5:]) == (rows["plain"][1:3], (None, 1))
    assert len(hidden[0]) == len(hidden[3]) == 32
    assert "grp" not in hidden[3] and '"a"' not in hidden[4]


def test_the_tools_work_on_sealed_values_without_a_key(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, **options) as store:
        id = store.create(LARGE, group="g")
        take_snapshot(path)
        id = store.regenerate_id(id)
        store.patch(id, {"n": 1})
        digest, expected = store.stats()["digest"], store.peek(id)
    findings = list(verify(path))
    assert all(finding.level is Level.OK for finding in findings), findings
    report = replay_to(path, tmp_path / "copy")
    assert f"{report.position.digest:016x}" == digest
    events = list(dump(path))
    assert not [event for event in events if "damage" in event or "unreadable" in event]
    sealed = [event["session"].get("sealed_under") for event in events if event["kind"] == "put"]
    assert len(set(sealed)) == 1 and (sealed[0] is not None) == ("keys" in options)
    again = {name: value for name, value in options.items() if name != "backend"}
    with SessionStore.open(tmp_path / "copy", **again) as copy:
        assert copy.peek(id) == expected


# -- keys that are not there ----------------------------------------------------------------------


def test_without_keys_a_sealed_session_is_an_error_and_never_missing(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file) as store:
        store.put("a", {"n": 1}, group="g", home_node="gone")
        store.put("b", {"n": 2})
        store.put("c", {"n": 3})
    active = read_keyring(file).active
    with SessionStore.open(path) as store:
        for call in (
            lambda: store.get("a"),
            lambda: store.peek("a"),
            lambda: store.exists("a"),
            lambda: store["a"],
            lambda: store.update("a", lambda session: session),
            lambda: store.put("a", {"n": 9}),
            lambda: store.regenerate_id("a"),
            lambda: list(store.sessions()),
            lambda: store.adopt_orphans(["here"], "here"),
            store.reseal,
        ):
            with pytest.raises(KeyMissingError) as caught:
                call()
            assert caught.value.key_id == active
            assert "keys" in caught.value.hint
        with pytest.raises(KeyMissingError), store.batch() as batch:
            batch.put("a", {"n": 9})
        assert store.count() == 3
        assert list(store.ids()) == ["a", "b", "c"]
        assert list(store.ids(group="g")) == list(store.orphans(["here"])) == ["a"]
        assert list(store.groups()) == ["g"]
        store.touch("a")
        assert store.delete("b")
        with store.batch() as batch:
            batch.delete("c")
        assert store.peek("nobody") is None
    with SessionStore.open(path, keys=file) as store:
        assert store["a"].metadata == {"n": 1}
        assert store.count() == 1


def test_with_another_key_file_a_sealed_session_is_an_error(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file) as store:
        store.put("a", {"n": 1})
        store.put("b", {"n": 1})
    ring = read_keyring(file)
    forged = Keyring(1, ring.active, ring.id_secret, (Key(ring.active, ALGORITHMS[0], 1, "00" * 32),))
    for keys, kind in ((new_keyring(ALGORITHMS[0], 1), KeyMissingError), (forged, WrongKeyError)):
        with SessionStore.open(path, keys=keys) as store:
            with pytest.raises(kind):
                store.get("a")
            with pytest.raises(kind):
                store.patch("a", {})
            with pytest.raises(KeyMissingError, match="2 sessions"):
                store.reseal() if kind is KeyMissingError else _raise_for(store)
            assert store.count() == 2
    with SessionStore.open(path, keys=file) as store:
        assert store["a"].metadata == {"n": 1}


def _raise_for(store: SessionStore) -> None:
    """The forged key has the right id: nothing would be resealed, so ask for another form."""
    store._sealer._compresses = True
    store.reseal()


def test_without_keys_hidden_ids_are_an_error_and_count_and_sweep_work(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    clock = Clock()
    with _opened(path, clock, keys=file, hide_ids=True) as store:
        store.put("a", {"n": 1}, 60_000)
        store.put("b", {"n": 2}, None)
    with _opened(path, clock) as store:
        for call in (
            lambda: store.get("a"),
            lambda: store.delete("a"),
            lambda: store.touch("a"),
            lambda: store.create({}),
            lambda: list(store.ids()),
        ):
            with pytest.raises(KeyMissingError, match=r"hidden|sealed"):
                call()
        assert store.count() == 2
        clock.time_ms += 10_000_000
        assert store.cleanup_expired() == 1
        assert store.count() == 1
    with _opened(path, clock, keys=file) as store:
        assert store.get("a") is None
        assert store["b"].metadata == {"n": 2}


@pytest.mark.parametrize("is_folded", [False, True])
def test_hidden_ids_are_not_taken_for_missing_with_another_key_file(
    tmp_path: Path, file: Path, backend: str, is_folded: bool
) -> None:
    """With another secret for ids each one hashes to another key: found missing, and stored twice."""
    other = tmp_path / "other"
    make_keyring(other, ALGORITHMS[0], 1)
    # The same keys with another secret: values open, and only their ids tell.
    ring = read_keyring(file)
    forged = Keyring(ring.format, ring.active, read_keyring(other).id_secret, ring.keys)
    with SessionStore.open(tmp_path / "store", keys=file, hide_ids=True, backend=backend) as store:
        store.put("a", {"n": 1})
        if is_folded:
            store.fold()
        for keys in (other, forged):
            with pytest.raises(KeyMissingError, match=r"keyring|secret"):
                SessionStore.open(tmp_path / "store", keys=keys)
        rotate_keyring(file, None, 2)
        with SessionStore.open(tmp_path / "store", keys=file) as again:
            assert again["a"].metadata == {"n": 1}


def test_an_expired_session_is_gone_also_for_who_has_no_key(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    clock = Clock()
    with _opened(path, clock, keys=file) as store:
        store.put("a", {"n": 1}, 60_000, sliding=True)
    clock.time_ms += 60_000
    with _opened(path, clock) as store:
        with pytest.raises(KeyMissingError):
            store.get("a")
        clock.time_ms += 10_000_000
        assert store.get("a") is None
        with pytest.raises(SessionNotFoundError):
            store.update("a", lambda session: session)
        assert store.cleanup_expired() == 1


def test_a_get_extends_the_life_of_a_sealed_session(tmp_path: Path, options: dict[str, Any]) -> None:
    clock = Clock()
    with _opened(tmp_path / "store", clock, **options) as store:
        stop_background(store)  # or it may hold a refresh while flush() looks for it
        id = store.create(LARGE, timeout_ms=100_000)
        for _ in range(5):
            clock.time_ms += 60_000
            assert store.get(id) is not None
            store.flush()
        clock.time_ms += 120_000
        assert store.get(id) is None


# -- forms side by side ---------------------------------------------------------------------------


def test_plain_compressed_and_sealed_sessions_stand_side_by_side(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path) as store:
        store.put("plain", LARGE)
    with SessionStore.open(path, compression="zstd", compress_min_bytes=1) as store:
        store.put("compressed", LARGE)
        assert store["plain"].metadata == LARGE
    with SessionStore.open(path) as store:
        assert store["compressed"].metadata == LARGE
        new_id = store.regenerate_id("compressed")
        assert store[new_id].metadata == LARGE
        assert store.patch(new_id, {"n": 1}).metadata == LARGE | {"n": 1}
    with SessionStore.open(path, keys=file) as store:
        store.put("sealed", LARGE)
        assert store.patch("plain", {"n": 1}).metadata == LARGE | {"n": 1}
        assert {session.id for session in store.sessions()} == {"plain", "sealed", new_id}
        assert store.reseal().resealed == 1
    with SessionStore.open(path) as store, pytest.raises(KeyMissingError):
        store.get(new_id)


def test_hiding_ids_is_settled_while_there_are_no_sessions(tmp_path: Path, file: Path) -> None:
    hidden, shown = tmp_path / "hidden", tmp_path / "shown"
    for path, hides in ((hidden, True), (shown, False)):
        with SessionStore.open(path, keys=file, hide_ids=hides) as store:
            store.put("a", {"n": 1})
        for _ in range(2):  # from the tail of the log, then from the state
            with pytest.raises(UsageError, match="hide_ids"):
                SessionStore.open(path, keys=file, hide_ids=not hides)
            with SessionStore.open(path, keys=file) as store:  # as the store has it
                assert store["a"].metadata == {"n": 1}
                assert store._sealer.hides_ids is hides
                store.fold()
        with SessionStore.open(path, keys=file) as store:
            store.delete("a")
        SessionStore.open(path, keys=file, hide_ids=not hides).close()


def test_the_stored_form_of_a_hidden_id_names_no_session(tmp_path: Path, file: Path) -> None:
    """Who reads the disk must not get a session by what stands there in place of its id."""
    with SessionStore.open(tmp_path / "store", keys=file, hide_ids=True) as store:
        store.put("a", {"n": 1})
        stored_as = store._sealer.hidden_key("a").decode()
        assert store.peek(stored_as) is None
        assert not store.delete(stored_as)


def test_hidden_ids_are_listed_in_the_order_of_their_hashes(tmp_path: Path, file: Path) -> None:
    with SessionStore.open(tmp_path / "store", keys=file, hide_ids=True) as store:
        for number in range(30):
            store.put(f"user-{number}", {"n": number})
        listed = list(store.ids())
        assert sorted(listed) == sorted(f"user-{number}" for number in range(30))
        assert list(store.ids(after=listed[10])) == listed[11:]
        assert [session.id for session in store.sessions(after=listed[28])] == listed[29:]
        with pytest.raises(UsageError, match="prefix"):
            list(store.ids(prefix="user-"))


def test_the_renaming_of_a_sealed_session_is_one_frame(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file) as store:
        id = store.create({"n": 1})
        new_id = store.regenerate_id(id)
    events = [event for event in dump(path) if event["key"] in (id, new_id)]
    assert [(event["kind"], event["reason"]) for event in events] == [
        ("put", "created"),
        ("rename", "renamed"),
        ("put", "renamed"),
    ]
    assert events[1]["offset"] == events[2]["offset"]


def test_damage_that_passes_the_hash_is_an_error(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, keys=file) as store:
        stop_background(store)  # nothing is folded
        store.put("a", {"n": 1})
        view = store._view
        _, record, arm = view.tail[b"a"]
        assert record is not None
        view.tail[b"a"] = (1, record[:-1] + b"\0", arm)
        with pytest.raises(CorruptError, match="hash"):
            store.get("a")


def test_a_face_opens_with_keys_from_the_environment(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERDURE_KEYS", str(file))
    with perdure.open(tmp_path / "store") as store:
        store.put("a", {"n": 1})
    monkeypatch.setenv("PERDURE_KEYS", file.read_text())
    with perdure.open(tmp_path / "store") as store:
        assert store["a"].metadata == {"n": 1}
    monkeypatch.delenv("PERDURE_KEYS")
    with perdure.open(tmp_path / "store") as store, pytest.raises(KeyMissingError):
        store.get("a")
    with perdure.open(tmp_path / "store", keys=file) as store:
        assert store["a"].metadata == {"n": 1}


def test_a_key_file_that_is_missing_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(KeyMissingError, match="key file"):
        perdure.open(tmp_path / "store", keys=tmp_path / "none")
    assert not (tmp_path / "store").exists()


class Clock:
    """A clock that stands still until it is moved."""

    time_ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.time_ms

    def monotonic_ms(self) -> int:
        return self.time_ms


def _opened(
    path: Path, clock: Clock, backend: str | None = None, sessions_max: int | None = None, **seal: Any
) -> SessionStore:
    from perdure.store.keyring import KeySource
    from perdure.store.sealer import SealOptions

    if "keys" in seal:
        seal["keys"] = KeySource(seal["keys"])
    options = OpenOptions(
        backend=backend,
        durability=parse_durability("os"),
        clock=clock,
        sessions_max=sessions_max,
        seal=SealOptions(**seal),
    )
    return SessionStore(open_store(path, options), options, None)
