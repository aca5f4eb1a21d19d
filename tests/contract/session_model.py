"""What a store must answer, as a dict of plain values: the model of the state machine.

Owns the rules of sessions as their documents say them, written down a second time without any of the
store's code. Times in ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perdure.store import Priority, Session

DAY_MS = 86_400_000


def default_window_ms(timeout_ms: int) -> int:
    """By how much a refresh may be late: a tenth of the timeout, at most a minute."""
    return min(timeout_ms // 10, 60_000)


@dataclass(frozen=True)
class Held:
    """A session as the store holds it."""

    version: int
    created_ms: int
    accessed_ms: int
    timeout_ms: int
    """0: none."""
    cap_ms: int
    """0: none."""
    metadata: Mapping[str, Any]
    priority: Priority = Priority.NORMAL
    group: str = ""
    tags: tuple[str, ...] = ()
    home_node: str = ""

    @property
    def expires_ms(self) -> int | None:
        ends = [self.accessed_ms + self.timeout_ms] if self.timeout_ms else []
        return min([*ends, *([self.cap_ms] if self.cap_ms else [])], default=None)

    def fields(self) -> tuple[Any, ...]:
        return (
            self.version,
            self.created_ms,
            self.accessed_ms,
            self.timeout_ms or None,
            self.expires_ms,
            dict(self.metadata),
            self.priority,
            self.group,
            self.tags,
            self.home_node,
        )


def fields_of(session: Session) -> tuple[Any, ...]:
    """A session of the store, to be compared with Held.fields()."""
    return (
        session.version,
        session.created_at,
        session.last_accessed,
        session.timeout_ms,
        session.expires_at,
        session.metadata,
        session.priority,
        session.group,
        session.tags,
        session.home_node,
    )


@dataclass
class Model:
    """All sessions by id, those that have expired and were not removed yet among them."""

    window_ms: Callable[[int], int] = default_window_ms
    held: dict[str, Held] = field(default_factory=dict)

    def has_expired(self, session: Held, now_ms: int) -> bool:
        idle = session.accessed_ms + session.timeout_ms + self.window_ms(session.timeout_ms)
        return bool((session.timeout_ms and now_ms > idle) or (session.cap_ms and now_ms > session.cap_ms))

    def live(self, id: str, now_ms: int) -> Held | None:
        session = self.held.get(id)
        return None if session is None or self.has_expired(session, now_ms) else session

    def waits_for_refresh(self, session: Held, now_ms: int) -> bool:
        """Does a get at this time leave a refresh to be written?"""
        return bool(session.timeout_ms) and now_ms - session.accessed_ms > self.window_ms(session.timeout_ms)

    def put(self, id: str, now_ms: int, ttl_ms: int | None, sliding: bool, **fields: Any) -> Held:
        old = self.live(id, now_ms)
        ttl = ttl_ms or 0
        self.held[id] = Held(
            version=old.version + 1 if old else 1,
            created_ms=old.created_ms if old else now_ms,
            accessed_ms=now_ms,
            timeout_ms=ttl if sliding else 0,
            cap_ms=0 if sliding or not ttl else now_ms + ttl,
            **fields,
        )
        return self.held[id]

    def change(self, id: str, now_ms: int, **fields: Any) -> Held:
        old = self.held[id]
        self.held[id] = replace(old, version=old.version + 1, accessed_ms=now_ms, **fields)
        return self.held[id]

    def use(self, id: str, at_ms: int) -> None:
        """A refresh or a touch is written."""
        session = self.held.get(id)
        if session is not None and session.accessed_ms < at_ms:
            self.held[id] = replace(session, accessed_ms=at_ms)

    def sweep(self, now_ms: int) -> int:
        expired = [id for id, session in self.held.items() if self.has_expired(session, now_ms)]
        for id in expired:
            del self.held[id]
        return len(expired)

    def ids(self, prefix: str, after: str, has: Callable[[Held], bool] = lambda _: True) -> list[str]:
        """In the order of their bytes."""
        chosen = [id for id, session in self.held.items() if id.startswith(prefix) and has(session)]
        return sorted((id for id in chosen if id.encode() > after.encode()), key=str.encode)

    def orphans(self, members: Iterable[str]) -> list[str]:
        known = set(members)
        return [
            id for id, session in self.held.items() if session.home_node and session.home_node not in known
        ]
