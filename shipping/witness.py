"""The witness process: a voter that keeps promises, and no log.

Owns the order of its steps, one question at a time: decide (store's witness, pure), make durable, answer. It
speaks the receiver's protocol as far as it goes: status, promise, and which nodes are in sync.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..store import names
from ..store.errors import PromiseRefusedError, StoreInUseError
from ..store.lock import FileLock
from ..store.promise import Promise
from ..store.witness import InSync, WitnessState, promised, read_witness, recorded, write_witness
from .credentials import Secret
from .link import Link
from .messages import FENCED, Message, PromiseAsk, PromiseReply, Refusal, StatusAsk, StatusReply
from .messages_witness import InSyncAsk, InSyncReply
from .server import Handlers, Server

logger = logging.getLogger(__name__)

ROLE: Final = "witness"
NOWHERE: Final = (0, 0, 0)


class Witness:
    """The keeper of one witness's directory. Threads take turns."""

    def __init__(self, path: Path) -> None:
        """Raises StoreMissingError, FormatError, StoreInUseError if another process keeps it."""
        self.path = path
        self.state = read_witness(path)
        self._turn = threading.Lock()
        self._lock = FileLock(path / names.RECEIVER_LOCK)
        if not self._lock.try_acquire():
            self._lock.close()
            raise StoreInUseError("another process keeps this witness", path=path)

    def promise(self, asked: Promise) -> WitnessState:
        """Give a promise, durably. Raises PromiseRefusedError."""
        return self._become(lambda state: promised(state, asked))

    def record(self, asked: Promise, expected: InSync, nodes: tuple[str, ...]) -> WitnessState:
        """Record which nodes are in sync, durably; see store's `recorded`. Raises PromiseRefusedError."""
        return self._become(lambda state: recorded(state, asked, expected, nodes))

    def close(self) -> None:
        self._lock.close()

    def handlers(self) -> Handlers:
        """What a witness answers."""
        return {StatusAsk: self._status, PromiseAsk: self._promise, InSyncAsk: self._in_sync}

    def _become(self, change: Callable[[WitnessState], WitnessState]) -> WitnessState:
        with self._turn:
            state = change(self.state)
            if state != self.state:
                write_witness(self.path, state)
                logger.info("promised: %s in sync: %s", state.promise, state.in_sync)
                self.state = state
            return state

    def _status(self, _ask: StatusAsk, _payload: bytes) -> tuple[Message, bytes]:
        state = self.state
        reply = StatusReply(
            node=state.node,
            shard=0,
            role=ROLE,
            end=NOWHERE,
            committed_lsn=0,
            applied_lsn=0,
            promise_epoch=state.promise.epoch,
            promise_candidate=state.promise.candidate,
            voters=(),
            sync_replicas=0,
            oldest_lsn=0,
            primary="",
            primary_heard_ms=-1,
            fault="",
            in_sync=state.in_sync.nodes,
        )
        return reply, b""

    def _promise(self, ask: PromiseAsk, _payload: bytes) -> tuple[Message, bytes]:
        try:
            state = self.promise(Promise(ask.epoch, ask.candidate, ask.alone))
        except PromiseRefusedError as error:
            return self._fenced(error), b""
        return PromiseReply(ask.epoch, ask.candidate, NOWHERE, 0, "", state.in_sync.nodes), b""

    def _in_sync(self, ask: InSyncAsk, _payload: bytes) -> tuple[Message, bytes]:
        expected = InSync(ask.expected_epoch, ask.expected_number)
        try:
            state = self.record(Promise(ask.epoch, ask.primary), expected, ask.nodes)
        except PromiseRefusedError as error:
            return self._fenced(error), b""
        held = state.in_sync
        return InSyncReply(held.epoch, held.number, held.nodes), b""

    def _fenced(self, error: PromiseRefusedError) -> Refusal:
        held = self.state.promise
        return Refusal(FENCED, str(error)[:1000], held.epoch, held.candidate)


def serve_witness(
    path: str | os.PathLike[str],
    host: str,
    port: int,
    *,
    secret: Secret = b"",
    should_stop: Callable[[], bool] = lambda: False,
    on_ready: Callable[[int], object] | None = None,
) -> None:
    """Keep promises and answer on `host`:`port` until `should_stop` says so; port 0 takes a free one.

    Raises StoreMissingError, FormatError, StoreInUseError, WireError if the address is taken, UsageError for
    a secret that is too short.
    """
    witness = Witness(Path(path))
    try:
        server = Server(
            host,
            port,
            cluster_id=witness.state.cluster_id,
            secret=secret,
            handlers=witness.handlers(),
            check=_check_name,
        )
        try:
            if on_ready is not None:
                on_ready(server.port)
            server.run(should_stop)
        finally:
            server.close()
    finally:
        witness.close()


def _check_name(link: Link, message: Message) -> None:
    """A certificate speaks for its own node only."""
    if isinstance(message, PromiseAsk):
        link.check_name(message.candidate)
    elif isinstance(message, InSyncAsk):
        link.check_name(message.primary)
