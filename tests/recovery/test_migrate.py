"""Migration between back ends: what it gives, what it refuses, how it ends, and that nobody notices it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.recovery import (
    Level,
    Policy,
    abort_migration,
    apply_retention,
    drop_previous,
    migrate,
    migrate_back,
    migration_state,
    prune_snapshots,
    repair,
    summarise,
    take_snapshot,
    verify,
)
from perdure.recovery.migration_plan import take_migration_lock
from perdure.store import SessionStore, StorageError, StorageFullError, StoreInUseError, UsageError, names
from perdure.store.backends import open_backend
from perdure.store.cursor import list_segments
from perdure.store.identity import read_identity
from perdure.store.page import Word
from perdure.store.ports import Scan
from tests.cluster.nodes import cluster_of, until
from tests.recovery.busy import busy
from tests.recovery.busy_process import COUNTER
from tests.recovery.kills import killed
from tests.recovery.stores import contents, seal, small_segments
from tests.support.machine import stop_background
from tests.unit.store.test_backend_full_disk import small_file_system

PAUSE_MS_MAX = 30_000
"""Half the time after which these processes give up a lock. Two processors and a disk are shared with other
tests: a pause that is the store's own is a thousandth of that."""
KILLS = 24


def filled(path: Path, count: int, *, backend: str = "lmdb") -> set[str]:
    """A store with sessions and a counter; says the ids but for the counter's."""
    with SessionStore.open(path, backend=backend) as store:
        store.put(COUNTER, {"n": 0}, None)
        return {store.create({"n": number}, group=f"g{number % 5}") for number in range(count)}


def test_processes_that_read_and_write_without_pause_do_not_notice_a_migration(
    tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "store"
    known = filled(path, 2000)
    with busy(path, 3, seed) as crew:
        for _ in range(2):
            assert migrate(path, to_backend="sqlite").to_backend == "sqlite"
            assert migrate_back(path).to_backend == "lmdb"
            assert migrate_back(path).to_backend == "sqlite"
            drop_previous(path)
            assert migrate(path, to_backend="lmdb").to_backend == "lmdb"
            drop_previous(path)
    assert all(result["backend"] == "lmdb" for result in crew.results)
    assert crew.reckon(path, known) < PAUSE_MS_MAX
    assert summarise(verify(path)).exit_code == 0


def spawn(path: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    return subprocess.Popen(
        [sys.executable, "-m", "perdure.cli", *words, str(path), "--json"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Unless it has ended by then."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.wait()


def settle(path: Path) -> None:
    """Complete what was broken off, whichever way it led, and keep no state before it."""
    state = migration_state(path)
    if state.phase:
        (migrate_back(path) if state.is_back else migrate(path, to_backend=state.to_backend))
    drop_previous(path)


def test_a_migration_killed_at_random_moments_beside_a_busy_process_goes_on_to_its_end(
    tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "store"
    dice = random.Random(seed)
    known = filled(path, 1500)
    took_s = 0.6
    with busy(path, 1, seed) as crew:
        for number in range(KILLS):
            backend = read_identity(path).backend
            other = "lmdb" if backend == "sqlite" else "sqlite"
            state = migration_state(path)
            words = ["migrate", "--back"] if state.is_back else ["migrate", "--to-backend"]
            if not state.is_back:
                words.append(state.to_backend if state.phase else other)
            process = spawn(path, *words)
            kill_after(process, 0.25 + dice.random() * took_s)
            state = migration_state(path)
            if state.kept_backend and (not state.phase or number % 4 == 0):
                if dice.random() < 0.5:
                    settle(path)
                elif not state.phase:
                    kill_after(spawn(path, "migrate", "--back"), 0.25 + dice.random() * took_s)
    settle(path)
    crew.reckon(path, known)
    assert summarise(verify(path)).exit_code == 0, f"seed {seed}"
    assert not (path / names.MIGRATION).exists()


@pytest.mark.parametrize(
    "step", [pytest.param(4, id="every-fourth"), pytest.param(1, id="every", marks=pytest.mark.lab)]
)
def test_killed_before_any_call_that_changes_files_the_store_is_whole_for_who_has_it_open_and_who_opens_it(
    step: int, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    filled(path, 40)
    call = 0
    was_killed = True
    with SessionStore.open(path) as live:
        expected = contents(live)
        while was_killed:
            backend = read_identity(path).backend
            other = "lmdb" if backend == "sqlite" else "sqlite"
            was_killed = killed(lambda other=other: migrate(path, to_backend=other), call)  # type: ignore[misc]
            for _ in range(3):
                id = live.create({"n": call})
                expected[id] = {"n": call}
                assert contents(live) == expected, f"killed before call {call}"
                if call % 2:
                    live.fold()
                with SessionStore.open(path) as store:
                    assert contents(store) == expected, f"killed before call {call}"
                    assert not store._opened.rebuilt, f"killed before call {call}"
            settle(path)
            if read_identity(path).backend == backend:
                migrate(path, to_backend=other)
                drop_previous(path)
            assert not leftovers(path), f"killed before call {call}"
            assert contents(live) == expected, f"killed before call {call}"
            call += step
    assert call > 25
    assert summarise(verify(path)).exit_code == 0


@pytest.mark.parametrize(
    "step", [pytest.param(4, id="every-fourth"), pytest.param(1, id="every", marks=pytest.mark.lab)]
)
def test_the_way_back_killed_before_any_call_leaves_one_of_both_states(step: int, tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 40)
    migrate(path, to_backend="sqlite")
    call = 0
    was_killed = True
    with SessionStore.open(path) as live:
        expected = contents(live)
        while was_killed:
            was_killed = killed(lambda: migrate_back(path), call)
            expected[live.create({"n": call})] = {"n": call}
            assert contents(live) == expected, f"killed before call {call}"
            live.fold()
            if call % 3 == 0 and not (path / names.SWITCH_PLAN).exists():
                abort_migration(path)
                assert migration_state(path).kept_backend, f"killed before call {call}"
            before = read_identity(path).backend
            report = migrate_back(path)
            assert report.to_backend == read_identity(path).backend
            assert not report.base and not report.restarts, f"it was built anew, killed before call {call}"
            assert migration_state(path).kept_backend in ({"lmdb", "sqlite"} - {report.to_backend}), before
            with SessionStore.open(path) as store:
                assert contents(store) == expected == contents(live), f"killed before call {call}"
            call += step
    assert call > 8


def leftovers(path: Path) -> set[str]:
    """What a migration must not leave behind."""
    gone = {names.MIGRATION, names.STATE_PREVIOUS, names.SWITCH_PLAN}
    return gone & {entry.name for entry in path.iterdir()}


def test_back_end_there_already_another_one_begun_and_a_kept_state_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 10)
    with pytest.raises(UsageError, match="in lmdb already"):
        migrate(path, to_backend="lmdb")
    with pytest.raises(UsageError, match="no back end"):
        migrate(path, to_backend="slqite")
    with pytest.raises(UsageError, match="no state before"):
        migrate_back(path)
    assert drop_previous(path) == 0
    assert not abort_migration(path)
    migrate(path, to_backend="sqlite")
    with pytest.raises(UsageError, match="still kept"):
        migrate(path, to_backend="lmdb")
    with pytest.raises(StorageError, match="migrate"):
        SessionStore.open(path, backend="lmdb")
    SessionStore.open(path, backend="sqlite").close()
    assert drop_previous(path) > 0
    assert not leftovers(path)


def test_only_one_process_migrates_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 10)
    lock = take_migration_lock(path)
    for call in (
        lambda: migrate(path, to_backend="sqlite"),
        lambda: drop_previous(path),
        lambda: repair(path),
    ):
        with pytest.raises(StoreInUseError):
            call()
    lock.close()
    migrate(path, to_backend="sqlite")


class Stop(Exception):
    """Breaks a migration off in the middle, as a death would, at a chosen progress."""


def stop_in(phase: str) -> Callable[[str, int, int], None]:
    def on_progress(now: str, done: int, _total: int) -> None:
        if now == phase and done:
            raise Stop

    return on_progress


def test_broken_off_in_the_backfill_it_goes_on_behind_the_last_session_with_every_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    monkeypatch.setattr("perdure.store.rebuild.FILL_RECORDS", 100)
    monkeypatch.setattr("perdure.recovery.build_state.PROGRESS_RECORDS", 700)
    known = filled(path, 2000)
    take_snapshot(path)
    with pytest.raises(Stop):
        migrate(path, to_backend="sqlite", on_progress=stop_in("backfill"))
    assert migration_state(path).phase == "backfill"
    with pytest.raises(UsageError, match="migration to sqlite"):
        repair(path, unchecked=True)
    prune_snapshots(path, keep=1)
    report = migrate(path, to_backend="sqlite")
    assert report.base
    assert report.restarts == 0
    with SessionStore.open(path) as store:
        stop_background(store)  # it would end the reading of the back end
        backend = store._opened.backend
        armed = {key.decode() for _, key in backend.due(1 << 62, 10_000)}
        assert known <= armed
        assert set(contents(store)) == {*known, COUNTER}
        assert {key for _, key in backend.find((b"", b""), b"\xff", 10_000)} == {id.encode() for id in known}
    assert summarise(verify(path)).exit_code == 0


@pytest.mark.parametrize("phase", ["backfill", "compare"])
def test_given_up_it_leaves_nothing_and_the_store_as_it_was(phase: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 200)
    take_snapshot(path)
    with SessionStore.open(path) as store:
        before = contents(store)
        there = {entry.name for entry in path.iterdir()} | {names.MIGRATION_LOCK}
        with pytest.raises(Stop):
            migrate(path, to_backend="sqlite", on_progress=stop_in(phase))
        assert abort_migration(path)
        assert not abort_migration(path)
        assert {entry.name for entry in path.iterdir()} == there
        assert contents(store) == before
        assert store.stats()["backend"] == "lmdb"
    assert migrate(path, to_backend="sqlite").sessions == 201


def test_what_was_built_before_another_boot_is_built_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 200)
    with pytest.raises(Stop):
        migrate(path, to_backend="sqlite", on_progress=stop_in("compare"), boot_id=lambda: "another boot")
    report = migrate(path, to_backend="sqlite")
    assert report.events >= 201  # all of the log, not what came since


def test_a_kept_state_is_made_anew_on_the_way_back_when_the_machine_was_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 100)
    migrate(path, to_backend="sqlite")
    report = migrate_back(path, boot_id=lambda: "another boot")
    assert report.to_backend == "lmdb"
    assert report.events >= 101
    with SessionStore.open(path) as store:
        assert store.count() == 101


def test_a_damaged_snapshot_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 300)
    file = take_snapshot(path).path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    report = migrate(path, to_backend="sqlite")
    assert (report.restarts, report.base) == (1, "")
    assert summarise(verify(path, level="replay")).counts[Level.CORRUPT] == 1  # the snapshot


def test_retention_keeps_the_log_that_the_way_back_needs_up_to_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with small_segments(path, backend="lmdb") as store:
        for number in range(80):
            store.create({"n": number})
        store.fold()
        kept_lsn = migrate(path, to_backend="sqlite").lsn
        for number in range(80):
            store.create({"n": number})
        store.fold()
        take_snapshot(store._opened)
        seal(store)
        policy = Policy(log_age_ms=0, snapshots=1)
        plan = apply_retention(path, policy)
        assert plan.drop
        assert any("the state before the migration begins at LSN" in line.why for line in plan.keep)
        assert list_segments(path / "log")[0].first_lsn <= kept_lsn + 1
        report = migrate_back(path)
        assert (report.base, report.restarts) == ("", 0)
        assert migrate_back(path).to_backend == "sqlite"
        small = Policy(log_age_ms=0, snapshots=1, slot_bytes=1)
        for number in range(80):
            store.create({"n": number})
        store.fold()
        take_snapshot(store._opened)
        seal(store)
        assert any("over the budget" in note for note in apply_retention(path, small).notes)
        assert list_segments(path / "log")[0].first_lsn > report.lsn + 1
        report = migrate_back(path)
        assert (bool(report.base), report.restarts) == (True, 1)
        assert store.count() == 240
    assert summarise(verify(path)).exit_code == 0


def test_nodes_migrate_by_themselves_while_they_ship_receive_and_fold(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        replica = SessionStore.open(cluster.path("n2"), create=False)
        for number in range(240):
            store.create({"n": number})
            if number == 80:
                assert migrate(cluster.path("n2"), to_backend="sqlite").to_backend == "sqlite"
            if number == 120:
                assert migrate(cluster.path("n1"), to_backend="sqlite").to_backend == "sqlite"
            if number == 160:
                assert migrate_back(cluster.path("n2")).to_backend == "lmdb"
            assert replica.count() <= number + 1
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        until(lambda: replica.count() == 240, "the replica's reader sees all")
        assert contents(replica) == contents(store)
        assert (replica.stats()["backend"], store.stats()["backend"]) == ("lmdb", "sqlite")
        replica.close()
        assert cluster.state_of("n1") == cluster.state_of("n2")
        assert repair(cluster.path("n2"), unchecked=True).is_repaired
        store.create({"n": 240})
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        assert cluster.state_of("n1") == cluster.state_of("n2")
        for name in cluster.names:
            assert summarise(verify(cluster.path(name))).exit_code in (0, 1)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("backend", ["lmdb", "sqlite", "memory"])
def test_a_disk_that_gets_full_ends_it_with_nothing_left_and_the_store_goes_on(
    backend: str, kind: str, tmp_path: Path
) -> None:
    other = {"lmdb": "sqlite", "sqlite": "lmdb", "memory": "lmdb"}[backend]
    with small_file_system(kind, tmp_path, size_mib=64) as file_system:
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        words = [
            sys.executable,
            "-m",
            "tests.recovery.full_disk_process",
            str(file_system / "store"),
            backend,
            other,
        ]
        assert subprocess.run(words, env=environment, check=False, timeout=120).returncode == 0


def test_without_room_for_a_second_state_it_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    filled(path, 10)
    monkeypatch.setattr(sys.modules[migrate.__module__], "ROOM_BYTES_MIN", 1 << 60)
    with pytest.raises(StorageFullError, match="nothing was begun"):
        migrate(path, to_backend="sqlite")
    assert not leftovers(path)


def test_a_scan_under_way_goes_on_over_the_old_state_while_the_new_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for backend, other in (("lmdb", "sqlite"), ("sqlite", "lmdb")):
        filled(path / backend, 300, backend=backend)
        with SessionStore.open(path / backend) as store:
            before = set(store.ids())
            scan = store._opened.backend.scan()
            rows = iter(scan)
            seen = [next(rows)[0]]
            migrate(path / backend, to_backend=other)
            store.create({"n": -1})
            assert store.stats()["backend"] == other
            drop_previous(path / backend)
            seen += [key for key, _ in rows]
            scan.close()
            assert {key.decode() for key in seen} == before
            assert store.count() == len(before) + 1


def test_a_stale_handle_that_closes_late_takes_nothing_from_the_new_state(tmp_path: Path) -> None:
    """SQLite removes its log of changes when the last handle closes: by its name, which is another's then."""
    path = tmp_path / "store"
    filled(path, 100, backend="sqlite")
    stale = open_backend("sqlite", path / names.STATE / "sqlite")
    stale.refresh()
    assert repair(path, unchecked=True).is_repaired
    with SessionStore.open(path) as store:
        store.create({"n": 5})
        store.fold()
        before = contents(store)
        stale.close()
        store.create({"n": 6})
        store.fold()
        assert len(contents(store)) == len(before) + 1
    assert summarise(verify(path)).exit_code == 0


def test_processes_do_not_notice_that_the_state_goes_to_memory_and_back(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "store"
    known = filled(path, 2000)
    with busy(path, 3, seed) as crew:
        for _ in range(2):
            assert migrate(path, to_backend="memory").to_backend == "memory"
            assert migrate_back(path).to_backend == "lmdb"
            assert migrate_back(path).to_backend == "memory"
            drop_previous(path)
            assert migrate(path, to_backend="sqlite").to_backend == "sqlite"
            assert migrate_back(path).to_backend == "memory"
            assert migrate_back(path).to_backend == "sqlite"
            drop_previous(path)
            assert migrate(path, to_backend="lmdb").to_backend == "lmdb"
            drop_previous(path)
    assert all(result["backend"] == "lmdb" for result in crew.results)
    crew.reckon(path, known)
    assert summarise(verify(path)).exit_code == 0


@pytest.mark.parametrize(
    "step", [pytest.param(4, id="every-fourth"), pytest.param(1, id="every", marks=pytest.mark.lab)]
)
def test_to_and_from_memory_killed_before_any_call_that_changes_files_the_store_is_whole(
    step: int, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    filled(path, 40, backend="memory")
    call = 0
    was_killed = True
    with SessionStore.open(path) as live:
        expected = contents(live)
        while was_killed:
            other = "lmdb" if read_identity(path).backend == "memory" else "memory"
            was_killed = killed(lambda other=other: migrate(path, to_backend=other), call)  # type: ignore[misc]
            for _ in range(3):
                expected[live.create({"n": call})] = {"n": call}
                assert contents(live) == expected, f"killed before call {call}"
                live.fold()
                with SessionStore.open(path) as store:
                    assert contents(store) == expected, f"killed before call {call}"
            settle(path)
            if read_identity(path).backend != other:
                migrate(path, to_backend=other)
                drop_previous(path)
            assert not leftovers(path), f"killed before call {call}"
            assert contents(live) == expected, f"killed before call {call}"
            call += step
    assert call > 10
    assert summarise(verify(path)).exit_code == 0


def test_of_a_state_in_memory_there_is_nothing_to_repair(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 10)
    migrate(path, to_backend="memory")
    for unchecked in (False, True):
        report = repair(path, unchecked=unchecked)
        assert (report.is_repaired, report.exit_code) == (False, 0)
    assert migrate_back(path).to_backend == "lmdb"


def test_a_store_in_memory_asks_retention_for_no_log_behind_what_is_kept_of_it(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with small_segments(path, backend="memory") as store:
        for number in range(80):
            store.create({"n": number})
        migrate(path, to_backend="lmdb")
        for number in range(80):
            store.create({"n": number})
        store.fold()
        take_snapshot(store._opened)
        seal(store)
        apply_retention(path, Policy(log_age_ms=0, snapshots=1))
        assert list_segments(path / "log")[0].first_lsn > 80
        assert migrate_back(path).base
        assert store.count() == 160
        assert store.stats()["backend"] == "memory"


def test_a_thread_that_folds_its_own_state_keeps_it_until_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 10, backend="memory")
    with SessionStore.open(path) as store:
        opened = store._opened
        with opened.view.fold_threads:
            migrate(path, to_backend="lmdb")
            assert store.create({"n": 10}) in store
            assert store.stats()["backend"] == "memory"
        assert store.count() == 12
        assert store.stats()["backend"] == "lmdb"
        lock, other = opened.fold_lock(), opened.fold_lock()
        lock.acquire(5000)  # the background thread may have it for a moment
        assert not other.try_acquire()
        lock.close()
        other.close()


def test_nodes_whose_states_go_to_memory_and_back_ship_receive_and_fold(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        replica = SessionStore.open(cluster.path("n2"), create=False)
        for number in range(240):
            store.create({"n": number})
            if number == 60:
                assert migrate(cluster.path("n2"), to_backend="memory").to_backend == "memory"
            if number == 100:
                assert migrate(cluster.path("n1"), to_backend="memory").to_backend == "memory"
            if number == 140:
                assert migrate_back(cluster.path("n2")).to_backend == "lmdb"
            if number == 180:
                assert migrate_back(cluster.path("n1")).to_backend == "lmdb"
            if number == 200:
                assert migrate_back(cluster.path("n2")).to_backend == "memory"
            assert replica.count() <= number + 1
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        until(lambda: replica.count() == 240, "the replica's reader sees all")
        assert contents(replica) == contents(store)
        assert (replica.stats()["backend"], store.stats()["backend"]) == ("memory", "lmdb")
        replica.close()
        assert migrate_back(cluster.path("n2")).to_backend == "lmdb"
        store.create({"n": 240})
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        assert cluster.state_of("n1") == cluster.state_of("n2")
        for name in cluster.names:
            assert summarise(verify(cluster.path(name))).exit_code in (0, 1)


def test_a_scan_that_begins_as_the_state_is_switched_and_dropped_is_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    known = filled(path, 50, backend="sqlite")
    with SessionStore.open(path) as store:
        backend = store._opened.backend
        scan = backend.scan

        def scan_late(after: bytes = b"") -> Scan:
            migrate(path, to_backend="lmdb")
            drop_previous(path)
            return scan(after)

        monkeypatch.setattr(backend, "scan", scan_late)
        assert set(store.ids()) == {*known, COUNTER}
        assert store.stats()["backend"] == "lmdb"
