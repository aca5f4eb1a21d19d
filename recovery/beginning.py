"""Going on with a first primary whose making was broken off: the same command again, over what is there.

Owns the look that tells a beginning from a store. It is one if the directory was made to be the first
primary of a cluster, holds nothing but what the making puts there, and its log has no frame, or the
beginning's alone.
Everything else is left as it is. Invariant: a log that has anything behind its beginning is never begun anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from ..shipping.nodelog import open_node_log
from ..shipping.parted import state_lsn
from ..store import names
from ..store.control import Config, epoch_start_of
from ..store.cursor import LogCursor, list_segments
from ..store.errors import PositionGoneError
from ..store.identity import Identity, has_identity, read_identity
from ..store.log import EventLog
from ..store.opening import OpenOptions, begin_cluster, open_store
from ..store.promise import NO_PROMISE, Promise, read_promise

FIRST_EPOCH: Final = 1
_EMPTY: Final = (names.SNAPSHOTS, names.SLOTS, names.DIVERGED)
_MADE: Final = frozenset(
    {
        names.IDENTITY,
        names.LOG,
        names.ASIDE,
        names.CONTROL_PAGE,
        names.WRITE_LOCK,
        names.SYNC_LOCK,
        names.FOLD_LOCK,
        names.USERS_LOCK,
        names.PROMISE,
        names.STATE,
        names.CONFIG_FILE,
        "lost+found",
        *_EMPTY,
    }
)


def begin_first(store: Path, config: Config, options: OpenOptions) -> None:
    """Make the node of a new directory the first primary of its cluster. Raises as begin_cluster."""
    opened = open_store(store, options)
    try:
        opened.log.lock_any()
        try:
            begin_cluster(opened.log, config)
        finally:
            opened.log.unlock()
    finally:
        opened.close()


def go_on_beginning(
    store: Path, node: str, cluster_id: bytes | None, backend: str, config: Config, options: OpenOptions
) -> Identity | None:
    """Complete what the same making of a first primary began, unless that is whole already.

    Answers who it is; None, with nothing changed, if there is no such beginning. Raises as open_store and
    begin_cluster.
    """
    if not _is_beginning(store, node, cluster_id, backend):
        return None
    opened = open_node_log(store, [])  # who opens the store takes an epoch that has no frame for its own
    try:
        log = opened.log
        log.lock_any()
        try:
            if not log.cursor.at.lsn:
                begin_cluster(log, config)
            elif not _has_begun_only(log, config):
                return None
        finally:
            log.unlock()
    finally:
        opened.close()
    open_store(store, options).close()  # makes the state
    return opened.identity


def _is_beginning(store: Path, node: str, cluster_id: bytes | None, backend: str) -> bool:
    """May it be one, as far as its files tell without being opened?"""
    if not has_identity(store):
        return False
    identity = read_identity(store)
    if not identity.is_first or (identity.node, identity.backend) != (node, backend):
        return False
    if cluster_id not in (None, identity.cluster_id):
        return False
    if any(name.removesuffix(names.TEMPORARY_SUFFIX) not in _MADE for name in os.listdir(store)):
        return False
    if any(os.listdir(store / name) for name in _EMPTY):
        return False
    if read_promise(store) not in (NO_PROMISE, Promise(FIRST_EPOCH, node)):
        return False
    segments = [(file.epoch, file.first_lsn) for file in list_segments(names.log_path(store))]
    if not segments:
        return state_lsn(store) == 0  # a state beyond it had a log
    return segments == [(FIRST_EPOCH, 1)]


def _has_begun_only(log: EventLog, config: Config) -> bool:
    """Is the beginning with this CONFIG all that the log has?"""
    held = msgspec.structs.replace(log.config, changed_lsn=config.changed_lsn, before=config.before)
    if held != config:
        return False
    cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key, log.identity.shard)
    try:
        cursor.seek(0)
        run = cursor.read(limit_bytes=4096)
        return (
            run is not None
            and run.frames[0][1].last_lsn == log.cursor.at.lsn
            and epoch_start_of(run.events(*run.frames[0])) is not None
        )
    except PositionGoneError:
        return False
    finally:
        cursor.close()
