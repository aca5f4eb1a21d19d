"""Logs of small nodes, for the unit tests of shipping: made, written and read in the test's process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from perdure.shipping.nodelog import NodeLog, open_node_log
from perdure.store import Config, Position, begin_cluster, init_store
from perdure.store.cursor import Run, list_segments
from perdure.store.event import Kind, Reason, encode_event
from perdure.store.fold import Fold
from perdure.store.promise import Promise
from perdure.store.session import encode_session

CLUSTER = bytes(range(16))
NOW_MS = 1_700_000_000_000


@contextlib.contextmanager
def opened(path: Path) -> Iterator[NodeLog]:
    node = open_node_log(path, [])
    try:
        yield node
    finally:
        node.close()


def make_node(path: Path, name: str) -> Path:
    init_store(path, node=name, cluster_id=CLUSTER, now_ms=NOW_MS)
    return path


def make_primary(path: Path, name: str = "n1", *, voters: tuple[str, ...] = ("n1", "n2"), k: int = 0) -> Path:
    make_node(path, name)
    with opened(path) as node:
        node.log.lock_any()
        begin_cluster(node.log, Config(voters, k))
        node.log.unlock()
    return path


def begin_epoch(
    path: Path, name: str, epoch: int, *, voters: tuple[str, ...] = ("n1", "n2"), k: int = 0
) -> None:
    with opened(path) as node:
        node.log.lock_any()
        node.log.start_epoch(Promise(epoch, name), Config(voters, k), "test")
        node.log.unlock()


def write(path: Path, count: int, *, roll: bool = False) -> Position:
    """Append `count` frames of one session each, durable, in a new segment if `roll`; answers the end."""
    with opened(path) as node:
        log = node.log
        log.lock()
        try:
            if roll and log.cursor.header is not None:
                log.begin_segment(log.cursor.header.epoch, log.cursor.header.primary, NOW_MS)
                log.append_control(None, log.config, NOW_MS)
            for _ in range(count):
                at = log.cursor.at
                key, value = f"s{at.lsn}".encode(), stored(at.lsn)
                fold = Fold(lambda _key: None, at.digest, at.session_count)
                fold.apply([(int(Kind.PUT), int(Reason.CREATED), bytes(16), key, value)])
                payload = encode_event(Kind.PUT, Reason.CREATED, bytes(16), key, value)
                log.append(payload, 1, fold.digest, fold.session_count, NOW_MS)
        finally:
            log.unlock()
        log.flush(log.cursor.at.lsn)
        return log.cursor.at.position


def stored(number: int) -> bytes:
    return encode_session(
        version=1,
        created_ms=NOW_MS,
        accessed_ms=NOW_MS,
        timeout_ms=0,
        cap_ms=0,
        priority=2,
        group="",
        tags=(),
        metadata={"number": number},
    )


def runs_of(path: Path, after_lsn: int = 0) -> list[Run]:
    """All runs of a log behind an LSN."""
    with opened(path) as node:
        cursor = node.cursor(is_sparse=False)
        try:
            cursor.seek(after_lsn)
            return list(cursor.runs())
        finally:
            cursor.close()


def end_of(path: Path) -> Position:
    with opened(path) as node:
        return node.log.cursor.at.position


def lose_frames(path: Path) -> None:
    """The last frames of a log's first segment are zeros from now on, and its footer is gone."""
    file = list_segments(path / "log")[0].path
    size = file.stat().st_size
    os.truncate(file, size - 1000)
    os.truncate(file, size)
