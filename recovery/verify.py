"""verify: is everything in a store's directory what it should be? Read-only, finding by finding.

Owns the order of the checks, and those of the small files and snapshots. No file of the store is made or
changed, no lock file created. A check that could not be made says UNKNOWN; damage in one place does not
keep the others from being looked at.

A store that is in use is looked at as it stood when this began. Its state is copied while its process
may be folding; only if the copy does not come out right it is copied again under the fold lock, for the
time that takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..shipping.slots import Slot, read_slot
from ..store import names
from ..store.consumers import read_progress
from ..store.errors import FormatError, FormatVersionError, PerdureError, StoreMissingError, UsageError
from ..store.flush import POISON_MAGIC, POISON_VERSION, Poison
from ..store.ids import Position
from ..store.mark import Mark, SlotVerdict
from ..store.page import Word, read_boot_id
from ..store.promise import NO_PROMISE, Promise, read_promise
from ..store.smallfile import read_small_file
from ..store.snapshot import SnapshotFile, SnapshotReader, list_snapshots, read_head, verify_snapshot
from ..store.snapshot_format import SnapshotHead
from .findings import Finding, Level, finding_of
from .source import Source, is_in_use, open_source
from .target import UNFINISHED
from .verify_end import Depth, LogFacts, check_standing
from .verify_log import check_log
from .verify_state import check_state

_KNOWN_NAMES = frozenset(
    {
        names.IDENTITY,
        names.LOG,
        names.CONTROL_PAGE,
        names.WRITE_LOCK,
        names.SYNC_LOCK,
        names.FOLD_LOCK,
        names.USERS_LOCK,
        names.POISON,
        names.PROMISE,
        names.STATE,
        names.SNAPSHOTS,
        names.SLOTS,
        names.FEEDS,
        names.ASIDE,
        names.DIVERGED,
        names.POKE_SOCKET,
        names.GATE_SOCKET,
        names.NODE_SOCKET,
        names.SHIPPER_LOCK,
        names.RECEIVER_LOCK,
        names.CANDIDACY_LOCK,
        names.PORTS,
        names.WAYS,
        names.PROBE,
        names.UNMONITORED,
        names.TAKEOVERS,
        names.CUT_PLAN,
        names.INSTALL_PLAN,
        names.INCOMING,
        names.REJOIN_PLAN,
        names.REJOIN,
        names.REJOIN_ALLOWED,
        names.FOLD_FAULT,
        names.LOG_FAULT,
        names.REBUILD,
        names.CONFIG_FILE,
        names.SWITCH_PLAN,
        names.STATE_PREVIOUS,
        names.MIGRATION,
        names.MIGRATION_LOCK,
        names.AUDIT,
        names.AUDIT_BEFORE,
        UNFINISHED,
        "lost+found",
    }
)
_PLANS = {
    names.CUT_PLAN: "a cut of the log was begun and not completed; the receiver completes it",
    names.REJOIN_PLAN: "a rejoin was begun and not completed; the receiver completes it",
    names.INSTALL_PLAN: "a bootstrap from a snapshot was begun and not completed; the receiver completes it",
    names.SWITCH_PLAN: "a switch of the state was begun and not completed; the next opening completes it",
    names.MIGRATION: "a migration or repair is under way, or was broken off; begun again it goes on",
    names.FOLD_FAULT: "the state of this replica did not follow its log; it must be made anew",
}


def parse_depth(text: str) -> Depth:
    """The level that `text` names: structure, checks, chain or replay. Raises UsageError."""
    try:
        return Depth[text.upper()]
    except KeyError as error:
        raise UsageError(f"levels are structure, checks, chain and replay, not {text!r}") from error


def verify(
    store: str | os.PathLike[str],
    *,
    level: Depth | str = Depth.REPLAY,
    scratch: str | os.PathLike[str] | None = None,
    boot_id: Callable[[], str] = read_boot_id,
) -> Iterator[Finding]:
    """Check a store; findings come as they are made.

    `level` says how deep (see Depth). `scratch` is a directory with room for two copies of the state,
    which the deepest level needs; None is the system's temporary one. Raises StoreMissingError if there
    is no store, StorageError if the scratch directory cannot be used; everything else is a finding.
    """
    depth = level if isinstance(level, Depth) else parse_depth(level)
    path = Path(store)
    try:
        source = open_source(path, boot_id)
    except StoreMissingError:
        raise
    except FormatError as error:
        yield _format_finding(error, "identity")
        yield Finding(Level.UNKNOWN, "not-checked", "without its identity nothing else can be", str(path))
        return
    says = f"node {source.identity.node} of cluster {source.identity.cluster_id.hex()}"
    yield Finding(Level.OK, "identity", says, str(path / names.IDENTITY))
    yield from _Verification(source, depth, scratch).run()


class _Verification:
    """One run over one store."""

    def __init__(self, source: Source, depth: Depth, scratch: str | os.PathLike[str] | None) -> None:
        self.source = source
        self.depth = depth
        self.scratch = scratch
        self.facts = LogFacts()
        self.facts.is_in_use = is_in_use(source.store)
        self.promise: Promise | None = None
        self.heads: list[tuple[SnapshotFile, SnapshotHead]] = []
        self.slots: list[Slot] = []
        self.mark: tuple[Mark | None, list[SlotVerdict]] = (None, [])

    def run(self) -> Iterator[Finding]:
        yield from self._check_names()
        yield from self._check_small()
        yield from self._check_snapshots()
        mark, _ = self.mark = self.source.mark()
        self.facts.wanted |= {head.at.lsn for _, head in self.heads} | {slot.lsn for slot in self.slots}
        if mark:
            self.facts.wanted.add(mark.position.lsn)
        try:
            yield from check_log(self.source, self.depth, self.facts, self.mark)
        except PerdureError as error:
            self.facts.is_whole = False
            yield finding_of(error, Level.CORRUPT, "log-unreadable")
            return
        yield from self._check_beginning()
        yield from self._check_promise()
        if self.depth >= Depth.CHAIN:
            yield from self._check_standing()
        if self.depth >= Depth.REPLAY:
            yield from check_state(self.source, self.facts, self.scratch)

    # -- the directory and small files -----------------------------------------------------------

    def _check_names(self) -> Iterator[Finding]:
        store = self.source.store
        for name in sorted(os.listdir(store)):
            if name in _PLANS:
                yield Finding(Level.WARNING, "unfinished-work", _PLANS[name], str(store / name))
            elif name.endswith(names.TEMPORARY_SUFFIX):
                yield Finding(Level.NOTICE, "unfinished-file", "never completed", str(store / name))
            elif name not in _KNOWN_NAMES:
                says = "nothing of perdure's has this name; it is not looked at"
                yield Finding(Level.NOTICE, "stray-file", says, str(store / name))
        for name in (names.LOG, names.SNAPSHOTS, names.SLOTS):
            if not (store / name).is_dir():
                yield Finding(Level.CORRUPT, "directory-missing", "a directory is missing", str(store / name))

    def _check_small(self) -> Iterator[Finding]:
        store = self.source.store
        try:
            self.promise = read_promise(store)
            if self.promise != NO_PROMISE:
                says = f"epoch {self.promise.epoch} is promised to {self.promise.candidate}"
                yield Finding(Level.OK, "promise", says, str(store / names.PROMISE))
        except PerdureError as error:
            yield _format_finding(error, "promise")
        try:
            poison = read_small_file(store / names.POISON, POISON_MAGIC, POISON_VERSION, Poison)
        except PerdureError as error:
            yield _format_finding(error, "poison")
        else:
            page = self.source.page()
            if poison is not None or (page is not None and page[Word.POISON]):
                reason = poison.reason if poison else "the control page says so"
                says = f"a sync to disk failed ({reason}): what was written since may be lost"
                hint = "Close it in every process and open it again: the log is then copied anew."
                yield Finding(Level.WARNING, "poisoned", says, str(store / names.POISON), hint=hint)
        yield from self._check_slots()
        yield from self._check_consumers()

    def _check_slots(self) -> Iterator[Finding]:
        folder = self.source.store / names.SLOTS
        if not folder.is_dir():
            return
        for name in sorted(os.listdir(folder)):
            node = names.parse_slot_name(name)
            path = str(folder / name)
            if node is None:
                kind = "unfinished-file" if name.endswith(names.TEMPORARY_SUFFIX) else "stray-file"
                yield Finding(Level.NOTICE, kind, "no slot has such a name; it is not read", path)
                continue
            try:
                slot = read_slot(self.source.store, node)
            except PerdureError as error:
                yield _format_finding(error, "slot")
                continue
            if slot is not None and slot.node != node:
                says = f"it is the slot of {slot.node}, its name says otherwise"
                yield Finding(Level.CORRUPT, "slot-misnamed", says, path)
            elif slot is not None:
                self.slots.append(slot)
                says = f"{node} has LSN {slot.lsn} on disk, {slot.state}"
                yield Finding(Level.OK, "slot", says, path, lsn=slot.lsn)

    def _check_consumers(self) -> Iterator[Finding]:
        folder = self.source.store / names.FEEDS
        good, damaged = read_progress(self.source.store)
        for progress in good:
            path = str(folder / names.consumer_name(progress.name))
            says = f"{progress.name} has read up to LSN {progress.lsn}"
            yield Finding(Level.OK, "consumer", says, path, lsn=progress.lsn)
        for _, error in damaged:
            yield _format_finding(error, "consumer")

    def _check_promise(self) -> Iterator[Finding]:
        """Frames of an epoch are only ever taken after that epoch was promised."""
        tail, promise = self.facts.tail, self.promise
        if tail is None or promise is None:
            return
        path = str(self.source.store / names.PROMISE)
        hint = "Without it this node could promise an epoch twice; make it anew from a replica."
        if promise.epoch < tail.epoch:
            says = f"the log is of epoch {tail.epoch}, the promise of epoch {promise.epoch}"
            yield Finding(Level.CORRUPT, "promise-behind", says, path, hint=hint)
        elif promise.epoch == tail.epoch and promise.candidate != tail.primary:
            says = f"epoch {tail.epoch} is {tail.primary}'s in the log, {promise.candidate}'s in the promise"
            yield Finding(Level.CORRUPT, "promise-wrong", says, path, hint=hint)

    # -- snapshots -------------------------------------------------------------------------------

    def _check_snapshots(self) -> Iterator[Finding]:
        folder = self.source.snapshots
        if not folder.is_dir():
            return
        for name in sorted(os.listdir(folder)):
            if names.parse_snapshot_name(name) is None:
                kind = "unfinished-file" if name.endswith(names.TEMPORARY_SUFFIX) else "stray-file"
                yield Finding(
                    Level.NOTICE, kind, "no snapshot has such a name; it is not read", str(folder / name)
                )
        for file in list_snapshots(folder):
            yield self._check_snapshot(file)

    def _check_snapshot(self, file: SnapshotFile) -> Finding:
        cluster_id = self.source.identity.cluster_id
        try:
            head = read_head(file.path, cluster_id)
            if self.depth >= Depth.CHECKS:
                verify_snapshot(file.path, cluster_id)
            else:
                SnapshotReader(file.path, cluster_id).close()
        except PerdureError as error:
            return _format_finding(error, "snapshot")
        self.heads.append((file, head))
        says = f"{head.at.session_count} sessions at LSN {head.at.lsn} of epoch {head.at.epoch}"
        return Finding(Level.OK, "snapshot", says, str(file.path), lsn=file.lsn)

    def _check_beginning(self) -> Iterator[Finding]:
        """A log that does not begin with LSN 1 needs a snapshot that reaches it."""
        oldest = self.facts.oldest_lsn
        if oldest <= 1 or any(head.at.lsn + 1 >= oldest for _, head in self.heads):
            return
        says = f"the log begins with LSN {oldest}, and no good snapshot reaches it"
        hint = "The state cannot be made again from this directory: take a snapshot while it is good."
        yield Finding(Level.CORRUPT, "log-cut-off", says, str(self.source.log), lsn=oldest, hint=hint)

    def _check_standing(self) -> Iterator[Finding]:
        facts = self.facts
        for file, head in self.heads:
            yield from check_standing(facts, "the snapshot", str(file.path), head.at, "snapshot-diverged")
        mark, _ = self.mark
        if mark is not None:
            path = str(self.source.log / names.MARK)
            yield from check_standing(facts, "the mark", path, mark.position, "mark-diverged")
        for slot in self.slots:
            position = Position(slot.epoch, slot.lsn, slot.chain)
            if slot.epoch and slot.keeps_log:
                path = str(self.source.store / names.SLOTS / names.slot_name(slot.node))
                yield from check_standing(facts, "the replica", path, position, "slot-diverged")


def _format_finding(error: PerdureError, what: str) -> Finding:
    if isinstance(error, FormatVersionError):
        return finding_of(error, Level.UNKNOWN, f"{what}-newer")
    level = Level.CORRUPT if isinstance(error, FormatError) else Level.UNKNOWN
    return finding_of(error, level, f"{what}-damaged" if level is Level.CORRUPT else f"{what}-unreadable")
