"""What must hold at every step of a schedule.

Owns the simulator's own picture of every log, promise and commit, which it takes from the bytes that
are written, not from what the code believes. Breaking any of these is a Violation.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xxhash

from perdure.store.control import ALONE, config_of, epoch_start_of
from perdure.store.errors import CorruptError
from perdure.store.event import decode_events
from perdure.store.frame import HEADER_BYTES as FRAME_BYTES
from perdure.store.frame import MAGIC as FRAME_MAGIC
from perdure.store.frame import unpack_header
from perdure.store.page import MAGIC as PAGE_MAGIC
from perdure.store.page import Word
from perdure.store.promise import NO_PROMISE, Promise, read_promise
from perdure.store.segment import HEADER_BYTES as SEGMENT_BYTES

from .disk import Disk, Inode
from .kernel import Host, Kernel

TOKEN = re.compile(rb"#\d{6}#")
_CONTROL_KINDS = (64, 65)
_CHAIN_BODY = struct.Struct("<Q")


class Violation(AssertionError):
    """An invariant of the design was broken. `rule` names it."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Entry:
    """A frame as it stands in one node's log."""

    __slots__ = ("chain", "epoch", "first_lsn", "inode", "last_lsn", "offset", "raw")

    def __init__(self, raw: bytes, head: tuple[int, ...], inode: Inode | None, offset: int) -> None:
        self.chain, self.epoch, self.first_lsn = head[0], head[7], head[10]
        self.last_lsn = head[10] + head[6] - 1
        self.raw = raw
        self.inode = inode
        self.offset = offset

    def __repr__(self) -> str:
        return f"LSN {self.last_lsn} of epoch {self.epoch} ({self.chain:016x})"

    @property
    def is_durable(self) -> bool:
        inode = self.inode
        return inode is not None and inode.durable[self.offset : self.offset + len(self.raw)] == self.raw


class NodeView:
    """What is known of one node from its bytes."""

    def __init__(self, host: Host, disk: Disk) -> None:
        self.host = host
        self.disk = disk
        self.store = Path(disk.root)
        self.entries: list[Entry] = []
        self.by_lsn: dict[int, Entry] = {}
        self.is_stale = True
        self.promise: Promise = NO_PROMISE
        self.answered = NO_PROMISE
        """The highest promise that anybody was told of."""
        self.committed = 0
        self.folded = 0
        self.config = ALONE
        self.words: Any = None
        self._map: mmap.mmap | None = None

    @property
    def sync_replicas(self) -> int:
        return self.config.sync_replicas

    @property
    def end(self) -> int:
        return self.entries[-1].last_lsn if self.entries else 0

    @property
    def epoch(self) -> int:
        return self.entries[-1].epoch if self.entries else 0

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.by_lsn[entry.last_lsn] = entry

    def map_page(self) -> None:
        """The control page as it is mapped now; a machine that was started anew has another one."""
        self.words, self.committed, self.folded = None, 0, 0
        try:
            descriptor = os.open(self.store / "control", os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            if os.fstat(descriptor).st_size >= mmap.PAGESIZE:
                self._map = mmap.mmap(descriptor, mmap.PAGESIZE)
                self.words = memoryview(self._map).cast("Q")
        finally:
            os.close(descriptor)

    def is_current(self) -> bool:
        """Is the page this boot's?"""
        words = self.words
        boot = xxhash.xxh3_64_intdigest(self.host.boot_id.encode())
        return bool(self.host.is_up and words is not None and words[1] == boot and words[0] == PAGE_MAGIC)


class Checker:
    """All invariants, over all nodes."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.nodes: dict[str, NodeView] = {}
        self.by_root: dict[str, NodeView] = {}
        self.chains: dict[tuple[int, int], int] = {}
        """(epoch, LSN of a frame's end) -> chain, on any node, ever."""
        self.committed: dict[int, Entry] = {}
        """LSN of a frame's end -> the frame that was committed there."""
        self.begun: dict[int, tuple[str, int]] = {}
        """Epoch -> (who began it, LSN of its EPOCH_START)."""
        self.committed_in: dict[int, int] = {}
        """LSN of a frame's end -> epoch of the primary that counted it as committed."""
        self.begun_with: dict[int, dict[int, int]] = {}
        """Epoch -> what was in the log of its primary when it began: LSN of a frame's end -> chain."""
        self.reigns: dict[int, tuple[str, int]] = {}
        """As `begun`, of the epochs whose EPOCH_START is committed."""
        self.tokens: dict[bytes, list[Entry]] = {}
        self.committed_tokens: set[bytes] = set()
        self.acked: dict[bytes, Entry] = {}
        self.seen: set[bytes] = set()
        self.changed: dict[str, NodeView] = {}
        self.checks = 0
        self.on_begin: Callable[[str], None] = lambda _node: None
        """Called when a node writes an EPOCH_START of its own, before it is synced."""
        self.counts_disks = True
        """Is it a violation by itself that a committed frame is on too few disks?"""

    def _broken(self, rule: str, text: str) -> Violation:
        """A violation, which ends the schedule whatever becomes of the exception in the code under test."""
        violation = Violation(rule, text)
        self.kernel.failure = self.kernel.failure or violation
        return violation

    def add(self, host: Host, disk: Disk) -> NodeView:
        view = self.nodes[host.name] = self.by_root[disk.root] = NodeView(host, disk)
        view.promise = read_promise(view.store)
        disk.on_write = self._written
        disk.on_change = self._changed
        self.changed[host.name] = view
        return view

    # -- what the disks say ----------------------------------------------------------------------

    def _written(self, disk: Disk, path: str, offset: int, raw: bytes) -> None:
        if not path.endswith(".seg"):
            return
        view = self.by_root[disk.root]
        self.changed[view.host.name] = view
        if offset < SEGMENT_BYTES or view.is_stale:
            view.is_stale = True
            return
        inode = disk.inodes.get(os.stat(path).st_ino)
        self._take_frames(view, raw, offset, inode)

    def _changed(self, disk: Disk, path: str) -> None:
        view = self.by_root[disk.root]
        self.changed[view.host.name] = view
        if path.endswith(".seg"):
            view.is_stale = True
        elif path.endswith("/promise"):
            self._promised(view)
        elif path.endswith("/control"):
            view.map_page()

    def _take_frames(self, view: NodeView, raw: bytes, offset: int, inode: Inode | None) -> None:
        at = 0
        while at + FRAME_BYTES <= len(raw):
            head = unpack_header(raw, at)
            if head[2] != FRAME_MAGIC:
                return
            size = FRAME_BYTES + head[5]
            entry = Entry(raw[at : at + size], head, inode, offset + at)
            if view.entries and entry.first_lsn != view.end + 1:
                view.is_stale = True
                return
            view.add(entry)
            self._appended(view, entry)
            at += size

    def _read_log(self, view: NodeView) -> None:
        """The whole log of a node, from its files."""
        view.is_stale = False
        view.entries, view.by_lsn = [], {}
        log = view.store / "log"
        previous = None
        for name in sorted(name for name in os.listdir(log) if name.endswith(".seg")):
            path = log / name
            data = path.read_bytes()
            inode = view.disk.inodes.get(os.stat(path).st_ino)
            at = SEGMENT_BYTES
            while at + FRAME_BYTES <= len(data):
                head = unpack_header(data, at)
                size = FRAME_BYTES + head[5]
                if head[2] != FRAME_MAGIC or at + size > len(data):
                    break
                raw = data[at : at + size]
                if xxhash.xxh3_64_intdigest(raw[8:], head[1] ^ self.key) != head[0]:
                    break
                if previous is not None and head[10] != previous.last_lsn + 1:
                    break
                previous = Entry(raw, head, inode, at)
                view.add(previous)
                self._appended(view, previous)
                at += size

    key = 0
    """The cluster's key, which every chain is tied to."""

    # -- the log ---------------------------------------------------------------------------------

    def _appended(self, view: NodeView, entry: Entry) -> None:
        place = (entry.epoch, entry.last_lsn)
        chain = self.chains.setdefault(place, entry.chain)
        if chain != entry.chain:
            raise self._broken(
                "one history",
                f"{view.host.name} has {entry}, another log had chain {chain:016x} under that position",
            )
        kind = entry.raw[FRAME_BYTES]
        if kind in _CONTROL_KINDS:
            self._control(view, entry)
        for token in TOKEN.findall(entry.raw):
            found = self.tokens.setdefault(token, [])
            if all(other.chain != entry.chain for other in found):
                found.append(entry)

    def _control(self, view: NodeView, entry: Entry) -> None:
        events = decode_events(entry.raw[FRAME_BYTES:], unpack_header(entry.raw, 0)[6])
        config = config_of(events)
        if config is not None:
            view.config = config
            if config.degraded_from:  # what is behind a primary that goes on alone is committed by its word
                for older in view.entries:
                    self.committed_tokens.update(TOKEN.findall(older.raw))
        start = epoch_start_of(events)
        if start is None:
            return
        known = self.begun.get(entry.epoch)
        if known is not None:
            if known != (start.node, entry.first_lsn):
                raise self._broken("one primary an epoch", f"epoch {entry.epoch}: {known} and {start.node}")
            return
        self.begun[entry.epoch] = (start.node, entry.first_lsn)
        self.begun_with[entry.epoch] = {lsn: mine.chain for lsn, mine in view.by_lsn.items()}
        self.kernel.note("epoch", entry.epoch, start.node, entry.first_lsn)
        self.on_begin(start.node)
        for lsn, other in self.committed.items():
            mine = view.by_lsn.get(lsn)
            is_later = self.committed_in[lsn] < entry.epoch
            if is_later and (mine is None or mine.chain != other.chain):
                raise self._broken(
                    "a primary has everything acknowledged",
                    f"{start.node} begins epoch {entry.epoch} at LSN {entry.first_lsn} without {other}",
                )

    # -- promises --------------------------------------------------------------------------------

    def _promised(self, view: NodeView) -> None:
        held, promise = view.promise, read_promise(view.store)
        has_won = self.begun.get(promise.epoch, ("", 0))[0] == promise.candidate
        is_other = promise.epoch == held.epoch and promise.candidate != held.candidate
        if promise.epoch < held.epoch or (is_other and not has_won):
            raise self._broken("promises are exclusive", f"{view.host.name} held {held}, now {promise}")
        view.promise = promise
        self.kernel.note("promise", view.host.name, promise.epoch, promise.candidate)

    def answered(self, node: str, promise: Promise) -> None:
        """A node told somebody that it has given this promise."""
        view = self.nodes[node]
        if promise.epoch >= view.answered.epoch:
            view.answered = promise

    def power_cut(self, node: str) -> None:
        """What a node's disk holds after a power cut: all that it ever told anybody."""
        view = self.nodes[node]
        try:
            promise = read_promise(view.store)
        except CorruptError:
            promise = NO_PROMISE
        if promise.epoch < view.answered.epoch:
            raise self._broken(
                "promises are durable", f"{node} had promised {view.answered}, and kept {promise}"
            )
        view.promise = promise
        view.is_stale = True
        view.words = None
        self.changed[node] = view

    # -- after each step -------------------------------------------------------------------------

    def step(self, host: Host) -> None:
        """Look at what changed, when a thread of this host ran."""
        if self.changed:
            changed, self.changed = self.changed, {}
            for view in changed.values():
                if view.words is None:
                    view.map_page()
                if view.is_stale:
                    self._read_log(view)
        found = self.nodes.get(host.name)
        if found is None or found.words is None:
            return
        committed, folded = found.words[11], found.words[12]
        if committed != found.committed or folded != found.folded:
            self._moved(found, committed, folded)

    def _moved(self, view: NodeView, committed: int, folded: int) -> None:
        if not view.is_current():
            return
        self.checks += 1
        if committed < view.committed:
            raise self._broken(
                "the commit LSN never goes back", f"{view.host.name}: {view.committed} to {committed}"
            )
        before, view.committed, view.folded = view.committed, committed, folded
        if view.sync_replicas < 1 and not view.config.degraded_from:
            return
        if folded > committed and view.sync_replicas >= 1:
            raise self._broken(
                "state never leads the commit",
                f"{view.host.name} folded {folded}, and only {committed} is committed",
            )
        if view.is_stale:
            self._read_log(view)
        for lsn in range(before + 1, committed + 1):
            entry = view.by_lsn.get(lsn)
            if entry is not None:
                self._committed(view, entry)
        if committed > view.end:
            raise self._broken(
                "what is committed is in the log",
                f"{view.host.name} says {committed} is committed, and its log ends at {view.end}",
            )

    def _committed(self, view: NodeView, entry: Entry) -> None:
        known = self.committed.get(entry.last_lsn)
        if known is not None:
            if known.chain != entry.chain:
                raise self._broken(
                    "one committed history",
                    f"{view.host.name} says {entry} is committed, and {known} was before",
                )
            return
        self.committed[entry.last_lsn] = entry
        self.committed_in[entry.last_lsn] = view.epoch
        self.committed_tokens.update(TOKEN.findall(entry.raw))
        config = view.config
        # A change of voters that stands behind the frame: the shipper may not have seen it yet.
        is_before = config.before is not None and config.changed_lsn > entry.last_lsn
        electors = config.before if is_before and config.before is not None else config.electors
        sync_replicas = electors.sync_replicas if is_before else view.sync_replicas
        holders = []
        for name in electors.data_voters:
            other = self.nodes[name].by_lsn.get(entry.last_lsn) if name in self.nodes else None
            if other is not None and other.chain == entry.chain and other.is_durable:
                holders.append(name)
        if len(holders) <= sync_replicas and self.counts_disks:
            raise self._broken(
                "what is committed is on k + 1 disks",
                f"{view.host.name} committed {entry} with k = {view.sync_replicas}; it is on {holders}",
            )
        own_start = self.begun.get(view.epoch, ("", 0))[1]
        if view.committed < own_start:
            raise self._broken(
                "nothing older is committed before the EPOCH_START",
                f"{view.host.name} committed {entry} in epoch {view.epoch}, which begins at {own_start}",
            )
        node, start_lsn = self.begun.get(entry.epoch, ("", 0))
        if entry.first_lsn == start_lsn:
            self.reigns[entry.epoch] = (node, start_lsn)
        self._in_later_reigns(entry, view.epoch)
        for epoch, (node, start_lsn) in self.reigns.items():
            self._apart(view, entry, epoch, node, start_lsn)

    def _in_later_reigns(self, entry: Entry, counted_in: int) -> None:
        """Whoever began an epoch later than the one that counts this as committed had it, ever."""
        for epoch, had in self.begun_with.items():
            if epoch > counted_in and had.get(entry.last_lsn) != entry.chain:
                raise self._broken(
                    "a primary has everything acknowledged",
                    f"{self.begun[epoch][0]} began epoch {epoch} without {entry}, which is committed now",
                )

    def _apart(self, view: NodeView, entry: Entry, epoch: int, node: str, start_lsn: int) -> None:
        """What is committed of an older epoch ends before a committed epoch begins."""
        older = entry.epoch < epoch and entry.last_lsn >= start_lsn
        newer = entry.epoch > epoch and entry.last_lsn < start_lsn
        if older or newer:
            raise self._broken(
                "one acknowledging epoch",
                f"{view.host.name} committed {entry}; epoch {epoch} of {node} is committed from {start_lsn}",
            )

    # -- clients ---------------------------------------------------------------------------------

    def acknowledged(self, node: str, token: bytes) -> None:
        """A client was told that its write is kept."""
        view = self.nodes[node]
        self.step(view.host)
        found = [entry for entry in self.tokens.get(token, []) if self._is_committed(entry)]
        if not found and view.sync_replicas > 0:
            raise self._broken("acknowledged means committed", f"{node} acknowledged {token.decode()}")
        self.acked[token] = found[0] if found else self._alone(view, token)

    def _alone(self, view: NodeView, token: bytes) -> Entry:
        """A primary without replicas acknowledged this; its own log is what is durable."""
        entry = self.tokens[token][-1]
        known = self.committed.setdefault(entry.last_lsn, entry)
        self.committed_in.setdefault(entry.last_lsn, view.epoch)
        self.committed_tokens.update(TOKEN.findall(entry.raw))
        if known.chain != entry.chain:
            raise self._broken("one acknowledging epoch", f"{entry} is acknowledged, and {known} was before")
        self._in_later_reigns(entry, view.epoch)
        return entry

    def read(self, node: str, token: bytes) -> None:
        """A client saw this."""
        self.step(self.nodes[node].host)
        if token in self.committed_tokens:
            self.seen.add(token)
        elif self.nodes[node].sync_replicas > 0:
            raise self._broken("nothing is read that is not committed", f"{node} showed {token.decode()}")

    def _is_committed(self, entry: Entry) -> bool:
        known = self.committed.get(entry.last_lsn)
        return known is not None and known.chain == entry.chain

    # -- the end ---------------------------------------------------------------------------------

    def final(self, voters: Iterable[str]) -> None:
        """All voters have the same log, with everything in it that anybody was ever told."""
        ends = {}
        for name in voters:
            view = self.nodes[name]
            self._read_log(view)
            last = view.entries[-1]
            ends[name] = (last.epoch, last.last_lsn, last.chain, unpack_header(last.raw, 0)[12])
        if len(set(ends.values())) != 1:
            raise self._broken("all replicas agree in the end", str(ends))
        view = self.nodes[next(iter(ends))]
        counts: dict[bytes, int] = {}
        for entry in view.entries:
            for token in TOKEN.findall(entry.raw):
                counts[token] = counts.get(token, 0) + 1
        for token, entry in self.acked.items():
            if not counts.get(token):
                raise self._broken(
                    "no acknowledged write is lost", f"{token.decode()}, acknowledged at {entry}"
                )
        for token in self.seen:
            if not counts.get(token):
                raise self._broken("nothing that was read disappears", token.decode())
        for token, count in counts.items():
            if count > 1:
                raise self._broken("each write is done once", f"{token.decode()} stands {count} times")
        for lsn, entry in self.committed.items():
            mine = view.by_lsn.get(lsn)
            if mine is None or mine.chain != entry.chain:
                raise self._broken("what was committed stays", f"{entry} is not in the final log")


WORDS_USED = (Word.MAGIC, Word.BOOT, Word.COMMITTED, Word.FOLDED)
assert [int(word) for word in WORDS_USED] == [0, 1, 11, 12]
