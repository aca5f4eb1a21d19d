"""Resealing: every session of a store into the form that new ones get, while others go on writing.

Owns the passes over the sessions. Each value is opened and sealed outside of the write lock; under it is
only looked whether the session is still the one that was read. So a change is never undone, and what was
changed meanwhile is met again by the next pass.

Invariant: versions and times stay, and the passes end only with one that found nothing to do and began
when every running process had the time to notice a new key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import msgspec

from .errors import KeyMissingError
from .event import NO_OPERATION, Reason
from .fold import value_of
from .listing import list_keys
from .sealed import is_sealed, seal_of
from .sealer import Sealer
from .session import ACCESSED_OFFSET, TIMEOUT_OFFSET, with_accessed
from .stage import Stage
from .view import View

SCAN_KEYS: Final = 1000
BATCH_SESSIONS: Final = 256
BATCH_BYTES: Final = 1 << 20
NOTICE_MS: Final = 3000
"""Within this time every process that runs has noticed a rotated key file (it looks once a second)."""
POLL_S: Final = 0.05

Progress: TypeAlias = Callable[[int, int], object]
Commit: TypeAlias = Callable[[Callable[[Stage], int]], int]


class Resealed(msgspec.Struct, frozen=True):
    """What a resealing did."""

    resealed: int
    """Sessions that were stored anew."""
    kept: int
    """Sessions that the last pass found as they should be."""
    passes: int


class _Change(msgspec.Struct, frozen=True):
    key: bytes
    old: bytes
    new: bytes


def reseal(
    view: View,
    sealer: Sealer,
    commit: Commit,
    wall_ms: Callable[[], int],
    progress: Progress | None = None,
    *,
    recompress: bool = True,
) -> Resealed:
    """Reseal all sessions (see SessionStore.reseal). `commit` writes one change as the store does."""
    sealer.refresh()
    settled_at = time.monotonic() + _notice_left_ms(sealer, wall_ms()) / 1000
    resealed = passes = 0
    while True:
        is_settled = time.monotonic() >= settled_at
        done = _Pass(view, sealer, commit, progress, recompress=recompress)
        done.run()
        resealed += done.resealed
        passes += 1
        if done.unreadable is not None:
            raise KeyMissingError(
                f"{done.unreadable_count} sessions could not be opened, the first: {done.unreadable.message}",
                key_id=done.unreadable.key_id,
                path=done.unreadable.path,
                hint=done.unreadable.hint,
            ) from done.unreadable
        if not done.resealed and not done.missed and is_settled:
            return Resealed(resealed, done.kept, passes)
        while not done.resealed and (left_s := settled_at - time.monotonic()) > 0:
            time.sleep(min(left_s, POLL_S))


def keys_in_use(view: View) -> dict[int, int]:
    """How many sessions there are under each key; 0 stands for those that are not sealed."""
    found: dict[int, int] = {}
    for _, value in _values(view):
        key_id = seal_of(value)[0] if is_sealed(value) else 0
        found[key_id] = found.get(key_id, 0) + 1
    return found


def _notice_left_ms(sealer: Sealer, now_ms: int) -> int:
    if sealer.keys is None:
        return 0
    age_ms = now_ms - sealer.keys.ring.active_key.created_ms
    return min(NOTICE_MS, max(0, NOTICE_MS - age_ms))


def _values(view: View) -> Iterator[tuple[bytes, bytes]]:
    """(key, stored session) of all sessions, in key order."""
    last = b""
    while chunk := list_keys(view, b"", last, SCAN_KEYS):
        for key in chunk:
            record = view.read(key)
            if record is not None:
                yield key, value_of(key, record)
        last = chunk[-1]


class _Pass:
    """One pass over all sessions."""

    def __init__(
        self,
        view: View,
        sealer: Sealer,
        commit: Commit,
        progress: Progress | None,
        *,
        recompress: bool,
    ) -> None:
        self._recompress = recompress
        self._view = view
        self._sealer = sealer
        self._commit = commit
        self._progress = progress
        self._changes: list[_Change] = []
        self._size_bytes = 0
        self.resealed = self.kept = self.missed = 0
        self.unreadable: KeyMissingError | None = None
        self.unreadable_count = 0

    def run(self) -> None:
        total, seen = self._view.visible.session_count, 0
        for key, old in _values(self._view):
            seen += 1
            self._look_at(key, old)
            if len(self._changes) >= BATCH_SESSIONS or self._size_bytes >= BATCH_BYTES:
                self._write()
                self._tell(seen, total)
        self._write()
        self._tell(seen, max(seen, total))

    def _look_at(self, key: bytes, old: bytes) -> None:
        try:
            new = self._sealer.resealed(key, old, recompress=self._recompress)
        except KeyMissingError as error:
            self.unreadable = self.unreadable or error
            self.unreadable_count += 1
            return
        if new is None:
            self.kept += 1
        else:
            self._changes.append(_Change(key, old, new))
            self._size_bytes += len(new)

    def _write(self) -> None:
        changes, self._changes, self._size_bytes = self._changes, [], 0
        if not changes:
            return

        def evaluate(stage: Stage) -> int:
            changed = 0
            for change in changes:
                now = stage.value(change.key)
                if now is not None and _differs_in_access_only(now, change.old):
                    accessed = now[ACCESSED_OFFSET:TIMEOUT_OFFSET]
                    stage.put(change.key, with_accessed(change.new, accessed), Reason.REKEYED, NO_OPERATION)
                    changed += 1
            return changed

        changed = self._commit(evaluate)
        self.resealed += changed
        self.missed += len(changes) - changed

    def _tell(self, seen: int, total: int) -> None:
        if self._progress is not None:
            self._progress(seen, total)


def _differs_in_access_only(value: bytes, other: bytes) -> bool:
    return (
        value[:ACCESSED_OFFSET] == other[:ACCESSED_OFFSET]
        and value[TIMEOUT_OFFSET:] == other[TIMEOUT_OFFSET:]
    )
