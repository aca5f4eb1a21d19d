"""The workloads, as data: one definition for every system.

Owns which cases there are, their order, and what a session holds; how they are run stands in `loop.py` and
`worker.py`. Invariant: cases that leave the number of sessions as it was come before those that add some, so
that a fast system does not make its own state larger than a slow one's before the two are compared.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import msgspec

SMALL_BYTES: Final = 200
LARGE_BYTES: Final = 1_000
BATCH: Final = 100
"""Sessions of one create_many."""
ONE_CALL: Final = ("ids", "expire_due")
"""Operations whose one call is a pass over many sessions."""
ADDING: Final = ("create", "create_many")
CLIENTS_MAX: Final = 8
OPEN_LOOP: Final = "open loop"
"""The group of cases whose calls arrive at a rate, so that latencies are compared."""

ONE_NODE: Final = ("none", "os", "second", "disk")
TWO_NODES: Final = ("two", "two-disks")
_MAIN: Final = ("os", "disk")

_SETS = 4
_VARIETY = 500  # different sessions' fields, given again and again
_VARIETY_BYTES = 1_000_000
_QUICK_RATE_MAX = 2_000


class Case(msgspec.Struct, frozen=True):
    """One workload."""

    group: str
    name: str
    mix: dict[str, float]
    """Operations of the ports, each with its share of the calls."""
    clients: int = 1
    """Processes that call at once."""
    value_bytes: int = SMALL_BYTES
    """About so large is a session, as msgpack."""
    is_zipfian: bool = False
    rate_per_s: int = 0
    """Calls arrive at this rate, whether or not earlier ones are answered; 0: each follows the last."""
    classes: tuple[str, ...] = ONE_NODE
    """Durability classes in which it is measured."""
    is_quick: bool = True
    """Part of a quick run, too."""

    @property
    def operation(self) -> str:
        """The only operation; empty in a mix."""
        return next(iter(self.mix)) if len(self.mix) == 1 else ""


def _single(name: str, operation: str, *, is_quick: bool = True) -> Case:
    return Case("single", name, {operation: 1.0}, is_quick=is_quick)


def _large(name: str, operation: str) -> Case:
    return Case(
        "single",
        f"{name}, 1 KB",
        {operation: 1.0},
        value_bytes=LARGE_BYTES,
        classes=_MAIN,
        is_quick=False,
    )


def _many(operation: str, clients: int) -> Case:
    name = f"{operation}, {clients} clients"
    classes = ONE_NODE if clients == CLIENTS_MAX else _MAIN
    return Case(
        "clients",
        name,
        {operation: 1.0},
        clients=clients,
        classes=classes,
        is_quick=clients == CLIENTS_MAX,
    )


def _ycsb(letter: str, mix: dict[str, float], clients: int = 1) -> Case:
    return Case(
        "ycsb",
        f"YCSB {letter}" + (f", {clients} clients" if clients > 1 else ""),
        mix,
        clients=clients,
        is_zipfian=True,
        classes=_MAIN if clients == 4 else ONE_NODE,
        is_quick=letter == "A" and clients == 1,
    )


def _open(name: str, mix: dict[str, float], rate_per_s: int) -> Case:
    name = f"{name} at {rate_per_s:,}/s"
    is_quick = rate_per_s < _QUICK_RATE_MAX
    return Case(OPEN_LOOP, name, mix, rate_per_s=rate_per_s, is_zipfian=True, is_quick=is_quick)


def _replicated(operation: str, clients: int) -> Case:
    name = f"{operation}, {clients} client{'s' if clients > 1 else ''}"
    return Case("replicated", name, {operation: 1.0}, clients=clients, classes=TWO_NODES)


_HALF_UPDATES = {"get": 0.5, "update": 0.5}

CASES: Final = (
    _single("get", "get"),
    _large("get", "get"),
    _single("list", "ids", is_quick=False),
    _single("update", "update"),
    _large("update", "update"),
    _single("touch", "touch"),
    _ycsb("A", _HALF_UPDATES),
    _ycsb("B", {"get": 0.95, "update": 0.05}),
    _ycsb("F", {"get": 0.5, "get_update": 0.5}),
    _open("YCSB A", _HALF_UPDATES, 1_000),
    _open("YCSB A", _HALF_UPDATES, 4_000),
    _single("delete", "delete", is_quick=False),
    _single("cleanup", "expire_due", is_quick=False),
    _many("get", 4),
    _many("update", 4),
    _ycsb("A", _HALF_UPDATES, 4),
    _many("get", 8),
    _many("update", 8),
    _ycsb("A", _HALF_UPDATES, 8),
    _single("create", "create"),
    _large("create", "create"),
    _single("batch of 100", "create_many"),
    _many("create", 4),
    _many("create", 8),
    _replicated("get", 1),
    _replicated("update", 1),
    _replicated("create", 1),
    _replicated("create", 8),
)


def sessions_of(value_bytes: int, seed: int) -> Iterator[dict[str, Any]]:
    """The fields of one session after the other, about `value_bytes` each as msgpack; without end."""
    made = _made(value_bytes, seed % _SETS)
    while True:
        yield from made


def changes_of(seed: int) -> Iterator[dict[str, Any]]:
    """What one update after the other sets: one small field; without end."""
    made = [{"page": number} for number in range(seed % _VARIETY, seed % _VARIETY + _VARIETY)]
    while True:
        yield from made


@lru_cache(maxsize=8)
def _made(value_bytes: int, seed: int) -> tuple[dict[str, Any], ...]:
    variety = max(10, min(_VARIETY, _VARIETY_BYTES // value_bytes))
    return tuple(_fields(value_bytes, random.Random(seed * _VARIETY + number)) for number in range(variety))


def _fields(value_bytes: int, random: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "user_id": random.randrange(1 << 31),
        "name": f"a person of some name {random.randrange(1000):03}",
        "roles": ["reader", "writer"],
        "csrf": random.randbytes(16).hex(),
        "page": random.randrange(100),
        "seen_at": 1_700_000_000_000 + random.randrange(1 << 30),
        "theme": "dark",
        "cart": "",
    }
    lacking = value_bytes - len(msgspec.msgpack.encode(fields))
    fields["cart"] = random.randbytes(max(0, lacking)).hex()[: max(0, lacking)]
    return fields
