"""A node whose history differs becomes a replica: what would happen, and having it done.

Owns finding the primary among the peers, the dry run, and the wait. The decision itself is shipping's, and so
is all that is done: the primary's shipper comes to this node's receiver, again and again, and does what the
permission that is written here allows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from ..shipping.asking import NodeClient
from ..shipping.credentials import Secret
from ..shipping.faults import read_fault
from ..shipping.messages_rejoin import FactsReply
from ..shipping.nodelog import NodeLog, open_node_log
from ..shipping.permission import Permission, end_permission, give_permission
from ..shipping.rejoin_facts import own_facts, primary_facts
from ..shipping.rejoin_plan import Bootstrap, Follow, Outcome, Refuse, TakeKeys, Truncate, decide_rejoin
from ..store import names
from ..store.errors import DivergedError, NotPrimaryError, PerdureError, UsageError, WireError
from ..store.event import Kind
from ..store.identity import read_identity
from ..store.ids import Position
from .reach import Reach
from .rebuild_log import rebuild_log

POLL_S: Final = 0.1
WAYS: Final[Mapping[type, str]] = {
    Follow: "follow",
    Truncate: "truncate",
    TakeKeys: "take-keys",
    Bootstrap: "bootstrap",
    Refuse: "refused",
}
"""How each outcome of the decision is told."""


class RejoinReport(msgspec.Struct, frozen=True):
    """What a rejoin does, or would do."""

    node: str
    primary: str
    way: str
    """One of WAYS."""
    why: str
    """Why a snapshot is needed, or why it is refused; empty if there is nothing to say."""
    end: Position
    fork_lsn: int | None
    """The last position in common; None if none is known."""
    exported_events: int
    """Behind the fork: what `diverged/` keeps."""
    exported_sessions: int
    exported_bytes: int
    is_done: bool


def plan_rejoin(
    store: str | os.PathLike[str],
    peers: Mapping[str, tuple[str, int]],
    secret: Secret = b"",
    *,
    slot_budget_bytes: int = 4 << 30,
    permission: Permission | None = None,
    is_automatic: bool = True,
) -> RejoinReport:
    """Say what would happen if the node of `store` met the primary now. Changes nothing.

    `permission` is what it would be told (see rejoin). Raises UsageError without peers, WireError if no peer
    answers, NotPrimaryError if none of them is primary, CorruptError or PoisonedError for the node's own log.
    """
    node = open_node_log(Path(store), [])
    try:
        told = _find_primary(node, peers, secret)
        facts = own_facts(node, is_automatic=is_automatic)
        if permission is not None:
            facts = msgspec.structs.replace(
                facts,
                is_automatic=True,
                is_forced=facts.is_forced or permission.is_forced,
                is_sound=facts.is_sound and not permission.is_anew,
            )
        outcome = decide_rejoin(facts, primary_facts(told, slot_budget_bytes))
        return _report(node, told.node, outcome)
    finally:
        node.close()


def rejoin(
    store: str | os.PathLike[str],
    peers: Mapping[str, tuple[str, int]],
    secret: Secret = b"",
    *,
    force: bool = False,
    anew: bool = False,
    timeout_s: float = 60.0,
    slot_budget_bytes: int = 4 << 30,
    on_step: Callable[[str], None] | None = None,
) -> RejoinReport:
    """Have the node of `store` become a replica of the primary, and wait until its log is the primary's.

    The node's receiver and the primary's shipper run. `force` gives up what was committed only here (it is
    exported), `anew` replaces log and state by a snapshot. Answers what was done. Raises as plan_rejoin,
    DivergedError if it is refused, WireError past the deadline; what was begun then goes on by itself.
    """
    path = Path(store)
    permission = Permission(force, anew)
    if anew:
        rebuild_log(path, Reach(peers, secret))
    report = plan_rejoin(path, peers, secret, slot_budget_bytes=slot_budget_bytes, permission=permission)
    if report.way == WAYS[Refuse]:
        raise DivergedError(
            f"{report.node} cannot rejoin {report.primary}: {report.why}",
            path=path,
            hint="Compare both nodes; `--force` exports what is only here and goes over to the primary.",
        )
    if report.way == WAYS[Follow]:
        return msgspec.structs.replace(report, is_done=True)
    if on_step is not None:
        on_step(report.way)
    give_permission(path, permission)
    deadline = time.monotonic() + timeout_s
    try:
        while not _is_back(path, peers, secret):
            if time.monotonic() > deadline:
                raise WireError(
                    f"{report.node} has not rejoined within {timeout_s:g} s",
                    node=report.node,
                    hint="Its receiver and the primary's shipper must run; see `perdure status` on both.",
                )
            time.sleep(POLL_S)
    finally:
        end_permission(path)
    return msgspec.structs.replace(report, is_done=True)


def _is_back(path: Path, peers: Mapping[str, tuple[str, int]], secret: Secret) -> bool:
    if read_fault(path) or (path / names.REJOIN_ALLOWED).exists():
        return False
    try:
        return plan_rejoin(path, peers, secret).way == WAYS[Follow]
    except PerdureError:
        return False  # it is at it


def _find_primary(node: NodeLog, peers: Mapping[str, tuple[str, int]], secret: Secret) -> FactsReply:
    """The facts of the peer that is primary, in the newest epoch if several think so."""
    if not peers:
        raise UsageError("the primary is not known", hint="Give --peer NODE=HOST:PORT for the other nodes.")
    found: list[FactsReply] = []
    unheard: list[str] = []
    for name, (host, port) in peers.items():
        try:
            with NodeClient(
                host, port, cluster_id=read_identity(node.store).cluster_id, secret=secret
            ) as client:
                told = client.rejoin_facts()
        except PerdureError as error:
            unheard.append(f"{name}: {error.message}")
            continue
        if told.is_primary:
            found.append(told)
    if found:
        newest = max(found, key=lambda told: told.end[0])
        if node.log.is_primary and newest.end[0] <= node.log.cursor.at.epoch:
            raise UsageError(f"{node.node} is the primary itself", hint="Only a replica rejoins.")
        return newest
    if len(unheard) == len(peers):
        raise WireError(f"no peer answers ({'; '.join(unheard)})", hint="Start the other nodes.")
    if node.log.is_primary:
        raise UsageError(
            f"{node.node} is the primary itself, and no peer that answers is one",
            hint="Only a replica rejoins. If another node was promoted, start that one first.",
        )
    raise NotPrimaryError(
        f"none of the peers that answer is primary ({'; '.join(unheard) or ', '.join(peers)})",
        hint="`perdure status` on each; `perdure promote` makes one of them the primary.",
    )


def _report(node: NodeLog, primary: str, outcome: Outcome) -> RejoinReport:
    fork = None if isinstance(outcome, Follow) else outcome.fork
    has_parted = not isinstance(outcome, Follow) and (
        not isinstance(outcome, Bootstrap) or outcome.has_parted
    )
    events, sessions, size = _behind(node, fork.lsn if fork else 0) if has_parted else (0, 0, 0)
    return RejoinReport(
        node=node.node,
        primary=primary,
        way=WAYS[type(outcome)],
        why=outcome.why if isinstance(outcome, (Bootstrap, Refuse)) else "",
        end=node.log.cursor.at.position,
        fork_lsn=fork.lsn if fork else None,
        exported_events=events,
        exported_sessions=sessions,
        exported_bytes=size,
        is_done=False,
    )


def _behind(node: NodeLog, lsn: int) -> tuple[int, int, int]:
    """(events, sessions, bytes) behind an LSN of a node's log; control events do not count."""
    cursor = node.cursor(is_sparse=False)
    events = size = 0
    keys: set[bytes] = set()
    try:
        cursor.seek(max(lsn, node.oldest_lsn() - 1))
        for run in cursor.runs():
            size += len(run.raw)
            for offset, frame in run.frames:
                for kind, _, _, key, value in run.events(offset, frame):
                    if kind < Kind.EPOCH_START:
                        events += 1
                        keys |= {key, value} if kind == Kind.RENAME else {key}
    finally:
        cursor.close()
    return events, len(keys), size
