"""Building a new state of a store beside the one in use: from a snapshot, then the log, then compared.

Owns the building in a directory of its own, in steps that can be gone on with after a crash within one
boot: the back end fills in transactions and says itself how far it is. Nothing of the store changes
here; store/switch.py puts the result in its place. What is built is never believed for having been built
without an error: check() reads all of it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from ..store.backends import open_backend
from ..store.cursor import LogCursor, list_segments
from ..store.errors import CorruptError, DivergedError, FormatError, PositionGoneError
from ..store.files import make_directory, translated
from ..store.fold import HASH_BYTES, hash_of, plan_deadlines
from ..store.ids import MASK64, NOWHERE, StatePosition
from ..store.log import EventLog
from ..store.page import Word
from ..store.ports import Deadline, Record
from ..store.rebuild import CHUNK_BYTES, FILL_RECORDS, UNARMED_MAX, fill, replay
from ..store.snapshot import SnapshotFile, SnapshotReader, list_snapshots, read_head
from ..store.state import mark_state, remove_state

PROGRESS_RECORDS = 10_000

OnProgress = Callable[[str, int, int], None]
"""Called with the phase, how much of it is done, and how much there is (sessions, or events of the log)."""


class StateBuild:
    """A state that is being built in `folder`, for the store whose log is `log`."""

    def __init__(self, log: EventLog, folder: Path, backend_name: str, on_progress: OnProgress) -> None:
        self._log = log
        self._folder = folder
        self.backend_name = backend_name
        self._on_progress = on_progress
        self.events = 0
        """Of the log, that were folded."""
        with translated("cannot build a state", folder):
            make_directory(folder)
        self.backend = open_backend(backend_name, folder / backend_name)
        self.cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key, log.identity.shard)

    def close(self) -> None:
        self.cursor.close()
        self.backend.close()

    @property
    def position(self) -> StatePosition:
        at = self.backend.refresh()
        self.backend.release()
        return at

    @property
    def place(self) -> tuple[int, int, int]:
        """LSN, and first LSN of the segment and offset (bytes) behind it, both 0 if not known."""
        at, cursor = self.position, self.cursor
        if cursor.header is None or cursor.at != at:
            return at.lsn, 0, 0
        return at.lsn, cursor.header.first_lsn, cursor.offset

    def fill(self, snapshot: Path | None) -> None:
        """Fill it with a snapshot's sessions, or go on with that; nothing to do if it is full already.

        Without a snapshot the log's beginning will give all. Raises FormatError for a damaged snapshot,
        CorruptError if something else was filled in before.
        """
        if self.position != NOWHERE:
            return
        done, last, unarmed = self._filled()
        if snapshot is None:
            if done:
                raise CorruptError("what was built has no position", path=self._folder)
            return
        with SnapshotReader(snapshot, self._log.identity.cluster_id) as reader:
            total = reader.head.at.session_count

            def rest() -> Iterator[tuple[bytes, Record]]:
                count = 0
                for pair in reader.records():
                    count += 1
                    if pair[0] > last:
                        yield pair
                    if not count % PROGRESS_RECORDS:
                        self._on_progress("backfill", count, total)

            fill(self.backend, rest(), reader.head.at, unarmed=unarmed)
            self._on_progress("backfill", total, total)

    def _filled(self) -> tuple[int, bytes, list[Deadline]]:
        """(how many records an earlier fill left, the last key, the deadlines that may not be armed yet)"""
        newest: deque[list[Deadline]] = deque(maxlen=UNARMED_MAX // FILL_RECORDS + 1)
        count, last = 0, b""
        scan = self.backend.scan()
        try:
            pairs = iter(scan)
            while some := list(islice(pairs, FILL_RECORDS)):
                newest.append(list(plan_deadlines(some, {})))
                count, last = count + len(some), some[-1][0]
        finally:
            scan.close()
        return count, last, list(chain.from_iterable(newest))

    def catch_up(self, upto_lsn: int, phase: str = "catch up") -> StatePosition:
        """Fold the log up to an LSN, which is a frame's end; answers where the state then stands.

        Raises PositionGoneError, DivergedError or CorruptError if the log does not give that.
        """
        at = self.position
        if at.lsn >= upto_lsn or not list_segments(self.cursor.log):
            return at
        total = upto_lsn - at.lsn
        end = replay(
            self.backend,
            self.cursor,
            at,
            upto_lsn=upto_lsn,
            progress=lambda done: self._on_progress(phase, done, total),
            chunk_bytes=CHUNK_BYTES // 4,
        ).end
        self.events += end.lsn - at.lsn
        if end.lsn != upto_lsn:
            raise CorruptError(
                f"the log ends at LSN {end.lsn}, where it must reach {upto_lsn}",
                path=self.cursor.path,
                offset=self.cursor.offset,
                lsn=end.lsn + 1,
                hint="See `perdure verify`.",
            )
        return end

    def check(self) -> StatePosition:
        """Read all of it: order of the keys, hash of each record, count and sum. Answers its position.

        Raises CorruptError if anything does not come out.
        """
        scan = self.backend.scan()
        count = digest = 0
        previous = b""
        try:
            at = scan.position
            for key, record in scan:
                hashed = hash_of(key, record[HASH_BYTES:])
                if record[:HASH_BYTES] != hashed.to_bytes(HASH_BYTES, "little") or key <= previous:
                    raise CorruptError(f"session {key!r} of the new state is not as it was written")
                previous = key
                digest = (digest + hashed) & MASK64
                count += 1
                if not count % PROGRESS_RECORDS:
                    self._on_progress("compare", count, at.session_count)
        finally:
            scan.close()
        if (count, digest) != (at.session_count, at.digest):
            raise DivergedError(
                f"the new state holds {count} sessions with digest {digest:016x}, it should be "
                f"{at.session_count} with {at.digest:016x}",
                path=self._folder,
                lsn=at.lsn,
            )
        self._on_progress("compare", count, at.session_count)
        return at

    def mark(self, boot_id: str) -> None:
        """Vouch for it: it may be put in the state's place."""
        mark_state(
            self._log.store,
            backend_name=self.backend_name,
            cluster_id=self._log.identity.cluster_id,
            boot_id=boot_id,
            place=self._folder,
        )


def choose_base(log: EventLog, upto_lsn: int, passed_over: set[str]) -> SnapshotFile | None:
    """The newest snapshot to begin from, None if the log has its beginning.

    It is judged by its head; a damaged one shows when it is read, and is to be passed over then. Raises
    PositionGoneError if nothing will do.
    """
    files = list_segments(log.cursor.log)
    oldest = files[0].first_lsn if files else 1
    for file in reversed(list_snapshots(log.store / "snapshots")):
        if file.lsn > upto_lsn or file.lsn + 1 < oldest or file.name in passed_over:
            continue
        try:
            read_head(file.path, log.identity.cluster_id)
        except FormatError:
            continue
        return file
    if oldest == 1:
        return None
    raise PositionGoneError(
        f"the log begins with LSN {oldest}, and no good snapshot reaches it",
        path=log.store / "snapshots",
        lsn=oldest,
        hint="Bring back a snapshot, or bootstrap this node from another one.",
    )


def committed_end(log: EventLog) -> int:
    """The last LSN that a state may hold now: what is committed, or is in the state already."""
    words = log.words
    if log.is_primary and not log.config.sync_replicas:
        return int(words[Word.APPENDED])
    header = log.cursor.header
    if header is not None and header.primary == log.identity.node and not log.config.sync_replicas:
        return int(words[Word.APPENDED])
    return int(max(words[Word.FOLDED], min(words[Word.COMMITTED], words[Word.FLUSHED])))


def discard(folder: Path) -> None:
    """Remove what was built."""
    remove_state(folder)


def allocated_bytes(folder: Path) -> int:
    """What the files below a directory take on the disk."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
