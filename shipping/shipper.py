"""The shipper: the process that makes the primary's log durable, sends it, and says what is committed.

Owns the loop: look at the log, flush once for all that was appended, put it into the window, let every
peer send, wait for sockets or a poke. It runs on the primary only; it ends with FencedError when a
replica has promised a higher epoch, after it has recorded that promise so that local writers stop too.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

from ..store import names
from ..store.control import Config
from ..store.cursor import Run, list_segments
from ..store.errors import FencedError, LockTimeoutError, UsageError
from ..store.identity import read_identity
from ..store.page import Word
from ..store.promise import Promise
from . import slots
from .announcing import LINGER_NS, Announcing
from .bootstrap import MakeSnapshot, SnapshotFinder, log_bytes_behind
from .credentials import Secret, check_secret
from .gateserver import GateServer
from .messages import Peers
from .nodelog import NodeLog, open_node_log, take_process_lock
from .peer import Peer
from .progress import Electorate, commit_lsn, confirmed_us, electorate_of, voters_connected
from .readiness import Readiness
from .reign import SILENCE_MS, SLOT_BUDGET_BYTES, Fenced, Reign
from .roster import replica_addresses
from .slices import ask_for_short_slices
from .slots import SlotWriter, slot_nodes, slot_or_new
from .wake import POLL_MS, UNANNOUNCED_MIN, PokeSocket, Wake, Watcher
from .window import Window

logger = logging.getLogger(__name__)

READ_BYTES: Final = 256 << 10
"""At most so much of the log is flushed at once, so that no flush takes long."""
READ_BYTES_MIN: Final = 4 << 10
"""Where little comes at once: the system maps and unmaps a large buffer for each read."""
LINGER_MS: Final = 1
"""Without sync_replicas the shipper lets frames gather for so long before the next flush."""
TICK_NS: Final = 10_000_000
TICK_MS_MAX: Final = 50
"""The longest wait: heartbeats and time limits are looked at this often, whatever `poll_ms` is."""
PEERS_MS: Final = 1_000
BUDGET_MS: Final = 1_000
BY_POLL: Wake = Wake.POLL
"""What a wait was ended by, unless a socket says otherwise."""
_APPENDED = int(Word.APPENDED)
_FLUSHED = int(Word.FLUSHED)
_COMMITTED = int(Word.COMMITTED)
_GENERATION = int(Word.GENERATION)
_IDLE = int(Word.SHIPPER_IDLE)
_CONFIRMED = int(Word.CONFIRMED_US)
_VOTERS = int(Word.VOTERS_CONNECTED)


@dataclass(frozen=True)
class ShipperOptions:
    """How a shipper works. Times in ms, sizes in bytes."""

    compress: bool = True
    """zstd for sealed segments on the wire."""
    slot_budget_bytes: int = SLOT_BUDGET_BYTES
    """A replica that lacks more log than this gets a snapshot."""
    snapshot_bytes_per_s: int = 0
    """So much of a snapshot goes to one replica in a second; 0 is no limit."""
    silence_ms: int = SILENCE_MS
    poll_ms: int = POLL_MS
    use_pokes: bool = True
    use_watcher: bool = True


class Shipper:
    """The shipper of one store."""

    def __init__(
        self,
        node: NodeLog,
        replicas: Mapping[str, tuple[str, int]],
        secret: Secret,
        options: ShipperOptions,
        make_snapshot: MakeSnapshot | None,
    ) -> None:
        self._node = node
        self._log = node.log
        self._words: Any = node.log.words
        self._options = options
        self._selector = Readiness()
        self._snapshots = SnapshotFinder(node, make_snapshot)
        self._reign = Reign(
            node=node,
            secret=secret,
            window=Window(self._log.cursor.at.position),
            electorate=self._electorate(),
            selector=self._selector,
            compress=options.compress,
            slot_budget_bytes=options.slot_budget_bytes,
            silence_ms=options.silence_ms,
            find_snapshot=self._snapshots.find,
            named_snapshot=self._snapshots.named,
            snapshot_bytes_per_s=options.snapshot_bytes_per_s,
            committed_lsn=self._words[_COMMITTED],
        )
        self._slots = SlotWriter(node.store)
        self._configured = replicas
        self._peers: list[Peer] = []
        self._shipped_to: Config | None = None
        self._set_peers()
        self._poke = PokeSocket(node.store)
        self._watcher = Watcher(self._log.cursor.log, self._words, _IDLE)
        self._gate = GateServer(node.store, self._selector, lambda: self._reign.committed_lsn, self._wished)
        if options.use_pokes:
            self._selector.register(self._poke, selectors.EVENT_READ, self._poked)
        self._selector.register(self._watcher, selectors.EVENT_READ, self._noticed)
        self._unflushed: Run | None = None
        self._read_bytes = READ_BYTES_MIN
        self._announcing = Announcing()
        self._is_owed = False
        """Some replica has perhaps not heard of the commit LSN."""
        self._is_waited_for = False
        """Does a commit take an acknowledgement, whichever set of voters counts?"""
        self._is_fresh = False
        """Frames came in this round."""
        self._poll_s = min(options.poll_ms, TICK_MS_MAX) / 1000
        self._owed_poll_s = min(self._poll_s, LINGER_NS / 1e9)
        self._woken_by = Wake.POLL
        self._unannounced = 0
        """How often in a row frames came without a poke."""
        self.wakes: Counter[Wake] = Counter()
        """By what the shipper heard of frames that came while it waited."""
        self._ticked_ns = self._peers_told_ms = self._budget_ms = 0
        self._words[Word.SHIPPER] = os.getpid()

    # -- the loop --------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Ship until `should_stop` says so. Raises FencedError, NotPrimaryError, PoisonedError, ..."""
        ask_for_short_slices()
        self._begin_at_end()
        try:
            while not self._round() or not should_stop():
                pass
        except Fenced as fenced:
            self._fence(fenced)

    def wake_on(self, file: Any, on_ready: Callable[[], object]) -> None:
        """Also wait for `file` (a descriptor) to be readable."""
        self._selector.register(file, selectors.EVENT_READ, partial(_call, on_ready))

    def close(self) -> None:
        """Disconnect, and say in the page that no shipper runs."""
        words = self._words
        words[_IDLE] = 0
        words[_VOTERS] = 0
        words[_CONFIRMED] = 0
        words[Word.SHIPPER] = 0
        for peer in self._peers:
            peer.close()
            self._slots.put(peer.slot)
        self._reign.lookup.close()
        self._slots.close()
        self._gate.close()
        self._watcher.close()
        self._poke.close()
        self._selector.close()

    def _round(self) -> bool:
        """Do what there is to do, and wait; says whether a tick went by."""
        reign, log = self._reign, self._log
        if self._words[_GENERATION] != log.generation or not log.is_primary:
            self._check_role()
        if reign.has_news:
            self._advance()  # first what replicas acknowledged: writers wait for it
        if reign.has_echo:
            self._confirm()
        has_more = self._take_appended()
        if reign.has_news and not self._is_waited_for:
            self._advance()
        has_more = self._pump() or has_more
        at_ns = monotonic_ns()
        if self._is_owed:
            self._announce(at_ns)
        has_ticked = at_ns - self._ticked_ns >= TICK_NS
        if has_ticked:
            self._ticked_ns = at_ns
            self._tick(at_ns // 1_000_000)
        self._wait(has_more)
        return has_ticked

    def _pump(self) -> bool:
        """Let every peer send; says whether there may be more."""
        has_more = False
        for peer in self._peers:
            if peer.pump():
                has_more = True
        return has_more

    def _begin_at_end(self) -> None:
        """Everything that is in the log already is flushed; the window begins behind it."""
        self._check_role()
        self._log.follow()
        self._log.flush(self._log.cursor.at.lsn)
        self._reign.window.end = self._log.cursor.at.position
        self._electorate_changed()

    def _check_role(self) -> None:
        log = self._log
        if self._words[_GENERATION] != log.generation:
            log.refresh_role()
            self._electorate_changed()
        if not log.is_primary:
            raise log.not_primary()

    # -- the log ---------------------------------------------------------------------------------

    def _take_appended(self) -> bool:
        """Flush the next run of the log and put it into the window; says whether there is more."""
        words, log = self._words, self._log
        run = self._unflushed
        if run is None:
            if words[_APPENDED] <= log.cursor.at[1]:
                return False
            config, segment = log.config, log.cursor.path
            run = self._unflushed = log.read_on(self._read_bytes)
            if run is None:
                return False
            is_little = len(run.data) < READ_BYTES_MIN
            self._read_bytes = READ_BYTES_MIN if is_little else READ_BYTES
            if log.config is not config or log.cursor.path is not segment:
                self._electorate_changed()
        end_lsn = run.frames[-1][1].last_lsn
        if words[_FLUSHED] < end_lsn:
            try:
                log.flusher.flush(end_lsn, self._ship_unflushed if self._is_waited_for else None)
            except LockTimeoutError as error:
                logger.error("cannot flush, will try again: %s", error)
                return False
        self._add_unflushed()
        return bool(words[_APPENDED] > end_lsn)

    def _add_unflushed(self) -> None:
        """What was read is on disk now: it may be sent."""
        run = self._unflushed
        if run is not None:
            self._unflushed, self._is_fresh = None, True
            self._reign.window.add(run)
            if not self._is_waited_for:
                self._reign.has_news = True  # else it takes an acknowledgement
            self._announcing.appended(monotonic_ns())

    def _ship_unflushed(self) -> None:
        """As soon as it is on disk, while the mark is still to be written: that is for acknowledgements."""
        self._add_unflushed()
        for peer in self._peers:
            peer.pump()

    def _set_peers(self) -> None:
        """Ship to the nodes that the newest CONFIG names, and to no others."""
        config, store, reign = self._log.config, self._node.store, self._reign
        if config == self._shipped_to:
            return
        self._shipped_to = config
        wanted = replica_addresses(config, self._node.node, self._configured)
        peers = {peer.name: peer for peer in self._peers}
        for name, peer in list(peers.items()):
            if wanted.get(name) != peer.address:
                logger.info("no longer shipping to: node=%s address=%s:%d", name, *peer.address)
                peers.pop(name).close()
                if name not in wanted:
                    self._slots.drop(name)
        for name, (host, port) in wanted.items():
            if name not in peers:
                try:
                    check_secret(reign.secret, host)
                except UsageError as error:
                    logger.error("cannot ship: node=%s error=%s", name, error)
                    continue
                peers[name] = Peer(reign, name, host, port, slot_or_new(store, name))
        if config.members:
            for node in slot_nodes(store):
                if node not in wanted and node not in config.voters:
                    self._slots.drop(node)
        self._peers = [peers[name] for name in sorted(peers)]

    def _electorate_changed(self) -> None:
        self._set_peers()
        self._reign.committed_lsn = max(self._reign.committed_lsn, self._words[_COMMITTED])
        electorate = self._reign.electorate = self._electorate()
        self._is_waited_for = electorate.sync_replicas > 0 and electorate.before is None
        self._reign.has_news = self._is_owed = True

    def _electorate(self) -> Electorate:
        log = self._log
        epoch = log.cursor.header.epoch if log.cursor.header else 0
        starts = [file.first_lsn for file in list_segments(log.cursor.log) if file.epoch == epoch]
        config = log.config
        if config.sync_replicas > 0 and len(config.data_voters) <= config.sync_replicas:
            logger.error(
                "nothing can be committed: voters=%s sync_replicas=%d", config.voters, config.sync_replicas
            )
        return electorate_of(config, self._node.node, epoch, min(starts, default=1))

    # -- committing ------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Move the commit LSN as far as what was acknowledged lets it."""
        reign, words = self._reign, self._words
        reign.has_news = False
        if words[_VOTERS] < reign.electorate.sync_replicas:
            self._count_voters()
        committed = commit_lsn(reign.electorate, reign.acked, reign.window.end.lsn, reign.committed_lsn)
        if committed <= reign.committed_lsn or words[_GENERATION] != self._log.generation:
            return
        reign.committed_lsn = committed
        words[_COMMITTED] = committed
        self._gate.announce(committed)
        self._announcing.committed(monotonic_ns())
        self._is_owed = True

    def _announce(self, at_ns: int) -> None:
        """Tell the commit LSN to replicas that no frames have told it, once that is due."""
        owed = [peer for peer in self._peers if peer.is_owed]
        self._is_owed = bool(owed)
        if not owed:
            self._announcing.told()
        elif self._announcing.is_due(at_ns):
            for peer in owed:
                peer.announce()
            self._is_owed = False

    def _confirm(self) -> None:
        """Publish up to when replicas have confirmed that this node is the primary."""
        reign = self._reign
        reign.has_echo = False
        confirmed = confirmed_us(reign.electorate, reign.echoed, reign.committed_lsn)
        if confirmed > self._words[_CONFIRMED]:
            self._words[_CONFIRMED] = confirmed

    # -- time ------------------------------------------------------------------------------------

    def _tick(self, at_ms: int) -> None:
        """What is done every few milliseconds."""
        for peer in self._peers:
            peer.tick(at_ms)
        self._count_voters()  # before the slots: where they say that a replica is lost, writers wait already
        for peer in self._peers:
            self._slots.put(peer.slot)
        self._gate.tick(at_ms)
        self._watcher.rest()
        self._log.flusher.sync_mark()
        self._node.clock.tick(is_primary=self._log.is_primary)
        if at_ms - self._peers_told_ms >= PEERS_MS:
            self._peers_told_ms = at_ms
            told = Peers([(peer.name, peer.slot.lsn, peer.slot.state) for peer in self._peers])
            told.slots.append((self._node.node, self._reign.window.end.lsn, slots.STREAMING))
            for peer in self._peers:
                peer.tell_peers(told)
        if at_ms - self._budget_ms >= BUDGET_MS:
            self._budget_ms = at_ms
            self._watch_budget()

    def _count_voters(self) -> None:
        """Say how many voters follow closely: writers wait until there are enough."""
        streaming = [peer.name for peer in self._peers if peer.is_streaming]
        self._words[_VOTERS] = voters_connected(self._reign.electorate, streaming)

    def _watch_budget(self) -> None:
        """A replica that is away, and lacks more log than its budget, will get a snapshot instead."""
        budget = self._options.slot_budget_bytes
        for peer in self._peers:
            if peer.slot.state == slots.DISCONNECTED:
                behind = log_bytes_behind(self._log.cursor.log, peer.slot.lsn)
                if behind > budget:
                    logger.warning("over its budget: node=%s behind_bytes=%d", peer.name, behind)
                    peer.needs_snapshot()

    # -- waiting ---------------------------------------------------------------------------------

    def _wait(self, has_more: bool) -> None:
        """Wait for sockets, a poke or the watcher, at most one poll long; not at all if there is more."""
        words, cursor = self._words, self._log.cursor
        timeout_s = 0.0
        if self._is_fresh and not has_more and self._reign.electorate.sync_replicas == 0:
            # Nobody waits for these frames: let some more come, so that one sync serves them all.
            self._is_fresh = False
            for key, mask in self._selector.select(LINGER_MS / 1000):
                key.data(mask)
            return
        if not has_more:
            words[_IDLE] = 1
            if words[_APPENDED] <= cursor.at[1]:
                timeout_s = self._owed_poll_s if self._is_owed else self._poll_s
        self._woken_by = BY_POLL
        ready = self._selector.select(timeout_s)
        words[_IDLE] = 0
        for key, mask in ready:
            key.data(mask)
        if timeout_s and words[_APPENDED] > cursor.at[1]:
            self.wakes[self._woken_by] += 1
            if self._woken_by is Wake.POKE:
                self._unannounced = 0
            elif not ready or self._woken_by is Wake.WATCHER:  # anything else may be ahead of the poke
                self._unannounced += 1
                if self._options.use_watcher and self._unannounced >= UNANNOUNCED_MIN:
                    self._watcher.need()

    def _poked(self, _mask: int) -> None:
        if self._poke.drain():
            self._woken_by = Wake.POKE
            if self._poke.asks_to_confirm:
                self._poke.asks_to_confirm = False
                for peer in self._peers:
                    peer.ask()

    def _wished(self) -> None:
        """A writer waits: that is as good as a poke, also where its frame was found before."""
        self._woken_by = Wake.POKE
        self._unannounced = 0

    def _noticed(self, _mask: int) -> None:
        if self._watcher.drain() and self._woken_by is not Wake.POKE:
            self._woken_by = Wake.WATCHER

    # -- the end ---------------------------------------------------------------------------------

    def _fence(self, fenced: Fenced) -> None:
        """Record the higher promise, so that local writers stop, and end with FencedError."""
        log = self._log
        log.lock_any()
        try:
            if log.promise.epoch < fenced.epoch:
                log.give_promise(Promise(fenced.epoch, fenced.candidate))
        finally:
            log.unlock()
        logger.error("fenced: epoch=%d candidate=%s", fenced.epoch, fenced.candidate)
        error = log.not_primary()
        raise error if isinstance(error, FencedError) else FencedError(str(error), node=self._node.node)


def run_shipper(
    store: str | os.PathLike[str],
    replicas: Mapping[str, tuple[str, int]],
    *,
    secret: Secret = b"",
    options: ShipperOptions | None = None,
    make_snapshot: MakeSnapshot | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_ready: Callable[[], object] | None = None,
    lifeline: int | None = None,
) -> None:
    """Ship a primary's log until `should_stop` says so, looked at every few milliseconds.

    `replicas` gives host and port by node name; `secret` is what all nodes share, or credentials (see
    check_secret); empty only on loopback. `make_snapshot` takes a snapshot when a replica needs one and
    there is none; it runs in a thread of its own. `on_ready` is called once everything is set up. `lifeline`
    is a descriptor: the shipper ends when its other end is closed.

    Raises StoreInUseError if a shipper runs already, NotPrimaryError if this node is not the primary,
    FencedError once a replica has promised a higher epoch (recorded in this store, too, so that local
    writers stop), PoisonedError after a failed sync, and UsageError for a secret that is too short or for
    a node among its own replicas, whose slot would hold back retention for ever.
    """
    path = Path(store)
    check_replicas(path, replicas, secret)
    lock = take_process_lock(path, names.SHIPPER_LOCK)
    try:
        node = open_node_log(path, [lock])
    except BaseException:
        lock.close()
        raise
    ended = threading.Event()
    try:
        if not node.log.is_primary:
            raise node.log.not_primary()
        shipper = Shipper(node, replicas, secret, options or ShipperOptions(), make_snapshot)
        try:
            if lifeline is not None:
                shipper.wake_on(lifeline, ended.set)
            if on_ready is not None:
                on_ready()
            shipper.run(lambda: ended.is_set() or should_stop())
        finally:
            shipper.close()
    finally:
        node.close()


def check_replicas(store: Path, replicas: Mapping[str, tuple[str, int]], secret: Secret) -> None:
    """Raises UsageError for a secret that is too short or for a node among its own replicas."""
    for host, _port in replicas.values():
        check_secret(secret, host)
    own = read_identity(store).node
    if own in replicas:
        raise UsageError(f"{own} is this node itself, and no replica of it", node=own)


def _call(on_ready: Callable[[], object], _mask: int) -> None:
    on_ready()
