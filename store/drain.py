"""Holding a primary's writers back while another node takes over, in all processes of the node at once.

Owns the page's two words for it. A drain begins under the write lock, so that nobody is in the middle of an
append; whoever takes the lock to write afterwards waits (see LogFollower), and reads go on. It carries a
deadline, ms since boot, at which it ends by itself: whoever began it may have died. A new epoch ends it, too.
"""

from __future__ import annotations

from typing import Final

from .clock import read_boottime_ms
from .errors import LockTimeoutError
from .ids import StatePosition
from .log import EventLog
from .page import Word

DRAIN_MS_MAX: Final = 60_000
"""No switchover holds writers back for longer."""
_UNTIL: Final = int(Word.DRAINED_UNTIL_MS)
_BY: Final = int(Word.DRAINED_BY)


def begin_drain(log: EventLog, number: int, timeout_ms: int) -> StatePosition:
    """Hold writers back for at most `timeout_ms`; answers where the log ends, on disk, and stays until then.

    `number` names the switchover (1 to 2^64 - 1); the same one may ask again, which sets a new deadline.
    Raises NotPrimaryError or FencedError on a node that is not primary, LockTimeoutError if writers did not
    let go of the lock in time, or are held back for another switchover.
    """
    log.lock_any()
    try:
        words, now_ms = log.words, read_boottime_ms()
        if not log.is_primary:
            raise log.not_primary()
        if words[_UNTIL] > now_ms and words[_BY] != number:
            raise LockTimeoutError(
                f"another switchover holds the writers back for {words[_UNTIL] - now_ms} ms more",
                path=log.store,
                hint="Try again when it has ended.",
            )
        words[_BY] = number
        words[_UNTIL] = now_ms + max(1, min(timeout_ms, DRAIN_MS_MAX))
        log.page.bump()
        log.look_again()
        at = log.cursor.at
        log.flush(at.lsn)
        return at
    finally:
        log.unlock()


def end_drain(log: EventLog, number: int) -> bool:
    """Let writers go on, if it is this switchover that holds them back; says whether it was."""
    log.lock_any()
    try:
        words = log.words
        if not words[_UNTIL] or words[_BY] != number:
            return False
        words[_UNTIL] = 0
        log.page.bump()
        log.look_again()
        return True
    finally:
        log.unlock()


def drained_ms(log: EventLog) -> int:
    """For how many ms more writers are held back, 0 if they are not."""
    return max(0, int(log.words[_UNTIL]) - read_boottime_ms()) if log.words[_UNTIL] else 0
