"""Export and import: every session comes back to the byte, and nothing of a bad file is written."""

from __future__ import annotations

import io
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.recovery import dump
from perdure.store import (
    BACKENDS,
    CorruptError,
    Filter,
    FormatVersionError,
    KeyMissingError,
    MetadataError,
    NotPrimaryError,
    Priority,
    Session,
    SessionStore,
    SessionTooLargeError,
    UsageError,
    VersionConflictError,
    export_sessions,
    import_lines,
    import_sessions,
    init_store,
)
from perdure.store.keyring import ALGORITHMS, new_keyring
from perdure.store.lines import from_json, read_line, to_json, write_line
from perdure.store.session import encode_metadata, encode_session, stored_bytes, with_window

FAR_MS = 4_000_000_000_000
"""A time that has not come."""


def exported(store: SessionStore, **options: Any) -> bytes:
    lines = io.BytesIO()
    export_sessions(store, lines, **options)
    return lines.getvalue()


def stored(store: SessionStore) -> dict[str, bytes]:
    return {session.id: stored_bytes(session) for session in store.sessions()}


@pytest.fixture(params=BACKENDS)
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SessionStore]:
    """A store with sessions of every kind."""
    with SessionStore.open(tmp_path / "full", backend=request.param) as store:
        store.put("plain", {"n": 1}, None)
        store.put("é" * 500, {"long": "x" * 1000}, 10_000_000)
        store.put(
            "labels", {}, 5_000_000, sliding=True, group="g", tags=["a", "b"], priority=Priority.CRITICAL
        )
        store.create({"bytes": b"\x00\xff", "at": datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)})
        store.update("plain", lambda session: session.replace(tags=["b"], home_node="n2"))
        store.patch("plain", {"big": 2**64 - 1, "small": -(2**63), "nan": math.nan, "$set": {"$x": None}})
        yield store


@contextmanager
def fresh(path: Path, backend: str = "lmdb") -> Iterator[SessionStore]:
    with SessionStore.open(path, backend=backend) as store:
        yield store


# -- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("into", BACKENDS)
def test_an_export_imported_elsewhere_gives_the_same_bytes_count_and_digest(
    full: SessionStore, tmp_path: Path, into: str
) -> None:
    lines = exported(full)
    with fresh(tmp_path / "copy", into) as copy:
        report = import_lines(copy, io.BytesIO(lines))
        assert stored(copy) == stored(full)
        assert copy.stats()["digest"] == full.stats()["digest"] == f"{report.digest:016x}"
        assert (report.read, report.imported) == (4, 4)
        assert exported(copy).splitlines()[1:] == lines.splitlines()[1:]


plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 2))
    | st.datetimes(timezones=st.just(timezone(timedelta(hours=2))), min_value=datetime(1970, 1, 2))
)
keys = st.text() | st.sampled_from(["$bytes", "$map", "$", "$msgpack"])
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
sessions = st.builds(
    lambda id, version, created, accessed, timeout, window, cap, metadata, priority, home, group, tags: (
        Session(
            id,
            encode_session(
                version,
                created,
                accessed,
                with_window(timeout, window),
                cap,
                metadata,
                priority,
                home_node=home,
                group=group,
                tags=tags,
            ),
        )
    ),
    st.text(min_size=1, max_size=250),
    st.integers(1, 2**63 - 1),
    st.integers(0, 2**53),
    st.integers(FAR_MS, FAR_MS * 2),
    st.integers(0, 3_000_000_000),
    st.none() | st.integers(0, 60_000),
    st.just(0) | st.integers(FAR_MS, FAR_MS * 2),
    st.dictionaries(keys, values, max_size=4),
    st.integers(0, 3),
    st.text(max_size=30),
    st.text(max_size=30),
    st.lists(st.text(max_size=10), max_size=4).map(tuple),
)


@given(session=sessions)
@settings(max_examples=150, deadline=None)
def test_a_session_comes_back_from_its_line_to_the_byte(session: Session) -> None:
    line = write_line(session)
    assert b"\n" not in line
    assert isinstance(json.loads(line), dict)
    assert read_line(line) == (session.id, stored_bytes(session))


@given(batch=st.lists(sessions, max_size=6, unique_by=lambda session: session.id))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sessions_come_back_through_two_stores_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, batch: list[Session]
) -> None:
    root = tmp_path_factory.mktemp("through")
    wanted = {session.id: stored_bytes(session) for session in batch}
    with fresh(root / "a") as first, fresh(root / "b") as second:
        assert import_sessions(first, batch).imported == len(batch)
        assert stored(first) == wanted
        import_lines(second, io.BytesIO(exported(first)))
        assert stored(second) == wanted


@pytest.mark.parametrize(
    "metadata",
    [
        b"\x81\xa1a\xcd\x00\x07",  # a number that takes more bytes than it needs
        b"\x81\xa1a\xca\x3f\x80\x00\x00",  # a float of four bytes
        b"\xde\x00\x01\xa1a\x01",  # a map whose length takes more bytes than it needs
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x81\xa1a" + b"\x91" * 600 + b"\xc0",  # nested deeper than is taken
        b"\x81\xa1a\xd4\x07\x01",  # an extension type
        b"\x81\xa1a\x81\x01\x02",  # a map whose key is no text
    ],
)
def test_metadata_that_another_encoder_wrote_come_back_to_the_byte(metadata: bytes) -> None:
    session = Session("a", encode_session(1, 0, 0, 0, 0, {})[:-1] + metadata)
    assert b"$msgpack" in write_line(session)
    assert read_line(write_line(session)) == ("a", stored_bytes(session))


def test_integers_above_two_to_the_53_are_plain_and_exact() -> None:
    assert json.loads(write_line(Session("a", encode_session(1, 0, 0, 0, 0, {"n": 2**63 + 1}))))[
        "metadata"
    ] == {"n": 2**63 + 1}


@given(value=values)
@settings(max_examples=100, deadline=None)
def test_a_tagged_value_encodes_as_the_value_itself(value: Any) -> None:
    back = from_json(msgspec.json.decode(msgspec.json.encode(to_json(value))))
    assert encode_metadata(back) == encode_metadata(value)


@pytest.mark.parametrize("hides", [False, True])
def test_a_sealed_store_exports_plain_sessions_that_a_store_with_other_keys_takes(
    tmp_path: Path, hides: bool
) -> None:
    def opened(name: str, **options: Any) -> SessionStore:
        return SessionStore.open(tmp_path / name, **options)

    rings = [new_keyring(ALGORITHMS[0], 1), new_keyring(ALGORITHMS[0], 1)]
    with opened("a", keys=rings[0], hide_ids=hides, compression="zstd") as first:
        first.put("user-1", {"text": "secret " * 1000}, None, group="g", tags=["t"])
        first.put("user-2", {"n": 2}, None)
        first.put("other", {"n": 3}, None)
        lines = exported(first)
        wanted = stored(first)
        only = exported(first, only=Filter(prefix="user-")).splitlines()
    with opened("a", keys=rings[0]) as again:
        assert exported(again).splitlines()[-1] == lines.splitlines()[-1]
    assert sorted(read_line(line)[0] for line in only[1:-1]) == ["user-1", "user-2"]
    with opened("b", keys=rings[1], hide_ids=not hides) as second:
        assert import_lines(second, io.BytesIO(lines)).imported == 3
        assert import_lines(second, io.BytesIO(lines), on_conflict="fail").unchanged == 3
        assert stored(second) == wanted
        assert list(second.ids(group="g")) == ["user-1"]
        again_lines = exported(second).splitlines()
        assert again_lines[-1] == lines.splitlines()[-1]
    with opened("plain") as third:
        import_lines(third, io.BytesIO(lines))
        assert third.stats()["digest"] == json.loads(lines.splitlines()[-1])["digest"]


def test_an_export_without_the_key_is_a_clear_error(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "a", keys=new_keyring(ALGORITHMS[0], 1)) as store:
        store.put("a", {})
    with SessionStore.open(tmp_path / "a") as store, pytest.raises(KeyMissingError):
        exported(store)


# -- what an export holds -------------------------------------------------------------------------


def test_an_export_is_of_one_lsn_whatever_is_written_meanwhile(full: SessionStore) -> None:
    before = stored(full)
    position = full.position()

    class Writing(io.BytesIO):
        def write(self, data: Any, /) -> int:
            full.create({"late": True})
            return super().write(data)

    lines = Writing()
    report = export_sessions(full, lines)
    head = json.loads(lines.getvalue().splitlines()[0])
    assert (head["lsn"], report.position.lsn) == (position.lsn, position.lsn)
    pairs = dict(read_line(line) for line in lines.getvalue().splitlines()[1:-1])
    assert pairs == before
    assert full.count() > len(before)


def test_an_export_is_filtered_and_says_by_what(full: SessionStore) -> None:
    def ids(only: Filter) -> list[str]:
        lines = exported(full, only=only).splitlines()
        assert json.loads(lines[0])["filter"] == {
            name: value for name, value in msgspec.to_builtins(only).items() if value
        }
        return [json.loads(line)["id"] for line in lines[1:-1]]

    assert ids(Filter(prefix="pl")) == ["plain"]
    assert ids(Filter(prefix="é")) == ["é" * 500]
    assert ids(Filter(prefix="nobody")) == []
    assert ids(Filter(group="g")) == ["labels"]
    assert ids(Filter(tag="b")) == ["labels", "plain"]
    assert ids(Filter(tag="b", priority="critical")) == ["labels"]
    assert ids(Filter(home_node="n2")) == ["plain"]
    lines = exported(full, matches=lambda session: "bytes" in session.metadata).splitlines()
    assert len(lines) == 3
    with pytest.raises(UsageError):
        exported(full, only=Filter(priority="highest"))


def test_expired_sessions_are_left_out_and_counted_and_not_imported(tmp_path: Path) -> None:
    gone = Session("gone", encode_session(1, 0, 0, 1000, 0, {}))
    kept = Session("kept", encode_session(1, 0, FAR_MS, 1000, 0, {}))
    with fresh(tmp_path / "a") as store:
        report = import_sessions(store, [gone, kept])
        assert (report.imported, report.expired) == (1, 1)
        assert store.count() == 1
        store.put("short", {}, 1)
        while store.exists("short"):
            pass
        time.sleep(0.2)  # by less than an eighth of that the session time may go back
        lines = io.BytesIO()
        done = export_sessions(store, lines)
        assert (done.sessions, done.expired) == (1, 1)
        assert json.loads(lines.getvalue().splitlines()[-1])["expired"] == 1


def test_a_damaged_session_in_the_state_ends_the_export_without_its_last_line(tmp_path: Path) -> None:
    with fresh(tmp_path / "a") as store:
        store.put("a", {})
        store.put("b", {})
        store.fold()
        with store._view.mutex:  # or the store's own thread gives the read view back
            backend, at = store._opened.backend, store._opened.backend.refresh()
            record = backend.get(b"b")
            assert record is not None
            backend.release()
            backend.fold([(b"b", record[:-1] + b"\x81")], [], [], at)
        lines = io.BytesIO()
        with pytest.raises(CorruptError):
            export_sessions(store, lines)
        with fresh(tmp_path / "b") as other:
            with pytest.raises(CorruptError, match="not complete"):
                import_lines(other, io.BytesIO(lines.getvalue()))
            assert other.count() == 0


# -- conflicts ------------------------------------------------------------------------------------


def test_what_is_there_is_left_replaced_or_refused(full: SessionStore, tmp_path: Path) -> None:
    lines = exported(full)
    with fresh(tmp_path / "copy") as copy:
        copy.put("plain", {"mine": True})
        mine = copy.peek("plain")
        with pytest.raises(VersionConflictError):
            import_lines(copy, io.BytesIO(lines), on_conflict="fail")
        assert copy.count() == 1
        report = import_lines(copy, io.BytesIO(lines))
        assert (report.imported, report.skipped, report.unchanged) == (3, 1, 0)
        assert copy.peek("plain") == mine
        report = import_lines(copy, io.BytesIO(lines), on_conflict="replace")
        assert (report.imported, report.replaced, report.unchanged) == (0, 1, 3)
        assert stored(copy) == stored(full)
        before = copy.position()
        report = import_lines(copy, io.BytesIO(lines), on_conflict="fail")
        assert report.unchanged == 4
        assert copy.position() == before


def test_what_is_there_and_has_expired_is_no_conflict(tmp_path: Path) -> None:
    with fresh(tmp_path / "a") as store:
        store.put("a", {}, 1)
        while store.exists("a"):
            pass
        time.sleep(0.2)  # as above
        report = import_sessions(store, [{"id": "a", "metadata": {"n": 2}}], on_conflict="fail")
        assert report.imported == 1
        assert store["a"].metadata == {"n": 2}


def test_a_wrong_word_for_conflicts_is_an_error(tmp_path: Path) -> None:
    with fresh(tmp_path / "a") as store, pytest.raises(UsageError, match="on_conflict"):
        import_sessions(store, [], on_conflict="merge")  # type: ignore[arg-type]


def test_imported_sessions_are_events_with_that_reason_and_a_frame_each_batch(tmp_path: Path) -> None:
    with fresh(tmp_path / "a") as store:
        begin = store.position().lsn
        import_sessions(store, ({"id": f"user-{n}"} for n in range(1500)))
        assert store.position().lsn == begin + 1500
        dumped = list(dump(tmp_path / "a", from_lsn=begin + 1))
        frames = Counter(line["offset"] for line in dumped)
        assert list(frames.values()) == [1000, 500]
        assert {line["reason"] for line in dumped} == {"imported"}


# -- from Python ----------------------------------------------------------------------------------


def test_mappings_take_defaults_and_what_to_dict_gives(tmp_path: Path, full: SessionStore) -> None:
    with fresh(tmp_path / "a") as store:
        import_sessions(store, [{"id": "a", "metadata": {"n": 1}}])
        session = store["a"]
        assert (session.version, session.timeout_ms, session.priority) == (1, 3_600_000, Priority.NORMAL)
        assert abs(session.created_at - store._now_ms()) < 60_000
        import_sessions(store, [{"id": "b", "timeout_ms": None}])
        assert store["b"].timeout_ms is None
        import_sessions(store, [each.to_dict() for each in full.sessions()])
        assert stored(full).items() <= stored(store).items()


def test_a_mapping_without_a_timeout_gets_the_one_of_the_store(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "a", default_timeout_ms=5_000_000) as store:
        import_sessions(store, [{"id": "a"}])
        assert store["a"].timeout_ms == 5_000_000


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"metadata": {}}, "no id"),
        ({"id": "a", "metdata": {}}, "unknown field 'metdata'"),
        ({"id": "a", "metadata": {"x": object()}}, r"metadata\['x'\]"),
        ({"id": "a", "timeout_ms": -1}, "timeout"),
        ({"id": "a", "created_at": "now"}, "created_at"),
        ({"id": "a", "version": 0}, "version"),
        ({"id": "a", "priority": "urgent"}, "priority"),
        ({"id": "a", "tags": [7]}, "tags"),
        ({"id": "a", "tags": 7}, "tags"),
        ({"id": ""}, "session id"),
        ("a", "neither a Session nor a mapping"),
        ({"id": "a", "metadata": {"x": "y" * 100_000}}, "the limit is"),
    ],
)
def test_a_bad_item_is_an_error_with_its_number_and_its_batch_is_not_written(
    tmp_path: Path, item: Any, said: str
) -> None:
    with fresh(tmp_path / "a") as store:
        with pytest.raises(UsageError, match=said) as caught:
            import_sessions(store, [{"id": "good"}, item])
        assert "item 2" in str(caught.value)
        assert store.count() == 0


def test_what_the_iterator_raises_comes_through(tmp_path: Path) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield {"id": "a"}
        raise LookupError("the old store is gone")

    with fresh(tmp_path / "a") as store:
        with pytest.raises(LookupError):
            import_sessions(store, source())
        assert store.count() == 0


def test_a_replica_refuses_an_import(tmp_path: Path) -> None:
    init_store(tmp_path / "n2", node="n2", now_ms=1)
    with SessionStore.open(tmp_path / "n2") as store, pytest.raises(NotPrimaryError):
        import_sessions(store, [{"id": "a"}])


# -- bad files ------------------------------------------------------------------------------------


def _without_last(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def _cut_in_a_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2][:20]]


def _changed(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"version":', b'"version":1'), *lines[3:]]


def _without_one(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], *lines[3:]]


def _without_first(lines: list[bytes]) -> list[bytes]:
    return lines[1:]


def _with_strange_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], b'{"id": "x", "surprise": 1}', *lines[3:]]


def _with_more(lines: list[bytes]) -> list[bytes]:
    return [*lines, b"{}"]


def _with_empty_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], b"", *lines[2:]]


def _with_bad_tag(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"metadata":{', b'"metadata":{"y":{"$bytes":"?"},'), *lines[3:]]


def _with_bad_bytes(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], b"\xff\xfe", *lines[2:]]


@pytest.mark.parametrize(
    ("damage", "kind", "line"),
    [
        (_without_last, CorruptError, 6),
        (_cut_in_a_line, UsageError, 3),
        (_changed, CorruptError, 6),
        (_without_one, CorruptError, 5),
        (_without_first, UsageError, 1),
        (_with_strange_line, UsageError, 4),
        (_with_more, UsageError, 7),
        (_with_empty_line, UsageError, 3),
        (_with_bad_tag, UsageError, 3),
        (_with_bad_bytes, UsageError, 3),
    ],
)
def test_a_bad_file_is_an_error_with_its_line_and_nothing_is_written(
    full: SessionStore,
    tmp_path: Path,
    damage: Callable[[list[bytes]], list[bytes]],
    kind: type[Exception],
    line: int,
) -> None:
    lines = b"\n".join(damage(exported(full).splitlines())) + b"\n"
    with fresh(tmp_path / "copy") as copy:
        with pytest.raises(kind) as caught:
            import_lines(copy, io.BytesIO(lines), name="old.jsonl")
        assert f"line {line}:" in str(caught.value)
        assert "old.jsonl" in str(caught.value)
        assert copy.count() == 0


def test_a_newer_format_is_refused(full: SessionStore, tmp_path: Path) -> None:
    lines = exported(full).replace(b'"format":1', b'"format":2', 1)
    with fresh(tmp_path / "copy") as copy, pytest.raises(FormatVersionError):
        import_lines(copy, io.BytesIO(lines))


def test_a_session_over_the_limit_is_an_error_before_anything_is_written(
    full: SessionStore, tmp_path: Path
) -> None:
    with SessionStore.open(tmp_path / "copy", max_session_size_bytes=500) as copy:
        with pytest.raises(SessionTooLargeError, match="line"):
            import_lines(copy, io.BytesIO(exported(full)))
        assert copy.count() == 0


class Pipe(io.RawIOBase):
    """Bytes that can be read once."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._inner.readinto(buffer)


def test_a_pipe_is_imported_in_one_pass_and_a_bad_line_ends_it_before_its_batch(
    full: SessionStore, tmp_path: Path
) -> None:
    lines = exported(full)
    with fresh(tmp_path / "good") as copy:
        import_lines(copy, io.BufferedReader(Pipe(lines)))
        assert stored(copy) == stored(full)
    with fresh(tmp_path / "bad") as copy:
        bad = b"\n".join(_with_strange_line(lines.splitlines()))
        with pytest.raises(UsageError, match="line 4"):
            import_lines(copy, io.BufferedReader(Pipe(bad)))
        assert copy.count() == 0


@given(data=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_a_line_of_any_bytes_is_a_session_or_a_usage_error(data: bytes) -> None:
    for text in (data, b'{"id":"a","version":1,"metadata":' + data + b"}"):
        try:
            id, value = read_line(text)
        except UsageError:
            continue
        assert read_line(write_line(Session(id, value))) == (id, value)


def test_progress_is_told(full: SessionStore, tmp_path: Path) -> None:
    seen: list[int] = []
    lines = exported(full, progress=seen.append)
    assert seen == [4]
    with fresh(tmp_path / "copy") as copy:
        seen.clear()
        import_lines(copy, io.BytesIO(lines), progress=seen.append)
        assert seen[-1] == len(lines)
        seen.clear()
        import_sessions(copy, ({"id": f"{n}"} for n in range(2500)), progress=seen.append)
        assert seen == [1000, 2000, 2500]


def test_metadata_that_cannot_be_stored_raise_their_own_error(tmp_path: Path) -> None:
    with fresh(tmp_path / "a") as store, pytest.raises(MetadataError):
        import_sessions(store, [{"id": "a", "metadata": [1]}])
