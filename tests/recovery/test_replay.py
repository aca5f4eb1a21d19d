"""Replay: the sessions at any LSN or time, in a store of their own; the source is never touched."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import is_unfinished, replay_to, take_snapshot
from perdure.recovery.logtool import dump
from perdure.store import (
    CorruptError,
    ForeignError,
    PositionGoneError,
    Session,
    SessionStore,
    StoreMissingError,
    UsageError,
    read_identity,
)
from perdure.store.cursor import list_segments
from tests.recovery.kills import killed
from tests.recovery.stores import contents, contents_of, fingerprint, small_segments, without_rights


class Recorded:
    """A store with a history: what it held at each LSN."""

    def __init__(self, path: Path, *, backend: str | None = None, snapshot_at: int = 20) -> None:
        self.path = path
        self.at: dict[int, dict[str, Any]] = {}
        with small_segments(path, backend=backend) as store:
            ids: list[str] = []
            for n in range(40):
                if n % 7 == 6:
                    store.delete(ids.pop(n % len(ids)))
                elif n % 5 == 4:
                    store.update(ids[n % len(ids)], merging({"m": n}))
                elif n % 11 == 10:
                    ids[0] = store.regenerate_id(ids[0])
                else:
                    ids.append(store.create({"n": n}))
                self.at[store.position().lsn] = contents(store)
                if n == snapshot_at:
                    self.snapshot = take_snapshot(store._opened)
            self.digest = store.stats()["digest"]
            self.end = store.position()


def merging(metadata: dict[str, Any]) -> Callable[[Session], Session]:
    return lambda session: session.merge(metadata)


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
def test_at_any_lsn_it_holds_exactly_the_sessions_of_that_lsn(tmp_path: Path, backend: str) -> None:
    source = Recorded(tmp_path / "s", backend=backend)
    lsns = sorted(source.at)
    for lsn in lsns[:: len(lsns) // 6]:
        report = replay_to(source.path, tmp_path / str(lsn), upto_lsn=lsn)
        assert report.position.lsn == lsn
        assert not report.rounded_down
        assert report.base == (source.snapshot.name if lsn >= source.snapshot.lsn else "")
        assert contents_of(tmp_path / str(lsn)) == source.at[lsn]


def test_to_the_end_digest_and_count_are_those_of_the_source(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s")
    report = replay_to(source.path, tmp_path / "t")
    assert f"{report.position.digest:016x}" == source.digest
    assert report.position.position == source.end
    assert report.at_end
    with SessionStore.open(tmp_path / "t") as store:
        assert store.stats()["digest"] == source.digest


def test_into_another_back_end_it_holds_the_same(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s", backend="lmdb")
    report = replay_to(source.path, tmp_path / "t", backend="sqlite")
    assert report.backend == read_identity(tmp_path / "t").backend == "sqlite"
    assert contents_of(tmp_path / "t") == source.at[source.end.lsn]


def test_a_target_inside_a_frame_is_rounded_down_and_said(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        store.create({"n": 1})
        before = store.position().lsn
        with store.batch() as batch:
            for n in range(5):
                batch.create({"n": n})
    report = replay_to(tmp_path / "s", tmp_path / "t", upto_lsn=before + 3)
    assert report.rounded_down
    assert report.position.lsn == before
    assert len(contents_of(tmp_path / "t")) == 1


def test_to_a_time_it_takes_the_last_frame_not_after_it(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s")
    times = {int(entry["lsn"]): int(entry["time_ms"]) for entry in dump(source.path) if "lsn" in entry}
    wanted = times[source.end.lsn]
    report = replay_to(source.path, tmp_path / "t", upto_ms=wanted)
    assert report.position.lsn == source.end.lsn
    early = replay_to(source.path, tmp_path / "u", upto_ms=times[1] - 1)
    assert early.position.lsn == 0
    assert contents_of(tmp_path / "u") == {}


def test_a_target_beyond_the_log_or_before_its_beginning_is_refused(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s")
    with pytest.raises(PositionGoneError, match=f"ends at LSN {source.end.lsn}"):
        replay_to(source.path, tmp_path / "t", upto_lsn=source.end.lsn + 100)
    assert list((tmp_path / "t").iterdir()) == []
    first = list_segments(source.path / "log")[0]
    assert first.first_lsn == 1
    first.path.unlink()
    with pytest.raises(PositionGoneError, match="no good snapshot"):
        replay_to(source.path, tmp_path / "u", upto_lsn=source.snapshot.lsn - 1)
    report = replay_to(source.path, tmp_path / "v")
    assert f"{report.position.digest:016x}" == source.digest


def test_both_targets_a_foreign_directory_and_no_store_are_refused(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s")
    with pytest.raises(UsageError):
        replay_to(source.path, tmp_path / "t", upto_lsn=1, upto_ms=1)
    with pytest.raises(UsageError, match="into itself"):
        replay_to(source.path, source.path / "log")
    with pytest.raises(UsageError, match="not empty"):
        replay_to(source.path, tmp_path)
    with pytest.raises(StoreMissingError):
        replay_to(tmp_path / "nothing", tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_the_source_is_not_changed_in_any_byte(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s")
    before = fingerprint(source.path)
    replay_to(source.path, tmp_path / "t")
    assert fingerprint(source.path) == before


def test_without_the_right_to_write_the_source_it_works() -> None:
    with tempfile.TemporaryDirectory(prefix="perdure-test-") as folder:  # where another user gets to
        place = Path(folder)
        source = Recorded(place / "s")
        target = place / "t"
        assert without_rights(place, lambda: replay_to(source.path, target)) == 0
        assert contents_of(target) == source.at[source.end.lsn]


def test_while_the_source_is_written_the_result_is_a_prefix(tmp_path: Path) -> None:
    stop = threading.Event()
    with SessionStore.open(tmp_path / "s") as store:
        thread = threading.Thread(target=lambda: [store.create({}) for _ in iter(stop.is_set, True)])
        thread.start()
        try:
            for number in range(3):
                before = store.position().lsn
                report = replay_to(tmp_path / "s", tmp_path / f"t{number}")
                assert report.position.lsn >= before
                assert report.position.session_count == len(contents_of(tmp_path / f"t{number}"))
        finally:
            stop.set()
            thread.join()


def test_the_copy_is_a_store_of_its_own(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s")
    report = replay_to(source.path, tmp_path / "t", upto_lsn=source.end.lsn)
    ours, copy = read_identity(source.path), read_identity(tmp_path / "t")
    assert copy.cluster_id == report.cluster_id != ours.cluster_id
    with SessionStore.open(tmp_path / "t") as store:
        assert store.stats()["is_primary"]
        assert store.stats()["epoch"] == source.end.epoch + 1
        store.create({"new": True})
        expected = contents(store)
    for name in os.listdir(tmp_path / "t" / "state"):
        path = tmp_path / "t" / "state" / name
        if path.is_file():
            path.unlink()  # its marker: the state is not trusted, and made again from snapshot and log
    assert contents_of(tmp_path / "t") == expected
    again = replay_to(tmp_path / "t", tmp_path / "u")
    assert contents_of(tmp_path / "u") == expected
    assert again.position.epoch == source.end.epoch + 1


def test_a_torn_tail_is_left_out_and_said(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s")
    tail = list_segments(source.path / "log")[-1].path
    with tail.open("ab") as file:
        file.write(b"\x01" * 50)
    report = replay_to(source.path, tmp_path / "t")
    assert [finding.kind for finding in report.findings] == ["tail-torn"]
    assert f"{report.position.digest:016x}" == source.digest


def test_damage_before_the_target_is_named_and_before_it_one_can_still_go(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s", snapshot_at=2)
    files = list_segments(source.path / "log")
    middle = files[len(files) // 2]
    data = bytearray(middle.path.read_bytes())
    data[200] ^= 1
    middle.path.write_bytes(data)
    with pytest.raises(CorruptError) as caught:
        replay_to(source.path, tmp_path / "t")
    assert caught.value.path == str(middle.path)
    assert caught.value.offset == 160
    assert caught.value.lsn == middle.first_lsn
    assert is_unfinished(tmp_path / "t")
    report = replay_to(source.path, tmp_path / "u", upto_lsn=middle.first_lsn - 1)
    assert contents_of(tmp_path / "u") == source.at[report.position.lsn]


def test_a_damaged_snapshot_is_passed_over_and_said(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s")
    data = bytearray(source.snapshot.path.read_bytes())
    data[-100] ^= 1
    source.snapshot.path.write_bytes(data)
    report = replay_to(source.path, tmp_path / "t")
    assert report.base == ""
    assert [finding.kind for finding in report.findings] == ["snapshot-damaged"]
    assert f"{report.position.digest:016x}" == source.digest


def test_killed_at_any_system_call_the_target_is_no_store_or_complete(tmp_path: Path) -> None:
    source = Recorded(tmp_path / "s", backend="sqlite")
    before = fingerprint(source.path)
    points = number = 0
    while True:
        target = tmp_path / f"t{number}"
        if not killed(lambda target=target: replay_to(source.path, target), number):  # type: ignore[misc]
            break
        points += 1
        if (target / "identity").exists():
            assert contents_of(target) == source.at[source.end.lsn]
        elif target.exists() and os.listdir(target):
            with pytest.raises((ForeignError, UsageError)):
                SessionStore.open(target)
            with pytest.raises((ForeignError, UsageError)):
                replay_to(source.path, target)
        number += 1
    assert points >= 20
    assert fingerprint(source.path) == before
