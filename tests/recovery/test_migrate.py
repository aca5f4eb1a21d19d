"""Migration between back ends: what it gives, what it refuses, how it ends, and that nobody notices it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.recovery import (
    abort_migration,
    drop_previous,
    migrate,
    migrate_back,
    migration_state,
    summarise,
    take_snapshot,
    verify,
)
from perdure.store import SessionStore, StorageError, UsageError, names
from perdure.store.identity import read_identity
from tests.recovery.busy import SEED, busy
from tests.recovery.busy_process import COUNTER
from tests.recovery.kills import killed
from tests.recovery.stores import contents

PAUSE_MS_MAX = 2_000
"""Two processors are shared with other tests: a pause that is the store's own is a hundredth of that."""
KILLS = 24


def filled(path: Path, count: int, *, backend: str = "lmdb") -> set[str]:
    """A store with sessions and a counter; says the ids but for the counter's."""
    with SessionStore.open(path, backend=backend) as store:
        store.put(COUNTER, {"n": 0}, None)
        return {store.create({"n": number}, group=f"g{number % 5}") for number in range(count)}


def test_processes_that_read_and_write_without_pause_do_not_notice_a_migration(tmp_path: Path) -> None:
    path = tmp_path / "store"
    known = filled(path, 2000)
    with busy(path, 3) as crew:
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


def settle(path: Path) -> None:
    """Complete what was broken off, whichever way it led, and keep no state before it."""
    state = migration_state(path)
    if state.phase:
        (migrate_back(path) if state.is_back else migrate(path, to_backend=state.to_backend))
    drop_previous(path)


def test_a_migration_killed_at_random_moments_beside_a_busy_process_goes_on_to_its_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    dice = random.Random(SEED)
    known = filled(path, 1500)
    took_s = 0.6
    with busy(path, 1) as crew:
        for number in range(KILLS):
            backend = read_identity(path).backend
            other = "lmdb" if backend == "sqlite" else "sqlite"
            state = migration_state(path)
            words = ["migrate", "--back"] if state.is_back else ["migrate", "--to-backend"]
            if not state.is_back:
                words.append(state.to_backend if state.phase else other)
            process = spawn(path, *words)
            try:
                process.wait(0.25 + dice.random() * took_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            process.wait()
            state = migration_state(path)
            if state.kept_backend and (not state.phase or number % 4 == 0):
                if dice.random() < 0.5:
                    settle(path)
                elif not state.phase:
                    spawn(path, "migrate", "--back").wait(0.1 + dice.random())
    settle(path)
    crew.reckon(path, known)
    assert summarise(verify(path)).exit_code == 0, f"seed {SEED}"
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
