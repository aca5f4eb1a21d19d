"""An application beside a node: embeds the node's store, calls it, and keeps a history of its calls.

Owns what is called, and what of it stands in the file: a line when a call begins, one when it is answered. A
call without a second line got no answer, whether it raised Indeterminate or this process was killed in it.
Run as `python -m perdure.cli.demo.caller TASK.json`; SIGTERM ends it after the call under way.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ... import open as open_replicated
from ...store import (
    BusyError,
    NotPrimaryError,
    PerdureError,
    Session,
    SessionNotFoundError,
    SessionStore,
    UsageError,
    VersionConflictError,
)
from .leash import end_with_parent

NOT_DONE = (BusyError, NotPrimaryError, UsageError, VersionConflictError)
"""What a write raises that has changed nothing."""
REFUSED_PAUSE_S = 0.01
TIMEOUT_MS = 3_600_000

Answer = dict[str, Any]


class CallerTask(msgspec.Struct, frozen=True):
    """What one client is to do. The cluster fills the first three in."""

    store: str = ""
    history: str = ""
    caller: str = ""
    seed: int = 0
    keys: int = 20
    """Sessions that all clients change; besides them a fifth as many that come and go."""
    pause_ms: float = 0.0
    """Between two calls, on average."""
    write_timeout_ms: int = 5000
    writes: float = 0.6
    """Which part of the calls writes."""
    plain: float = 0.3
    """Which part of the reads may be stale."""
    has_deletes: bool = True


class Caller:
    """One handle, one call after the other."""

    def __init__(self, task: CallerTask, descriptor: int) -> None:
        self._task = task
        self._random = random.Random(f"{task.seed} {task.caller}")
        self._descriptor = descriptor
        self._number = 0
        self._encode = msgspec.json.Encoder().encode

    def run(self, store: SessionStore, is_stopping: Callable[[], bool]) -> None:
        """Call until told to stop. Raises what makes the handle unfit."""
        task = self._task
        while not is_stopping():
            kind, key = self._choice()
            if not self._call(store, kind, key):
                time.sleep(REFUSED_PAUSE_S)
            elif task.pause_ms:
                time.sleep(self._random.random() * 2 * task.pause_ms / 1000)

    def _choice(self) -> tuple[str, str]:
        chance, task = self._random.random(), self._task
        if chance >= task.writes:
            is_plain = self._random.random() < task.plain
            key = self._key(self._random.random() < 0.2)
            return ("plain" if is_plain else "read"), key
        if task.has_deletes and chance < task.writes * 0.1:
            return ("delete" if chance < task.writes * 0.04 else "create"), self._key(True)
        return ("put" if chance < task.writes * 0.2 else "update"), self._key(False)

    def _key(self, comes_and_goes: bool) -> str:
        task = self._task
        if comes_and_goes and task.has_deletes:
            return f"brief-{self._random.randrange(max(1, task.keys // 5))}"
        return f"steady-{self._random.randrange(task.keys)}"

    def _call(self, store: SessionStore, kind: str, key: str) -> bool:
        """Make one call, with its two lines; answers whether the store did what it was asked."""
        self._number += 1
        value = f"{self._task.caller}.{self._number}"
        begun: Answer = {"n": self._number, "kind": kind, "key": key, "value": value}
        self._write({**begun, "start_ns": time.monotonic_ns()})
        try:
            answer = self._carry_out(store, kind, key, value)
        except NOT_DONE as error:
            answer = {"outcome": "refused", "error": type(error).__name__}
        except PerdureError as error:
            is_read = kind in {"read", "plain"}
            answer = {"outcome": "refused" if is_read else "unknown", "error": repr(error)[:300]}
        if answer["outcome"] != "unknown":
            answer["end_ns"] = time.monotonic_ns()
        self._write({"n": self._number, **answer})
        return bool(answer["outcome"] == "ok")

    def _carry_out(self, store: SessionStore, kind: str, key: str, value: str) -> Answer:
        match kind:
            case "update":
                return self._update(store, key, value)
            case "put":
                session = store.put(key, {"v": value}, TIMEOUT_MS, sliding=True)
                return {"outcome": "ok", "version": session.version}
            case "create":
                store.put(key, {"v": value}, TIMEOUT_MS, sliding=True, if_version=0)
                return {"outcome": "ok"}
            case "delete":
                return {"outcome": "ok", "was_there": store.delete(key)}
            case "read":
                return _seen(store.get(key, linearizable=True))
            case _:
                return _seen(store.peek(key))

    def _update(self, store: SessionStore, key: str, value: str) -> Answer:
        found: list[str] = []

        def change(session: Session) -> Session:
            found.append(session.metadata["v"])
            return session.merge({"v": value})

        try:
            session = store.update(key, change)
        except SessionNotFoundError:
            return {"outcome": "ok", "kind": "read"}
        return {"outcome": "ok", "seen": found[-1], "version": session.version}

    def _write(self, line: Answer) -> None:
        os.write(self._descriptor, self._encode(line) + b"\n")


def _seen(session: Session | None) -> Answer:
    if session is None:
        return {"outcome": "ok"}
    return {"outcome": "ok", "seen": session.metadata["v"], "version": session.version}


def main() -> None:
    end_with_parent()
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.append(True))
    task: CallerTask = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=CallerTask)
    with open_replicated(task.store, create=False, write_timeout_ms=task.write_timeout_ms) as store:
        descriptor = os.open(task.history, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # says: ready
        Caller(task, descriptor).run(store, lambda: bool(stopping))


if __name__ == "__main__":
    main()
