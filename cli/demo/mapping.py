"""How the requests of an access log become operations on sessions, decided by values alone.

Owns the mapping (docs/traffic.md says it in words). Does not read files, keep a store or know a clock: the
only time here is the log's. What the whole log implies is worked out apart from this module, in
`expectation`, so that one can check the other. Invariant: the stream holds every operation of a session in
order, and a session that ends, ends by a Delete, by an Expire, or is alive when the log ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from enum import Enum, auto

import msgspec
import xxhash

from ...store import UsageError
from .accesslog import Hit
from .operations import Content, Create, Delete, Expire, Get, Operation, Peek, Regenerate, Update

IDLE_MS = 1_800_000
HISTORY_MAX = 20
TEXT_CHARS_MAX = 512
"""A longer URL or referer is cut, so that a full history stays below 64 KiB whatever its characters are."""
LIVE_SESSIONS_MAX = 2_000_000

ASSET_SUFFIXES = frozenset(
    "css eot js map mjs otf swf ttf woff woff2 "  # styles, scripts, fonts
    "avif bmp gif ico jpeg jpg mp3 mp4 ogg png svg tif tiff wav webm webp".split()
)


class Action(Enum):
    """What a request does to the session that it belongs to."""

    READ = auto()
    VISIT = auto()
    SUBMIT = auto()
    LOOK = auto()
    END = auto()


class _Open(msgspec.Struct):
    """A session that is alive at this point of the log."""

    first_line: int
    opened_ms: int
    last_ms: int
    generation: int = 0
    hits: int = 0
    seen_ms: int = 0
    referer: str = ""
    history: list[str] = []


def action_of(hit: Hit) -> Action:
    """Return what a request does: the status counts first, then the method, then the kind of URL."""
    if hit.status == 403:
        return Action.END
    if hit.method == "GET":
        return Action.READ if is_asset(hit.url) else Action.VISIT
    if hit.method == "POST":
        return Action.SUBMIT
    return Action.LOOK


def is_asset(url: str) -> bool:
    """Say whether a URL names a part of a page (style, script, image, font, media) rather than a page."""
    name = url.partition("?")[0].partition("#")[0].rpartition("/")[2]
    _, dot, suffix = name.rpartition(".")
    return bool(dot) and suffix.lower() in ASSET_SUFFIXES


def visitor_of(hit: Hit) -> int:
    """Return the 128-bit number of a visitor: client address and user agent together."""
    return xxhash.xxh3_128_intdigest(f"{hit.client}\0{hit.agent}".encode())


def session_key(visitor: int, first_line: int, generation: int) -> str:
    """Return the key of a visitor's session (at most 64 bytes).

    `first_line` is the line of the request that opened it, which tells a visitor's sessions apart, and
    `generation` counts how often its id was regenerated.
    """
    return f"{visitor:032x}-{first_line}-{generation}"


def operations(hits: Iterable[Hit], *, writer: int = 0, writers: int = 1) -> Iterator[Operation]:
    """Yield the operations that a log's hits, in the order of their times, mean for one of several writers.

    Every visitor belongs to exactly one of `writers`; every writer gets all hits, because the log's clock
    moves with each of them, and acts on its own visitors' only. A session expires as soon as the clock has
    passed its last request by more than IDLE_MS; its Expire stands before the operations of the hit that
    moved the clock. The same arguments yield the same operations, so a driver can take up where it stopped.
    Memory: the sessions alive at one time of the log. Raises UsageError beyond LIVE_SESSIONS_MAX of them.
    """
    if not 0 <= writer < writers:
        raise UsageError(f"writer {writer} of {writers}", hint="Writers are numbered from 0.")
    alive: OrderedDict[int, _Open] = OrderedDict()  # in the order of their last requests
    for hit in hits:
        yield from _expired(alive, hit.time_ms)
        visitor = visitor_of(hit)
        if visitor % writers != writer:
            continue
        session = alive.get(visitor)
        is_new = session is None
        if session is None:
            if len(alive) >= LIVE_SESSIONS_MAX:
                raise UsageError(f"over {LIVE_SESSIONS_MAX:,} sessions alive at line {hit.line:,}")
            alive[visitor] = session = _Open(hit.line, hit.time_ms, hit.time_ms, seen_ms=hit.time_ms)
        session.last_ms = hit.time_ms
        alive.move_to_end(visitor)
        action = action_of(hit)
        yield from (
            _opening(session, visitor, hit, action) if is_new else _following(session, visitor, hit, action)
        )
        if action is Action.END:
            del alive[visitor]


def _expired(alive: OrderedDict[int, _Open], now_ms: int) -> Iterator[Operation]:
    """Take out and yield, oldest first, the sessions whose idle time has passed."""
    while alive:
        visitor, session = next(iter(alive.items()))
        if now_ms - session.last_ms <= IDLE_MS:
            return
        del alive[visitor]
        yield Expire(_key(visitor, session), session.last_ms + IDLE_MS, session.hits)


def _opening(session: _Open, visitor: int, hit: Hit, action: Action) -> Iterator[Operation]:
    """The first request of a session: what it writes is in the Create already."""
    if action in (Action.VISIT, Action.SUBMIT):
        _record(session, hit)
    yield Create(_key(visitor, session), hit.time_ms, session.hits, _content(session))
    if action is Action.SUBMIT:
        yield _regenerate(session, visitor, hit)
    elif action is Action.END:
        yield Delete(_key(visitor, session), hit.time_ms, session.hits)


def _following(session: _Open, visitor: int, hit: Hit, action: Action) -> Iterator[Operation]:
    """A later request of a session that is alive."""
    key = _key(visitor, session)
    if action is Action.END:
        yield Delete(key, hit.time_ms, session.hits)
    elif action is Action.LOOK:
        yield Peek(key, hit.time_ms, session.hits)
    elif action is Action.READ:
        yield Get(key, hit.time_ms, session.hits)
    else:
        if action is Action.VISIT:
            yield Get(key, hit.time_ms, session.hits)
        _record(session, hit)
        yield Update(key, hit.time_ms, session.hits, _content(session))
        if action is Action.SUBMIT:
            yield _regenerate(session, visitor, hit)


def _record(session: _Open, hit: Hit) -> None:
    session.hits += 1
    session.seen_ms = hit.time_ms
    session.referer = hit.referer[:TEXT_CHARS_MAX]
    session.history = [*session.history[-(HISTORY_MAX - 1) :], hit.url[:TEXT_CHARS_MAX]]


def _regenerate(session: _Open, visitor: int, hit: Hit) -> Operation:
    old = _key(visitor, session)
    session.generation += 1
    return Regenerate(old, _key(visitor, session), hit.time_ms, session.hits, _content(session))


def _key(visitor: int, session: _Open) -> str:
    return session_key(visitor, session.first_line, session.generation)


def _content(session: _Open) -> Content:
    """The metadata as it stands now; a history list is replaced, never changed, so records may share it.

    `seen_ms` is the time of the opening or the last recorded request: one that only reads writes nothing.
    """
    return {
        "hits": session.hits,
        "history": session.history,
        "opened_ms": session.opened_ms,
        "referer": session.referer,
        "seen_ms": session.seen_ms,
    }
