"""Changing a cluster's members while it runs, from the primary's own directory.

Owns the steps of a change: under the primary's write lock the newest CONFIG is read, the next one decided
(membership, pure) and appended; then it is waited for until it is committed. The running shipper and every
writer take it from the log. A replica becomes a voter only once it follows closely, so that no write waits
for a copy that is still on its way.

Survives a crash: what was appended is in force, and the same command run again goes on behind it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from ..shipping.nodelog import NodeLog, open_node_log
from ..shipping.slots import STREAMING, read_slots, remove_slot
from ..store.control import Config
from ..store.errors import Indeterminate, NoQuorumError, NotPrimaryError
from ..store.ids import Position
from ..store.page import Word
from .membership import (
    next_config,
    with_member,
    with_policy,
    with_sync_replicas,
    with_voter,
    with_witness,
    without_vote,
)
from .membership import without_node as without

CHANGE_TIMEOUT_MS: Final = 10_000
CATCH_UP_TIMEOUT_MS: Final = 600_000
POLL_MS: Final = 10
Edit = Callable[[Config], Config]


class Membership(msgspec.Struct, frozen=True):
    """Who belongs to a cluster, as the newest CONFIG in one node's log says."""

    node: str
    role: str
    voters: tuple[str, ...]
    witnesses: tuple[str, ...]
    members: dict[str, str]
    sync_replicas: int
    is_auto: bool
    policy: str
    degraded_from: int
    """The k to go back to while the primary goes on alone; 0 while it does not."""
    changed_lsn: int
    is_committed: bool
    """The CONFIG is known to be committed here; the next change may be made."""
    streaming: tuple[str, ...] | None
    """Replicas that follow closely, where the node is primary and ships; None: only the primary knows."""


def list_members(store: str | os.PathLike[str]) -> Membership:
    """The newest CONFIG of a node's log. Raises as open_node_log."""
    with _opened(store) as node:
        return _membership(node)


def add_member(
    store: str | os.PathLike[str],
    name: str,
    address: str,
    *,
    votes: bool = True,
    timeout_ms: int = CATCH_UP_TIMEOUT_MS,
    on_step: Callable[[str], None] | None = None,
) -> Membership:
    """Let a node keep a copy, and let it vote once it follows closely; for a member: another address.

    Raises UsageError, NoQuorumError if the change could not be committed, or the node does not follow
    within `timeout_ms` (it stays a member that does not vote; the same call goes on from there),
    NotPrimaryError, Indeterminate if the change is in the log and nobody has confirmed it yet.
    """
    say = on_step or (lambda _step: None)
    with _opened(store) as node:
        config = node.log.config
        if config.members.get(name) != address:
            say("member")
            _change(node, lambda config: with_member(config, name, address))
        if votes and name not in node.log.config.voters:
            say("follow")
            try:
                _await_streaming(node, name, timeout_ms)
            except NoQuorumError as error:
                raise not_in_time(error, timeout_ms) from error
            say("vote")
            _change(node, lambda config: with_voter(config, name))
        return _membership(node)


def await_following(store: str | os.PathLike[str], name: str, *, timeout_ms: int) -> Membership:
    """Wait until a node follows this primary closely. Raises NoQuorumError past the time, NotPrimaryError."""
    with _opened(store) as node:
        _await_streaming(node, name, timeout_ms)
        return _membership(node)


def not_in_time(error: NoQuorumError, timeout_ms: int) -> NoQuorumError:
    """The error of await_following, to whoever has waited for so long in all."""
    text = f"{error.message} (waited {timeout_ms} ms)"
    return NoQuorumError(text, node=error.node, hint=error.hint)


def let_vote(store: str | os.PathLike[str], name: str) -> Membership:
    """Let a member that follows closely vote. Raises as add_member."""
    return _changed(store, lambda config: config if name in config.voters else with_voter(config, name))


def add_witness(store: str | os.PathLike[str], name: str, address: str) -> Membership:
    """Add a voter that keeps promises only. Raises as add_member."""
    return _changed(store, lambda config: with_witness(config, name, address))


def remove_member(store: str | os.PathLike[str], name: str) -> Membership:
    """Take a node out; no log is kept for it any more. Raises as add_member.

    A voter loses its vote first, and goes once that is committed: without a way to it the change could need
    an acknowledgement of the very node that is taken out.
    """
    with _opened(store) as node:
        was_voter = name in node.log.config.voters
        if was_voter:
            _change(node, lambda config: without_vote(config, name))
        if name in node.log.config.members or not was_voter:
            _change(node, lambda config: without(config, name))
        remove_slot(node.store, name)
        return _membership(node)


def set_sync_replicas(store: str | os.PathLike[str], sync_replicas: int | None) -> Membership:
    """Let so many replicas confirm each write; None: a majority of the cluster. Raises as add_member."""
    return _changed(store, lambda config: with_sync_replicas(config, sync_replicas))


def set_policy(store: str | os.PathLike[str], policy: str, *, has_etcd: bool = False) -> Membership:
    """Say what the primary does without its replicas. Raises as add_member."""
    return _changed(store, lambda config: with_policy(config, policy), has_etcd=has_etcd)


def _changed(store: str | os.PathLike[str], edit: Edit, *, has_etcd: bool = False) -> Membership:
    with _opened(store) as node:
        _change(node, edit, has_etcd=has_etcd)
        return _membership(node)


def _with_own(config: Config, node: str) -> Config:
    """A store that was on its own becomes the primary of a cluster."""
    return config if config.voters else msgspec.structs.replace(config, voters=(node,), is_auto=True)


def _change(node: NodeLog, edit: Edit, *, has_etcd: bool = False) -> Position:
    """One change, committed. The decision and the append are under the write lock."""
    log = node.log
    log.lock()
    try:
        config = log.config
        wanted = edit(_with_own(config, node.node))
        if wanted == config:
            return log.cursor.at.position
        changed = next_config(
            config,
            wanted,
            node.node,
            committed_lsn=node.committed_lsn(),
            at_lsn=log.cursor.at.lsn,
            streaming=_streaming(node),
            has_etcd=has_etcd,
        )
        position = log.change_config(changed)
    finally:
        log.unlock()
    _await_committed(node, position)
    return position


def _await_committed(node: NodeLog, position: Position, timeout_ms: int = CHANGE_TIMEOUT_MS) -> None:
    deadline = time.monotonic() + timeout_ms / 1000
    while not node.log.config.is_committed(node.committed_lsn()):
        if time.monotonic() >= deadline:
            raise Indeterminate(
                f"the change is in the log at LSN {position.lsn}, and no replica has confirmed it "
                f"within {timeout_ms} ms",
                position=position,
                operation_id=None,
            )
        time.sleep(POLL_MS / 1000)


def _await_streaming(node: NodeLog, name: str, timeout_ms: int) -> None:
    if not node.log.is_primary:
        raise NotPrimaryError(f"{node.node} is not the primary: nobody follows it", node=node.node)
    deadline = time.monotonic() + timeout_ms / 1000
    while name not in _streaming(node):
        if time.monotonic() >= deadline:
            slot = next((slot for slot in read_slots(node.store) if slot.node == name), None)
            why = f"{slot.state} {slot.error}".strip() if slot else "no shipper has connected to it"
            raise NoQuorumError(
                f"{name} does not follow closely: {why}",
                node=name,
                hint="It is a member that does not vote yet. Start it, then run the same command again.",
            )
        time.sleep(POLL_MS / 1000)


def _streaming(node: NodeLog) -> set[str]:
    if not node.log.words[Word.SHIPPER]:
        return set()
    return {slot.node for slot in read_slots(node.store) if slot.state == STREAMING}


def _membership(node: NodeLog) -> Membership:
    log = node.log
    config = log.config
    return Membership(
        node=node.node,
        role="primary" if log.is_primary else "replica",
        voters=config.voters,
        witnesses=config.witnesses,
        members=config.members,
        sync_replicas=config.sync_replicas,
        is_auto=config.is_auto,
        policy=config.policy,
        degraded_from=config.degraded_from,
        changed_lsn=config.changed_lsn,
        is_committed=config.is_committed(node.committed_lsn()),
        streaming=tuple(sorted(_streaming(node))) if log.is_primary else None,
    )


@contextlib.contextmanager
def _opened(store: str | os.PathLike[str]) -> Iterator[NodeLog]:
    node = open_node_log(Path(store), [])
    try:
        yield node
    finally:
        node.close()
