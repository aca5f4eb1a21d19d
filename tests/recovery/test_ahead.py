"""A store that died with space ahead of its log's frames: every tool takes the zeros for nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import (
    Depth,
    Level,
    apply_retention,
    dump,
    explain_retention,
    repair,
    replay_to,
    stat,
    take_snapshot,
    verify,
)
from perdure.recovery.behind import behind
from perdure.recovery.retention import Policy
from perdure.recovery.source import open_source
from perdure.shipping.bootstrap import log_bytes_behind
from perdure.shipping.parted import keep_copy
from perdure.store import OpenOptions, SessionStore, names, open_store
from perdure.store.ahead import STEP_BYTES, bytes_of
from perdure.store.commit import Durability
from perdure.store.cursor import list_segments
from perdure.store.page import Word
from tests.recovery.stores import contents, contents_of, seal

WRITER = """
import os, sys
from pathlib import Path
from perdure.store import SessionStore
store = SessionStore.open(sys.argv[1], durability="disk")
for number in range(20):
    store.put(f"key-{number}", {"n": number})
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGKILL)
    assert tail(path).stat().st_size > STEP_BYTES
    return path


def tail(path: Path) -> Path:
    return list_segments(path / names.LOG)[-1].path


def expected() -> dict[str, Any]:
    return {f"key-{number}": {"n": number} for number in range(20)}


def bad(path: Path) -> list[str]:
    return [str(found) for found in verify(path, level=Depth.REPLAY) if found.level is not Level.OK]


def cut_short(path: Path) -> int:
    """Tear the last frame: its end becomes zeros; answers the bytes that are left of the file."""
    end = bytes_of(tail(path))
    with tail(path).open("r+b") as file:
        file.seek(end - 30)
        file.write(bytes(30))
    return bytes_of(tail(path))


def test_it_verifies_opens_and_gives_the_space_back(killed: Path) -> None:
    assert bad(killed) == []
    assert contents_of(killed) == expected()
    with SessionStore.open(killed, durability="disk") as store:
        store.put("more", {})
        assert tail(killed).stat().st_size > STEP_BYTES
        assert bad(killed) == []
    assert tail(killed).stat().st_size == bytes_of(tail(killed)) < STEP_BYTES
    assert not any((killed / names.ASIDE).iterdir())
    assert bad(killed) == []


def test_it_opens_in_another_boot_without_the_page_and_without_the_state(killed: Path) -> None:
    options = OpenOptions(boot_id=lambda: "another")
    with SessionStore(open_store(killed, options), options, None) as store:
        assert contents(store) == expected()
    assert not [path for path in (killed / names.ASIDE).iterdir() if path.is_file()]


def test_the_log_is_listed_replayed_and_repaired(killed: Path, tmp_path: Path) -> None:
    events = list(dump(killed))
    assert not [event for event in events if "damage" in event]
    assert [event["key"] for event in events if event["kind"] == "put"] == list(expected())
    assert not [event for event in dump(tail(killed)) if "damage" in event]
    found = stat(killed)
    assert (found.size_bytes, found.segments[-1].problem) == (bytes_of(tail(killed)), "")
    report = replay_to(killed, tmp_path / "copy")
    assert report.findings == []
    assert contents_of(tmp_path / "copy") == expected()
    again = replay_to(killed, tmp_path / "again", upto_lsn=found.end.lsn)
    assert (again.position.lsn, again.findings) == (found.end.lsn, [])
    repair(killed)
    assert contents_of(killed) == expected()


def test_bytes_that_are_told_are_bytes_of_frames(killed: Path, tmp_path: Path) -> None:
    used = bytes_of(tail(killed))
    assert log_bytes_behind(killed / names.LOG, 0) == used
    (segment,) = [line for line in explain_retention(killed, Policy()).keep if line.kind == "segment"]
    assert segment.size_bytes == used
    source = open_source(killed)
    end = stat(killed).end
    assert behind(source, 5, end.lsn).bytes < used
    source = open_source(killed, lambda: "another boot, of which the control page says nothing")
    assert 0 < behind(source, 5, end.lsn).bytes < used
    folder = tmp_path / "kept"
    folder.mkdir()
    keep_copy(list_segments(killed / names.LOG)[-1], folder)
    assert not [event for event in dump(folder) if "damage" in event]


def test_a_snapshot_is_taken_and_retention_carried_out(killed: Path) -> None:
    options = OpenOptions(durability=Durability.DISK, segment_bytes=4096)
    with SessionStore(open_store(killed, options), options, None) as store:
        for number in range(100):
            store.put(f"more-{number}", {"n": number})
        take_snapshot(store._opened)
        store.fold()
        seal(store)
        assert len(list_segments(killed / names.LOG)) > 2
        apply_retention(killed, Policy(log_age_ms=0, snapshots=1))
    assert bad(killed) == []
    assert len(contents_of(killed)) == 120


def test_a_torn_frame_before_zeros_is_named_and_put_aside(killed: Path, tmp_path: Path) -> None:
    used = cut_short(killed)
    (killed / names.LOG / names.MARK).unlink()
    (killed / names.CONTROL_PAGE).unlink()
    (damage,) = [event for event in dump(killed) if "damage" in event]
    assert damage["lsn"] == 22
    assert stat(killed).segments[-1].size_bytes == used
    kinds = {found.kind for found in verify(killed, level=Depth.CHAIN)}
    assert "tail-torn" in kinds
    report = replay_to(killed, tmp_path / "copy")
    assert [found.kind for found in report.findings] == ["tail-torn"]
    assert contents_of(killed).keys() == expected().keys() - {"key-19"}
    (torn,) = [path for path in (killed / names.ASIDE).iterdir() if path.is_file()]
    assert torn.stat().st_size < 1000


def test_zeros_in_place_of_what_was_acknowledged_are_corrupt(killed: Path, tmp_path: Path) -> None:
    used = cut_short(killed)
    with tail(killed).open("r+b") as file:
        file.seek(used - 300)
        file.write(bytes(300))
    found = {one.kind: one.level for one in verify(killed, level=Depth.CHAIN)}
    assert found["tail-corrupt"] is Level.CORRUPT
    # A directory that was copied after another boot has the mark alone to tell it.
    page = bytearray((killed / names.CONTROL_PAGE).read_bytes())
    page[Word.BOOT * 8 : Word.BOOT * 8 + 8] = bytes(8)
    (killed / names.CONTROL_PAGE).write_bytes(page)
    found = {one.kind: one.level for one in verify(killed, level=Depth.CHAIN)}
    assert found["tail-corrupt"] is Level.CORRUPT


def test_zeros_at_the_end_of_a_segment_that_another_follows_are_damage(killed: Path) -> None:
    options = OpenOptions(segment_bytes=4096)
    with SessionStore(open_store(killed, options), options, None) as store:
        for number in range(100):
            store.put(f"more-{number}", {"n": number})
        seal(store)
    first, second = list_segments(killed / names.LOG)[:2]
    with second.path.open("r+b") as file:
        file.seek(1000)
        file.write(bytes(second.path.stat().st_size - 1000))
    assert [event["damage"] for event in dump(killed) if "damage" in event]
    kinds = {found.kind for found in verify(killed, level=Depth.CHAIN)}
    assert {"trailing-zeros", "frame-damaged"} <= kinds
    assert first.path.exists()
