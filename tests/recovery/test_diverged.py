"""What a rejoin exported can be read, and comes back where nothing else was done since."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.recovery import (
    Applied,
    apply_diverged,
    apply_retention,
    changes_in,
    diverged,
    diverged_events,
    dump,
    list_diverged,
    take_snapshot,
)
from perdure.store import (
    Config,
    CorruptError,
    SessionStore,
    StoreMissingError,
    UsageError,
)
from perdure.store.promise import Promise
from tests.recovery.nodes import opened, replicate
from tests.unit.shipping.test_rejoin import VOTERS, Parted, cross


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    """n1, primary once more after it had gone over to n2's history; it exported what only it had had."""
    parted = Parted(tmp_path)
    with SessionStore.open(parted.old) as store:
        for id in ("changed", "deleted", "touched", "both", "gone"):
            store.put(id, {"at": "fork"}, None)
    parted.part()
    with SessionStore.open(parted.old) as store:
        store.put("new", {"at": "old"}, None)
        store.put("brief", {"at": "old"}, 1)
        store.put("changed", {"at": "old"}, None)
        store.delete("deleted")
        store.touch("touched")
        store.put("both", {"at": "old"}, None)
        store.put("gone", {"at": "old"}, None)
    with SessionStore.open(parted.new) as store:
        store.put("both", {"at": "new"}, None)
        store.delete("gone")
        store.touch("changed")
        store.put("other", {"at": "new"}, None)
    cross(parted)
    replicate(parted.new, parted.old)
    with opened(parted.old) as node:
        node.log.lock_any()
        node.log.start_epoch(Promise(9, "n1"), Config(VOTERS, 0), "test")
        node.log.unlock()
    export = parted.old / "diverged" / "kept"
    fork = parted.fork
    export.rename(parted.old / "diverged" / f"{fork.lsn + 1:020d}-{fork.epoch:08x}")
    return parted.old


def name_of(store_dir: Path) -> str:
    return list_diverged(store_dir)[0].name


def outcomes(done: list[Applied]) -> dict[str, str]:
    return {one.id: one.why or one.outcome for one in done}


EXPECTED = {
    "new": "applied",
    "brief": "it has expired since",
    "changed": "applied",
    "deleted": "applied",
    "touched": "applied",
    "both": "it was changed since",
    "gone": "it was changed since",
}


def test_an_export_is_listed_with_what_is_behind_the_fork(store_dir: Path) -> None:
    (tail,) = list_diverged(store_dir)
    assert (tail.epoch, tail.fork_lsn, tail.problem) == (1, 7, "")
    assert (tail.events, tail.sessions) == (7, 7)
    assert tail.first_ms <= tail.last_ms
    assert tail.size_bytes > 0


def test_its_events_are_shown_and_the_whole_folder_can_be_dumped(store_dir: Path) -> None:
    shown = list(diverged_events(store_dir, name_of(store_dir)))
    assert [event["key"] for event in shown][:2] == ["new", "brief"]
    assert min(event["lsn"] for event in shown) == 8
    only = list(diverged_events(store_dir, name_of(store_dir), key="deleted"))
    assert [event["kind"] for event in only] == ["delete"]
    everything = list(dump(store_dir / "diverged" / name_of(store_dir)))
    assert len(everything) > len(shown)
    assert everything[0]["lsn"] == 1


def test_a_dry_run_says_what_would_come_back_and_changes_nothing(store_dir: Path) -> None:
    with SessionStore.open(store_dir) as store:
        before = store.position()
        assert outcomes(apply_diverged(store, name_of(store_dir), dry_run=True)) == EXPECTED
        assert store.position() == before


def test_what_was_not_changed_since_comes_back_once(store_dir: Path) -> None:
    with SessionStore.open(store_dir) as store:
        assert outcomes(apply_diverged(store, name_of(store_dir))) == EXPECTED
        assert metadata_of(store) == {
            "new": "old",
            "changed": "old",
            "touched": "fork",
            "both": "new",
            "other": "new",
        }
        position = store.position()
        again = apply_diverged(store, name_of(store_dir))
        assert {one.outcome for one in again} == {"skipped"}
        assert store.position() == position
    reasons = {event["reason"] for event in dump(store_dir) if event["epoch"] == 9 and event["key"]}
    assert reasons == {"reconciled"}


def test_what_is_changed_while_it_is_applied_stays_as_it_was_changed(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diverged, "CHANGES_AT_ONCE", 1)
    with SessionStore.open(store_dir) as store:

        def on_progress(done: int) -> None:
            if done == 1:
                store.put("changed", {"at": "meanwhile"}, None)
                store.put("deleted", {"at": "meanwhile"}, None)
                store.touch("touched")

        done = apply_diverged(store, name_of(store_dir), progress=on_progress)
        changed = {"changed": "it was changed since", "deleted": "it was changed since"}
        assert outcomes(done) == EXPECTED | changed
        assert metadata_of(store)["changed"] == metadata_of(store)["deleted"] == "meanwhile"


def test_damage_of_the_own_log_behind_the_fork_is_not_taken_for_no_change(store_dir: Path) -> None:
    with SessionStore.open(store_dir) as store:
        store.fold()
        (file,) = [file for file in (store_dir / "log").glob("*.seg") if file.name.endswith("00000002.seg")]
        at = file.read_bytes().index(b"both")
        with file.open("r+b") as segment:
            segment.seek(at)
            segment.write(b"BOTH")
        with pytest.raises(CorruptError):
            apply_diverged(store, name_of(store_dir))
        assert outcomes(apply_diverged(store, name_of(store_dir), ids=["new"], force=True)) == {
            "new": "applied"
        }


def test_force_also_brings_back_what_was_changed_since(store_dir: Path) -> None:
    with SessionStore.open(store_dir) as store:
        done = outcomes(apply_diverged(store, name_of(store_dir), ids=["both", "gone"], force=True))
        assert done == {"both": "applied", "gone": "applied"}
        assert metadata_of(store)["both"] == "old"
        assert metadata_of(store)["gone"] == "old"


def test_sessions_and_ranges_can_be_chosen(store_dir: Path) -> None:
    with SessionStore.open(store_dir) as store:
        name = name_of(store_dir)
        assert outcomes(apply_diverged(store, name, ids=["new"], dry_run=True)) == {"new": "applied"}
        assert set(outcomes(apply_diverged(store, name, from_lsn=10, to_lsn=11, dry_run=True))) == {
            "changed",
            "deleted",
        }
        with pytest.raises(UsageError, match="was not changed there"):
            apply_diverged(store, name, ids=["other"])
        with pytest.raises(StoreMissingError, match="no export"):
            apply_diverged(store, "../log")


def test_where_the_log_no_longer_says_nothing_comes_back_without_force(store_dir: Path) -> None:
    with SessionStore.open(store_dir) as store:
        store.fold()
    files = sorted((store_dir / "log").glob("*.seg"))
    take_snapshot(store_dir)
    for file in files[:-1]:
        file.unlink()
    with SessionStore.open(store_dir) as store:
        done = outcomes(apply_diverged(store, name_of(store_dir), ids=["new"], dry_run=True))
        assert done == {"new": "the log no longer says whether it was changed since"}
        assert outcomes(apply_diverged(store, name_of(store_dir), ids=["new"], force=True)) == {
            "new": "applied"
        }


def test_what_was_only_touched_has_its_content_from_before_the_fork(store_dir: Path) -> None:
    name = name_of(store_dir)
    (change,) = [change for change in changes_in(store_dir, name) if change.key == b"touched"]
    assert change.what == "put"
    assert b"new" not in {change.key for change in changes_in(store_dir, name, from_lsn=9)}


def test_a_value_that_no_exported_segment_has_is_said_to_be_unknown(store_dir: Path) -> None:
    with SessionStore.open(store_dir) as store:  # an export of a log that began behind the session
        old = store.position().lsn
        with opened(store_dir) as node:
            node.log.lock_any()
            node.log.start_epoch(Promise(10, "n1"), Config(VOTERS, 0), "test")
            node.log.unlock()
        store.touch("other")
        store.fold()
    (tail,) = [file for file in (store_dir / "log").glob("*.seg") if file.name.endswith("0000000a.seg")]
    folder = store_dir / "diverged" / f"{old + 1:020d}-0000000a"
    folder.mkdir()
    (folder / tail.name).write_bytes(tail.read_bytes())
    assert [(change.key, change.what) for change in changes_in(store_dir, folder.name)] == [
        (b"other", "unknown")
    ]
    with SessionStore.open(store_dir) as store:
        assert outcomes(apply_diverged(store, folder.name, force=True)) == {
            "other": "its content is in none of the exported segments"
        }


def test_damage_is_said_and_retention_takes_nothing_away(store_dir: Path) -> None:
    folder = store_dir / "diverged" / name_of(store_dir)
    before = sorted(file.name for file in folder.iterdir())
    take_snapshot(store_dir)
    apply_retention(store_dir, now_ms=1 << 50)
    assert sorted(file.name for file in folder.iterdir()) == before
    (file,) = folder.glob("*.seg")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    assert list_diverged(store_dir)[0].problem


def metadata_of(store: SessionStore) -> dict[str, str]:
    found = {id: store.peek(id) for id in store.ids()}
    return {id: session.metadata["at"] for id, session in found.items() if session is not None}
