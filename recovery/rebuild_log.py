"""A node whose own log is damaged is made anew from the primary, where that can lose nothing.

Owns whether it may: somebody else is the primary, of an epoch that this node would accept, and whatever this
node acknowledged is in that primary's log. How it is done, and what the node may not do meanwhile, is
shipping's (rebuild).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..shipping.messages import StatusReply
from ..shipping.nodelog import now_ms, take_process_lock
from ..shipping.permission import Permission, give_permission, read_permission
from ..shipping.rebuild import begin_rebuild, read_log_fault
from ..store import names
from ..store.control import Config
from ..store.errors import (
    DivergedError,
    FormatError,
    NotPrimaryError,
    StorageError,
    StoreInUseError,
    UsageError,
)
from ..store.promise import Promise, read_promise
from .reach import Reach
from .source import Source, newest_config, open_source

HINT: Final = "Nothing was changed. `perdure verify` says what is damaged; see which node has what."


def rebuild_log(store: str | os.PathLike[str], reach: Reach) -> str:
    """Have a node whose log is damaged made anew by the primary; answers what was done, empty if nothing.

    The damaged log is kept in `aside/`. If the node's receiver runs, it lets the primary replace the log.
    Raises NotPrimaryError if no other node that answers is the primary, DivergedError if this node may have
    what that primary has not, UsageError if it is the primary itself, and as shipping's begin_rebuild.
    """
    path = Path(store)
    why = read_log_fault(path)
    if not why:
        return ""
    source = open_source(path)
    primary = _find_primary(source, reach, read_promise(path))
    refusal = reason_against(source.identity.node, last_primary(source), newest_config(source), primary)
    if refusal:
        raise DivergedError(f"the log is damaged ({why}), and {refusal}", path=path, hint=HINT)
    try:
        lock = take_process_lock(path, names.RECEIVER_LOCK)
    except StoreInUseError:
        if read_permission(path) is None:
            give_permission(path, Permission(is_anew=True))
        return f"{primary.node} replaces the log"
    try:
        folder = begin_rebuild(path, why, now_ms())
    finally:
        lock.close()
    return f"{primary.node} makes the log anew; the damaged one is in {folder}"


def reason_against(node: str, wrote_last: str, config: Config, primary: StatusReply) -> str:
    """Why the node must not give up its log, empty if nothing speaks against it. Pure.

    `wrote_last` is the primary of the epoch in which its log ends, `config` the newest CONFIG that can be
    read there; both are empty if they cannot. What the primary itself wrote it has; what others wrote it has
    if that was committed, which needed more than one log.
    """
    if wrote_last == primary.node or (config.voters and config.electors.sync_replicas > 0):
        return ""
    whose = (
        "this node's own writes" if wrote_last == node else f"writes of {wrote_last or 'a former primary'}"
    )
    return f"with sync_replicas = 0 it may hold {whose} that {primary.node} does not have"


def last_primary(source: Source) -> str:
    """Who wrote the newest segment, as its header says; empty if that cannot be read."""
    files = source.segments()
    cursor = source.cursor()
    try:
        if files:
            cursor.open_segment(files[-1])
        return cursor.header.primary if cursor.header else ""
    except (FormatError, StorageError):
        return ""
    finally:
        cursor.close()


def _find_primary(source: Source, reach: Reach, promise: Promise) -> StatusReply:
    node, cluster_id = source.identity.node, source.identity.cluster_id

    def status(name: str) -> StatusReply:
        with reach.connect(name, cluster_id) as client:
            return client.status()

    answers = [
        answer
        for name, answer in reach.ask_all(status).items()
        if isinstance(answer, StatusReply) and answer.node == name and answer.role == "primary"
    ]
    best = max(answers, key=lambda answer: answer.end[0], default=None)
    if best is None or best.end[0] < promise.epoch:
        raise NotPrimaryError(
            f"the log of {node} is damaged, and no other node that answers is the primary",
            path=source.store,
            node=node,
            hint="Start the primary; if there is none, `perdure promote` another node.",
        )
    if promise.candidate == node and best.end[0] == promise.epoch:
        raise UsageError(f"{node} is the primary itself", hint=HINT)
    return best
