"""A shipper in waiting: every node has one, ready before the node is primary, so that a promotion waits for
no process to start.

Owns when a shipper ships: while its node is the primary. In between it looks at the page's generation every
few milliseconds (a memory read), keeps its place near the end of the log, and holds neither the sockets that
writers use nor a connection. Invariant: it ships only in an epoch of which the node's own files say that it
is the primary; a fence or a lost role sends it back to wait.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ..store import names
from ..store.errors import NotPrimaryError
from ..store.page import Word
from .bootstrap import MakeSnapshot
from .credentials import Secret
from .nodelog import NodeLog, monotonic_ms, open_node_log, take_process_lock
from .roster import replica_addresses
from .shipper import Shipper, ShipperOptions, check_replicas

logger = logging.getLogger(__name__)

LOOK_MS: Final = 2
"""How soon a promotion of this node is noticed."""
KEEP_MS: Final = 50
_GENERATION: Final = int(Word.GENERATION)


def run_standby(
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
    """As run_shipper, on a node of any role: ship whenever it is the primary, and wait while it is not.

    Ends only when `should_stop` says so or the lifeline's other end is closed. Raises StoreInUseError if a
    shipper runs already, PoisonedError after a failed sync, UsageError as run_shipper.
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

    def is_over() -> bool:
        return ended.is_set() or should_stop()

    try:
        if on_ready is not None:
            on_ready()
        wait = _Wait(node, lifeline, ended, replicas)
        while wait.until_primary(is_over):
            _ship(Shipper(node, replicas, secret, options or ShipperOptions(), make_snapshot), wait, is_over)
    finally:
        node.close()


class _Wait:
    """Waiting for the node's turn."""

    def __init__(
        self,
        node: NodeLog,
        lifeline: int | None,
        ended: threading.Event,
        configured: Mapping[str, tuple[str, int]],
    ) -> None:
        self._configured = configured
        self.lifeline = lifeline
        self.ended = ended
        self._node = node
        self._poller = select.poll()
        if lifeline is not None:
            self._poller.register(lifeline, select.POLLIN)

    def until_primary(self, is_over: Callable[[], bool]) -> bool:
        """Return once the node is the primary, and knows of nodes to ship to: True; False if the end came
        first. Raises PoisonedError."""
        log, words = self._node.log, self._node.log.words
        log.look_anew()
        self._node.keep_up()
        kept_ms = monotonic_ms()
        while not (log.is_primary and self._has_replicas()):
            if self._poller.poll(LOOK_MS):
                self.ended.set()
            if is_over():
                return False
            at_ms = monotonic_ms()
            if words[_GENERATION] != log.generation or at_ms - kept_ms >= KEEP_MS:
                kept_ms = at_ms
                self._node.keep_up()
        return not is_over()

    def _has_replicas(self) -> bool:
        """A store on its own needs no shipper, which would flush what nobody waits for."""
        node = self._node
        return bool(replica_addresses(node.log.config, node.node, self._configured))


def _ship(shipper: Shipper, wait: _Wait, is_over: Callable[[], bool]) -> None:
    """Ship until the end, or until the role is lost."""
    logger.info("shipping begins")
    try:
        if wait.lifeline is not None:
            shipper.wake_on(wait.lifeline, wait.ended.set)
        shipper.run(is_over)
    except NotPrimaryError as error:
        logger.warning("shipping ends: %s", error)
    finally:
        shipper.close()
