"""The monitor's own connections: one to each peer, on which this node's heartbeats go out.

Owns when a connection is tried again, and where a peer's monitor is found: its receiver says so. A witness
has none, and is asked instead. A peer that takes nothing gets no more; nothing is queued for it. What happens
to a connection is told to the detector.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Final

from ..store.errors import PerdureError, WireError
from .asking import NodeClient
from .auth import MONITOR, NONCE_BYTES, Connecting
from .credentials import Secret
from .detection import Detector
from .link import Link, LinkClosed, begin_connect, check_connected
from .messages import Challenge, Message, Proof, StatusReply
from .messages_health import Beat
from .nodelog import monotonic_ms

logger = logging.getLogger(__name__)

RETRY_MS: Final = 20
RETRY_MS_MAX: Final = 200
HANDSHAKE_MS: Final = 2_000
FIND_MS: Final = 250
FIND_TIMEOUT_MS: Final = 1_000
BEATS_MAX: Final = 64
WITNESS: Final = "witness"
WITNESS_STATE: Final = "active"


class Finder:
    """Where the peers' monitors listen. A thread of its own asks their receivers, which may take long.

    Names of hosts are looked up there, too: whoever dials gets the address at which the receiver was reached.
    """

    def __init__(self, peers: Mapping[str, tuple[str, int]], cluster_id: bytes, secret: Secret) -> None:
        self._peers = dict(peers)
        self._cluster_id = cluster_id
        self._secret = secret
        self._found: dict[str, tuple[str, int]] = {}
        self._wanted = set(peers)
        self._followed: set[str] = set()
        self.beats: deque[Beat] = deque(maxlen=BEATS_MAX)
        """What witnesses say, which have no monitor: one of them sends nothing, and is asked."""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._search, name="perdure-finder", daemon=True)
        self._thread.start()

    def aim(self, peers: Mapping[str, tuple[str, int]]) -> None:
        """The peers are these from now on; who is new or has moved is looked for."""
        changed = {node for node, address in peers.items() if self._peers.get(node) != address}
        for node in self._peers.keys() - peers.keys() | changed:
            self._found.pop(node, None)
        self._peers = dict(peers)
        self._wanted = (self._wanted & peers.keys()) | changed

    def address(self, node: str) -> tuple[str, int] | None:
        """Numeric host and port, None while they are not known."""
        return self._found.get(node)

    def doubt(self, node: str) -> None:
        """Nobody is there any more: it may have moved."""
        self._wanted.add(node)

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(FIND_TIMEOUT_MS / 1000)

    def _search(self) -> None:
        while not self._is_over.is_set():
            for node in list(self._wanted):
                if self._is_over.is_set():
                    return
                self._ask(node)
            self._is_over.wait(FIND_MS / 1000)

    def _ask(self, node: str) -> None:
        address = self._peers.get(node)
        if address is None:
            return
        host, port = address
        try:
            with self._client(host, port) as client:
                reply, reached = client.status(), client.peer_host()
        except (PerdureError, OSError) as error:
            logger.debug("cannot be asked: node=%s error=%s", node, error)
            return
        if reply.node == node and reply.monitor_port and self._peers.get(node) == address:
            self._found[node] = (reached, reply.monitor_port)
            self._wanted.discard(node)
        elif reply.node == node and reply.role == WITNESS:
            self._wanted.discard(node)
            self._follow_witness(node)

    def _client(self, host: str, port: int) -> NodeClient:
        return NodeClient(
            host, port, cluster_id=self._cluster_id, secret=self._secret, timeout_ms=FIND_TIMEOUT_MS
        )

    def _follow_witness(self, node: str) -> None:
        if node not in self._followed:
            self._followed.add(node)
            threading.Thread(
                target=self._poll_witness, args=(node,), name=f"perdure-witness-{node}", daemon=True
            ).start()

    def _poll_witness(self, node: str) -> None:
        """Ask a witness again and again, over one connection while it holds."""
        client: NodeClient | None = None
        while not self._is_over.is_set() and node in self._peers:
            try:
                client = client or self._client(*self._peers[node])
                reply = client.status()
                if reply.node == node and reply.role == WITNESS:
                    self.beats.append(_beat_of(reply))
            except (PerdureError, OSError, KeyError) as error:
                logger.debug("cannot be asked: node=%s error=%s", node, error)
                if client is not None:
                    client.close()
                    client = None
            self._is_over.wait(FIND_MS / 1000)
        if client is not None:
            client.close()
        self._followed.discard(node)


def _beat_of(witness: StatusReply) -> Beat:
    """What a witness would say if it had a monitor: that it is there, and what it promised."""
    return Beat(
        node=witness.node,
        is_primary=False,
        epoch=0,
        lsn=0,
        promise_epoch=witness.promise_epoch,
        promise_candidate=witness.promise_candidate,
        hears="",
        hears_epoch=0,
        is_failing=False,
        is_fit=False,
        state=WITNESS_STATE,
    )


class Stage(Enum):
    WAITING = "waiting"
    CONNECTING = "connecting"
    GREETING = "greeting"
    PROVING = "proving"
    SPEAKING = "speaking"


class Dial:
    """The way to one peer's monitor."""

    def __init__(
        self,
        node: str,
        selector: selectors.BaseSelector,
        cluster_id: bytes,
        secret: Secret,
        finder: Finder,
        detector: Detector,
    ) -> None:
        self.node = node
        self._selector = selector
        self._cluster_id = cluster_id
        self._secret = secret
        self._finder = finder
        self._detector = detector
        self._stage = Stage.WAITING
        self._link: Link | None = None
        self._auth: Connecting | None = None
        self._mask = 0
        self._since_ms = self._retry_at_ms = 0
        self._retry_ms = RETRY_MS
        self._last: Beat | None = None

    def tick(self, at_ms: int) -> None:
        """Connect if it is time; give up a handshake that takes too long."""
        if self._stage is Stage.WAITING:
            address = self._finder.address(self.node)
            if address is not None and at_ms >= self._retry_at_ms:
                self._since_ms = at_ms
                self._guarded_connect(*address)
        elif self._stage is not Stage.SPEAKING and at_ms - self._since_ms > HANDSHAKE_MS:
            self._fail(WireError(f"no handshake within {HANDSHAKE_MS} ms", node=self.node))

    def send(self, beat: Beat) -> None:
        """Send a heartbeat, unless the one before is still here: then the peer takes nothing."""
        self._last = beat
        link = self._link
        if self._stage is not Stage.SPEAKING or link is None or link.has_unsent:
            return
        try:
            link.send(beat)
            self._watch()
        except WireError as error:
            self._fail(error)

    def close(self) -> None:
        self._disconnect()

    # -- the connection --------------------------------------------------------------------------

    def _guarded_connect(self, host: str, port: int) -> None:
        try:
            self._link = begin_connect(host, port, self.node, self._secret, node=self.node)
        except WireError as error:
            self._refused(error)
            return
        self._stage = Stage.CONNECTING
        self._mask = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.register(self._link.socket, self._mask, self._on_event)

    def _on_event(self, mask: int) -> None:
        link = self._link
        if link is None:
            return
        if self._stage is Stage.CONNECTING:
            try:
                check_connected(link)
            except WireError as error:
                self._refused(error)
                return
        try:
            if self._stage is Stage.CONNECTING:
                self._greet(link)
            elif mask & selectors.EVENT_READ:
                for message, _payload in link.receive():
                    self._take(link, message)
            if mask & selectors.EVENT_WRITE:
                link.flush()
            self._watch()
        except (PerdureError, OSError) as error:
            self._fail(error)

    def _greet(self, link: Link) -> None:
        self._detector.accepted(self.node)
        self._auth = Connecting(self._secret, self._cluster_id, MONITOR, os.urandom(NONCE_BYTES))
        link.send(self._auth.greet())
        self._stage = Stage.GREETING

    def _take(self, link: Link, message: Message) -> None:
        match self._stage, message:
            case Stage.GREETING, Challenge() if self._auth:
                link.send(self._auth.answer(message))
                self._stage = Stage.PROVING
            case Stage.PROVING, Proof() if self._auth:
                self._auth.check(message)
                link.trust()
                self._stage = Stage.SPEAKING
                self._retry_ms = RETRY_MS
                self._detector.connected(self.node)
                if self._last is not None:
                    link.send(self._last)
            case _:
                raise WireError(f"a {type(message).__name__} message from a monitor", node=self.node)

    def _watch(self) -> None:
        link = self._link
        if link is None:
            return
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.has_unsent else 0)
        if mask != self._mask:
            self._mask = mask
            self._selector.modify(link.socket, mask, self._on_event)

    # -- its end ---------------------------------------------------------------------------------

    def _refused(self, error: Exception) -> None:
        """Nobody listens there."""
        if "ECONNREFUSED" in str(error):
            self._detector.refused(self.node)
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, LinkClosed) and self._auth is not None:
            error = self._auth.explained(error)
        was_speaking = self._stage is Stage.SPEAKING
        logger.info("connection ended: node=%s stage=%s error=%s", self.node, self._stage.value, error)
        self._disconnect()
        at_ms = monotonic_ms()
        if was_speaking:
            # Connected again at once: if the peer refuses, its process has ended, and all may know.
            self._detector.closed(self.node)
            self._retry_at_ms = at_ms
        else:
            self._finder.doubt(self.node)  # the address may be an old one
            self._retry_at_ms = at_ms + self._retry_ms
            self._retry_ms = min(self._retry_ms * 2, RETRY_MS_MAX)

    def _disconnect(self) -> None:
        if self._link is not None:
            self._selector.unregister(self._link.socket)
            self._link.close()
            self._link = None
        self._auth = None
        self._stage = Stage.WAITING
