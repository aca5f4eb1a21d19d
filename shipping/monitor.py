"""The monitor: the process that sends and hears heartbeats, and does nothing else.

Owns the loop, the connections to the other monitors, and the limits on who may connect. Each node connects
to every other one and speaks on that connection; it hears on those that the others made. What it sees goes
to the elector through a pipe. Invariant: it waits for no disk and for no peer, so that a heartbeat that is
late says something about the node or the network; everything that has arrived is taken before it judges.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ..store.errors import BusyError, PerdureError, WireError
from ..store.identity import Identity, read_identity
from ..store.promise import leaps
from .auth import CLIENT, MONITOR, NONCE_BYTES, Listening
from .credentials import Secret, check_secret
from .detection import HEARTBEAT_MS, SILENCE_MS, Detector
from .door import Door
from .link import Link, accept
from .messages import Greet, Message, Proof, Refusal
from .messages_health import Beat, HealthAsk, HealthReply, HealthRow, StandAsk, StandReply
from .messages_server import Failed
from .monitor_dial import Dial, Finder
from .monitor_pipe import Done, Order, Pipe, Report, Told
from .nodelog import monotonic_ms, now_ms
from .unmonitored import Unmonitored, is_sound
from .vitals import DISK_STALL_MS, Vitals, VitalSigns
from .wire_errors import failed

logger = logging.getLogger(__name__)

TICK_MS: Final = 20
CALLERS_MAX: Final = 128
STRANGERS_MAX: Final = 32
"""Connections that have not proved themselves yet; the oldest goes when another one comes."""
HANDSHAKE_MS: Final = 5_000
CALLER_IDLE_MS: Final = 60_000
DRAIN_ROUNDS_MAX: Final = 8
"""So often the sockets are looked at again before a verdict, while there is something in them."""
ORDERS_MAX: Final = 16
AHEAD_MS_MAX: Final = 86_400_000
"""No clock of a node is ahead by more: a decision that is could never be taken back."""
NEWS: Final = (
    "is_primary",
    "epoch",
    "promise_epoch",
    "hears",
    "hears_epoch",
    "is_failing",
    "is_fit",
    "unmonitored_ms",
)
"""Fields of a heartbeat whose change is told at once."""


@dataclass(frozen=True)
class MonitorOptions:
    """Times in ms."""

    heartbeat_ms: int = HEARTBEAT_MS
    silence_ms: int = SILENCE_MS
    disk_stall_ms: int = DISK_STALL_MS


class _Caller:
    """Somebody who connected."""

    def __init__(self, link: Link, secret: Secret, identity: Identity) -> None:
        self.link = link
        self.auth = Listening(secret, identity.cluster_id, os.urandom(NONCE_BYTES))
        self.is_trusted = False
        self.heard_ms = monotonic_ms()
        self.node = ""
        """Whose heartbeats come here."""
        self.mask = selectors.EVENT_READ


class Monitor:
    """The monitor of one node."""

    def __init__(
        self,
        store: Path,
        peers: Mapping[str, tuple[str, int]],
        secret: Secret,
        listener: socket.socket,
        pipe: Pipe | None,
        options: MonitorOptions,
    ) -> None:
        self._identity = read_identity(store)
        self._node = self._identity.node
        self._secret = secret
        self._options = options
        self._pipe = pipe
        self._listener = listener
        self._vitals = VitalSigns(store, self._node, disk_stall_ms=options.disk_stall_ms)
        self._own = self._vitals.look(0)
        self._told = Told("initializing", "", "")
        others = {node: address for node, address in peers.items() if node != self._node}
        self._detector = Detector(
            others, monotonic_ms(), heartbeat_ms=options.heartbeat_ms, silence_ms=options.silence_ms
        )
        self._selector = selectors.DefaultSelector()
        self._finder = Finder(others, self._identity.cluster_id, secret)
        self._peers = others
        self._dials = {node: self._dial(node) for node in others}
        self._callers: dict[int, _Caller] = {}
        self._orders: dict[int, _Caller] = {}
        self._order_number = 0
        self._beat: Beat | None = None
        self._sent_ms = 0
        self._reported: Report | None = None
        self._is_over = False
        self._door = Door(
            partial(self._selector.register, listener, selectors.EVENT_READ, self._accept),
            partial(self._selector.unregister, listener),
        )
        if pipe is not None:
            self._selector.register(pipe, selectors.EVENT_READ, self._hear_elector)

    # -- the loop --------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Send, hear and report until `should_stop` says so."""
        while not self._is_over and not should_stop():
            self._take_all()
            at_ms = monotonic_ms()
            self._door.tick(at_ms)
            self._detector.tick(at_ms)
            for dial in self._dials.values():
                dial.tick(at_ms)
            self._look(at_ms)
            self._report()
            self._drop_idle(at_ms)

    def wake_on(self, file: int, on_ready: Callable[[], object]) -> None:
        """Also wait for `file` (a descriptor) to be readable."""
        self._selector.register(file, selectors.EVENT_READ, partial(_call, on_ready))

    def close(self) -> None:
        self._finder.close()
        for caller in list(self._callers.values()):
            self._drop(caller)
        for dial in self._dials.values():
            dial.close()
        self._selector.close()
        self._listener.close()
        if self._pipe is not None:
            self._pipe.close()
        self._vitals.close()

    def _take_all(self) -> None:
        """Wait for something, at most a tick; then take everything that is there."""
        while self._finder.beats:
            self._detector.heard(self._finder.beats.popleft(), now_ms())
        timeout_s = 0.001 if self._vitals.has_news else TICK_MS / 1000
        for _ in range(DRAIN_ROUNDS_MAX):
            ready = self._selector.select(timeout_s)
            for key, mask in ready:
                key.data(mask)
            if not ready:
                return
            timeout_s = 0.0

    def _look(self, at_ms: int) -> None:
        """Send a heartbeat if it is time, or if this node has news."""
        self._own = own = self._vitals.look(self._detector.clock_ms)
        hears, hears_epoch = self._hears(own)
        decided = self._vitals.unmonitored
        beat = Beat(
            self._node,
            own.is_primary,
            own.epoch,
            own.lsn,
            own.promise.epoch,
            own.promise.candidate,
            hears,
            hears_epoch,
            bool(own.failing),
            own.is_fit,
            self._told.state,
            decided.nodes,
            decided.changed_ms,
        )
        has_news = self._beat is None or _is_news(beat, self._beat)
        if has_news or at_ms - self._sent_ms >= self._options.heartbeat_ms:
            self._beat, self._sent_ms = beat, at_ms
            for dial in self._dials.values():
                dial.send(beat)

    def _hears(self, own: Vitals) -> tuple[str, int]:
        """The primary of the newest epoch that is heard here, with that epoch."""
        found = (self._node, own.epoch) if own.is_primary and not own.failing else ("", 0)
        for peer in self._detector.report():
            beat = peer.beat
            if beat is None or not beat.is_primary or beat.is_failing or not peer.verdict.is_heard:
                continue
            if beat.epoch > found[1]:
                found = (peer.node, beat.epoch)
        return found

    # -- the elector -----------------------------------------------------------------------------

    def _report(self) -> None:
        if self._pipe is None:
            return
        report = Report(
            self._detector.clock_ms, self._own.failing, self._detector.report(), self._vitals.unmonitored
        )
        if report != self._reported and self._pipe.send(report):
            self._reported = report

    def _hear_elector(self, _mask: int) -> None:
        if self._pipe is None:
            return
        try:
            found = self._pipe.receive()
        except WireError as error:
            logger.info("%s", error)
            self._is_over = True
            return
        for message in found:
            match message:
                case Told():
                    self._told = message
                    if message.peers is not None and message.peers != self._peers:
                        self._aim(message.peers)
                case Done():
                    caller = self._orders.pop(message.number, None)
                    answer = message.error or message.reply
                    if caller is not None and answer is not None:
                        self._guarded(caller, partial(self._answer, caller, answer))
                case _:
                    continue

    def _dial(self, node: str) -> Dial:
        return Dial(
            node, self._selector, self._identity.cluster_id, self._secret, self._finder, self._detector
        )

    def _aim(self, peers: Mapping[str, tuple[str, int]]) -> None:
        """Nodes have joined or left the cluster, or have moved."""
        self._peers = dict(peers)
        self._finder.aim(peers)
        self._detector.watch(peers)
        for node in self._dials.keys() - peers.keys():
            self._dials.pop(node).close()
        for node in peers.keys() - self._dials.keys():
            self._dials[node] = self._dial(node)

    # -- callers ---------------------------------------------------------------------------------

    def _accept(self, _mask: int) -> None:
        try:
            accepted = accept(self._listener, self._secret)
        except WireError as error:
            self._door.shut(str(error))
            return
        if accepted is None:
            return
        self._door.took()
        link, _host = accepted
        strangers = [caller for caller in self._callers.values() if not caller.is_trusted]
        if len(strangers) >= STRANGERS_MAX:
            self._drop(strangers[0])
        elif len(self._callers) >= CALLERS_MAX:
            logger.warning("too many connections: peer=%s", link.peer)
            link.close()
            return
        caller = _Caller(link, self._secret, self._identity)
        self._callers[link.fileno()] = caller
        self._selector.register(link.socket, selectors.EVENT_READ, partial(self._ready, caller))

    def _ready(self, caller: _Caller, mask: int) -> None:
        self._guarded(caller, partial(self._serve, caller, mask))

    def _serve(self, caller: _Caller, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            caller.link.flush()
        if mask & selectors.EVENT_READ:
            for message, _payload in caller.link.receive():
                caller.heard_ms = monotonic_ms()
                self._take(caller, message)
        self._watch(caller)

    def _take(self, caller: _Caller, message: Message) -> None:
        match message:
            case Greet() if not caller.is_trusted and not caller.auth.role:
                caller.link.send(caller.auth.challenge(message))
            case Proof() if not caller.is_trusted and caller.auth.role in (MONITOR, CLIENT):
                caller.link.send(caller.auth.check(message))
                caller.link.trust()
                caller.is_trusted = True
            case Beat() if caller.is_trusted and caller.auth.role == MONITOR:
                self._hear(caller, message)
            case HealthAsk() if caller.is_trusted:
                caller.link.send(self._health())
            case StandAsk() if caller.is_trusted and caller.auth.role == CLIENT:
                self._order(caller, message)
            case Refusal() if caller.is_trusted:
                raise WireError(f"the peer ends the connection: {message.text}")
            case _:
                raise WireError(f"a {type(message).__name__} message that does not belong here")

    def _hear(self, caller: _Caller, beat: Beat) -> None:
        if beat.node != caller.node:
            caller.link.check_name(beat.node)
            caller.node = beat.node
        known = max(self._own.epoch, self._own.promise.epoch)
        if leaps(known, max(beat.epoch, beat.promise_epoch, beat.hears_epoch)):
            raise WireError(
                f"{beat.node} speaks of an absurd epoch; epoch {known} is known here", node=beat.node
            )
        self._detector.heard(beat, now_ms())
        if beat.unmonitored_ms > now_ms() + AHEAD_MS_MAX:
            raise WireError(f"{beat.node} tells of a decision of the future", node=beat.node)
        if beat.unmonitored_ms > self._vitals.unmonitored.changed_ms:
            decided = Unmonitored(beat.unmonitored, beat.unmonitored_ms)
            if is_sound(decided):
                self._vitals.keep_unmonitored(decided)

    def _order(self, caller: _Caller, ask: StandAsk) -> None:
        """Pass it on to the elector, which answers when it has tried."""
        self._order_number += 1
        if (
            self._pipe is None
            or len(self._orders) >= ORDERS_MAX
            or not self._pipe.send(Order(self._order_number, ask))
        ):
            self._answer(caller, failed(BusyError("this node's elector takes no orders now")))
            return
        self._orders[self._order_number] = caller

    def _answer(self, caller: _Caller, reply: StandReply | Failed) -> None:
        if self._callers.get(caller.link.fileno()) is caller:
            caller.link.send(reply)
            self._watch(caller)

    def _health(self) -> HealthReply:
        own, told, left_out = self._own, self._told, self._vitals.unmonitored.nodes
        beat = self._beat
        rows = [
            HealthRow(
                self._node,
                "alive",
                0,
                0,
                now_ms(),
                self._node not in left_out,
                "primary" if own.is_primary else "replica",
                own.epoch,
                own.lsn,
                beat.hears if beat else "",
                bool(own.failing),
                told.state,
            )
        ]
        for peer in self._detector.report():
            said = peer.beat
            rows.append(
                HealthRow(
                    peer.node,
                    peer.verdict.value,
                    peer.silence_ms,
                    peer.failures,
                    peer.last_seen_ms,
                    peer.node not in left_out,
                    "" if said is None else "primary" if said.is_primary else "replica",
                    said.epoch if said else 0,
                    said.lsn if said else 0,
                    said.hears if said else "",
                    bool(said and said.is_failing),
                    said.state if said else "",
                )
            )
        return HealthReply(rows, told.coordinator, told.why)

    def _guarded(self, caller: _Caller, action: Callable[[], object]) -> None:
        """Do it; what goes wrong with this caller ends its connection only."""
        try:
            action()
        except (PerdureError, OSError) as error:
            logger.info("connection ended: peer=%s node=%s error=%s", caller.link.peer, caller.node, error)
            self._drop(caller)

    def _watch(self, caller: _Caller) -> None:
        if self._callers.get(caller.link.fileno()) is not caller:
            return
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if caller.link.has_unsent else 0)
        if mask != caller.mask:
            caller.mask = mask
            self._selector.modify(caller.link.socket, mask, partial(self._ready, caller))

    def _drop(self, caller: _Caller) -> None:
        if self._callers.pop(caller.link.fileno(), None) is None:
            return
        self._selector.unregister(caller.link.socket)
        caller.link.close()
        if caller.node:
            self._detector.closed(caller.node)

    def _drop_idle(self, at_ms: int) -> None:
        for caller in list(self._callers.values()):
            limit_ms = CALLER_IDLE_MS if caller.is_trusted else HANDSHAKE_MS
            if at_ms - caller.heard_ms > limit_ms and caller not in self._orders.values():
                self._drop(caller)


def run_monitor(
    store: str | os.PathLike[str],
    peers: Mapping[str, tuple[str, int]],
    *,
    listener: socket.socket,
    pipe: Pipe | None = None,
    secret: Secret = b"",
    options: MonitorOptions | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_ready: Callable[[int], object] | None = None,
    lifeline: int | None = None,
) -> None:
    """Watch the other nodes, and be watched, until `should_stop` says so.

    `peers` gives host and port of the other nodes' receivers, which tell where their monitors listen;
    `listener` is a listening socket, `pipe` the way to the elector. `on_ready` is called with the port.
    `lifeline` is a descriptor: the monitor ends at once when its other end is closed.

    Raises StoreMissingError, FormatError, and UsageError for a secret that is too short.
    """
    for host, _port in peers.values():
        check_secret(secret, host)
    listener.setblocking(False)
    monitor = Monitor(Path(store), peers, secret, listener, pipe, options or MonitorOptions())
    ended: list[bool] = []
    try:
        if lifeline is not None:
            monitor.wake_on(lifeline, partial(ended.append, True))
        if on_ready is not None:
            on_ready(int(listener.getsockname()[1]))
        monitor.run(lambda: bool(ended) or should_stop())
    finally:
        monitor.close()


def _is_news(beat: Beat, before: Beat) -> bool:
    """Is there something in it that others wait for? How far its log is can wait for the next one."""
    return any(getattr(beat, name) != getattr(before, name) for name in NEWS)


def _call(on_ready: Callable[[], object], _mask: int) -> None:
    on_ready()
