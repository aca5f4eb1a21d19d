"""Changes to all sessions with one label: of a group, or of home nodes that are gone.

Owns how such a change is cut into commits: one atomic commit up to ATOMIC_MAX sessions, batches of
BATCH_SESSIONS beyond, each atomic, so that no other writer waits for long. A change that broke off between
batches goes on when it is asked for again: what was done needs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple, TypeAlias

from .commit import Evaluate
from .errors import PerdureError
from .labels import terms_of_record
from .listing import list_members
from .stage import Stage
from .view import View

ATOMIC_MAX = 4096
BATCH_SESSIONS = 1000
BATCH_BYTES = 6 << 20
"""A commit ends behind so many bytes: 4,096 removals, with ids as long as can be, take less."""


class Bulk(NamedTuple):
    """What a change to many sessions did."""

    sessions: int
    """How many were changed."""
    is_atomic: bool
    """In one commit; otherwise in several, one after the other."""


Change: TypeAlias = Callable[[Stage, bytes], bool]
"""Puts what is to be done with the session of a key on the stage; says whether that counts."""


Commit: TypeAlias = Callable[[Evaluate], "tuple[int, bytes | None]"]
"""Commits what its argument puts on the stage, and answers its result."""


class _TooMany(PerdureError):
    """More sessions than one commit may take."""


def change_all(view: View, term: bytes, change: Change, commit: Commit, *, removes: bool) -> Bulk:
    """Change every session with a term. `removes`: afterwards none has it any more."""
    changed, after, batches = 0, b"", 0
    while True:
        limit = BATCH_SESSIONS if batches else ATOMIC_MAX

        def evaluate(stage: Stage, after: bytes = after, limit: int = limit) -> tuple[int, bytes | None]:
            stage.reach()
            keys = _members(view, stage, term, after, limit + 1)
            if len(keys) > limit == ATOMIC_MAX:
                raise _TooMany("more than one commit may take")
            done, begun = 0, stage.size_bytes
            for number, key in enumerate(keys[:limit], 1):
                done += change(stage, key)
                if stage.size_bytes - begun > BATCH_BYTES and number < len(keys):
                    return done, key
            return done, keys[limit - 1] if len(keys) > limit else None

        try:
            done, last = commit(evaluate)
        except _TooMany:
            batches += 1
            continue
        changed += done
        if last is None:
            return Bulk(changed, not batches)
        batches += 1
        if not removes:
            after = last


def _members(view: View, stage: Stage, term: bytes, after: bytes, limit: int) -> list[bytes]:
    """Keys with a term above `after` as they are now, the frame that is being made included."""
    entries = stage.entries
    # What the frame has taken out of the group is left out below: as many more are asked for.
    keys = list_members(view, term, b"", after, limit + len(entries), newest=True)
    if not entries:
        return keys
    stored = (key for key in keys if key not in entries)
    staged = (key for key, entry in entries.items() if key > after and term in terms_of_record(entry[1]))
    return sorted(chain(stored, staged))[:limit]
