"""Turns at the write lock: who has it writes on for a while, then whoever has waited longest is let in.

Owns how a process waits for the write lock, and the words of the control page by which those that wait and
those that write agree. Whoever has just released the lock is the most likely to get it again: good, because
that one has followed the log and its caches are warm, and bad for those that wait. So the first in line,
which has waited longest, asks for a turn now and then; the others sleep longer meanwhile.

Invariant: every word is a time that passes, so that a process that was killed holds nobody up for long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from .lock import FileLock
from .page import Word

TURN_AFTER_NS = 4_000_000
"""A writer that waits so long for the write lock asks the others to let it in."""
TURN_EVERY_NS = 4_000_000
"""No turn is asked for so soon behind another: each costs a switch between processes, and cold caches."""
TURN_NS = 2_000_000
"""A request ends by itself after this time."""
GIVE_WAY_S = 0.0001
"""How often a writer that was asked looks whether the turn was taken."""
LINE_AFTER_NS = 1_000_000
"""Who has waited so long stands in line: only the first in it tries for the lock."""
FIRST_NS = 10_000_000
"""A first in line that has not looked for so long counts for nothing."""
FIRST_S = 0.0005
"""How often the first in line looks at the lock."""
ASKED_S = 0.00005
"""The same once it has asked for a turn: the lock is free in a moment, and nobody else takes it."""
BEHIND_S = 0.003
"""How often those behind it look at the line."""
_YIELDS = 4
_SLEEP_S_MIN = 0.00005
_SLEEP_S_MAX = 0.0002
_TURN = int(Word.TURN)
_GIVEN = int(Word.TURN_GIVEN)
_FIRST = int(Word.FIRST_SINCE)
_LOOKED = int(Word.FIRST_LOOKED)
_OWNER = int(Word.OWNER)


def acquire(lock: FileLock, words: Any, timeout_ms: int, read_on: Callable[[], None]) -> None:
    """Take the write lock within `timeout_ms`.

    `read_on` is called between tries, so that little is left to do under the lock; what it raises comes
    through. Raises LockTimeoutError, which names the process that has the lock.
    """
    if lock.try_acquire():
        return
    for _ in range(_YIELDS):
        os.sched_yield()
        if lock.try_acquire():
            return
    sleep_s = _SLEEP_S_MIN
    began_ns = now_ns = time.monotonic_ns()
    while (waited_ns := now_ns - began_ns) < timeout_ms * 1_000_000:
        if waited_ns < LINE_AFTER_NS:
            read_on()
            if not _is_asked(words, now_ns) and lock.try_acquire():
                return
            time.sleep(sleep_s)
            sleep_s = min(sleep_s * 1.5, _SLEEP_S_MAX)
        elif words[_FIRST] < began_ns and 0 <= now_ns - words[_LOOKED] < FIRST_NS:
            time.sleep(BEHIND_S)
        else:
            words[_FIRST] = began_ns
            words[_LOOKED] = now_ns
            read_on()
            if waited_ns >= TURN_AFTER_NS and not 0 <= now_ns - words[_GIVEN] < TURN_EVERY_NS:
                words[_TURN] = time.monotonic_ns() + TURN_NS
            if lock.try_acquire():
                _take_turn(words)
                return
            time.sleep(ASKED_S if words[_TURN] else FIRST_S)
        now_ns = time.monotonic_ns()
    raise lock.timed_out(timeout_ms, f"process {words[_OWNER]}")


def give_way(words: Any) -> None:
    """Another writer waited long for the lock: let it go first. A stale request counts for nothing."""
    now_ns = time.monotonic_ns()
    until_ns = now_ns + TURN_NS  # others may ask anew meanwhile: once is enough
    while _is_asked(words, now_ns) and now_ns < until_ns:
        time.sleep(GIVE_WAY_S)
        now_ns = time.monotonic_ns()
    words[_TURN] = 0


def _is_asked(words: Any, now_ns: int) -> bool:
    return bool(0 < words[_TURN] - now_ns <= TURN_NS)


def _take_turn(words: Any) -> None:
    """The first in line has the lock: the next one looks, and waits for a turn of its own."""
    words[_LOOKED] = 0
    if words[_TURN]:
        words[_GIVEN] = time.monotonic_ns()
        words[_TURN] = 0
