"""A web server's traffic, replayed in its own time on each back end: exactly what the access log implies.

The traffic is made up from a seed; PERDURE_ACCESS_LOG names a real log (plain or gzip) to take instead. What
it implies is worked out by cli.demo.expectation, which knows no store.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.cli.demo.accesslog import Hit, LineCounts, in_time_order, read_hits
from perdure.cli.demo.expectation import Expected, expected
from perdure.cli.demo.mapping import HISTORY_MAX, IDLE_MS, TEXT_CHARS_MAX, Action, action_of, visitor_of
from perdure.store import SessionStore
from perdure.store.backends import BACKENDS
from perdure.store.opening import OpenOptions, open_store
from perdure.store.session import REFRESH_WINDOW_MS_MAX

START_MS = 1_431_900_000_000
SWEEP_EVERY_MS = 10_000
FOLD_EVERY = 97


class LogClock:
    """The time of the access log."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


@pytest.fixture(scope="module")
def hits() -> list[Hit]:
    given = os.environ.get("PERDURE_ACCESS_LOG")
    if given:
        return list(in_time_order(read_hits(given, LineCounts())))
    seed = int(os.environ.get("PERDURE_SEED", random.randrange(1 << 30)))
    print(f"PERDURE_SEED={seed}")
    return list(made_up(random.Random(seed)))


def made_up(source: random.Random) -> Iterator[Hit]:
    """Bursts of visitors who pause for any time up to three idle times, exact ones included."""
    pauses = [1, 30, 600, 1799, 1800, 1801, 1830, 1859, 1860, 1861, 1990, 4000]
    due = sorted((START_MS + source.randrange(3_600) * 1000, visitor) for visitor in range(60))
    for line in range(1, 1500):
        time_ms, visitor = due.pop(0)
        method = source.choices(["GET", "POST", "HEAD"], [8, 1, 1])[0]
        url = source.choice(["/", "/page?a=1", "/style.css", f"/long/{'x' * 600}", "/pic.png"])
        status = source.choice([200, 200, 200, 404, 403])
        yield Hit(line, f"10.0.0.{visitor}", time_ms, method, url, status, "-", "x")
        due.append((time_ms + source.choice(pauses) * 1000, visitor))
        due.sort()


class Replay:
    """Carries the requests out on a store, sweeping as its clock moves, and notes when sessions end."""

    def __init__(self, path: Path, backend: str, window_ms: int | None, start_ms: int) -> None:
        self.clock = LogClock(start_ms)
        options = OpenOptions(
            backend=backend, clock=self.clock, refresh_window_ms=window_ms, sweep_interval_ms=0
        )
        self.store = SessionStore(open_store(path, options), options, None)
        self.window_ms = REFRESH_WINDOW_MS_MAX if window_ms is None else window_ms
        self.ids: dict[int, str] = {}
        self.last_ms: dict[str, int] = {}
        self.created = self.deleted = self.expired = self.hits_ended = self.regenerated = 0
        self._swept_ms = start_ms

    def run(self, hits: list[Hit]) -> None:
        for number, hit in enumerate(hits):
            self._move(hit.time_ms)
            self._request(hit, visitor_of(hit))
            if number % FOLD_EVERY == 0:
                self.store.fold()
        self.sweep()

    def _move(self, time_ms: int) -> None:
        """On to the time of the next request, with sweeps on the way."""
        while time_ms - self._swept_ms > SWEEP_EVERY_MS and self.last_ms:
            self._swept_ms += SWEEP_EVERY_MS
            self.clock.ms = max(self.clock.ms, self._swept_ms)
            self.sweep()
        self._swept_ms = self.clock.ms = time_ms
        self.sweep()

    def sweep(self) -> None:
        """No session ends before its time, and none later than a refresh window."""
        now_ms = self.clock.ms
        before = {id: self.held(id) for id, last in self.last_ms.items() if now_ms - last > IDLE_MS}
        expired = self.store.cleanup_expired()
        gone = [id for id in before if self.store._peek_expired(id) is None]
        assert len(gone) == expired, "a session ended that was used within its idle time"
        for id, last in list(self.last_ms.items()):
            assert id in gone or now_ms - last <= IDLE_MS + self.window_ms, "a session outlived its window"
        for id in gone:
            self.hits_ended += before[id]
            del self.last_ms[id]
        self.expired += expired

    def held(self, id: str) -> int:
        session = self.store._peek_expired(id)
        assert session is not None
        hits: int = session.metadata["hits"]
        return hits

    def _request(self, hit: Hit, visitor: int) -> None:
        store, action = self.store, action_of(hit)
        id = self.ids.get(visitor)
        session = None if id is None else store.get(id)
        if session is None:
            id = store.put(
                f"{visitor:032x}-{hit.line}",
                {"hits": 0, "history": [], "opened_ms": hit.time_ms, "referer": "", "seen_ms": hit.time_ms},
                IDLE_MS,
                sliding=True,
            ).id
            self.created += 1
        assert id is not None
        if action in (Action.VISIT, Action.SUBMIT):
            store.update(id, lambda session: session.merge(visited(session.metadata, hit)))
        if action is Action.SUBMIT:
            self.last_ms.pop(id, None)
            id = store.regenerate_id(id)
            self.regenerated += 1
        if action is Action.END:
            self.hits_ended += self.held(id)
            self.last_ms.pop(id, None)
            self.deleted += store.delete(id)
            self.ids.pop(visitor, None)
        else:
            self.ids[visitor] = id
            self.last_ms[id] = hit.time_ms


def visited(metadata: dict[str, Any], hit: Hit) -> dict[str, Any]:
    return {
        "hits": metadata["hits"] + 1,
        "history": [*metadata["history"], hit.url[:TEXT_CHARS_MAX]][-HISTORY_MAX:],
        "seen_ms": hit.time_ms,
        "referer": hit.referer[:TEXT_CHARS_MAX],
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_sessions_hits_and_expirations_are_exactly_those_that_the_log_implies(
    tmp_path: Path, backend: str, hits: list[Hit]
) -> None:
    replay = Replay(tmp_path / "store", backend, 0, hits[0].time_ms)
    implied = expected(hits)
    with replay.store as store:
        replay.run(hits)
        live = list(store.sessions())
        found = replay.hits_ended + sum(session.metadata["hits"] for session in live)
        assert (replay.created, replay.expired, replay.deleted, replay.regenerated, found) == (
            implied.created,
            implied.expired,
            implied.deleted,
            implied.regenerated,
            implied.hits,
        )
        assert sorted(repr(sorted(session.metadata.items())) for session in live) == contents(implied)
        assert store.count() == implied.live
    with SessionStore.open(tmp_path / "store") as again:
        assert again.count() == implied.live


@pytest.mark.parametrize("backend", BACKENDS)
def test_with_the_default_window_no_session_ends_early_and_none_later_than_it(
    tmp_path: Path, backend: str, hits: list[Hit]
) -> None:
    replay = Replay(tmp_path / "store", backend, None, hits[0].time_ms)
    with replay.store as store:
        replay.run(hits)
        assert replay.created == replay.expired + replay.deleted + store.count()
        found = replay.hits_ended + sum(session.metadata["hits"] for session in store.sessions())
        assert found == expected(hits).hits


def contents(implied: Expected) -> list[str]:
    return sorted(
        repr(sorted(session.content().items()))
        for session in implied.by_key.values()
        if session.ending == "live"
    )
