"""What must hold of the directories that process_programs and receive_program leave, whenever it was killed.

Owns how a store whose log begins anywhere is read for the seven checks, and the further demands on
snapshots, replicas and promotions. May change the directory. Invariant: what it says is wrong, is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from perdure.recovery import (
    Level,
    abort_migration,
    drop_previous,
    inspect_snapshots,
    migrate,
    migrate_back,
    migration_state,
    promote,
    repair,
    summarise,
    verify,
)
from perdure.shipping import open_node_log
from perdure.store import PerdureError
from perdure.store.cursor import LogCursor, list_segments
from perdure.store.frame import cluster_key
from perdure.store.identity import read_identity
from perdure.store.ids import Position
from perdure.store.names import MIGRATION, STATE_PREVIOUS, SWITCH_PLAN, log_path
from perdure.store.session import Session
from perdure.store.snapshot import SnapshotReader, list_snapshots
from tests.crash.process_programs import open_small
from tests.crash.receive_program import OTHER
from tests.crash.store_program import _digest, _event, operation_id
from tests.recovery.nodes import DirectoryVoters
from tests.recovery.stores import seal
from tests.support.faults.checks import Event, Recovered, Violation, check_all, check_replay, check_same
from tests.support.faults.ledger import ERASING, History

LIMIT_S = 10.0
QUIET = (Level.OK, Level.NOTICE)


def words_of(directory: Path, name: str) -> list[str]:
    """What a program left there: see process_programs.say."""
    path = directory.parent / name
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def look(directory: Path, known: dict[bytes, str]) -> Recovered:
    """Open the store, and read state and log; the log may begin behind a snapshot."""
    began = time.monotonic()
    try:
        store = open_small(directory)
    except PerdureError as error:
        return Recovered(error=f"{type(error).__name__}: {error}", seconds=time.monotonic() - began)
    seconds = time.monotonic() - began
    try:
        state = {id: _digest(store.peek(id)) for id in store.ids()}
    finally:
        store.close()
    base_lsn, base_state = 0, dict[str, str]()
    files = list_segments(log_path(directory))
    if files and files[0].first_lsn > 1:
        base_lsn, base_state = _snapshot(list_snapshots(directory / "snapshots")[-1].path)
    return Recovered(state, _events(directory, base_lsn, known), base_lsn, base_state, seconds=seconds)


def _snapshot(path: Path) -> tuple[int, dict[str, str]]:
    with SnapshotReader(path) as snapshot:
        found = {key.decode(): _digest(Session(key.decode(), value)) for key, value in snapshot}
        return snapshot.head.at.lsn, found


def _events(directory: Path, behind_lsn: int, known: dict[bytes, str]) -> list[Event]:
    identity = read_identity(directory)
    key = cluster_key(identity.cluster_id)
    cursor = LogCursor(log_path(directory), identity.cluster_id, key, identity.shard, is_writable=False)
    found: list[Event] = []
    cursor.seek(behind_lsn)
    lsn = behind_lsn
    for run in cursor.runs():
        for offset, frame in run.frames:
            for kind, reason, operation, id, value in run.events(offset, frame):
                lsn += 1
                found.append(_event(lsn, kind, reason, operation, id, value, known))
    cursor.close()
    return found


def check_store(directory: Path, lines: list[bytes]) -> list[Violation | str]:
    """The seven checks, and once more after the state was taken away; verify finds nothing then."""
    history = History.of(lines)
    known = {operation_id(op): op for op in history.attempts}
    first, again = look(directory, known), look(directory, known)
    found: list[Violation | str] = [*words_of(directory, "verdict")]
    found += check_all(history, first, again=again, limit_s=LIMIT_S)
    if found:
        return found
    shutil.rmtree(directory / "state")
    found += check_all(history, look(directory, known), again=again, limit_s=LIMIT_S)
    with open_small(directory) as store:
        seal(store)  # of a footer that was cut short
    findings = [finding for finding in verify(directory, level="chain") if finding.level not in QUIET]
    found += [f"(7) verify: {finding}" for finding in findings]
    return found


def check_after_errors(directory: Path, lines: list[bytes]) -> list[Violation | str]:
    """The same for a program that was to go on: it came to its end, by named errors only."""
    found: list[Violation | str] = []
    if words_of(directory, "outcome") != ["done"]:
        found.append("(7) the program did not come to its end")
    return found + check_store(directory, lines)


def check_snapshots(directory: Path, lines: list[bytes]) -> list[Violation | str]:
    """The same, and each snapshot is good, and the fold of the log up to its LSN."""
    found: list[Violation | str] = [
        f"(6) snapshot {state.file.path.name}: {state.finding.message}"
        for state in inspect_snapshots(directory, check=True)
        if not state.is_good
    ]
    for file in list_snapshots(directory / "snapshots"):
        lsn, state = _snapshot(file.path)
        expected = _folded(_events(directory, 0, {}), lsn)
        if lsn != file.lsn or state != expected:
            found.append(f"(6) snapshot {file.path.name} is not the fold of the log up to its LSN")
    return found + check_store(directory, lines)


def check_migration(directory: Path, lines: list[bytes]) -> list[Violation | str]:
    """What was broken off can be gone on with or given up, and is right and leaves nothing, either way."""
    with open_small(directory):
        pass
    state = migration_state(directory)
    if not state.phase or len(lines) % 2:
        abort_migration(directory)
    elif state.is_repair:
        repair(directory, unchecked=True)
    elif state.is_back:
        migrate_back(directory)
    else:
        migrate(directory, to_backend=state.to_backend)
    drop_previous(directory)
    left = {entry.name for entry in directory.iterdir()} & {MIGRATION, STATE_PREVIOUS, SWITCH_PLAN}
    found: list[Violation | str] = [f"(7) {name} is left behind" for name in sorted(left)]
    findings = [finding for finding in verify(directory) if finding.level is Level.CORRUPT]
    found += [f"(7) verify: {finding}" for finding in findings]
    return found + check_store(directory, lines)


def _folded(events: Iterable[Event], upto_lsn: int) -> dict[str, str]:
    state: dict[str, str] = {}
    for event in events:
        if event.lsn > upto_lsn or event.kind == "control":
            continue
        if event.kind in ERASING:
            state.pop(event.key, None)
        else:
            state[event.key] = event.digest
    return state


def check_replica(directory: Path, lines: list[bytes]) -> list[Violation | str]:
    """The replica holds what the primary acknowledged, in its order, and ends where the primary does."""
    found: list[Violation | str] = [*words_of(directory, "verdict")]
    if words_of(directory, "outcome") != ["done"]:
        found.append("(7) the program did not come to its end")
    ends = [_end(path) for path in (directory, directory.parent / OTHER)]
    if ends[0] != ends[1]:
        found.append(f"(3) the replica ends at {ends[0]}, the primary at {ends[1]}")
    left = [name for name in ("incoming", "install.plan", "cut.plan") if (directory / name).exists()]
    if left:
        found.append(f"(7) {left} stay behind")
    return found + check_store(directory, lines)


def _end(path: Path) -> Position:
    node = open_node_log(path, [])
    try:
        return node.log.cursor.at.position
    finally:
        node.close()


def check_promotion(directory: Path, _lines: list[bytes]) -> list[Violation | str]:
    """b was killed, and tries again: it gets a new epoch or is primary already."""
    before = _promised(directory)
    report = promote(directory / "b", DirectoryVoters({"c": directory / "c"}))
    found: list[Violation | str] = []
    if not report.was_primary and report.epoch <= max(before.values()):
        found.append(f"(7) epoch {report.epoch} was begun, {before} had been promised")
    return found + _check_nodes(directory)


def check_other_candidate(directory: Path, _lines: list[bytes]) -> list[Violation | str]:
    """b was killed, and c tries; then b again. Whoever is refused is refused by name."""
    epochs: list[int] = []
    for name, other in (("c", "b"), ("b", "c"), ("c", "b")):
        try:
            report = promote(directory / name, DirectoryVoters({other: directory / other}))
            epochs += [] if report.was_primary else [report.epoch]
        except PerdureError:
            continue
    found: list[Violation | str] = []
    if epochs != sorted(set(epochs)):
        found.append(f"(7) epochs {epochs} were begun one after the other")
    if not any(_is_primary(directory / name) for name in "bc"):
        found.append("(7) neither of the two candidates can be promoted")
    return found + _check_nodes(directory)


def _promised(directory: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in "bc":
        node = open_node_log(directory / name, [])
        found[name] = max(node.log.promise.epoch, node.log.cursor.at.epoch)
        node.close()
    return found


def _is_primary(path: Path) -> bool:
    node = open_node_log(path, [])
    try:
        return node.log.is_primary
    finally:
        node.close()


def _check_nodes(directory: Path) -> list[Violation | str]:
    found: list[Violation | str] = []
    begun: dict[int, set[str]] = {}
    end = _end(directory / "a")
    for name in "bc":
        path = directory / name
        begun_here = _epochs(path)
        for epoch, primary in begun_here.items():
            begun.setdefault(epoch, set()).add(primary)
        if not _holds(path, end):
            found.append(f"(1) {name} no longer holds {end}, which was acknowledged")
        if summarise(verify(path, level="chain")).exit_code:
            found.append(f"(7) verify finds something on {name}")
    if any(len(primaries) > 1 for primaries in begun.values()):
        found.append(f"(3) epochs with two primaries: {begun}")
    if sum(_is_primary(directory / name) for name in "bc") > 1:
        found.append("(3) b and c are both primary")
    for name in "bc":
        found += _check_state(directory / name)
    return found


def _epochs(path: Path) -> dict[int, str]:
    """Epoch -> the primary that began it, by the segments' headers."""
    node = open_node_log(path, [])
    cursor = node.cursor()
    found: dict[int, str] = {}
    try:
        for file in list_segments(log_path(path)):
            cursor.open_segment(file)
            assert cursor.header is not None
            found[file.epoch] = cursor.header.primary
    finally:
        cursor.close()
        node.close()
    return found


def _holds(path: Path, position: Position) -> bool:
    node = open_node_log(path, [])
    cursor = node.cursor()
    try:
        cursor.seek(position.lsn)
        return cursor.at.position == position
    finally:
        cursor.close()
        node.close()


def _check_state(path: Path) -> list[Violation]:
    first, again = look_plain(path), look_plain(path)
    return check_replay(first) + check_same(first, again)


def look_plain(path: Path) -> Recovered:
    """A node whose sessions hold no operation: their ids alone are compared."""
    with open_small(path, durability="os") as store:
        state = dict.fromkeys(store.ids(), "there")
        committed = store.position().lsn
    events = [
        Event(event.lsn, event.key, event.kind, event.key, "there")
        for event in _plain_events(path, committed)
    ]
    return Recovered(state, events)


def _plain_events(path: Path, upto_lsn: int) -> list[Event]:
    node = open_node_log(path, [])
    cursor = node.cursor(is_sparse=False)
    found: list[Event] = []
    lsn = 0
    try:
        cursor.seek(0)
        for run in cursor.runs():
            for offset, frame in run.frames:
                for _, _, _, key, _ in run.events(offset, frame):
                    lsn += 1
                    if key and lsn <= upto_lsn:
                        found.append(Event(lsn, "", "put", key.decode()))
    finally:
        cursor.close()
        node.close()
    return found
