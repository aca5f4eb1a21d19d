"""What an access log alone implies for its sessions, and how far a replay of it came out the same.

Owns the expected result and the comparison. It is worked out from the hits, request by request for each
visitor, without the stream of operations and its clock; it shares with `mapping` only the words of the
mapping (who is a visitor, what a request does, how a key is spelt). Invariant: every session that was
created is live, expired or deleted, and `differences` is empty only if all of it agrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec

from ...store import UsageError
from .accesslog import Hit
from .mapping import HISTORY_MAX, IDLE_MS, TEXT_CHARS_MAX, Action, action_of, session_key, visitor_of
from .operations import Content

SESSIONS_MAX = 2_000_000
DIFFERENCES_MAX = 20

Ending: TypeAlias = Literal["live", "expired", "deleted"]


class ExpectedSession(msgspec.Struct, frozen=True):
    """One session as the log implies it: `key` is the last it had, `hits` its recorded page requests."""

    key: str
    ending: Ending
    requests: int
    hits: int
    opened_ms: int
    seen_ms: int
    last_ms: int
    history: tuple[str, ...]
    referer: str

    @property
    def last_url(self) -> str:
        """The URL of the last recorded page request, empty when there was none."""
        return self.history[-1] if self.history else ""

    def content(self) -> Content:
        """Return the metadata that a store must hold for this session while it is live."""
        return {
            "hits": self.hits,
            "history": list(self.history),
            "opened_ms": self.opened_ms,
            "referer": self.referer,
            "seen_ms": self.seen_ms,
        }


class Expected(msgspec.Struct, frozen=True):
    """What the whole log implies.

    `sessions` counts stretches of one visitor's requests without an idle gap. `created` is higher where a
    visitor goes on after a 403 deleted its session: the store then creates another one for the same stretch.
    """

    requests: int
    visitors: int
    sessions: int
    created: int
    expired: int
    deleted: int
    regenerated: int
    hits: int
    end_ms: int
    by_key: Mapping[str, ExpectedSession]

    @property
    def live(self) -> int:
        """How many sessions are alive at `end_ms`."""
        return self.created - self.expired - self.deleted


class Replayed(msgspec.Struct, frozen=True):
    """What a driver counted while it carried the operations out, each one acknowledged by the store.

    `hits_ended` adds up the `hits` that the store held for a session when it was expired or deleted.
    """

    created: int
    expired: int
    deleted: int
    regenerated: int
    hits_ended: int


class _Run(msgspec.Struct):
    """One visitor's current session."""

    first_line: int
    opened_ms: int
    last_ms: int
    seen_ms: int
    requests: int = 0
    regenerated: int = 0
    pages: int = 0
    history: list[str] = []
    referer: str = ""
    is_deleted: bool = False


def expected(hits: Iterable[Hit], *, until_ms: int | None = None) -> Expected:
    """Return what hits in the order of their times imply, at the last of them.

    With `until_ms` (ms of the log's time) only the hits up to then count, and expiry is judged at that time.
    Raises UsageError beyond SESSIONS_MAX sessions.
    """
    current: dict[int, _Run] = {}
    by_key: dict[str, ExpectedSession] = {}
    requests = sessions = end_ms = 0
    for hit in hits:
        if until_ms is not None and hit.time_ms > until_ms:
            break
        requests += 1
        end_ms = hit.time_ms
        visitor = visitor_of(hit)
        run = current.get(visitor)
        is_idle = run is None or hit.time_ms - run.last_ms > IDLE_MS
        sessions += is_idle
        if run is None or is_idle or run.is_deleted:
            if run is not None:
                _close(by_key, visitor, run, "deleted" if run.is_deleted else "expired")
            current[visitor] = run = _Run(hit.line, hit.time_ms, hit.time_ms, hit.time_ms)
        _follow(run, hit)
    end_ms = end_ms if until_ms is None else until_ms
    for visitor, run in current.items():
        idle: Ending = "expired" if end_ms - run.last_ms > IDLE_MS else "live"
        _close(by_key, visitor, run, "deleted" if run.is_deleted else idle)
    return Expected(
        requests=requests,
        visitors=len(current),
        sessions=sessions,
        created=len(by_key),
        expired=sum(session.ending == "expired" for session in by_key.values()),
        deleted=sum(session.ending == "deleted" for session in by_key.values()),
        regenerated=sum(int(key.rpartition("-")[2]) for key in by_key),
        hits=sum(session.hits for session in by_key.values()),
        end_ms=end_ms,
        by_key=by_key,
    )


def differences(
    expected: Expected, replayed: Replayed, live: Iterable[tuple[str, Mapping[str, object]]]
) -> tuple[str, ...]:
    """Return what differs between a log's own result and a replay of it, at most DIFFERENCES_MAX lines.

    `live` gives key and metadata of every session in the store at the end. Empty means: the same sessions
    were created, expired, deleted and regenerated; those that live are exactly the expected ones, each with
    its hits, history (so its last URL) and referer; and the hits of all sessions together agree.
    """
    found: list[str] = []
    for difference in _differences(expected, replayed, live):
        found.append(difference)
        if len(found) == DIFFERENCES_MAX:
            break
    return tuple(found)


def _follow(run: _Run, hit: Hit) -> None:
    run.requests += 1
    run.last_ms = hit.time_ms
    action = action_of(hit)
    if action in (Action.VISIT, Action.SUBMIT):
        run.pages += 1
        run.seen_ms = hit.time_ms
        run.history = [*run.history, hit.url[:TEXT_CHARS_MAX]][-HISTORY_MAX:]
        run.referer = hit.referer[:TEXT_CHARS_MAX]
    run.regenerated += action is Action.SUBMIT
    run.is_deleted = action is Action.END


def _close(by_key: dict[str, ExpectedSession], visitor: int, run: _Run, ending: Ending) -> None:
    if len(by_key) >= SESSIONS_MAX:
        raise UsageError(f"the access log holds over {SESSIONS_MAX:,} sessions", hint="Give a part of it.")
    key = session_key(visitor, run.first_line, run.regenerated)
    by_key[key] = ExpectedSession(
        key=key,
        ending=ending,
        requests=run.requests,
        hits=run.pages,
        opened_ms=run.opened_ms,
        seen_ms=run.seen_ms,
        last_ms=run.last_ms,
        history=tuple(run.history),
        referer=run.referer,
    )


def _differences(
    expected: Expected, replayed: Replayed, live: Iterable[tuple[str, Mapping[str, object]]]
) -> Iterator[str]:
    for name in ("created", "expired", "deleted", "regenerated"):
        implied, counted = getattr(expected, name), getattr(replayed, name)
        if implied != counted:
            yield f"{name}: the log implies {implied:,}, the replay counted {counted:,}"
    seen: set[str] = set()
    hits = replayed.hits_ended
    for key, metadata in live:
        own = metadata.get("hits")
        hits += own if isinstance(own, int) else 0
        session = expected.by_key.get(key)
        if session is None or session.ending != "live":
            yield f"session {key} is there, {'unknown to the log' if session is None else session.ending}"
            continue
        seen.add(key)
        for field, implied in session.content().items():
            found = metadata.get(field)
            if found != implied:
                yield f"session {key}: {field} is {found!r:.200}, the log implies {implied!r:.200}"
    for key, session in expected.by_key.items():
        if session.ending == "live" and key not in seen:
            yield f"session {key} is missing, last request at {session.last_ms} ms"
    if hits != expected.hits:
        yield f"hits: the log implies {expected.hits:,}, the sessions held {hits:,}"
