"""Batches: several changes to sessions in one atomic frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeAlias

from .errors import SessionTooLargeError, UsageError
from .event import EVENTS_LIMIT, Kind, Reason
from .sealer import Sealer
from .session import (
    ACCESSED,
    DEFAULT_TIMEOUT_MS,
    Priority,
    check_timeout,
    encode_session,
    expiry_at,
    expiry_of,
    tags_of,
    unpack_header,
    with_cap,
    with_stamps,
    with_window,
)
from .stage import Stage
from .sweeping import end_expired
from .tail_map import NEW_MS

_Change: TypeAlias = "tuple[bytes, bytes, int] | Callable[[Stage], None]"
"""A creation, as Stage.create() takes it; anything else as what it does to the stage."""


class Batch:
    """Changes gathered in a `with` block, committed when it ends, dropped if it raises.

    Memory holds all of them: a batch takes at most 65,536 changes and 16 MiB.
    """

    def __init__(
        self,
        take: Callable[[], bytes],
        now_ms: Callable[[], int],
        size_bytes_max: int,
        apply: Callable[[Callable[[Stage], Any], str | None, bytes], Any],
        durability: str | None,
        sealer: Sealer,
        home_node: str,
        refresh_window_ms: int | None,
        default_timeout: int,
    ) -> None:
        self._sealer = sealer
        self._seals = sealer if sealer.changes else None
        self._take = take
        self._home_node = home_node
        self._now_ms = now_ms
        self._size_bytes_max = size_bytes_max
        self._apply = apply
        self._durability = durability
        self._window_ms = refresh_window_ms
        self._default_timeout = default_timeout
        self._default_lifetime = with_window(default_timeout, refresh_window_ms)
        self._default_life_ms = expiry_at(0, self._default_lifetime, 0)
        self._changes: list[_Change] = []
        self._operation_id = take()
        self._is_entered = self._is_over = False

    @property
    def operation_id(self) -> str:
        """All events of the batch carry it."""
        return self._operation_id.hex()

    def __enter__(self) -> Batch:
        if self._is_entered:
            raise UsageError("a batch is entered once", hint="Begin another one.")
        self._is_entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over = True
        if kind is None and self._changes:
            self._apply(self._evaluate, self._durability, self._operation_id)

    def create(
        self,
        metadata: Mapping[str, Any] | None = None,
        *,
        timeout_ms: int | None = DEFAULT_TIMEOUT_MS,
        max_lifetime_ms: int | None = None,
        priority: Priority = Priority.NORMAL,
        group: str = "",
        tags: Iterable[str] = (),
        home_node: str | None = None,
    ) -> str:
        """A new session; answers the id that it will have. As SessionStore.create."""
        now_ms = self._now_ms()
        id = self._take().hex()
        timeout, cap = self._default_lifetime, 0
        arm_ms = now_ms + self._default_life_ms if timeout else NEW_MS  # the fold asks less
        if timeout_ms is not DEFAULT_TIMEOUT_MS:
            timeout, arm_ms = with_window(check_timeout(timeout_ms), self._window_ms), NEW_MS
        if max_lifetime_ms is not None:
            cap, arm_ms = now_ms + check_timeout(max_lifetime_ms), NEW_MS
        value = encode_session(
            1,
            now_ms,
            now_ms,
            timeout,
            cap,
            metadata if metadata is not None else {},
            priority,
            group=group,
            tags=tags_of(tags) if tags else (),
            home_node=self._home_node if home_node is None else home_node,
        )
        self._check_size(id, value)
        key = id.encode()
        if self._seals is not None:
            key = self._seals.key_of(id)
            value = self._seals.seal(id, key, value)
        self._add((key, value, arm_ms))
        return id

    def put(
        self,
        id: str,
        metadata: Mapping[str, Any],
        ttl_ms: int | None = DEFAULT_TIMEOUT_MS,
        *,
        sliding: bool = False,
        priority: Priority = Priority.NORMAL,
        group: str = "",
        tags: Iterable[str] = (),
        home_node: str | None = None,
    ) -> None:
        """A session under the caller's id, new or in place of the old one; as SessionStore.put."""
        key, ttl = self._sealer.key_of(id), self._timeout(ttl_ms)
        lifetime = with_window(ttl, self._window_ms) if sliding else 0
        tagged = tags_of(tags) if tags else ()
        home = self._home_node if home_node is None else home_node

        # Encoded now: what the caller does to its metadata before the batch ends is not for this change.
        encoded = encode_session(
            version=1,
            created_ms=0,
            accessed_ms=0,
            timeout_ms=lifetime,
            cap_ms=0,
            priority=priority,
            group=group,
            tags=tagged,
            home_node=home,
            metadata=metadata,
        )
        self._check_size(id, encoded)

        def change(stage: Stage) -> None:
            now_ms = self._now_ms()
            old = stage.value(key)
            fields = None if old is None or end_expired(stage, key, now_ms) else unpack_header(old)
            version, created_ms = (fields[6] + 1, fields[7]) if fields else (1, now_ms)
            value = with_stamps(encoded, version, created_ms, now_ms)
            if ttl and not sliding:
                value = with_cap(value, now_ms + ttl)
            if self._seals is not None:
                value = self._seals.seal(id, key, value)
            elif old is not None and old[1]:
                self._sealer.refuse_plain(id, old)
            stage.put(key, value, Reason.REPLACED, self._operation_id)

        self._add(change)

    def touch(self, id: str) -> None:
        """Extend a session's life; nothing happens if it is not there."""
        key = self._sealer.key_of(id)

        def change(stage: Stage) -> None:
            now_ms = self._now_ms()
            old = stage.value(key)
            if old is not None and expiry_of(old) >= now_ms:
                stage.touch(key, ACCESSED.pack(now_ms), self._operation_id)

        self._add(change)

    def delete(self, id: str) -> None:
        """Remove a session; nothing happens if it is not there, or has expired."""
        key = self._sealer.key_of(id)

        def change(stage: Stage) -> None:
            old = stage.value(key)
            if old is not None and expiry_of(old) >= self._now_ms():
                stage.remove(key, Kind.DELETE, Reason.DELETED, self._operation_id)

        self._add(change)

    def _timeout(self, timeout_ms: int | None) -> int:
        return self._default_timeout if timeout_ms is DEFAULT_TIMEOUT_MS else check_timeout(timeout_ms)

    def _evaluate(self, stage: Stage) -> None:
        created: list[tuple[bytes, bytes, int]] = []
        for change in self._changes:
            if isinstance(change, tuple):
                created.append(change)
                continue
            if created:
                stage.create(created, self._operation_id)
                created = []
            change(stage)
        stage.create(created, self._operation_id)

    def _add(self, change: _Change) -> None:
        if self._is_over:
            raise UsageError("the batch is over", hint="Begin another one.")
        if len(self._changes) >= EVENTS_LIMIT:
            raise UsageError(f"a batch takes at most {EVENTS_LIMIT} changes", hint="Commit it in parts.")
        self._changes.append(change)

    def _check_size(self, id: str, value: bytes) -> None:
        if len(value) > self._size_bytes_max:
            raise SessionTooLargeError(
                f"session {id!r} takes {len(value)} bytes, the limit is {self._size_bytes_max}",
                hint="Nothing of the batch was written.",
            )
