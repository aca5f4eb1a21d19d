"""What the demo proves, from what is on disk: ledgers, recovered sessions, digests, and what a log implies.

Owns the reading of stores and ledgers for that, once their writers are still. Judges by `audit` and
`expectation`. Invariant: every figure comes from files that the processes left, none from what they said.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from ...store import SessionStore, names, read_identity
from ...store.cursor import LogCursor, list_segments
from ...store.event import Kind as EventKind
from ...store.frame import cluster_key
from . import mapping
from .accesslog import LineCounts, in_time_order, read_hits
from .audit import Audit, compare
from .expectation import Expected, Replayed, differences, expected
from .ledger import Answer, Attempt, Verdict, read_ledger
from .operations import Create, Delete, Kind, content_hash
from .processes import Processes

POLL_S = 0.01
REPLAY_S = 600.0


class _Replay(msgspec.Struct, frozen=True):
    """What is needed of the JSON of `perdure replay`."""

    base: str
    events: int
    lsn: int
    elapsed_ms: int


class Standing(msgspec.Struct, frozen=True):
    """Where a store stands: two of them hold the same sessions if all of this agrees."""

    epoch: int
    lsn: int
    sessions: int
    digest: str


class ReplayedCopy(msgspec.Struct, frozen=True):
    """What a replay from snapshot and log made, in a directory of its own."""

    base: str
    """The snapshot's file name, empty if it began at the first frame."""
    events: int
    lsn: int
    sessions: int
    digest: str
    replay_ms: int


class Comparison(msgspec.Struct, frozen=True):
    """What an access log alone implies, and what was measured."""

    expected_sessions: int
    measured_sessions: int
    expected_hits: int
    measured_hits: int
    expected_expirations: int
    measured_expirations: int
    expected_live: int
    measured_live: int
    differences: tuple[str, ...]


def audit_of(store: Path, ledgers: Sequence[Path]) -> Audit:
    """Compare the ledgers of all writers with the sessions of a store that nobody writes."""
    with SessionStore.open(store, create=False) as opened:
        return compare({path.stem: read_ledger(path) for path in ledgers}, _recovered(opened))


def standing_of(store: Path) -> Standing:
    """Where a store stands now."""
    with SessionStore.open(store, create=False) as opened:
        return _standing(opened)


def wait_for(store: Path, wanted: Standing, timeout_s: float) -> Standing:
    """Where a replica stands once it has what `wanted` says, or when the time is up."""
    end = time.monotonic() + timeout_s
    with SessionStore.open(store, create=False) as opened:
        while True:
            found = _standing(opened)
            if found == wanted or time.monotonic() > end:
                return found
            time.sleep(POLL_S)


def replay(processes: Processes, store: Path, target: Path) -> ReplayedCopy:
    """Replay a store from snapshot and log with `perdure replay`, and read the copy that it made.

    Sessions and digest are those of the copy, opened as a store; LSN and time are what the replay says.
    """
    child = processes.command("replay", ["replay", str(store), "--into", str(target), "--json"])
    said = child.first_line(REPLAY_S)
    if child.process.wait(REPLAY_S) != 0:
        raise child.failure(f"the replay ended with code {child.process.returncode}")
    report = msgspec.convert(said, _Replay)
    copy = standing_of(target)
    return ReplayedCopy(report.base, report.events, report.lsn, copy.sessions, copy.digest, report.elapsed_ms)


def expected_of(access_log: Path, counts: LineCounts) -> Expected:
    """What an access log alone implies; the lines are counted in `counts`."""
    return expected(in_time_order(read_hits(access_log, counts)))


def compare_with_log(store: Path, implied: Expected, access_log: Path, ledgers: Sequence[Path]) -> Comparison:
    """Hold what the app did, as ledgers and store have it, to what the access log alone implies.

    A session that goes on after its deletion is created twice and counts once. The expirations are the
    store's own, as its log holds them.
    """
    done = [_carried_out(path) for path in ledgers]
    replayed = _replayed(done)
    with SessionStore.open(store, create=False) as opened:
        live = dict(_live(opened))
    hits = replayed.hits_ended
    for metadata in live.values():
        own = metadata.get("hits")
        hits += own if isinstance(own, int) else 0
    expirations = _expirations(store)
    found = differences(implied, replayed, live.items())
    if expirations != implied.expired:
        found += (
            f"the store's log holds {expirations:,} expirations, the access log implies {implied.expired:,}",
        )
    return Comparison(
        expected_sessions=implied.sessions,
        measured_sessions=replayed.created - _reopened(access_log, done),
        expected_hits=implied.hits,
        measured_hits=hits,
        expected_expirations=implied.expired,
        measured_expirations=expirations,
        expected_live=implied.live,
        measured_live=len(live),
        differences=found,
    )


def _replayed(done: Sequence[Mapping[int, Attempt]]) -> Replayed:
    """What the writers carried out, each operation of a stream counted once."""
    attempts = [attempt for one in done for attempt in one.values()]
    counts = Counter(attempt.kind for attempt in attempts)
    return Replayed(
        created=counts[Kind.CREATE],
        expired=counts[Kind.EXPIRE],
        deleted=counts[Kind.DELETE],
        regenerated=counts[Kind.REGENERATE],
        hits_ended=sum(a.counter for a in attempts if a.kind in (Kind.DELETE, Kind.EXPIRE)),
    )


def _reopened(access_log: Path, done: Sequence[Mapping[int, Attempt]]) -> int:
    """How many sessions were created for a visitor who had gone on after the deletion of the one before."""
    reopened = 0
    for writer, carried_out in enumerate(done):
        deleted_ms: dict[str, int] = {}
        hits = in_time_order(read_hits(access_log, LineCounts()))
        for sequence, operation in enumerate(mapping.operations(hits, writer=writer, writers=len(done))):
            if sequence not in carried_out:
                continue
            visitor = operation.key.partition("-")[0]
            if isinstance(operation, Create):
                since_ms = operation.time_ms - deleted_ms.get(visitor, -mapping.IDLE_MS - 1)
                reopened += since_ms <= mapping.IDLE_MS
            elif isinstance(operation, Delete):
                deleted_ms[visitor] = operation.time_ms
    return reopened


def _expirations(store: Path) -> int:
    """How many sessions the store expired, as its log holds it."""
    identity = read_identity(store)
    log = names.log_path(store)
    cursor = LogCursor(
        log, identity.cluster_id, cluster_key(identity.cluster_id), identity.shard, is_writable=False
    )
    try:
        cursor.open_segment(list_segments(log)[0])
        expired = 0
        while run := cursor.read():
            for offset, frame in run.frames:
                expired += sum(event[0] == EventKind.EXPIRE for event in run.events(offset, frame))
        return expired
    finally:
        cursor.close()


def _standing(store: SessionStore) -> Standing:
    stats = store.stats()
    return Standing(stats["epoch"], stats["committed_lsn"], stats["sessions"], stats["digest"])


def _recovered(store: SessionStore) -> Iterator[tuple[str, int]]:
    for key, metadata in _live(store):
        yield key, content_hash(metadata)


def _live(store: SessionStore) -> Iterator[tuple[str, Mapping[str, object]]]:
    for key in store.ids():
        session = store.peek(key)
        if session is not None:
            yield key, session.metadata


def _carried_out(ledger: Path) -> dict[int, Attempt]:
    """The acknowledged attempts of one ledger by their place in the stream."""
    attempts: dict[int, Attempt] = {}
    done: dict[int, Attempt] = {}
    for entry in read_ledger(ledger):
        match entry:
            case Attempt():
                attempts[entry.number] = entry
            case Answer():
                attempt = attempts.pop(entry.number, None)
                if attempt is not None and entry.verdict is Verdict.ACKNOWLEDGED:
                    done[attempt.sequence] = attempt
    return done
