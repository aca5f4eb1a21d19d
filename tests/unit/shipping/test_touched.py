"""Records of touched keys, and the new history for all others, make the state at L, whatever was done."""

from __future__ import annotations

import os
import random

import pytest

from perdure.shipping.messages_rejoin import pack_keys, pack_records, unpack_keys, unpack_records
from perdure.shipping.touched import events_of, fold_over, renames_of, tied
from perdure.store import WireError
from perdure.store.event import NO_OPERATION, Event, Kind, Reason
from perdure.store.fold import Fold
from perdure.store.ports import Record
from tests.unit.shipping.logs import NOW_MS, stored

SEED = int(os.environ.get("PERDURE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
State = dict[bytes, Record]


def a_history(random_: random.Random, state: State, frames: int) -> tuple[list[list[Event]], State]:
    """Frames of events that are possible over a state, and what it is afterwards."""
    state = dict(state)
    history: list[list[Event]] = []
    for _ in range(frames):
        events: list[Event] = []
        for _ in range(random_.randrange(1, 4)):
            event = an_event(random_, state)
            apply(state, [event])
            events.append(event)
        history.append(events)
    return history, state


def an_event(random_: random.Random, state: State) -> Event:
    key = f"k{random_.randrange(12)}".encode()
    reason = int(Reason.UPDATED)
    kind = random_.choice(["put", "touch", "delete", "rename"])
    if kind == "touch" and key in state:
        accessed = (NOW_MS + random_.randrange(1000)).to_bytes(8, "little")
        return int(Kind.TOUCH), reason, NO_OPERATION, key, accessed
    if kind == "delete" and key in state:
        return int(Kind.DELETE), reason, NO_OPERATION, key, b""
    if kind == "rename" and key in state:
        new = f"k{random_.randrange(12)}".encode()
        if new not in state:
            return int(Kind.RENAME), reason, NO_OPERATION, key, new
    return int(Kind.PUT), reason, NO_OPERATION, key, stored(random_.randrange(1 << 30))


def apply(state: State, events: list[Event]) -> None:
    fold = Fold(state.get)
    fold.apply(events)
    for key, record in fold.changes.items():
        if record is None:
            state.pop(key, None)
        else:
            state[key] = record


def digest_of(state: State) -> int:
    return sum(int.from_bytes(record[:8], "little") for record in state.values()) % (1 << 64)


def keys_of(history: list[list[Event]]) -> set[bytes]:
    found: set[bytes] = set()
    for events in history:
        for kind, _, _, key, value in events:
            found |= {key, value} if kind == Kind.RENAME else {key}
    return found


def test_any_two_histories_behind_a_fork_come_out_as_the_new_one() -> None:
    random_ = random.Random(SEED)
    ties = 0
    for number in range(3000):
        what = f"seed {SEED} number {number}"
        _, at_fork = a_history(random_, {}, 6)
        old, old_state = a_history(random_, at_fork, random_.randrange(4))
        new, new_state = a_history(random_, at_fork, random_.randrange(8))
        renames = [pair for events in new for pair in renames_of(events)]
        touched = tied(keys_of(old), renames)
        ties += touched != keys_of(old)
        fold = Fold(old_state.get, digest_of(old_state), len(old_state))
        fold_over(fold, [(key, new_state.get(key)) for key in sorted(touched)], new)
        made = {**old_state, **fold.changes}
        assert {key: record for key, record in made.items() if record is not None} == new_state, what
        assert (fold.digest, fold.session_count) == (digest_of(new_state), len(new_state)), what
    assert ties > 50, f"seed {SEED}: renames hardly ever mattered"


def test_ties_go_over_several_renames_in_both_directions() -> None:
    renames = [(b"a", b"b"), (b"b", b"c"), (b"x", b"y"), (b"q", b"x")]
    assert tied({b"c"}, renames) == {b"a", b"b", b"c"}
    assert tied({b"y"}, renames) == {b"q", b"x", b"y"}
    assert tied({b"z"}, renames) == {b"z"}
    assert events_of(b"", 0) is not None


def test_keys_and_records_come_back_as_they_were() -> None:
    keys = [b"a", b"b" * 1024, b"\0"]
    assert unpack_keys(pack_keys(keys), 3) == keys
    records = [None, bytes(8) + stored(1), None]
    assert unpack_records(pack_records(records), 3) == records


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (b"", 1),
        (b"\x01", 1),
        (b"\x05\x00ab", 1),
        (b"\x00\x00", 1),
        (b"\xff\xff" + b"x" * 2000, 1),
        (b"\x01\x00ab", 1),
        (b"", 5000),
    ],
)
def test_a_list_of_keys_that_is_none_is_refused(payload: bytes, count: int) -> None:
    with pytest.raises(WireError):
        unpack_keys(payload, count)


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (b"", 1),
        (b"\x01\x00\x00\x00a", 1),
        (b"\xff\xff\xff\xff", 1),
        (bytes(5), 1),
        (bytes(4), 5000),
    ],
)
def test_a_list_of_records_that_is_none_is_refused(payload: bytes, count: int) -> None:
    with pytest.raises(WireError):
        unpack_records(payload, count)
