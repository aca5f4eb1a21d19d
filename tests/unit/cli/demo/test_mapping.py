"""The mapping of requests to operations, and what a log implies without it."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from perdure.cli.demo.accesslog import Hit, LineCounts, in_time_order, read_hits
from perdure.cli.demo.expectation import DIFFERENCES_MAX, Expected, Replayed, differences, expected
from perdure.cli.demo.mapping import (
    HISTORY_MAX,
    IDLE_MS,
    TEXT_CHARS_MAX,
    Action,
    action_of,
    is_asset,
    operations,
    visitor_of,
)
from perdure.cli.demo.operations import (
    Create,
    Delete,
    Expire,
    Get,
    Operation,
    Peek,
    Regenerate,
    Update,
    content_hash,
)
from perdure.store import UsageError
from tests.unit.cli.demo.model import ModelStore

SMALL_LOG = Path(__file__).parents[3] / "data" / "small_access.log"
AT_10_MS = 1_709_460_000_000


def hit(
    at_s: float,
    url: str = "/",
    *,
    method: str = "GET",
    status: int = 200,
    client: str = "192.0.2.1",
    line: int = 0,
) -> Hit:
    at_ms = int(at_s * 1000)
    return Hit(line or at_ms + 1, client, at_ms, method, url, status, "https://example.org/", "Agent")


def small_log() -> list[Hit]:
    return list(in_time_order(read_hits(SMALL_LOG, LineCounts())))


def kinds(hits: list[Hit]) -> list[str]:
    return [type(operation).__name__ for operation in operations(hits)]


@pytest.mark.parametrize(
    ("request_", "action"),
    [
        (hit(0, "/"), Action.VISIT),
        (hit(0, "/robots.txt"), Action.VISIT),
        (hit(0, "/a.png/"), Action.VISIT),
        (hit(0, "/png"), Action.VISIT),
        (hit(0, "/style.css"), Action.READ),
        (hit(0, "/IMAGE.PNG?v=2"), Action.READ),
        (hit(0, "/a/b.js#part"), Action.READ),
        (hit(0, "/style.css", method="POST"), Action.SUBMIT),
        (hit(0, method="HEAD"), Action.LOOK),
        (hit(0, method="OPTIONS"), Action.LOOK),
        (hit(0, method="PROPFIND"), Action.LOOK),
        (hit(0, status=403), Action.END),
        (hit(0, status=403, method="HEAD"), Action.END),
    ],
)
def test_status_then_method_then_url_decide_what_a_request_does(request_: Hit, action: Action) -> None:
    assert action_of(request_) is action


@pytest.mark.parametrize(
    ("second", "names"),
    [
        (hit(1, "/b"), ["Create", "Get", "Update"]),
        (hit(1, "/b.css"), ["Create", "Get"]),
        (hit(1, method="POST"), ["Create", "Update", "Regenerate"]),
        (hit(1, method="HEAD"), ["Create", "Peek"]),
        (hit(1, status=403), ["Create", "Delete"]),
        (hit(IDLE_MS / 1000), ["Create", "Get", "Update"]),
        (hit(IDLE_MS / 1000 + 0.001), ["Create", "Expire", "Create"]),
        (hit(IDLE_MS / 1000 + 0.001, client="192.0.2.2"), ["Create", "Expire", "Create"]),
    ],
)
def test_a_second_request_gives_the_operations_of_its_kind(second: Hit, names: list[str]) -> None:
    assert kinds([hit(0), second]) == names


@pytest.mark.parametrize(
    ("first", "names", "hits"),
    [
        (hit(0), ["Create"], 1),
        (hit(0, "/a.ico"), ["Create"], 0),
        (hit(0, method="HEAD"), ["Create"], 0),
        (hit(0, method="POST"), ["Create", "Regenerate"], 1),
        (hit(0, status=403), ["Create", "Delete"], 0),
    ],
)
def test_a_first_request_creates_with_what_it_records(first: Hit, names: list[str], hits: int) -> None:
    assert kinds([first]) == names
    created = next(operations([first]))
    assert isinstance(created, Create)
    assert created.counter == created.content["hits"] == hits
    assert created.content["history"] == ["/"] * hits


def test_every_request_keeps_a_session_alive_even_one_that_only_looks() -> None:
    step_s = IDLE_MS / 1000
    stream = [hit(0), hit(step_s, method="HEAD"), hit(2 * step_s, "/a.css"), hit(3 * step_s, "/b")]
    assert kinds(stream) == ["Create", "Peek", "Get", "Get", "Update"]


def test_a_session_expires_when_another_visitor_moves_the_clock() -> None:
    stream = list(operations([hit(0), hit(5), hit(1805.001, client="192.0.2.2")]))
    assert stream[3] == Expire(stream[0].key, 5_000 + IDLE_MS, 2)
    assert isinstance(stream[4], Create)


def test_sessions_expire_in_the_order_of_their_last_requests() -> None:
    stream = [hit(0, client="192.0.2.1"), hit(1, client="192.0.2.2"), hit(2, client="192.0.2.1"), hit(9_000)]
    ended = [operation for operation in operations(stream) if isinstance(operation, Expire)]
    assert [operation.time_ms for operation in ended] == [1_000 + IDLE_MS, 2_000 + IDLE_MS]


def test_a_visitor_who_comes_back_after_a_403_gets_another_session() -> None:
    stream = [hit(0), hit(1, status=403), hit(2, "/again")]
    assert kinds(stream) == ["Create", "Delete", "Create"]
    result = expected(stream)
    assert (result.sessions, result.created, result.deleted, result.live) == (1, 2, 1, 1)


def test_history_and_texts_are_bounded_so_that_a_session_stays_storable() -> None:
    widest = "/" + "\U0001f600" * 5_000
    stream = [msgspec.structs.replace(hit(n, f"{n}{widest}"), referer=widest) for n in range(50)]
    *_, last = operations(stream)
    assert isinstance(last, Update)
    history = last.content["history"]
    assert isinstance(history, list)
    assert len(history) == HISTORY_MAX
    assert history[-1].startswith("49/")
    assert max(map(len, history)) == TEXT_CHARS_MAX
    assert len(msgspec.msgpack.encode(last.content)) < 60_000


def test_an_operation_keeps_its_content_when_the_session_goes_on() -> None:
    stream = list(operations([hit(n, f"/{n}") for n in range(5)]))
    writes = [operation for operation in stream if isinstance(operation, Create | Update)]
    assert [operation.content["history"] for operation in writes] == [
        [f"/{n}" for n in range(size)] for size in range(1, 6)
    ]


def test_the_small_log_gives_its_operations_in_order() -> None:
    def named(operation: Operation) -> tuple[str, int]:
        return type(operation).__name__, (operation.time_ms - AT_10_MS) // 1000

    assert [named(operation) for operation in operations(small_log())] == [
        ("Create", 0),
        ("Create", 1),
        ("Get", 2),
        ("Get", 5),
        ("Update", 5),
        ("Create", 10),
        ("Update", 60),
        ("Regenerate", 60),
        ("Create", 120),
        ("Peek", 150),
        ("Create", 180),
        ("Delete", 180),
        ("Create", 210),
        ("Get", 1801),
        ("Update", 1801),
        ("Expire", 1810),
        ("Expire", 1860),
        ("Create", 1861),
        ("Expire", 1950),
        ("Expire", 2010),
        ("Create", 3600),
        ("Expire", 3601),
        ("Create", 3602),
    ]


def test_the_small_log_implies_what_was_worked_out_by_hand() -> None:
    result = expected(small_log())
    counted = {name: getattr(result, name) for name in Expected.__struct_fields__ if name != "by_key"}
    assert counted == {
        "requests": 14,
        "visitors": 5,
        "sessions": 8,
        "created": 9,
        "expired": 5,
        "deleted": 1,
        "regenerated": 1,
        "hits": 8,
        "end_ms": AT_10_MS + 3_602_000,
    }
    assert result.live == 3
    live = [session for session in result.by_key.values() if session.ending == "live"]
    assert sorted((session.requests, session.hits, session.last_url) for session in live) == [
        (1, 0, ""),
        (1, 1, "/home"),
        (1, 1, "/late.html"),
    ]
    first = next(session for session in result.by_key.values() if session.opened_ms == AT_10_MS)
    assert (first.requests, first.hits, first.ending, first.referer) == (
        4,
        3,
        "expired",
        "https://example.com/login",
    )
    assert first.history == ("/", "/articles/first?page=2", "/login")


def test_what_is_live_at_a_time_is_judged_at_that_time() -> None:
    result = expected(small_log(), until_ms=AT_10_MS + 1_900_000)
    assert (result.requests, result.created, result.expired, result.deleted, result.live) == (12, 7, 2, 1, 4)


@pytest.mark.parametrize("writers", [1, 2, 3, 7])
def test_a_replay_agrees_with_what_the_log_implies_however_many_writers_share_it(writers: int) -> None:
    hits = small_log()
    store = ModelStore()
    for writer in range(writers):
        store.run(operations(hits, writer=writer, writers=writers))
    assert differences(expected(hits), store.replayed(), store.sessions.items()) == ()


def test_random_logs_replay_to_what_they_imply(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        hits = random_hits(rng)
        store = ModelStore()
        writers = rng.randint(1, 4)
        for writer in range(writers):
            store.run(operations(hits, writer=writer, writers=writers))
        assert differences(expected(hits), store.replayed(), store.sessions.items()) == ()


def random_hits(rng: random.Random) -> list[Hit]:
    at_s = 0.0
    hits: list[Hit] = []
    for line in range(1, rng.randint(1, 200)):
        at_s += rng.choice([0, 1, 60, 600, 1800, 1801])
        hits.append(
            hit(
                at_s,
                rng.choice(["/", "/a.css", f"/{line}"]),
                method=rng.choice(["GET", "GET", "GET", "POST", "HEAD", "OPTIONS", "PUT"]),
                status=rng.choice([200, 200, 200, 304, 403]),
                client=f"192.0.2.{rng.randint(1, 6)}",
                line=line,
            )
        )
    return hits


def test_each_difference_of_a_replay_is_named() -> None:
    hits = small_log()
    implied = expected(hits)
    store = ModelStore()
    store.run(operations(hits))
    sessions, replayed = store.sessions, store.replayed()
    key = next(key for key, content in sessions.items() if content["hits"] == 1)

    def found(change: dict[str, dict[str, object] | None], counted: Replayed = replayed) -> str:
        changed = {**sessions, **change}
        live = [(name, content) for name, content in changed.items() if content is not None]
        return "\n".join(differences(implied, counted, live))

    assert found({}) == ""
    assert f"session {key} is missing" in found({key: None})
    assert "unknown to the log" in found({"other": {"hits": 0}})
    assert "history is" in found({key: {**sessions[key], "history": ["/wrong"]}})
    assert "hits: the log implies 8, the sessions held 9" in found({key: {**sessions[key], "hits": 2}})
    assert "seen_ms is None" in found({key: {n: v for n, v in sessions[key].items() if n != "seen_ms"}})
    fewer = msgspec.structs.replace(replayed, expired=4)
    assert found({}, fewer) == "expired: the log implies 5, the replay counted 4"
    ended = next(s for s in implied.by_key.values() if s.ending == "expired")
    assert f"session {ended.key} is there, expired" in found({ended.key: {**ended.content()}})


def test_differences_are_bounded() -> None:
    live = [(f"stranger-{n}", {"hits": 0}) for n in range(100)]
    nothing = Replayed(created=0, expired=0, deleted=0, regenerated=0, hits_ended=0)
    assert len(differences(expected(small_log()), nothing, live)) == DIFFERENCES_MAX


def test_the_writers_share_the_visitors_and_the_operations_of_one_are_always_the_same() -> None:
    hits = small_log()
    whole = {operation.key for operation in operations(hits)}
    parts = [[op.key for op in operations(hits, writer=writer, writers=3)] for writer in range(3)]
    assert set().union(*parts) == whole
    assert sum(len(set(part)) for part in parts) == len(whole)
    assert list(operations(hits, writer=1, writers=3)) == list(operations(hits, writer=1, writers=3))


def test_two_agents_behind_one_address_are_two_visitors() -> None:
    one, other = (msgspec.structs.replace(hit(0), agent=agent) for agent in ("Agent One", "Agent Two"))
    assert visitor_of(one) != visitor_of(other)


@pytest.mark.parametrize(("writer", "writers"), [(-1, 1), (1, 1), (0, 0)])
def test_a_writer_that_cannot_be_is_refused(writer: int, writers: int) -> None:
    with pytest.raises(UsageError):
        next(operations([hit(0)], writer=writer, writers=writers))


def test_an_empty_log_implies_nothing() -> None:
    result = expected([])
    assert (result.created, result.live, result.end_ms) == (0, 0, 0)
    assert list(operations([])) == []


def test_is_asset_looks_at_the_last_part_of_the_path_only() -> None:
    assert not is_asset("/a.css/page?file=b.png")
    assert is_asset("/page/b.PNG?x=/y")
    assert not is_asset(".")
    assert not is_asset("")


def test_the_hash_of_a_content_depends_on_the_content_alone() -> None:
    content = {"hits": 2, "history": ["/", "/a"], "referer": "é"}
    same = {"referer": "é", "history": ("/", "/a"), "hits": 2}
    assert content_hash(content) == content_hash(same)
    assert content_hash(content) != content_hash({**content, "hits": 3})
    assert content_hash(content) != content_hash({**content, "history": ["/a", "/"]})


def test_every_kind_of_operation_appears_in_the_small_log() -> None:
    seen = {type(operation) for operation in operations(small_log())}
    assert seen == {Create, Get, Update, Regenerate, Peek, Delete, Expire}
