"""A node's part in a switchover: what its server does when it is asked. Runs in the server's process.

Owns the handlers of messages_switchover: how the node is, holding its writers back and letting them go on,
and taking over. Each is whole in itself: whoever asks may die after any of them, and a drain ends by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ..shipping.credentials import Secret
from ..shipping.messages import Message
from ..shipping.messages_switchover import (
    SAMPLES_MAX,
    DrainAsk,
    Drained,
    SwitchAsk,
    SwitchReply,
    TakeOverAsk,
    TookOver,
    UndrainAsk,
    Undrained,
)
from ..shipping.nodelog import NodeLog, is_running, now_ms, open_node_log
from ..shipping.rebuild import why_unfit
from ..shipping.roster import node_addresses
from ..shipping.server import Handler
from ..store import names
from ..store.drain import begin_drain, drained_ms, end_drain
from ..store.errors import DivergedError, LockTimeoutError, NoQuorumError
from ..store.ids import StatePosition
from ..store.page import Word
from ..store.probe import hashes_of, random_keys
from ..store.sessions import SessionStore
from ..store.snapshot import list_snapshots
from .candidacy import candidacy
from .promote import promote
from .take import take_snapshot

SAMPLES: Final = 10
POLL_S: Final = 0.0005
COMMIT_MS: Final = 5_000
HEAR_S: Final = 0.003
"""So long a writer may take to see that its frame is committed; once the role is lost it cannot know."""


class SwitchService:
    """Handlers over the store of one node. `peers` are the other nodes' receivers, for their promises, where
    the log does not say them."""

    def __init__(
        self, directory: Path, store: SessionStore, peers: Mapping[str, tuple[str, int]], secret: Secret
    ) -> None:
        self._directory = directory
        self._store = store
        self._peers = dict(peers)
        self._secret = secret
        self._keys: list[bytes] = []
        """Of the sessions that the next drain samples: found before it begins."""

    def handlers(self) -> dict[type, Handler]:
        return {
            SwitchAsk: self._look,
            DrainAsk: self._drain,
            UndrainAsk: self._undrain,
            TakeOverAsk: self._take_over,
        }

    def _look(self, asked: SwitchAsk, _payload: bytes) -> tuple[Message, bytes]:
        if asked.snapshot_ms and not 0 <= self._snapshot_age_ms() <= asked.snapshot_ms:
            take_snapshot(self._directory)
        self._keys = random_keys(self._store, SAMPLES)
        with self._node() as node:
            node.end_on_disk()
            log = node.log
            config, promise = log.config, log.promise
            return SwitchReply(
                node=node.node,
                is_primary=log.is_primary,
                end=log.cursor.at,
                committed_lsn=node.committed_lsn(),
                folded_lsn=node.folded_lsn(),
                promise_epoch=promise.epoch,
                promise_candidate=promise.candidate,
                voters=config.voters or (node.node,),
                witnesses=config.witnesses,
                sync_replicas=config.sync_replicas,
                drained_ms=drained_ms(log),
                has_shipper=is_running(self._directory, names.SHIPPER_LOCK),
                snapshot_age_ms=self._snapshot_age_ms(),
                fault=why_unfit(self._directory),
            ), b""

    def _drain(self, asked: DrainAsk, _payload: bytes) -> tuple[Message, bytes]:
        deadline = time.monotonic() + asked.timeout_ms / 1000
        with self._node() as node:
            end = begin_drain(node.log, asked.number, asked.timeout_ms)
            _await_commit(node, end.lsn, deadline)
        keys = self._keys[:SAMPLES_MAX]
        return Drained(end, list(zip(keys, hashes_of(self._store, keys), strict=True))), b""

    def _undrain(self, asked: UndrainAsk, _payload: bytes) -> tuple[Message, bytes]:
        with self._node() as node:
            return Undrained(end_drain(node.log, asked.number)), b""

    def _take_over(self, asked: TakeOverAsk, _payload: bytes) -> tuple[Message, bytes]:
        began = time.monotonic()
        end = StatePosition(*asked.end)
        with self._node() as node:
            is_own = node.node == asked.primary
            if not is_own:
                _await_log(node, end, began + asked.wait_ms / 1000)
            voters = node_addresses(node.log.config, node.node, self._peers)
        self._compare([] if is_own else asked.samples, end)
        waited_ms = _ms_since(began)
        began = time.monotonic()
        with candidacy(self._directory) as on_step:
            report = promote(
                self._directory,
                voters,
                self._secret,
                drained=asked.primary,
                on_step=on_step,
                commit_timeout_ms=COMMIT_MS,
            )
        return TookOver(
            epoch=report.epoch,
            start=report.start,
            before=report.before,
            is_committed=report.is_committed or report.was_primary,
            waited_ms=waited_ms,
            promotion_ms=_ms_since(began),
        ), b""

    def _compare(self, samples: list[tuple[bytes, int]], end: StatePosition) -> None:
        """Raise DivergedError unless this node has the same records under the sampled keys."""
        own = hashes_of(self._store, [key for key, _ in samples])
        wrong = sum(hashed != theirs for hashed, (_, theirs) in zip(own, samples, strict=True))
        if wrong:
            raise DivergedError(
                f"{wrong} of {len(samples)} sampled sessions are not what the primary has at LSN {end.lsn}",
                path=self._directory,
                lsn=end.lsn,
                hint="See `perdure verify` on this node, and make it anew; the primary goes on.",
            )

    @contextmanager
    def _node(self) -> Iterator[NodeLog]:
        node = open_node_log(self._directory, [])
        try:
            yield node
        finally:
            node.close()

    def _snapshot_age_ms(self) -> int:
        files = list_snapshots(self._directory / names.SNAPSHOTS)
        if not files:
            return -1
        return max(0, now_ms() - int(files[-1].path.stat().st_mtime * 1000))


def _await_commit(node: NodeLog, lsn: int, deadline: float) -> None:
    """Wait until what was appended before the drain is confirmed, and whoever waits for that has heard so.

    Raises NoQuorumError if the replicas do not confirm it in time: another node would not have it either.
    """
    words: Any = node.log.words
    if node.log.config.sync_replicas == 0:
        return
    is_late = words[Word.COMMITTED] < lsn
    while words[Word.COMMITTED] < lsn:
        if time.monotonic() > deadline:
            raise NoQuorumError(
                f"replicas have confirmed LSN {words[Word.COMMITTED]} of {lsn} in time",
                node=node.node,
                hint="See `perdure status`: which replicas are connected, and how far they are.",
            )
        time.sleep(POLL_S)
    if is_late:
        time.sleep(HEAR_S)


def _await_log(node: NodeLog, end: StatePosition, deadline: float) -> None:
    """Wait until this node's log ends at `end`, by chain and digest, on disk.

    Raises LockTimeoutError if it does not come so far in time, DivergedError if it is another one.
    """
    words: Any = node.log.words
    while words[Word.FLUSHED] < end.lsn:
        if time.monotonic() > deadline:
            raise LockTimeoutError(
                f"the log came up to LSN {words[Word.FLUSHED]} in time; the primary's ends at {end.lsn}",
                path=node.store,
                hint="See `perdure status`: the lag, and whether the primary ships to this node.",
            )
        time.sleep(POLL_S)
    node.end_on_disk()
    at = node.log.cursor.at
    if at != end:
        raise DivergedError(
            f"the primary's log ends at {end.position}, digest {end.digest:016x}; this one at {at.position}, "
            f"digest {at.digest:016x}",
            path=node.store,
            lsn=end.lsn,
        )


def _ms_since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
