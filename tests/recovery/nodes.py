"""Nodes of a small cluster as directories, without processes or sockets.

Owns how tests make a primary, let replicas have its log byte for byte, and answer for voters the way a
receiver does: promise and position under the write lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from perdure.recovery import Answer, VoterState
from perdure.shipping.nodelog import NodeLog, open_node_log
from perdure.store import (
    Config,
    Position,
    PositionGoneError,
    Promise,
    PromiseRefusedError,
    WireError,
    begin_cluster,
    init_store,
)
from perdure.store.event import Kind, Reason, encode_event
from perdure.store.fold import Fold
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


def make_primary(path: Path, name: str, voters: Iterable[str], sync_replicas: int) -> Path:
    make_node(path, name)
    with opened(path) as node:
        node.log.write_lock.acquire(1000)
        begin_cluster(node.log, Config(tuple(voters), sync_replicas))
        node.log.write_lock.release()
    return path


def write(path: Path, count: int, *, prefix: str = "s", now_ms: int = NOW_MS) -> Position:
    """Append `count` frames of one session each; durable."""
    with opened(path) as node:
        log = node.log
        log.lock()
        try:
            for number in range(count):
                at = log.cursor.at
                key = f"{prefix}{at.lsn}".encode()
                fold = Fold(lambda _key: None, at.digest, at.session_count)
                value = stored(number, now_ms)
                fold.apply([(int(Kind.PUT), int(Reason.CREATED), bytes(16), key, value)])
                payload = encode_event(Kind.PUT, Reason.CREATED, bytes(16), key, value)
                log.append(payload, 1, fold.digest, fold.session_count, now_ms + number)
        finally:
            log.unlock()
        log.flush(log.cursor.at.lsn)
        return log.cursor.at.position


def stored(number: int, now_ms: int = NOW_MS) -> bytes:
    return encode_session(
        version=1,
        created_ms=now_ms,
        accessed_ms=now_ms,
        timeout_ms=0,
        cap_ms=0,
        priority=2,
        group="",
        tags=(),
        metadata={"number": number},
    )


def replicate(source: Path, target: Path, upto_lsn: int = 1 << 62) -> Position:
    """Give a replica the log of a primary, byte for byte, up to a frame end."""
    with opened(source) as giver, opened(target) as taker:
        cursor = giver.cursor()
        log = taker.log
        log.lock_any()
        try:
            cursor.seek(log.cursor.at.lsn)
            while run := cursor.read(upto_lsn):
                header = cursor.header
                assert header is not None
                ours = log.cursor.header
                if ours is None or (ours.first_lsn, ours.epoch) != (header.first_lsn, header.epoch):
                    log.give_promise(Promise(header.epoch, header.primary))
                    log.begin_segment(header.epoch, header.primary, NOW_MS)
                log.append_run(run)
            log.flush(log.cursor.at.lsn)
            return log.cursor.at.position
        finally:
            log.unlock()
            cursor.close()


class DirectoryVoters:
    """The Voters port over directories; a voter that is not there does not answer."""

    def __init__(self, places: dict[str, Path], *, faults: dict[str, str] | None = None) -> None:
        self.places = places
        self.faults = faults or {}
        self.asked: list[str] = []

    def state(self, node: str) -> VoterState:
        with self._node(node) as open_node:
            log = open_node.log
            role = "primary" if log.is_primary else "replica"
            end = open_node.end_on_disk()
            return VoterState(node, role, end, 0, log.promise, self.faults.get(node, ""))

    def promise(self, node: str, asked: Promise) -> Answer:
        self.asked.append(node)
        with self._node(node) as open_node:
            log = open_node.log
            log.lock_any()
            try:
                try:
                    log.give_promise(asked)
                except PromiseRefusedError as error:
                    return Answer(node, log.cursor.at.position, False, refusal=error.message)
                log.flush(log.cursor.at.lsn)
                return Answer(node, log.cursor.at.position, True, self.faults.get(node, ""))
            finally:
                log.unlock()

    def fetch(self, node: str, after: Position, limit_bytes: int = 1 << 20) -> Iterator[bytes]:
        with self._node(node) as open_node:
            cursor = open_node.cursor()
            try:
                cursor.seek(after.lsn)
                if after.lsn and cursor.at.position != after:
                    raise PositionGoneError(f"{after} is not in this log", lsn=after.lsn)
                while run := cursor.read(limit_bytes=limit_bytes):
                    yield run.raw
            finally:
                cursor.close()

    @contextlib.contextmanager
    def _node(self, node: str) -> Iterator[NodeLog]:
        if node not in self.places:
            raise WireError("connection refused", node=node)
        with opened(self.places[node]) as open_node:
            yield open_node
