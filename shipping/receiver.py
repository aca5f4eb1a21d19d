"""The receiver: the process that listens on a node, keeps the primary's frames, and gives promises.

Owns the loop, the listening socket and the limits on who may connect. Every node runs one, the primary
too: there it answers what it is asked, and promises. It knows frames, not sessions; folding them is the
folder's.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from ..store import names
from ..store.errors import (
    CorruptError,
    DivergedError,
    PerdureError,
    PoisonedError,
    PositionGoneError,
    StorageFullError,
    WireError,
)
from ..store.ids import Position
from ..store.page import Word
from ..store.promise import Promise
from .credentials import Secret, check_secret
from .crossing import Crossing
from .cut import CommittedError, cut_log, finish_cut
from .door import Door
from .faults import clear_fault
from .install import Incoming, finish_install
from .link import LinkClosed, accept, listen
from .messages import (
    Cut,
    FetchAsk,
    FetchReply,
    Pause,
    Peers,
    Piece,
    PromiseReply,
    SnapshotOffer,
    SnapshotWant,
    StatusReply,
)
from .messages_rejoin import Parted
from .nodelog import NodeLog, monotonic_ms, now_ms, open_node_log, take_process_lock
from .parted import state_lsn
from .parted_fault import PartedFault
from .permission import AUTO, end_permission, read_permission
from .ports import read_ports
from .readiness import Readiness
from .rebuild import Rebuilding, finish_rebuild, note_log_fault, why_unfit
from .rejoin import finish_rejoin
from .replica_log import ReplicaLog
from .sender import find
from .slices import ask_for_short_slices
from .slots import STATES, SlotWriter, slot_or_new
from .visitor import Stage, Visitor
from .wire_types import NODES_MAX

logger = logging.getLogger(__name__)

VISITORS_MAX: Final = 128
STRANGERS_MAX: Final = 32
"""Connections that have not proved themselves yet; the oldest goes when another one comes."""
TICK_MS: Final = 50
PERMISSION_MS: Final = 250
"""How often it looks whether a person has told this node to be made anew."""
FULL_RETRY_MS: Final = 250
"""Pause before a full disk is tried again."""
FETCH_BYTES_MAX: Final = 1 << 20


class Receiver:
    """The receiver of one node."""

    def __init__(
        self, node: NodeLog, host: str, port: int, secret: Secret, *, is_automatic: bool = True
    ) -> None:
        self.is_automatic = is_automatic
        self.node = node
        self.secret = secret
        self.replica = ReplicaLog(node)
        self._selector = Readiness()
        self._visitors: dict[int, Visitor] = {}
        self._shipper: Visitor | None = None
        self._incoming: Incoming | None = None
        self.crossing = Crossing(self)
        self._heard_ms = 0
        self._permission_ms = 0
        self.rebuilding = Rebuilding(node.store)
        self._parted_fault = PartedFault(node.store)
        self._primary = ""
        self._full_since_ms = 0
        self._broken: PerdureError | OSError | None = None
        self._slots = SlotWriter(node.store)
        self._told_of: set[str] = set()
        """Nodes whose slots the primary has told of: each is a file here."""
        self._listener = listen(host, port)
        self.port = int(self._listener.getsockname()[1])
        self._door = Door(
            partial(self._selector.register, self._listener, selectors.EVENT_READ, self._accept),
            partial(self._selector.unregister, self._listener),
        )

    # -- the loop --------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Serve until `should_stop` says so.

        Raises PoisonedError or CorruptError, and what stopped a change of the log halfway: nothing may be
        appended until serve_receiver has finished it.
        """
        ask_for_short_slices()
        ticked_ms = 0
        while True:
            at_ms = monotonic_ms()
            if at_ms - ticked_ms >= TICK_MS:
                if should_stop():
                    return
                ticked_ms = at_ms
                self._tick(at_ms)
            for key, mask in self._selector.select(TICK_MS / 1000):
                key.data(mask)
                if self._broken is not None:
                    raise self._broken

    def wake_on(self, file: Any, on_ready: Callable[[], object]) -> None:
        """Also wait for `file` (a descriptor) to be readable."""
        self._selector.register(file, selectors.EVENT_READ, partial(_call, on_ready))

    def close(self) -> None:
        for visitor in list(self._visitors.values()):
            self._drop(visitor)
        self._end_incoming()
        self.crossing.end()
        self._slots.close()
        self._selector.close()
        self._listener.close()
        self.node.close()

    def _tick(self, at_ms: int) -> None:
        self._door.tick(at_ms)
        for visitor in list(self._visitors.values()):
            if at_ms - visitor.heard_ms > visitor.limit_ms():
                self.end(visitor, WireError(f"{visitor.link.peer} was silent for too long"))
        if at_ms - self._permission_ms >= PERMISSION_MS:
            self._permission_ms = at_ms
            told_anew = self._is_to_be_made_anew()
            if told_anew and self._shipper is not None and self._shipper.stage is Stage.STREAMING:
                self.end(self._shipper, WireError("this node was told to be made anew"))
        shipper = self._shipper
        if shipper is not None and shipper.is_paused and at_ms - self._full_since_ms >= FULL_RETRY_MS:
            self._guarded(shipper, lambda: self._append(shipper))
            self.watch(shipper)
        if self._incoming is not None:
            self._install_if_whole()
        self.crossing.go_on()
        if self._broken is not None:
            raise self._broken
        self._look_at_rebuild()
        if shipper is None:
            self.node.skip_ahead()
        self.node.log.flusher.sync_mark()

    def _look_at_rebuild(self) -> None:
        if self.rebuilding.is_under_way and self._incoming is None:
            end = self.node.end_on_disk()
            self.rebuilding.look(end.epoch, end.lsn)

    # -- connections -----------------------------------------------------------------------------

    def _accept(self, _mask: int) -> None:
        try:
            accepted = accept(self._listener, self.secret)
        except WireError as error:
            self._door.shut(str(error))
            return
        if accepted is None:
            return
        self._door.took()
        link, _host = accepted
        strangers = [visitor for visitor in self._visitors.values() if not visitor.is_trusted]
        if len(strangers) >= STRANGERS_MAX:
            self.end(strangers[0], WireError("too many connections that do not prove themselves"))
        elif len(self._visitors) >= VISITORS_MAX:
            logger.warning("too many connections: peer=%s", link.peer)
            link.close()
            return
        visitor = Visitor(self, link)
        self._visitors[link.fileno()] = visitor
        visitor.mask = selectors.EVENT_READ
        self._selector.register(link.socket, visitor.mask, partial(self._on_ready, visitor))

    def _on_ready(self, visitor: Visitor, mask: int) -> None:
        try:
            self._ready(visitor, mask)
        except PoisonedError:
            raise
        except (PerdureError, OSError) as error:
            self.end(visitor, error)

    def _ready(self, visitor: Visitor, mask: int) -> None:
        link = visitor.link
        if mask & selectors.EVENT_WRITE:
            link.flush()
        if mask & selectors.EVENT_READ and not visitor.is_paused:
            messages = link.receive()
            if messages:
                visitor.heard_ms = monotonic_ms()
            for message, payload in messages:
                visitor.take(message, payload)
            if visitor.is_shipper:
                self._heard_ms = visitor.heard_ms
            if visitor.batch:
                self._append(visitor)
        if link.out_bytes or visitor.mask != selectors.EVENT_READ:
            self.watch(visitor)

    def is_here(self, visitor: Visitor) -> bool:
        """Is it still connected?"""
        return visitor.link.fileno() in self._visitors

    def watch(self, visitor: Visitor) -> None:
        """Wait for what the link needs: nothing is read while the disk is full."""
        mask = selectors.EVENT_READ if not visitor.is_paused else 0
        mask |= selectors.EVENT_WRITE if visitor.link.has_unsent else 0
        if mask == visitor.mask or not self.is_here(visitor):
            return
        key = partial(self._on_ready, visitor)
        if not visitor.mask:
            self._selector.register(visitor.link.socket, mask, key)
        elif not mask:
            self._selector.unregister(visitor.link.socket)
        else:
            self._selector.modify(visitor.link.socket, mask, key)
        visitor.mask = mask

    def _guarded(self, visitor: Visitor, action: Callable[[], object]) -> None:
        """Do it; what goes wrong with this peer ends its connection only."""
        try:
            action()
        except PoisonedError:
            raise
        except (PerdureError, OSError) as error:
            self.end(visitor, error)

    def end(self, visitor: Visitor, error: Exception) -> None:
        logger.log(
            logging.INFO if visitor.is_trusted and isinstance(error, LinkClosed) else logging.WARNING,
            "connection ended: peer=%s node=%s stage=%s error=%s",
            visitor.link.peer,
            visitor.primary,
            visitor.stage.value,
            error,
        )
        if isinstance(error, PerdureError):
            visitor.refuse(error)
        self._drop(visitor)

    def _drop(self, visitor: Visitor) -> None:
        if self._visitors.pop(visitor.link.fileno(), None) is None:
            return
        if visitor.mask:
            self._selector.unregister(visitor.link.socket)
            visitor.mask = 0
        visitor.link.close()
        if self._shipper is visitor:
            self._shipper = None

    # -- the stream ------------------------------------------------------------------------------

    def streams_from(self, visitor: Visitor) -> None:
        """This visitor ships from now on: an older connection of the primary is dead, or should be.

        A snapshot that an older one was sending must not replace the log that goes on here.
        """
        self._end_incoming()
        old = self._shipper
        self._shipper = visitor
        self._primary = visitor.primary
        if old is not None and old is not visitor:
            self._drop(old)
        if not self._is_to_be_made_anew():
            end_permission(self.node.store)
        logger.info(
            "following: primary=%s epoch=%d", visitor.primary, visitor.reign.epoch if visitor.reign else 0
        )

    def _is_to_be_made_anew(self) -> bool:
        told = read_permission(self.node.store)
        return told is not None and told.is_anew

    def accept_reign(self, reign: Promise) -> Position:
        """As ReplicaLog.accept_reign, on a log that nothing is to be taken off any more.

        A promotion of this node that was killed amid a cut leaves its plan. Whoever finishes that later would
        take off what was appended, and acknowledged, meanwhile. No older promotion plans one from here on.
        """
        try:
            end = self.replica.accept_reign(reign)
        except CorruptError:  # the cut had begun to take off what the control page still speaks of
            if not finish_cut(self.node.store):
                raise
            end = self.replica.accept_reign(reign)
        if finish_cut(self.node.store):
            end = self.replica.accept_reign(reign)
        return end

    def announced(self, committed_lsn: int) -> None:
        self.replica.commit(committed_lsn)
        shipper = self._shipper
        if shipper is not None and shipper.reign is not None:
            self._parted_fault.look(self.node, shipper.reign, committed_lsn)

    def _append(self, visitor: Visitor) -> None:
        if visitor.reign is None or visitor is not self._shipper:
            raise WireError("another connection of the primary ships now")
        try:
            position = self.replica.append(visitor.reign, visitor.batch, visitor.acknowledge)
        except StorageFullError as error:
            if not visitor.is_paused:
                logger.error("paused: %s", error)
                visitor.is_paused = True
            self._full_since_ms = visitor.heard_ms = monotonic_ms()
            visitor.link.send(Pause(str(error)[:1000]))  # again and again: this node lives
            self.watch(visitor)
            return
        if visitor.is_paused:
            logger.info("there is space again: lsn=%d", position.lsn)
            visitor.is_paused = False
            visitor.heard_ms = monotonic_ms()
        self.replica.commit(visitor.committed_lsn)

    def take_peers(self, peers: Peers) -> None:
        """Remember how far the other replicas are, should this node become the primary."""
        for node, lsn, state in peers.slots:
            if node != self.node.node and state in STATES:
                if node not in self._told_of and len(self._told_of) >= NODES_MAX:
                    raise WireError(f"the primary tells of more than {NODES_MAX} nodes")
                self._told_of.add(node)
                old = slot_or_new(self.node.store, node)
                self._slots.put(msgspec.structs.replace(old, epoch=0, lsn=lsn, chain=0, state=state))

    # -- asked -----------------------------------------------------------------------------------

    def status(self) -> StatusReply:
        """What this node says of itself."""
        node = self.node
        end = node.end_on_disk()
        log = node.log
        header = log.cursor.header
        ports = read_ports(node.store)
        return StatusReply(
            node=node.node,
            shard=node.identity.shard,
            role="primary" if log.is_primary else "replica",
            end=end,
            committed_lsn=node.committed_lsn(),
            applied_lsn=node.folded_lsn(),
            promise_epoch=log.promise.epoch,
            promise_candidate=log.promise.candidate,
            voters=log.config.voters,
            sync_replicas=log.config.sync_replicas,
            oldest_lsn=node.oldest_lsn(),
            primary=header.primary if header else "",
            primary_heard_ms=monotonic_ms() - self._heard_ms if self._heard_ms else -1,
            fault=self._fault(),
            serve_port=ports.serve,
            monitor_port=ports.monitor,
        )

    def promise(self, asked: Promise) -> PromiseReply:
        """Give a promise. Raises PromiseRefusedError."""
        end = self.replica.give_promise(asked)
        logger.info("promised: epoch=%d candidate=%s end=%s", asked.epoch, asked.candidate, end)
        if self._shipper is not None and self._shipper.primary != asked.candidate:
            self.end(self._shipper, self.replica.fenced())
        return PromiseReply(asked.epoch, asked.candidate, end, self.node.committed_lsn(), self._fault())

    def fetch(self, ask: FetchAsk) -> tuple[FetchReply, bytes]:
        """Frames of this node's log. Raises PositionGoneError if the position is not in it, CorruptError if
        it lacks frames before its end: then nobody can tell."""
        end = self.node.end_on_disk()
        after = Position(*ask.after)
        cursor = self.node.cursor()
        try:
            if after.lsn > end.lsn or not find(cursor, after):
                raise PositionGoneError(f"{after} is not in this log", lsn=after.lsn)
            limit = max(4096, min(ask.limit_bytes, FETCH_BYTES_MAX))
            run = cursor.read(int(self.node.log.words[Word.FLUSHED]), limit)
            if run is None:
                return FetchReply(0, after), b""
            return FetchReply(len(run.raw), run.frames[-1][1].position), run.raw
        finally:
            cursor.close()

    def _fault(self) -> str:
        return why_unfit(self.node.store)

    # -- changing the log ------------------------------------------------------------------------

    def cut(self, cut: Cut, reign: Promise) -> None:
        """End this log where the primary says; see cut_log."""
        to = Position(*cut.to)
        self.accept_reign(reign)
        try:
            cut_log(self.node, to, reign, is_open=cut.is_open, is_accepted=cut.is_accepted)
            if cut.is_accepted:
                clear_fault(self.node.store)
        except CommittedError as error:
            self._note_fault(error.lsn or to.lsn, str(error))
            raise
        self.reopen()

    def has_parted(self, parted: Parted) -> None:
        """The primary takes nothing of this log now. Raises DivergedError, which says why."""
        if parted.is_fault:
            self._note_fault(self.node.log.cursor.at.lsn, parted.why)
        raise DivergedError(parted.why, node=self.node.node)

    def _note_fault(self, lsn: int, why: str) -> None:
        logger.critical("this node must not become primary: %s", why)
        if not self._fault():
            kept_lsn = max(self.node.committed_lsn(), self.applied_lsn())
            self._parted_fault.note(self.node, lsn, why, kept_lsn=kept_lsn)

    def applied_lsn(self) -> int:
        """What the state holds, also before the folder has looked at it."""
        return self.node.folded_lsn() or state_lsn(self.node.store)

    def begin_install(self, offer: SnapshotOffer, reign: Promise) -> SnapshotWant:
        """A snapshot comes from the primary of a reign: say how much of it is here already."""
        self._end_incoming()
        self._incoming = Incoming(self.node, offer, reign)
        return self._incoming.want()

    def take_piece(self, piece: Piece, raw: bytes) -> tuple[int, int]:
        if self._incoming is None:
            raise WireError("a piece of a snapshot that was not offered")
        return self._incoming.take(piece, raw)

    def _install_if_whole(self) -> None:
        incoming = self._incoming
        if incoming is None:
            return
        ended = [visitor for visitor in self._visitors.values() if visitor.stage is Stage.SNAPSHOT]
        try:
            if not incoming.check():
                return
            incoming.install()
        except PoisonedError:
            raise
        except (PerdureError, OSError) as error:
            for visitor in ended:
                self.end(visitor, error)
            self._end_incoming()
            self.end_if_planned(names.INSTALL_PLAN, error)
            return
        self._incoming = None
        self.reopen()
        for visitor in ended:
            self._drop(visitor)  # the primary comes again, and finds a log to go on from

    def _end_incoming(self) -> None:
        """Wait for the snapshot no more; what is here of it stays for the next offer."""
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None

    def end_if_planned(self, plan: str, error: PerdureError | OSError) -> None:
        """A change of the log failed. If its plan stands, this process ends before it appends anything: the
        next one finishes the plan first, which would take off what is acknowledged meanwhile."""
        if (self.node.store / plan).exists():
            logger.critical("ends, so that its next start finishes the plan: plan=%s error=%s", plan, error)
            self._broken = error

    def reopen(self) -> None:
        """The log was changed under its handle: open it anew, with the same locks.

        Without it this process is of no use: what goes wrong here ends it.
        """
        try:
            self.node = self.node.reopened()
        except PerdureError as error:
            self._broken = error
            raise
        self.replica = ReplicaLog(self.node)
        self.rebuilding = Rebuilding(self.node.store)
        self._parted_fault = PartedFault(self.node.store)
        end_permission(self.node.store)


def serve_receiver(
    store: str | os.PathLike[str],
    host: str,
    port: int,
    *,
    secret: Secret = b"",
    rejoin: str = AUTO,
    should_stop: Callable[[], bool] = lambda: False,
    on_ready: Callable[[int], object] | None = None,
    lifeline: int | None = None,
) -> None:
    """Receive, acknowledge and answer on `host`:`port` until `should_stop` says so.

    Port 0 takes a free one; `on_ready` is called with the port. `secret` is what all nodes share, or
    credentials (see check_secret); empty only on loopback. `lifeline` is a descriptor: the receiver ends when
    its other end is closed. What a crash left half-done (a cut, an installed snapshot) is finished first.

    `rejoin` is "auto", or "manual" if nothing is taken off this node's log before `perdure rejoin` says so.

    Raises StoreInUseError if a receiver runs already, WireError if the address is taken, CorruptError
    for a damaged log (a replica that lost what it acknowledged must not go on by itself), PoisonedError
    after a failed sync, StorageError if a snapshot or a rejoin could not be carried out to its end (call it
    again, as run_replica does), and UsageError for a secret that is too short.
    """
    check_secret(secret, host)
    path = Path(store)
    lock = take_process_lock(path, names.RECEIVER_LOCK)
    try:
        finish_rejoin(path)
        finish_cut(path)
        finish_install(path)
        finish_rebuild(path)
        node = open_node_log(path, [lock])
        node.log.page.bump()  # the receiver before it may have ended amid a change of files
    except CorruptError as error:
        lock.close()
        if note_log_fault(path, error, now_ms()):
            error.hint = (
                "`perdure rejoin DIR --anew` makes it anew from the primary; the damaged log is kept."
            )
        raise
    except BaseException:
        lock.close()
        raise
    try:
        receiver = Receiver(node, host, port, secret, is_automatic=rejoin == AUTO)
    except BaseException:
        node.close()
        raise
    ended = threading.Event()
    try:
        if lifeline is not None:
            receiver.wake_on(lifeline, ended.set)
        if on_ready is not None:
            on_ready(receiver.port)
        receiver.run(lambda: ended.is_set() or should_stop())
    finally:
        receiver.close()


def _call(on_ready: Callable[[], object], _mask: int) -> None:
    on_ready()
