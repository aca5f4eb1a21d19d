"""Several processes write one store while some are killed with -9 at any instruction."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perdure.store import NOWHERE, SessionStore
from perdure.store.backends import open_backend
from perdure.store.cursor import LogCursor
from perdure.store.rebuild import replay

PROCESSES = 4
SECONDS = 4.0
PATIENCE_S = 60.0
CALLS_MIN = 400
"""A lock bug can lose nothing and only show in how little gets done."""


def start(store: Path, ledger: Path, seed: int, durability: str, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.crash.writer_process",
            store,
            ledger,
            str(seed),
            str(seconds),
            durability,
        ],
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


def read_ledger(path: Path) -> tuple[dict[str, list[int]], dict[str, int], list[str]]:
    """(values attempted by key in order, index of the last acknowledged attempt by key, done lines)."""
    attempts: dict[str, list[int]] = {}
    acked: dict[str, int] = {}
    done = []
    for line in path.read_text().splitlines():
        words = line.split()
        if words[0] == "attempt":
            attempts.setdefault(words[1], []).append(int(words[2]))
        elif words[0] == "ack":
            acked[words[1]] = len(attempts[words[1]]) - 1
        else:
            done.append(line)
    return attempts, acked, done


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_nothing_acknowledged_is_lost_when_writers_are_killed(
    tmp_path: Path, durability: str, seed: int
) -> None:
    rng = random.Random(seed)
    store = tmp_path / "store"
    SessionStore.open(store).close()
    ledgers: list[Path] = []
    running: list[subprocess.Popen[bytes]] = []
    errors: list[bytes] = []
    deadline = time.monotonic() + SECONDS
    number = 0
    try:
        while _goes_on(deadline, ledgers, waits=durability == "disk"):
            while len(running) < PROCESSES:
                number += 1
                ledgers.append(tmp_path / f"ledger-{number}")
                left = deadline - time.monotonic()
                running.append(start(store, ledgers[-1], number, durability, max(0.5, left)))
            time.sleep(rng.uniform(0.2, 0.5))
            if not _acknowledged(ledgers[-PROCESSES:]) and time.monotonic() < deadline + PATIENCE_S:
                continue  # on a busy machine they may all be at their start still
            victim = running.pop(rng.randrange(len(running)))
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
        for process in running:
            _, err = process.communicate(timeout=60)
            if process.returncode:
                errors.append(err)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert errors == []
    calls = check(store, ledgers)
    assert calls >= CALLS_MIN


def _goes_on(deadline: float, ledgers: list[Path], *, waits: bool) -> bool:
    """Until the time is over; where each call waits for a disk, which may be slow, until there is enough."""
    left = deadline - time.monotonic()
    return left > 0 or (waits and left > -PATIENCE_S and _acknowledged(ledgers) < CALLS_MIN)


def _acknowledged(ledgers: list[Path]) -> int:
    return sum(ledger.read_text().count("ack ") for ledger in filter(os.path.exists, ledgers))


def check(store: Path, ledgers: list[Path]) -> int:
    """Every ledger against the store; answers how many calls were acknowledged."""
    with SessionStore.open(store, create=False) as opened:
        found = {id: session.metadata["n"] for id in opened.ids() if (session := opened.peek(id))}
        known: set[str] = set()
        for ledger in filter(os.path.exists, ledgers):
            attempts, acked, _ = read_ledger(ledger)
            known |= attempts.keys()
            for key, values in attempts.items():
                allowed = values[acked[key] :] if key in acked else [0, *values]
                assert found.get(key, 0) in allowed, (
                    f"{key}: {found.get(key)} of {values}, acked {acked.get(key)}"
                )
        assert found.keys() <= known, "sessions that nobody ever wrote"
        before = (opened.position(), opened.stats()["digest"], opened.count())
        assert replayed(store, opened, store.parent / "replayed") == before
    with SessionStore.open(store, create=False) as again:
        assert (again.position(), again.stats()["digest"], again.count()) == before
    return _acknowledged(ledgers)


def replayed(store: Path, opened: SessionStore, target: Path) -> tuple[object, str, int]:
    """Position, digest and count of a replay of the whole log into an empty back end."""
    log = opened._log
    backend = open_backend("lmdb", target)
    cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key)
    try:
        end = replay(backend, cursor, NOWHERE).end
    finally:
        cursor.close()
        backend.close()
    return end.position, f"{end.digest:016x}", end.session_count
