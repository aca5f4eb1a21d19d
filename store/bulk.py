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
from .stage import Stage
from .view import View

ATOMIC_MAX = 4096
BATCH_SESSIONS = 1000


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
            keys = _members(view, stage, term, after, limit + 1)
            if len(keys) > limit == ATOMIC_MAX:
                raise _TooMany("more than one commit may take")
            done = sum(change(stage, key) for key in keys[:limit])
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
    keys = view.members(term, b"", after, limit, newest=True)
    if not entries:
        return keys
    stored = (key for key in keys if key not in entries)
    staged = (key for key, entry in entries.items() if key > after and term in terms_of_record(entry[1]))
    return sorted(chain(stored, staged))[:limit]
