"""Transferring sessions to a node on demand: it has them on disk, and they are the same there.

Owns what that means for a replica that follows the log: its log reaches the sessions' last changes, and its
records are those of the primary at one position. Where they differ the node is reconciled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from ..store.errors import NotPrimaryError, UsageError
from .consistency import reconcile
from .locate import find_last_change, key_of
from .node_sessions import OwnSessions, PeerSessions
from .reach import Reach
from .reconcile import Comparison, differing_keys
from .report import NodeReport, report_node
from .source import open_source
from .syncing import PENDING_SYNCS_MAX, OnLook, SyncReport, sync_to

Store: TypeAlias = "str | os.PathLike[str]"


class TransferReport(msgspec.Struct, frozen=True):
    """What a transfer came to."""

    node: str
    sessions: int | None
    """How many were asked for; None: all."""
    not_in_log: list[str]
    """Ids of which the log holds no change: there is no such session, or it is older than the log."""
    sync: SyncReport
    differing: list[str]
    """Ids that were not the same there, at first."""
    comparison: Comparison | None
    """Of all sessions, here and there: where all were asked for, or some differed."""
    not_asked: list[str]
    """Other nodes that keep the log, of which nothing is said here."""
    elapsed_ms: int

    @property
    def is_done(self) -> bool:
        """Does the node have them on disk, and are they the same now?"""
        if not self.sync.is_synced:
            return False
        if self.comparison is None:
            return not self.differing
        compared = {verdict.node for verdict in self.comparison.nodes}
        return self.node in compared and self.comparison.is_consistent


def force_transfer(
    store: Store,
    to: str,
    reach: Reach,
    *,
    ids: Sequence[str] | None,
    timeout_ms: int,
    repairs: bool = True,
    on_look: OnLook | None = None,
) -> TransferReport:
    """Make sure that a node has these sessions (None: all), on disk and as the primary has them.

    Ids are as they stand in the log (see `stored_as`), at most PENDING_SYNCS_MAX at once. Runs on the
    primary; without `repairs` differences are only told. Raises UsageError (also for this node itself and
    for a witness), NotPrimaryError, and as reconcile.
    """
    started = time.monotonic()
    _check_roles(report_node(Path(store), is_brief=True), to)
    if to not in reach.peers:
        raise UsageError(f"the address of {to} is not known", node=to, hint="Give --peer NODE=HOST:PORT.")
    if ids is not None and not 1 <= len(ids) <= PENDING_SYNCS_MAX:
        raise UsageError(f"1 to {PENDING_SYNCS_MAX} sessions are transferred at once, not {len(ids)}")
    only = msgspec.structs.replace(reach, peers={to: reach.peers[to]})
    keys = {id: key_of(id) for id in ids or ()}
    source = open_source(store)
    own = source.identity.node
    changes = {id: find_last_change(source, key) for id, key in keys.items()}
    lsn = None if ids is None else max((change.lsn for change in changes.values() if change), default=0)
    sync = sync_to(store, to, only, lsn=lsn, timeout_ms=timeout_ms, on_look=on_look)
    differing: list[str] = []
    comparison: Comparison | None = None
    if sync.is_synced and ids is not None:
        here = OwnSessions(Path(store), own)
        with only.server(to, source.identity.cluster_id) as server:
            found = set(differing_keys(here, PeerSessions(server, to), list(keys.values())))
        differing = [id for id, key in keys.items() if key in found]
    if sync.is_synced and (ids is None or differing):
        comparison = reconcile(store, only, repairs=repairs)
        asked = [verdict for verdict in comparison.nodes if verdict.node in (own, to)]
        comparison = msgspec.structs.replace(comparison, nodes=asked)
    return TransferReport(
        node=to,
        sessions=None if ids is None else len(ids),
        not_in_log=[id for id, change in changes.items() if change is None],
        sync=sync,
        differing=differing,
        comparison=comparison,
        not_asked=sorted({*report_node(Path(store), is_brief=True).expected} - {own, to}),
        elapsed_ms=round((time.monotonic() - started) * 1000),
    )


def _check_roles(known: NodeReport, to: str) -> None:
    """Refuse what would be waited for in vain."""
    if not known.is_primary:
        raise NotPrimaryError(
            f"{known.node} is not the primary, from which sessions are transferred",
            node=known.node,
            hint=f"Run it on {known.primary}." if known.primary else "See `perdure status`: who is primary.",
        )
    if to == known.node:
        raise UsageError(f"{to} is the primary itself", hint="Name a replica.")
    if to in known.witnesses:
        raise UsageError(f"{to} is a witness: it keeps promises, and no sessions", hint="Name a replica.")
