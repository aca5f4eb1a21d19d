"""The coordinator `etcd`: whoever holds a leased key may try; the epoch grows in the same transaction.

Owns two keys of a cluster in etcd, and a thread that keeps the primary's lease:

    /perdure/CLUSTER/leader   {"node", "epoch"}, under a lease: who is, or tries to become, primary
    /perdure/CLUSTER/epoch    the newest epoch that anybody took, for ever

Safety is in the promises, as with every coordinator, so that nothing here has to be right:

    | what happens                                | what follows                                          |
    |---------------------------------------------|-------------------------------------------------------|
    | etcd is away                                | the primary goes on serving; nobody is elected        |
    | etcd was restored from an older backup      | an epoch is taken above what nodes promised, too; the |
    |                                             | primary writes its key again                          |
    | etcd's own election lengthens the lease     | a silent primary is replaced later; one that has      |
    |                                             | ended at once, by taking the key over                 |
    | a primary reaches etcd, and too few         | it lets its lease end, so that those may elect: it    |
    | replicas to commit anything                 | could serve no write for as long as it held the key   |
    | etcd holds an absurd epoch                  | it is passed over, and written anew                   |
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

import msgspec

from ...shipping.detection import PeerHealth, Verdict
from ...store.errors import DECODE_ERRORS, PerdureError, PromiseRefusedError
from ...store.promise import leaps
from ..election import Action, Draw, Election, ElectionOptions, Kind, Own
from .etcd_client import EtcdClient, EtcdError, KeyValue

logger = logging.getLogger(__name__)

LEASE_MS: Final = 2_000
POLLS: Final = 8
"""So often within the time of a lease it is renewed, and the keys are looked at."""


class Leader(msgspec.Struct, frozen=True):
    """What stands under the leader's key."""

    node: str
    epoch: int


NO_LEADER: Final = Leader("", 0)


class Seen(msgspec.Struct, frozen=True):
    """Both keys at one moment, with their revisions; 0 for one that is not there."""

    leader: Leader = NO_LEADER
    leader_revision: int = 0
    leader_lease: int = 0
    epoch: int = 0
    epoch_revision: int = 0


class Etcd:
    """Stands when the election says so, and etcd gives it the key."""

    name = "etcd"

    def __init__(
        self,
        endpoints: Sequence[str],
        cluster_id: bytes,
        options: ElectionOptions,
        draw: Draw,
        *,
        lease_ms: int = LEASE_MS,
    ) -> None:
        prefix = f"/perdure/{cluster_id.hex()}".encode()
        self._leader_key, self._epoch_key = prefix + b"/leader", prefix + b"/epoch"
        self._ttl_s = max(1, -(-lease_ms // 1000))
        self._election = Election(options, draw)
        self._client = EtcdClient(endpoints)
        """For claims, by the caller's thread; the keeper has one of its own."""
        self._lease = 0
        self._reign: Leader | None = None
        """What the keeper holds the key for; None while this node is not primary."""
        self._ended: frozenset[str] = frozenset()
        """Whose key may be taken over, as of the newest look."""
        self._seen: Seen | None = None
        self._problem = "etcd was not asked yet"
        self._wake = threading.Event()
        self._is_over = False
        self._keeper = threading.Thread(
            target=self._keep,
            args=(EtcdClient(endpoints), lease_ms / POLLS / 1000),
            name="perdure-etcd",
            daemon=True,
        )
        self._keeper.start()

    # -- the port --------------------------------------------------------------------------------

    def look(self, now_ms: int, own: Own, peers: Sequence[PeerHealth], unmonitored: frozenset[str]) -> Action:
        action = self._election.look(now_ms, own, peers, unmonitored)
        self._ended = frozenset(peer.node for peer in peers if _has_ended(peer))
        reign = Leader(own.node, own.epoch) if own.is_primary and not _is_left(own, peers) else None
        if reign != self._reign:
            self._reign = reign
            self._wake.set()
        if action.kind is Kind.NOTHING and own.is_primary and self._seen is None:
            return Action(Kind.NOTHING, f"{action.why}; {self._problem}")
        if action.kind is not Kind.STAND:
            return action
        why_not = self._obstacle(own)
        return Action(Kind.HOLD_BACK, f"{action.why}; {why_not}", action.suspect) if why_not else action

    def claim(self, own: Own) -> int:
        """Take the key, with an epoch above etcd's and above every promise that this node knows.

        The keys are read anew: what the keeper saw may be older than the key of the node that has ended.
        Raises EtcdError if etcd does not answer, PromiseRefusedError if another node was quicker.
        """
        seen = self._look_up(self._client)
        if seen.leader.node not in ("", own.node, *self._ended):
            self._seen = seen  # the next look waits for that node's key, and does not stand against it
            raise PromiseRefusedError(f"{seen.leader.node} has taken the key in etcd", node=own.node)
        known = max(own.promise_epoch, own.epoch)
        epoch = max(known, 0 if leaps(known, seen.epoch) else seen.epoch) + 1
        lease = self._client.grant(self._ttl_s)
        if not self._take(self._client, seen, Leader(own.node, epoch), lease):
            raise PromiseRefusedError("another node took the key in etcd meanwhile", node=own.node)
        self._lease = lease
        return epoch

    def won(self, epoch: int) -> None:
        return None  # the next look sees it

    def lost(self, now_ms: int) -> None:
        """Give the key back, so that others need not wait for the lease's end."""
        self._election.lost(now_ms)
        lease, self._lease = self._lease, 0
        if lease:
            try:
                self._client.revoke(lease)
            except PerdureError as error:
                logger.info("the lease will end by itself: %s", error)

    def close(self) -> None:
        self._is_over = True
        self._wake.set()
        self._keeper.join(2.0)
        self._client.close()

    # -- deciding --------------------------------------------------------------------------------

    def _obstacle(self, own: Own) -> str:
        """Why the key must not be taken now, empty if nothing speaks against it."""
        seen = self._seen
        if seen is None:
            return self._problem
        holder = seen.leader.node
        return "" if holder in ("", own.node, *self._ended) else f"{holder} holds the key in etcd"

    # -- the thread that keeps the lease ---------------------------------------------------------

    def _keep(self, client: EtcdClient, every_s: float) -> None:
        while not self._is_over:
            self._wake.clear()
            try:
                seen = self._look_up(client)
                reign = self._reign
                if reign is not None:
                    seen = self._hold(client, seen, reign)
                self._seen = seen
            except PerdureError as error:
                if self._seen is not None:
                    logger.warning("%s", error)
                self._problem, self._seen = error.message, None
            self._wake.wait(every_s)
        client.close()

    def _hold(self, client: EtcdClient, seen: Seen, reign: Leader) -> Seen:
        """Keep the key of a primary, or take it again: the lease had ended, or etcd has forgotten it."""
        if self._lease and not client.keep_alive(self._lease):
            self._lease = 0
        is_held = seen.leader == reign and seen.leader_lease == self._lease != 0
        if is_held or (seen.leader.epoch > reign.epoch and not leaps(reign.epoch, seen.leader.epoch)):
            return seen
        lease = self._lease or client.grant(self._ttl_s)
        if self._take(client, seen, reign, lease):
            self._lease = lease
            logger.info("the key is held: node=%s epoch=%d", reign.node, reign.epoch)
        return self._look_up(client)

    def _take(self, client: EtcdClient, seen: Seen, leader: Leader, lease: int) -> bool:
        """Put both keys, if they are as they were seen."""
        is_absurd = leaps(leader.epoch, seen.epoch)
        epoch = leader.epoch if is_absurd else max(seen.epoch, leader.epoch)
        done, _ = client.swap(
            {self._leader_key: seen.leader_revision, self._epoch_key: seen.epoch_revision},
            {
                self._leader_key: (msgspec.json.encode(leader), lease),
                self._epoch_key: (str(epoch).encode(), 0),
            },
        )
        return done

    def _look_up(self, client: EtcdClient) -> Seen:
        found = client.get(self._leader_key, self._epoch_key)
        leader, epoch = found.get(self._leader_key), found.get(self._epoch_key)
        return Seen(
            _leader(leader),
            leader.mod_revision if leader else 0,
            leader.lease if leader else 0,
            _epoch(epoch),
            epoch.mod_revision if epoch else 0,
        )


def _is_left(own: Own, peers: Sequence[PeerHealth]) -> bool:
    """Does this primary hear too few replicas to commit a write? One that it has not heard yet may come."""
    config = own.config
    away = {peer.node for peer in peers if peer.verdict in (Verdict.SILENT, Verdict.GONE)}
    return len(set(config.data_voters) - {own.node} - away) < config.sync_replicas


def _has_ended(peer: PeerHealth) -> bool:
    """Its processes have ended, or it says that it fails: it will not keep its lease, and needs no key."""
    return peer.verdict is Verdict.GONE or (peer.beat is not None and peer.beat.is_failing)


def _leader(found: KeyValue | None) -> Leader:
    if found is None:
        return NO_LEADER
    try:
        return msgspec.json.decode(found.value, type=Leader)
    except DECODE_ERRORS:
        return NO_LEADER  # somebody else wrote there: it is written over


def _epoch(found: KeyValue | None) -> int:
    text = b"" if found is None else found.value
    return int(text) if text.isdigit() and len(text) <= 12 else 0


__all__ = ["LEASE_MS", "Etcd", "EtcdError", "Leader", "Seen"]
