"""A signal's exception at every point of a call: no lock stays held, and nothing is wrong afterwards.

Python looks for signals at the beginning of a function, behind a call, and at the end of a loop's turn. A
trace function stands for the signal: it raises KeyboardInterrupt at the n-th such point in the store room.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from perdure.store import SessionStore, names
from perdure.store import log as store_log
from perdure.store.fold import HASH_BYTES
from perdure.store.ids import MASK64
from perdure.store.lock import FileLock
from tests.support.machine import stop_background

LOOKS_BEHIND = {
    dis.opmap[name] for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD") if name in dis.opmap
}
ROOM = str(Path(store_log.__file__).parent)
STEP = 20
"""In the short run one of so many points is tried."""


def batch(store: SessionStore, id: str) -> None:
    with store.batch() as several:
        several.create({"n": 1})
        several.put(id, {"n": 2}, None)
        several.create({"n": 3})


CALLS: dict[str, Callable[[SessionStore, str], object]] = {
    "create": lambda store, id: store.create({"n": 9}),
    "update": lambda store, id: store.update(id, lambda session: session.merge({"n": 7})),
    "put": lambda store, id: store.put(id, {"n": 8}, None),
    "get": lambda store, id: store.get(id),
    "touch": lambda store, id: store.touch(id),
    "delete": lambda store, id: store.delete(id),
    "regenerate": lambda store, id: store.regenerate_id(id),
    "batch": batch,
    "flush": lambda store, id: store.flush(),
    "fold": lambda store, id: store.fold(),
    "sweep": lambda store, id: store.cleanup_expired(),
}


class Signal:
    """Raises KeyboardInterrupt at the n-th point, once."""

    def __init__(self, point: int) -> None:
        self.left = point
        self.where = ""
        self._before: dict[int, int] = {}

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> Any:
        if frame.f_back is not None:  # behind a call of a Python function it does not look
            self._before[id(frame.f_back)] = -1
        if not frame.f_code.co_filename.startswith(ROOM) and "/store/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._before[id(frame)] = -1
        self._look(frame)
        return self._local

    def _local(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "opcode":
            before = self._before.get(id(frame))
            self._before[id(frame)] = frame.f_code.co_code[frame.f_lasti]
            if before in LOOKS_BEHIND:
                self._look(frame)
        return self._local

    def _look(self, frame: FrameType) -> None:
        self.left -= 1
        if self.left == 0:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
            raise KeyboardInterrupt


def open_quietly(path: Path, durability: str) -> SessionStore:
    store = SessionStore.open(path, durability=durability, write_timeout_ms=300)
    stop_background(store)
    return store


def all_of(store: SessionStore) -> tuple[int, int]:
    """(how many sessions, their digest), from the records themselves."""
    records = [store._view.read(id.encode()) or b"" for id in store.ids()]
    return len(records), sum(int.from_bytes(record[:HASH_BYTES], "little") for record in records) & MASK64


def leaks(store: SessionStore) -> Iterator[str]:
    log, flusher = store._log, store._log.flusher
    threads = {
        "view": log.mutex,
        "writer": store._writer.threads,
        "fold": store._keeper._fold_threads,
        "flusher": flusher.threads,
    }
    yield from (f"the lock of the {name} is held" for name, lock in threads.items() if lock.locked())
    for name in (names.WRITE_LOCK, names.SYNC_LOCK, names.FOLD_LOCK):
        lock = FileLock(log.store / name)
        if not lock.try_acquire():
            yield f"{name} is held"
        lock.close()
    if flusher.leader or store._writer._writing_thread or store._writer._queue:
        yield "a thread is said to be at work"


def interrupt(path: Path, name: str, point: int) -> str:
    """Interrupt a call at a point, and say where that was, empty if it has fewer. All must be well then."""
    durability = "disk" if name in ("flush", "create") and point % 2 else "os"
    store, other = open_quietly(path, durability), open_quietly(path, "os")
    ids = [store.create({"n": number}) for number in range(3)]
    store.fold()
    store.update(ids[0], lambda session: session.merge({"n": 5}))
    other.create({"o": 1})
    other.update(ids[1], lambda session: session.merge({"o": 2}))
    signal = Signal(point)
    before = sys.gettrace()
    sys.settrace(signal)
    try:
        CALLS[name](store, ids[0])
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    at = f"{name} at point {point}, {signal.where}"
    assert list(leaks(store)) == [], at
    other.create({"z": 1})
    store.create({"z": 2})
    seen = all_of(other)
    assert all_of(store) == seen, at
    assert (store._log.cursor.at.session_count, store._log.cursor.at.digest) == seen, at
    store.fold()
    assert all_of(store) == all_of(other) == seen, at
    store.close()
    other.close()
    (path / names.STATE).rename(path / "gone")
    with SessionStore.open(path) as rebuilt:
        assert all_of(rebuilt) == seen, at
    return signal.where


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_interrupted_leaves_nothing_held_and_nothing_wrong(
    tmp_path: Path, seed: int, name: str
) -> None:
    points = range(1 + seed % STEP, 100_000, STEP)
    tried = 0
    for point in points:
        if not interrupt(tmp_path / str(point), name, point):
            break
        tried += 1
    assert tried


@pytest.mark.lab
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_interrupted_at_any_point_leaves_nothing_held_and_nothing_wrong(
    tmp_path: Path, name: str
) -> None:
    for point in range(1, 100_000):
        if not interrupt(tmp_path / str(point), name, point):
            assert point > 20
            return
