"""Where the processor time of a call goes: the gap to the limit, taken apart.

Owns the parts. A part is what a call makes of one kind, with the functions and the sizes that it uses, in a
loop of its own; what is left of the whole call is the interpreter: calls, comparisons and objects around
them. All are processor time of one thread, in turn, round by round, so that other work on the machine weighs
little. Invariant: a part is a lower bound: a loop of its own runs from the nearest caches.
"""

from __future__ import annotations

import fcntl
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec
import xxhash

from perdure.store import SessionStore
from perdure.store.event import pack_header as pack_event
from perdure.store.frame import MAGIC, pack_body_header, pack_chain
from perdure.store.session import FORMAT
from perdure.store.session import pack_header as pack_session

from .comparison import Plan
from .replay_parts import CALL as REPLAY
from .replay_parts import PARTS_OF_REPLAY, ReplayParts
from .rows import Row, spread_of
from .workloads import BATCH, SMALL_BYTES, changes_of, sessions_of

PARTS: Final = "parts"
SYSTEM: Final = "perdure-lmdb"
WHOLE: Final = "the whole call"
SYSTEM_CALLS: Final = "system calls"
LOOK_UP: Final = "look-up in LMDB"
ENCODING: Final = "encoding and hashes"
DECODING: Final = "hash and decoding"
FOLD: Final = "its share of the fold"
INTERPRETER: Final = "the interpreter around them"
CALLS: Final = 1_000
"""Of one round: fewer than a writer folds by itself, so that the fold is a part of its own."""
CALLS_OF = {
    "get": (LOOK_UP, DECODING),
    "create": (SYSTEM_CALLS, ENCODING, FOLD),
    "update": (SYSTEM_CALLS, LOOK_UP, DECODING, ENCODING, FOLD),
    "create, of a batch of 100": (ENCODING, FOLD),
    REPLAY: PARTS_OF_REPLAY,
}
"""Each call, and the parts that it cannot do without."""
NAMES: Final = tuple(f"{PARTS}: {call}: {part}" for call in CALLS_OF for part in (WHOLE, *CALLS_OF[call]))

_MAP_BYTES = 1 << 34
_KEY_BYTES = 32
_ID = bytes(16)
_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode
_hash = xxhash.xxh3_64_intdigest


class BareParts:
    """The parts but the fold, each ready to be called again and again."""

    def __init__(self, folder: Path, keys: list[bytes]) -> None:
        self._log = os.open(folder / "bare", os.O_RDWR | os.O_CREAT)
        self._offset = 0
        self._fields = next(sessions_of(SMALL_BYTES, 7))
        self._metadata = _encode(self._fields)
        self._key = keys[0]
        self._value = self._session()
        self._frame = self._event() + bytes(80)
        self._keys = keys
        self._next_key = iter(keys).__next__
        self._environment = lmdb.open(
            str(folder / "db"),
            map_size=_MAP_BYTES,
            sync=False,
            metasync=False,
            readahead=False,
            writemap=True,
        )
        with self._environment.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti([(key, self._value) for key in sorted(keys)])
        random.Random(1).shuffle(keys)
        self._reading = self._environment.begin()

    def system_calls(self) -> None:
        fcntl.flock(self._log, _EXCLUSIVE)
        self._offset += os.pwrite(self._log, self._frame, self._offset)
        fcntl.flock(self._log, fcntl.LOCK_UN)

    def encode(self) -> None:
        hashed = _hash(self._session(), _hash(self._key))
        body = pack_body_header(hashed, MAGIC, 0, 0, len(self._value), 1, 1, 0, 0, 1, 0, hashed, 1)
        body += self._event()
        pack_chain(_hash(body, hashed)) + body

    def decode(self) -> None:
        _hash(self._value, _hash(self._key))
        _decode(self._metadata)

    def look_up(self) -> None:
        try:
            key = self._next_key()
        except StopIteration:
            self._next_key = iter(self._keys).__next__
            key = self._next_key()
        self._reading.get(key)

    def close(self) -> None:
        os.close(self._log)
        self._reading.abort()
        self._environment.close()

    def _session(self) -> bytes:
        return pack_session(FORMAT, 0, 2, 0, 0, 0, 1, 0, 0, 3_600_000, 0) + _encode(self._fields)

    def _event(self) -> bytes:
        return pack_event(1, 1, _KEY_BYTES, len(self._value), _ID) + self._key + self._value


class WholeCalls:
    """The calls themselves, on a store with sessions. Each answers the us of processor time that one took,
    and what the fold of it takes (0 if there is none)."""

    def __init__(self, store: SessionStore, ids: list[str]) -> None:
        self._store = store
        self._ids = ids
        self._choice = random.Random(2)

    def measure(self, call: str) -> tuple[float, float]:
        store, ids = self._store, self._choice.sample(self._ids, CALLS)
        if call == "get":
            return _us_of(lambda: [store[id].metadata for id in ids]), 0.0
        if call == "update":
            changes = list(islice(changes_of(3), CALLS))
            pairs = list(zip(ids, changes, strict=True))
            taken = _us_of(lambda: [store.patch(id, change) for id, change in pairs])
        else:
            many = list(islice(sessions_of(SMALL_BYTES, 3), CALLS))
            if call == "create":
                taken = _us_of(lambda: [store.create(fields) for fields in many])
            else:
                taken = _us_of(lambda: self._batches(many))
        folded = _us_of(store.fold)
        return taken + folded, folded

    def _batches(self, many: list[dict[str, Any]]) -> None:
        for start in range(0, len(many), BATCH):
            with self._store.batch() as batch:
                for fields in many[start : start + BATCH]:
                    batch.create(fields)


def part_rows(folder: Path, plan: Plan, only: str = "") -> Iterator[Row]:
    """The parts of each call whose rows hold `only`, after one round of warm-up."""
    calls = [call for call in CALLS_OF if any(only in name for name in NAMES if f": {call}: " in name)]
    if any(call != REPLAY for call in calls):
        yield from _call_rows(folder, plan, [call for call in calls if call != REPLAY])
    if REPLAY in calls:
        yield from _rows(REPLAY, _replay_rounds(folder / "replay", plan), plan)


def _call_rows(folder: Path, plan: Plan, calls: list[str]) -> Iterator[Row]:
    with SessionStore.open(folder / "store", sweep_interval_ms=0) as store:
        ids: list[str] = []
        fields = sessions_of(SMALL_BYTES, 1)
        for _ in range(plan.sessions // BATCH):
            with store.batch() as batch:
                ids += [batch.create(one) for one in islice(fields, BATCH)]
        store.fold()
        bare = BareParts(folder, [id.encode() for id in ids])
        try:
            whole = WholeCalls(store, ids)
            for call in calls:
                rounds = [_round(call, whole, bare) for _ in range(plan.rounds + 1)][1:]
                yield from _rows(call, rounds, plan)
        finally:
            bare.close()


def _round(call: str, whole: WholeCalls, bare: BareParts) -> dict[str, float]:
    """us of each part."""
    functions = {
        SYSTEM_CALLS: bare.system_calls,
        LOOK_UP: bare.look_up,
        ENCODING: bare.encode,
        DECODING: bare.decode,
    }
    taken, folded = whole.measure(call)
    parts = {
        part: folded if part == FOLD else _us_of(lambda function=functions[part]: _again(function))  # type: ignore[misc]
        for part in CALLS_OF[call]
    }
    return {WHOLE: taken, **parts, INTERPRETER: max(0.0, taken - sum(parts.values()))}


def _replay_rounds(folder: Path, plan: Plan) -> list[dict[str, float]]:
    """us of each part of an event, round by round, without the first."""
    replaying = ReplayParts(folder, plan.sessions)
    per = replaying.events
    try:
        rounds = []
        for _ in range(plan.rounds + 1):
            taken = _us_of(replaying.whole, per)
            parts = {part: _us_of(function, per) for part, function in replaying.functions().items()}
            rounds.append({WHOLE: taken, **parts, INTERPRETER: max(0.0, taken - sum(parts.values()))})
        return rounds[1:]
    finally:
        replaying.close()


def _again(function: Callable[[], object]) -> None:
    for _ in range(CALLS):
        function()


def _us_of(work: Callable[[], object], calls: int = CALLS) -> float:
    """Processor time of this thread, us, by the calls that the work makes."""
    began = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began) / 1000 / calls


def _rows(call: str, rounds: list[dict[str, float]], plan: Plan) -> Iterator[Row]:
    least = statistics.median(one[WHOLE] - one[INTERPRETER] for one in rounds)
    for part in rounds[0]:
        its = [one[part] for one in rounds]
        yield Row(
            group=PARTS,
            case=f"{call}: {part}",
            system=SYSTEM,
            durability="os",
            value_bytes=SMALL_BYTES,
            sessions=plan.sessions,
            amount=statistics.median(its),
            unit="us",
            spread=spread_of(its),
            rounds=len(rounds),
            note=f"{1e6 / least:,.0f}/s without the interpreter" if part == WHOLE else "",
        )
