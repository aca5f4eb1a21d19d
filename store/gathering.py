"""Before a slow sync: a moment for the writers that the last one released.

Owns that wait, and the words of the control page by which the processes of a store agree on it. Writers
that wait for the disk otherwise fall into two halves: while one half's frames are synced the other half's
are appended, and each sync serves half of them (what PostgreSQL's commit_delay is for; here nobody sets
it). Whoever was released comes back within a small part of a slow sync or does something else, so a short
wait in which nobody comes ends the gathering, and makes the next ones rare.

Invariant: nothing is right or wrong because of a gathering. It delays a sync by less than half of one.
"""

from __future__ import annotations

import time
from typing import Any, Final

from .page import Word

SLOW_NS: Final = 800_000
"""A sync that takes less does not wait: the frames of many take as long to append."""
SYNC_NS_MAX: Final = 100_000_000
"""A sync that takes longer counts as one of this length."""
PATIENCE: Final = 8
"""If none comes for one part in so many of a sync, those that are there are synced."""
LOOKS: Final = 2
"""Within which it is looked so many times."""
VAIN_MAX: Final = 32
"""After waits in vain so many syncs at most begin at once, before another one waits."""

_APPENDED: Final = int(Word.APPENDED)
_FLUSHED: Final = int(Word.FLUSHED)
_SYNC_NS: Final = int(Word.SYNC_NS)
_SYNCED_NS: Final = int(Word.SYNCED_NS)
_BEHIND: Final = int(Word.SYNC_BEHIND)
_RELEASED: Final = int(Word.SYNC_RELEASED)
_VAIN: Final = int(Word.SYNC_VAIN)
_AT_ONCE: Final = int(Word.SYNC_AT_ONCE)


def gather(words: Any) -> None:
    """Wait for the frames of those that the last sync released, if they come. The caller has the sync lock,
    and a frame of its own to be synced."""
    sync_ns = words[_SYNC_NS]
    if sync_ns < SLOW_NS:
        return
    now_ns = time.monotonic_ns()
    since_ns = words[_SYNCED_NS]
    end_ns = since_ns + sync_ns // 2
    behind, released = words[_BEHIND], words[_RELEASED]
    came = words[_APPENDED] - behind
    if not since_ns <= now_ns < end_ns or not 0 <= came < released:
        return
    if words[_AT_ONCE]:
        words[_AT_ONCE] -= 1
        return
    patience_ns = sync_ns // PATIENCE
    seen, seen_ns, at_first = came, now_ns if came else since_ns, came
    while now_ns < min(end_ns, seen_ns + patience_ns):
        time.sleep(min(patience_ns // LOOKS, end_ns - now_ns) / 1e9)
        now_ns = time.monotonic_ns()
        came = words[_APPENDED] - behind
        if not 0 <= came < released:
            break
        if came != seen:
            seen, seen_ns = came, now_ns
    words[_VAIN] = min(2 * words[_VAIN] + 1, VAIN_MAX) if came == at_first else 0
    words[_AT_ONCE] = words[_VAIN]


def note_sync(words: Any, began_ns: int, lsn: int) -> None:
    """A sync that began then, in ns of the monotonic clock, has ended and covers LSN `lsn`; those that wait
    for it are about to be released."""
    now_ns = time.monotonic_ns()
    words[_SYNC_NS] = (3 * words[_SYNC_NS] + min(max(now_ns - began_ns, 0), SYNC_NS_MAX)) // 4
    words[_SYNCED_NS] = now_ns
    words[_BEHIND] = words[_APPENDED]
    words[_RELEASED] = max(0, lsn - words[_FLUSHED])
