"""Repair: a damaged state is made anew as it was, whoever has it open; a damaged log changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import Level, reconcile_self, repair, summarise, take_snapshot, verify
from perdure.shipping.faults import PARTED, Fault, fault_of, write_fault
from perdure.store import CorruptError, PositionGoneError, SessionStore, names
from perdure.store.cursor import list_segments
from perdure.store.state import REASON_FILE
from tests.cli.runner import run
from tests.recovery.busy import busy
from tests.recovery.kills import killed
from tests.recovery.stores import contents, fingerprint, seal, small_segments
from tests.recovery.test_migrate import PAUSE_MS_MAX, filled

DATA_FILES = {"lmdb": "data.mdb", "sqlite": "sessions.sqlite3"}
PAGE_BYTES = 4096
FILE_BYTES_MAX = 4 << 20


class Holder:
    """A process that has the store open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = self._start()
        self.deaths = 0
        """How often its engine ended it: LMDB maps what is damaged."""

    def _start(self) -> subprocess.Popen[str]:
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.recovery.holding_process", str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    def ask(self) -> dict[str, Any]:
        """What it reads; a process that died is replaced."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            assert process.wait() < 0, "it ended by itself"
            self.deaths += 1
            self._close()
            self._process = self._start()
            return self.ask()
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(30)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def held(path: Path) -> Iterator[Holder]:
    holder = Holder(path)
    try:
        yield holder
    finally:
        holder.close()


def made(path: Path, backend: str, count: int = 400) -> dict[str, Any]:
    """A store with a snapshot, log behind it, and sessions of all sizes; says what it holds."""
    dice = random.Random(1)
    with SessionStore.open(path, backend=backend) as store:
        for number in range(count):
            store.create({"n": number, "pad": "x" * dice.choice((10, 300, 3000))}, tags=("a", f"t{number}"))
            if number == count // 2:
                store.fold()
                take_snapshot(store._opened)
        return {id: session["n"] for id, session in contents(store).items()}


def data_file(path: Path, backend: str) -> Path:
    return path / names.STATE / backend / DATA_FILES[backend]


def head_of(file: Path) -> bytes:
    """What it holds; LMDB's file may be a terabyte of holes."""
    with file.open("rb") as opened:
        return opened.read(FILE_BYTES_MAX)


def flip(file: Path, offset: int, mask: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ mask]))


def used_offset(file: Path, dice: random.Random) -> int:
    """An offset that holds something; half of them in the first two pages or at the head of one."""
    data = head_of(file)
    while True:
        at = dice.randrange(len(data))
        if dice.random() < 0.5:
            at = at % (2 * PAGE_BYTES) if dice.random() < 0.3 else at - at % PAGE_BYTES + dice.randrange(32)
        if at < len(data) and data[at]:
            return at


@pytest.mark.parametrize("backend", DATA_FILES)
@pytest.mark.parametrize("flips", [40, pytest.param(500, marks=[pytest.mark.lab, pytest.mark.timeout(1800)])])
def test_a_state_with_a_flipped_bit_is_made_anew_as_it_was_under_a_process_that_has_it_open(
    flips: int, backend: str, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "store"
    expected = made(path, backend)
    dice = random.Random(seed)
    with held(path) as holder:
        first = holder.ask()
        assert first["found"] == expected
        digest = repair(path, unchecked=True).digest
        for _ in range(flips):
            file = data_file(path, backend)
            offset = used_offset(file, dice)
            flip(file, offset, 1 << dice.randrange(8))
            report = repair(path, unchecked=True)
            assert (report.is_repaired, report.sessions, report.digest) == (True, len(expected), digest)
            found = holder.ask()
            assert found.get("found") == expected, f"seed {seed}, offset {offset}: {found.get('error')}"
        assert holder.end() == 0
    print(f"deaths of the reading process: {holder.deaths}")
    assert summarise(verify(path)).exit_code == 0
    assert len(list((path / names.ASIDE).glob("state*"))) == 2


@pytest.mark.parametrize("backend", DATA_FILES)
def test_damage_is_found_said_and_repaired_and_the_damaged_files_are_kept(
    backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    expected = made(path, backend)
    assert not repair(path).is_repaired
    assert repair(path).exit_code == 0
    file = data_file(path, backend)
    for match in re.finditer(b"x" * 250, head_of(file)):  # some of them stand in pages that are free
        flip(file, match.start() + 100, 1)
    inode = (path / names.STATE).stat().st_ino
    report = repair(path, only_check=True)
    assert (report.is_repaired, report.exit_code) == (False, 4)
    assert any("does not match its hash" in str(finding) for finding in report.findings)
    assert (path / names.STATE).stat().st_ino == inode
    with SessionStore.open(path) as store:
        with pytest.raises(CorruptError, match="perdure repair"):
            list(store.sessions())
        report = repair(path)
        assert (report.is_repaired, report.exit_code) == (True, 0)
        assert {id: session["n"] for id, session in contents(store).items()} == expected
    assert report.aside is not None
    assert report.aside.stat().st_ino == inode
    assert "does not match its hash" in (report.aside / REASON_FILE).read_text()
    assert repair(path).findings == []
    assert not (path / names.MIGRATION).exists()


def test_busy_processes_do_not_notice_a_repair(tmp_path: Path, seed: int) -> None:
    for backend in DATA_FILES:
        path = tmp_path / backend
        known = filled(path, 1000, backend=backend)
        with busy(path, 2, seed) as crew:
            for _ in range(5):
                assert repair(path, unchecked=True).is_repaired
        assert crew.reckon(path, known) < PAUSE_MS_MAX
        assert summarise(verify(path)).exit_code == 0


def test_with_a_damaged_log_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with small_segments(path, backend="lmdb") as store:
        for number in range(100):
            store.create({"n": number})
        store.fold()
        seal(store)
    flip(data_file(path, "lmdb"), 3 * PAGE_BYTES + 200, 1)
    segment = list_segments(path / "log")[1].path
    flip(segment, 1000, 4)
    before = fingerprint(path / names.STATE)
    with pytest.raises(CorruptError) as raised:
        repair(path, unchecked=True)
    assert raised.value.path == str(segment)
    report = repair(path, only_check=True)
    assert report.exit_code == 4
    assert any(finding.path == str(segment) for finding in report.findings)
    assert fingerprint(path / names.STATE) == before
    assert not (path / names.MIGRATION).exists()
    assert not list((path / names.ASIDE).iterdir())


def test_without_snapshot_and_the_log_to_its_beginning_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with small_segments(path, backend="sqlite") as store:
        for number in range(100):
            store.create({"n": number})
        store.fold()
        seal(store)
    list_segments(path / "log")[0].path.unlink()
    before = fingerprint(path / names.STATE)
    with pytest.raises(PositionGoneError, match="no good snapshot"):
        repair(path, unchecked=True)
    assert fingerprint(path / names.STATE) == before
    assert not (path / names.MIGRATION).exists()


def test_an_older_snapshot_serves_where_the_newest_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "store"
    expected = made(path, "lmdb", 200)
    with SessionStore.open(path) as store:
        expected[store.create({"n": 1000})] = 1000
        newest = take_snapshot(store._opened).path
    flip(newest, newest.stat().st_size // 2, 8)
    report = repair(path, unchecked=True)
    assert report.base
    assert report.base != newest.name
    with SessionStore.open(path) as store:
        assert {id: session["n"] for id, session in contents(store).items()} == expected
    findings = list(verify(path))
    assert {finding.path for finding in findings if finding.level is Level.CORRUPT} == {str(newest)}


def test_a_state_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    expected = made(path, "sqlite", 50)
    with held(path) as holder:
        shutil.rmtree(path / names.STATE)
        assert repair(path).is_repaired
        assert holder.ask()["found"] == expected


@pytest.mark.parametrize(
    "step", [pytest.param(3, id="every-third"), pytest.param(1, id="every", marks=pytest.mark.lab)]
)
@pytest.mark.parametrize("backend", DATA_FILES)
def test_killed_before_any_call_that_changes_files_a_repair_is_done_by_the_next(
    backend: str, step: int, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    expected = made(path, backend, 40)
    call = 0
    was_killed = True
    with SessionStore.open(path) as live:
        while was_killed:
            was_killed = killed(lambda: repair(path, unchecked=True), call)
            expected[live.create({"n": 1})] = 1
            assert {id: session["n"] for id, session in contents(live).items()} == expected
            live.fold()
            repair(path, unchecked=True)
            assert not (path / names.MIGRATION).exists()
            assert {id: session["n"] for id, session in contents(live).items()} == expected
            call += step
    assert call > 15
    assert summarise(verify(path)).exit_code == 0


def test_a_fault_of_the_log_stays_when_the_state_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    made(path, "lmdb")
    parted, folded = Fault(7, "two primaries", 1, PARTED, (1, 7, 9)), Fault(7, "folding stopped", 1)
    write_fault(path, folded)
    report = repair(path, unchecked=True)
    assert (report.is_repaired, report.fault, report.exit_code) == (True, "", 0)
    assert fault_of(path) is None
    write_fault(path, parted)
    report = repair(path, unchecked=True)
    assert (report.is_repaired, report.fault, report.exit_code) == (True, "two primaries", 1)
    assert reconcile_self(path) is None
    assert fault_of(path) == parted
    for options in ((), ("--check",), ("--unchecked",)):
        result = run("repair", path, *options)
        assert result.exit_code == 1, options
        assert "two primaries. `perdure rejoin DIR --dry-run`" in result.stderr.replace("\n", " ")
    assert fault_of(path) == parted
