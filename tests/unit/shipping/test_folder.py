"""A folder's state is one that others read: it never holds a part of a fold, also at its very first one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.shipping.folder import Folder
from perdure.shipping.replica_log import ReplicaLog
from perdure.store import init_store
from perdure.store.event import Kind, Reason, encode_event
from perdure.store.fold import Fold, record_of
from perdure.store.promise import Promise
from tests.unit.shipping.logs import CLUSTER, NOW_MS, make_primary, opened, runs_of, stored, write

REIGN = Promise(1, "n1")


class Crash(BaseException):
    """The process dies here."""


def delete(primary: Path, key: bytes, value: bytes) -> None:
    with opened(primary) as node:
        log = node.log
        log.lock()
        try:
            at = log.cursor.at
            fold = Fold({key: record_of(key, value)}.get, at.digest, at.session_count)
            fold.apply([(int(Kind.DELETE), int(Reason.DELETED), bytes(16), key, b"")])
            payload = encode_event(Kind.DELETE, Reason.DELETED, bytes(16), key, b"")
            log.append(payload, 1, fold.digest, fold.session_count, NOW_MS)
        finally:
            log.unlock()
        log.flush(log.cursor.at.lsn)


def ship(primary: Path, replica: Path) -> None:
    """All that the replica lacks, committed."""
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        end = node.log.cursor.at.lsn
        log.append(REIGN, [run.raw for run in runs_of(primary, end)])
        log.commit(node.log.cursor.at.lsn)


def fold_all(folder: Folder) -> None:
    while folder.step():
        pass


def dying_at(call: int, fold: Callable[..., None]) -> Callable[..., None]:
    calls = 0

    def dying(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Crash
        fold(*arguments)

    return dying


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_first_fold_that_breaks_off_leaves_no_session_that_is_deleted_then(
    tmp_path: Path, backend: str, call: int
) -> None:
    primary = make_primary(tmp_path / "n1", k=1)
    replica = tmp_path / "n2"
    init_store(replica, node="n2", cluster_id=CLUSTER, now_ms=NOW_MS, backend=backend)
    folder = Folder(replica)  # which makes the state of an empty log
    fold_all(folder)
    write(primary, 5)
    ship(primary, replica)
    while folder._generation != folder._node.log.words[2]:
        folder.step()
    folder._backend.fold = dying_at(call, folder._backend.fold)  # type: ignore[method-assign]
    with contextlib.suppress(Crash):
        fold_all(folder)
    folder.close()
    delete(primary, b"s2", stored(2))
    ship(primary, replica)
    folder = Folder(replica)
    try:
        fold_all(folder)
        scan = folder._backend.scan()
        keys = [key for key, _ in scan]
        position = scan.position
        scan.close()
    finally:
        folder.close()
    assert keys == [b"s3", b"s4", b"s5", b"s6"]
    assert len(keys) == position.session_count
