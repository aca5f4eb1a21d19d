"""Recovery of stores whose state is in memory: nothing in files but log and snapshots, and that is enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.recovery import (
    Policy,
    apply_retention,
    explain_retention,
    replay_to,
    summarise,
    take_snapshot,
    verify,
)
from perdure.recovery.findings import Level
from perdure.recovery.verify_end import Depth
from perdure.store import SessionStore, names, read_identity
from perdure.store.cursor import list_segments
from tests.recovery.stores import contents, contents_of, fingerprint, seal, small_segments

ALL = Policy(log_age_ms=0, snapshots=1)


def make(path: Path, sessions: int = 80) -> Path:
    with small_segments(path, backend="memory") as store:
        for n in range(sessions):
            store.create({"n": n})
            if n in (sessions // 3, 2 * sessions // 3):
                take_snapshot(store._opened)
        store.fold()
        seal(store)
    return path


@pytest.mark.parametrize("is_open", [False, True])
def test_verify_says_that_there_is_no_state_and_does_what_an_opening_does(
    tmp_path: Path, is_open: bool
) -> None:
    path = make(tmp_path / "s")
    store = SessionStore.open(path) if is_open else None
    before = _files(path, is_open=is_open)
    for level in Depth:
        said = list(verify(path, level=level))
        assert summarise(said).exit_code == 0, [str(one) for one in said]
    assert _files(path, is_open=is_open) == before
    by_kind = {one.kind: one for one in verify(path)}
    assert by_kind["state-in-memory"].level is Level.NOTICE
    assert by_kind["state"].level is Level.OK
    assert "80 sessions" in by_kind["state"].message
    if store is not None:
        store.close()


def _files(path: Path, *, is_open: bool) -> dict[str, tuple[int, int, int, str]]:
    """All of them; but the control page of a store that is open, in which its own threads write."""
    found = fingerprint(path)
    if is_open:
        del found[names.CONTROL_PAGE]
    return found


def test_verify_without_the_log_that_it_needs_says_that_it_cannot_tell(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    apply_retention(path, ALL)
    for file in (path / "snapshots").glob("*.snap"):
        file.unlink()
    found = {one.kind: one.level for one in verify(path)}
    assert found["replay-impossible"] is Level.UNKNOWN
    assert "state" not in found


def test_retention_keeps_the_newest_good_snapshot_and_all_log_behind_it(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    with SessionStore.open(path) as store:
        before = contents(store)
        explained = explain_retention(path, ALL)
        assert len(explained.drop) >= 3
        assert apply_retention(path, ALL).drop == explained.drop
        newest = max(int(file.name.split("-")[0]) for file in (path / "snapshots").glob("*.snap"))
        assert 1 < list_segments(path / "log")[0].first_lsn <= newest + 1
        store.create({"n": "later"})
        assert len(contents(store)) == 81
    after = contents_of(path)
    assert len(after) == 81
    assert before.items() <= after.items()
    assert summarise(verify(path)).exit_code == 0


def test_without_a_good_snapshot_no_log_goes(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    for file in (path / "snapshots").glob("*.snap"):
        file.write_bytes(b"damaged")
    assert explain_retention(path, ALL).drop == ()
    assert len(contents_of(path)) == 80


@pytest.mark.parametrize(("source", "target"), [("memory", None), ("lmdb", "memory"), ("memory", "lmdb")])
def test_a_replay_from_and_into_memory_holds_the_same(
    tmp_path: Path, source: str, target: str | None
) -> None:
    with SessionStore.open(tmp_path / "s", backend=source) as store:
        for n in range(30):
            store.create({"n": n})
        before = contents(store)
        report = replay_to(tmp_path / "s", tmp_path / "t", backend=target)
    assert report.backend == read_identity(tmp_path / "t").backend == (target or source)
    with SessionStore.open(tmp_path / "t") as copy:
        assert contents(copy) == before
        copy.create({})
    assert len(contents_of(tmp_path / "t")) == 31
    assert summarise(verify(tmp_path / "t")).exit_code == 0


def test_a_snapshot_by_directory_holds_what_a_process_that_has_the_store_open_wrote(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s", backend="memory") as store:
        ids = {store.create({"n": n}) for n in range(50)}
        file = take_snapshot(tmp_path / "s")
        assert file.lsn == store.position().lsn
        assert set(store.ids()) == ids
