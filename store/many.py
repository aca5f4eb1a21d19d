"""Calls that concern many sessions at once: groups, orphans, what has expired, how all are stored.

Owns what each of them means as events; how a large one is cut into commits is bulk's and reseal's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import labels
from .bulk import Bulk, Change, change_all
from .commit import Evaluate
from .committing import CommittingStore
from .errors import UsageError
from .event import Kind, Reason
from .reseal import Progress as ResealProgress
from .reseal import Resealed, reseal
from .session import ACCESSED, Session, expiry_of, stored_bytes, with_stamps
from .stage import Stage
from .sweeping import check_limit


class ManySessions(CommittingStore):
    """The calls on groups, orphans and all sessions."""

    def delete_group(self, group: str, *, durability: str | None = None) -> Bulk:
        """Remove all sessions of a group; answers how many, and whether in one atomic commit.

        Up to 4,096 sessions go in one commit. More go in batches of 1,000, each atomic; if that breaks
        off, the same call goes on with what is left. Raises as delete.
        """
        term = self._term(labels.GROUP, group, "a group")
        return self._remove_all(term, Reason.GROUP, durability)

    def touch_group(self, group: str, *, durability: str | None = None) -> Bulk:
        """Extend the life of all sessions of a group as if they were used now. Answers as delete_group."""
        operation_id = self._ids.take()

        def touch(stage: Stage, key: bytes) -> bool:
            now_ms = self._now_ms()
            value = stage.value(key)
            if value is None or expiry_of(value) < now_ms:
                return False
            self._touches.pop(key, None)
            stage.touch(key, ACCESSED.pack(now_ms), operation_id, Reason.GROUP)
            return True

        return self._change_all(self._term(labels.GROUP, group, "a group"), touch, durability, operation_id)

    def cleanup_orphans(self, members: Iterable[str], *, durability: str | None = None) -> int:
        """Remove the sessions whose home node is not among `members`; answers how many.

        As delete_group, one home node after the other. Raises UsageError if there are no members.
        """
        self._reach_primary()
        return sum(
            self._remove_all(term, Reason.ORPHANED, durability).sessions for term in self._orphaned(members)
        )

    def adopt_orphans(self, members: Iterable[str], home_node: str, *, durability: str | None = None) -> int:
        """Give the sessions whose home node is not among `members` to `home_node`, which must be.

        Answers how many. Their version grows; their life is not extended. Raises UsageError.
        """
        known = labels.members_of(members)
        if home_node not in known:
            raise UsageError(f"{home_node!r} is not among the members: its sessions would be orphans again")
        operation_id = self._ids.take()
        self._reach_primary()

        def adopt(stage: Stage, key: bytes) -> bool:
            value = stage.value(key)
            if value is None or expiry_of(value) < self._now_ms():
                return False
            id, plain = self._sealer.open_with_id(key, value)
            old = Session(id, plain)
            adopted = stored_bytes(old.replace(home_node=home_node))
            adopted = with_stamps(adopted, old.version + 1, old.created_at, old.last_accessed)
            stage.put(key, self._sealed(id, key, adopted, value), Reason.ADOPTED, operation_id)
            return True

        return sum(
            self._change_all(term, adopt, durability, operation_id).sessions  # those that expired keep it
            for term in self._orphaned(known)
        )

    def _reach_primary(self) -> None:
        """On a replica: wait until the labels here are those of the primary. Raises StaleReadError."""
        if self._elsewhere is not None and not self._log.is_primary and self._elsewhere.is_reachable():
            self._elsewhere.reach()

    def _remove_all(self, term: bytes, reason: Reason, durability: str | None) -> Bulk:
        operation_id = self._ids.take()

        def remove(stage: Stage, key: bytes) -> bool:
            value = stage.value(key)
            is_live = value is not None and expiry_of(value) >= self._now_ms()
            self._touches.pop(key, None)
            if is_live:
                stage.remove(key, Kind.DELETE, reason, operation_id)
            else:
                stage.remove(key, Kind.EXPIRE, Reason.EXPIRED, operation_id)
            return is_live

        return self._change_all(term, remove, durability, operation_id, removes=True)

    def _change_all(
        self,
        term: bytes,
        change: Change,
        durability: str | None,
        operation_id: bytes,
        *,
        removes: bool = False,
    ) -> Bulk:
        def commit(evaluate: Evaluate) -> tuple[int, bytes | None]:
            done: tuple[int, bytes | None] = self._commit(evaluate, durability, operation_id)
            return done

        return change_all(self._view, term, change, commit, removes=removes)

    def cleanup_expired(self, limit: int | None = None) -> int:
        """Remove sessions that have expired, as logged events; answers how many.

        At most `limit` of them, all without it. Visits none that is alive, unless it was used since its
        deadline was last looked at. Raises as a write, and UsageError for a limit below 1.
        """
        if limit is not None:
            check_limit(limit)
        if self._elsewhere is not None and not self._log.is_primary:
            return self._elsewhere.sweep(limit, self._log.not_primary())
        return self._keeper.sweep(limit)

    def reseal(self, progress: ResealProgress | None = None, *, recompress: bool = True) -> Resealed:
        """Store every session as new ones are: sealed under the active key, compressed as the options say.

        Without `recompress` each stays compressed or uncompressed.

        Nothing else of a session changes, and one that is changed meanwhile is left to a later pass; passes
        go on until one finds nothing to do. May be broken off at any time, and called again.
        `progress` is told (sessions looked at, sessions there are). Raises KeyMissingError, after all others
        are done, if there are sessions that cannot be opened; NotPrimaryError, and as a write does.
        """
        return reseal(
            self._view, self._sealer, self._commit_all, self._options.wall_ms, progress, recompress=recompress
        )

    def _commit_all(self, evaluate: Callable[[Stage], int]) -> int:
        changed: int = self._commit(evaluate, None, self._ids.take())
        return changed
