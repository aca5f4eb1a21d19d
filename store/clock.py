"""Session time: what the clock says by which sessions are stamped and expire, and frames are dated.

Owns where that time comes from. It is the machine's time since boot (which a stepped wall clock does not
move, and which counts suspension) plus an offset that the node's processes share in the control page. The
offset follows the wall clock slowly on a primary, and the primary's time on a replica. Knows no session.

Invariant: within one boot session time goes on at 7/8 to 9/8 of real speed on a primary, whatever is
done to the wall clock; it never begins before the time of the last frame in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from time import clock_gettime_ns, monotonic_ns, time_ns
from typing import TYPE_CHECKING, Final

from .page import ControlPage, Word
from .segment import HEADER_BYTES as SEGMENT_HEADER_BYTES

if TYPE_CHECKING:
    from .follow import LogFollower
    from .ports import Clock

SLEW_DIVISOR: Final = 8
"""Session time moves towards the wall clock by at most one ms in so many."""
SLEW_EVERY_MS: Final = 100
SLEWED_MS_MAX: Final = 1_000
"""The longest time for which one step makes up: nobody who looks at the clock after hours is stepped."""
DOWNTIME_MS_MAX: Final = 900_000
"""After a boot: a wall clock that is ahead of the log by no more than this is believed."""
WRONG_MS_MAX: Final = 3_600_000
"""After a boot: one that is further ahead may be wrong by so much."""
LATE_MS_MAX: Final = 10_000
"""A replica whose time is ahead of what its primary says by no more than this may have heard it late."""
_SUSPENDED_NS_MIN: Final = 100_000_000
_LOOKS_MAX: Final = 8
_OFFSET: Final = int(Word.SESSION_OFFSET_MS)
_SLEWED: Final = int(Word.SLEWED_MS)
_BOOTTIME: Final = time.CLOCK_BOOTTIME


def read_wall_ms() -> int:
    """The machine's wall clock, ms since 1970."""
    return time_ns() // 1_000_000


def read_boottime_ms() -> int:
    """Time since boot, ms, suspension included."""
    return clock_gettime_ns(_BOOTTIME) // 1_000_000


def time_after_boot(log_ms: int, wall_ms: int) -> int:
    """The session time with which a boot begins. Pure.

    `log_ms` is the time of the last frame in the log, 0 for none. A wall clock a little ahead of it counts
    as downtime. One that is further ahead may be right, or have been set wrong by up to an hour while
    nobody looked: what is beyond that hour has surely passed, the rest is made up for slowly.
    """
    if not log_ms or 0 <= wall_ms - log_ms <= DOWNTIME_MS_MAX:
        return wall_ms
    return max(log_ms, wall_ms - WRONG_MS_MAX)


def slewed(session_ms: int, wall_ms: int, elapsed_ms: int) -> int:
    """Session time moved towards the wall clock, as `elapsed_ms` since the last step allow. Pure."""
    limit_ms = min(max(elapsed_ms, 0), SLEWED_MS_MAX) // SLEW_DIVISOR
    return session_ms + max(-limit_ms, min(limit_ms, wall_ms - session_ms))


def followed(session_ms: int, primary_ms: int, elapsed_ms: int) -> int:
    """A replica's session time after it heard its primary's. Pure.

    It is never behind: what was heard has taken its time to come. Ahead, it goes back slowly, since the
    next heartbeat may have been faster; unless it is ahead by more than any delay.
    """
    if primary_ms >= session_ms or session_ms - primary_ms > LATE_MS_MAX:
        return primary_ms
    return slewed(session_ms, primary_ms, elapsed_ms)


class SessionClock:
    """Session time as one process sees it. Safe for threads."""

    def __init__(
        self,
        page: ControlPage,
        wall_ms: Callable[[], int] = read_wall_ms,
        boottime_ms: Callable[[], int] = read_boottime_ms,
    ) -> None:
        self._words = page.signed_words
        self._wall_ms = wall_ms
        self._boottime_ms = boottime_ms
        self._rebase: Callable[[], None] | None = None
        self.now_ms: Callable[[], int] = self.exact_ms
        """Session time. Of the machine's own clocks it is read the fast way: see _fast_clock()."""
        if boottime_ms is read_boottime_ms:
            self.now_ms, self._rebase = _fast_clock(self._words)

    def exact_ms(self) -> int:
        """Session time by the page's offset of this very moment."""
        try:
            return self._boottime_ms() + self._words[_OFFSET]
        except ValueError:  # the page was closed: who asks the store finds that out by itself
            return self._wall_ms()

    def begin(self, log_ms: int) -> None:
        """Session time begins, or goes on if it has begun in this boot. The caller holds the write lock.

        `log_ms` is the time of the last frame in the log, 0 for none.
        """
        words, boottime_ms = self._words, self._boottime_ms()
        if not words[_OFFSET]:
            self._set(time_after_boot(log_ms, self._wall_ms()), boottime_ms)
        self.not_before(log_ms)
        if self._rebase:
            self._rebase()

    def tick(self, *, is_primary: bool) -> None:
        """What has to be done at least every second: on a primary, slew towards the wall clock."""
        words, boottime_ms = self._words, self._boottime_ms()
        elapsed_ms = boottime_ms - words[_SLEWED]
        if is_primary and not 0 <= elapsed_ms < SLEW_EVERY_MS:
            session_ms, wall_ms = boottime_ms + words[_OFFSET], self._wall_ms()
            if abs(wall_ms - session_ms) <= 1:  # both are cut to whole ms, each at its own moment
                wall_ms = session_ms
            self._set(slewed(session_ms, wall_ms, elapsed_ms), boottime_ms)
        if self._rebase:
            self._rebase()

    def follow(self, primary_ms: int) -> None:
        """On a replica: the primary says that this is its session time."""
        words, boottime_ms = self._words, self._boottime_ms()
        elapsed_ms = boottime_ms - words[_SLEWED]
        self._set(followed(boottime_ms + words[_OFFSET], primary_ms, elapsed_ms), boottime_ms)

    def not_before(self, log_ms: int) -> None:
        """A frame of this time is in the log: session time is no earlier."""
        words, boottime_ms = self._words, self._boottime_ms()
        if boottime_ms + words[_OFFSET] < log_ms:
            self._set(log_ms, boottime_ms)

    def _set(self, session_ms: int, boottime_ms: int) -> None:
        # In this order: of two processes that do so at once, the second finds that it has been done.
        self._words[_SLEWED] = boottime_ms
        self._words[_OFFSET] = session_ms - boottime_ms or 1  # 0 says that there is none yet


class GivenClock:
    """Session time as an injected clock tells it: nothing moves it."""

    def __init__(self, clock: Clock) -> None:
        self.now_ms: Callable[[], int] = clock.now_ms

    def begin(self, log_ms: int) -> None:
        """Nothing to do."""

    def tick(self, *, is_primary: bool) -> None:
        """Nothing to do."""


def last_time_ms(log: LogFollower) -> int:
    """Time of the last frame in the log, 0 for an empty one. The caller holds the write lock."""
    cursor, words = log.cursor, log.words
    header, last_ms = cursor.header, cursor.time_ms
    if header is None or cursor.descriptor < 0:
        return last_ms
    offset = words[Word.LAST_FRAME]
    if words[Word.SEGMENT] == header.first_lsn and offset >= SEGMENT_HEADER_BYTES:
        frame, _ = log.frame_at(offset)
        last_ms = max(last_ms, frame.time_ms if frame else 0)
    return last_ms or header.created_ms


def _fast_clock(words: memoryview) -> tuple[Callable[[], int], Callable[[], None]]:
    """(session time, what takes over the page's offset), for calls that ask in every read.

    The monotonic clock is cheaper to read than the time since boot, and a variable than the page: so
    what lies between is looked at only now and then. A step of the offset is seen that much later, and
    so is the end of a suspension.
    """
    base_ms = suspended_ns = 0
    mono_ns, million = monotonic_ns, 1_000_000

    def now_ms() -> int:
        return mono_ns() // million + base_ms  # in this order: numbers below 2^60 are quicker to add

    def rebase() -> None:
        nonlocal base_ms, suspended_ns
        ahead_ns = _suspended_ns()
        if abs(ahead_ns - suspended_ns) >= _SUSPENDED_NS_MIN:
            suspended_ns = ahead_ns
        base_ms = suspended_ns // million + words[_OFFSET]

    return now_ms, rebase


def _suspended_ns() -> int:
    """By how much the time since boot is ahead of the monotonic one; off by at most half of a look."""
    looks = 0
    while True:
        looks += 1
        before_ns = monotonic_ns()
        boottime_ns = clock_gettime_ns(_BOOTTIME)
        after_ns = monotonic_ns()
        if after_ns - before_ns < _SUSPENDED_NS_MIN or looks == _LOOKS_MAX:  # else it was held up in between
            return boottime_ns - (before_ns + after_ns) // 2
