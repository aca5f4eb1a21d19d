"""A client process of the comparison: it connects to one running system and does what it is told.

Owns what a case means in calls of the ports, the same for all systems, and the conversation over stdin and
stdout: a JSON object a line each way. Invariant: what is prepared for a slice (ids, fields, order) follows
from the case, the slice's number and the client's number alone, so that every system gets the same work.
"""

from __future__ import annotations

import operator
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import msgspec

from .loop import Calls, Slice, run_calls, run_passes
from .open_loop import MonotonicClock, arrivals_ns, run_open
from .systems.memory import own_bytes
from .systems.ports import Address, Client, System
from .workloads import ADDING, BATCH, ONE_CALL, Case, changes_of, sessions_of
from .zipf import Even, Zipfian

FIRST_CALLS: Final = 1_000
"""Calls of a client's first slice of a case, the warm-up: it tells how many the next one needs."""
FIRST_DUE: Final = 100
"""Sessions of the first cleanup, for the same reason."""
DUE_S: Final = 2.0
"""Sessions that expire are stored for so long at most; a system that is slower has fewer to remove."""
SPARE: Final = 2.0
"""More calls are prepared than the last slice made, so that they hardly ever run out."""
CALLS_MAX: Final = 200_000
ADDED_MAX: Final = 20_000
"""Sessions that one slice adds, or deletes, at most."""
DUE_SHARE: Final = 10
"""A cleanup finds one expired session to so many live ones."""


class Connect(msgspec.Struct, frozen=True, tag=True):
    system: str
    address: Address
    number: int
    """Of this client among those of the system."""


class Fill(msgspec.Struct, frozen=True, tag=True):
    count: int
    value_bytes: int
    file: str
    """Takes the ids, one a line."""
    limit_s: float
    """Store no more after this time."""
    is_all: bool = False
    """Rather fail, and early, than have fewer."""


class Learn(msgspec.Struct, frozen=True, tag=True):
    value_bytes: int
    file: str
    """Sessions of this size that are there, as Fill wrote them."""


class Prepare(msgspec.Struct, frozen=True, tag=True):
    case: Case
    number: int
    seconds: float


class Run(msgspec.Struct, frozen=True, tag=True):
    """Run what was prepared. Begins at this time of the monotonic clock."""

    at_ns: int


class First(msgspec.Struct, frozen=True, tag=True):
    """Connect, get one of the learned sessions, or update it, close: s until its answer."""

    system: str
    address: Address
    is_write: bool = False


class Memory(msgspec.Struct, frozen=True, tag=True):
    """Own memory of this process, in bytes."""


class Close(msgspec.Struct, frozen=True, tag=True):
    pass


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The answer of a request that raised."""

    error: str


@runtime_checkable
class Filling(Protocol):
    """Of a client whose create_many does not make sessions that can be found again."""

    def fill(self, many: list[dict[str, Any]]) -> list[str]:
        """As create_many, of sessions that can."""


Request = Connect | Fill | Learn | Prepare | Run | First | Memory | Close
Reply = Slice | Failed | float


def system_by(name: str) -> System:
    """One of the registered systems, the limit, or `module:name` of one that is not registered."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        system: System = getattr(import_module(module), attribute)()
        return system
    if name == "limit":
        from .limits import Limit  # noqa: PLC0415  its packages are not for every client

        return Limit()
    from .systems import system_named  # noqa: PLC0415

    return system_named(name)


class Worker:
    """Does requests, one after the other."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._number = 0
        self._ids: dict[int, list[str]] = {}
        self._zipfians: dict[int, Zipfian] = {}
        self._rates: dict[str, float] = {}
        self._due_per_s = 0.0
        self._work: Callable[[int], Slice] | None = None
        self._case = ""

    def do(self, request: Request) -> Reply:
        """Raises whatever the system raises."""
        match request:
            case Connect(system, address, number):
                self._number = number
                self._client = system_by(system).connect(address)
            case Fill():
                return self._fill(request)
            case Learn(value_bytes, file):
                self._ids[value_bytes] = Path(file).read_text(encoding="ascii").split()
            case Prepare(case, number, seconds):
                self._case = case.name
                self._work = self._prepared(case, number, seconds)
            case Run(at_ns):
                return self._run(at_ns)
            case First():
                return self._first(request)
            case Memory():
                return float(own_bytes((os.getpid(),)))
            case Close():
                client, self._client = self._client, None
                if client is not None:
                    client.close()
        return 0.0

    @property
    def _connected(self) -> Client:
        if self._client is None:
            raise AssertionError("not connected")
        return self._client

    def _fill(self, request: Fill) -> float:
        """How many were stored. The ids go to the file as they come: what this process's memory has grown by
        afterwards is the system's."""
        fields = sessions_of(request.value_bytes, self._number)
        client, done = self._connected, 0
        create_many = client.fill if isinstance(client, Filling) else client.create_many
        end_s = time.monotonic() + request.limit_s
        with open(request.file, "w", encoding="ascii") as file:
            while done < request.count and (not done or time.monotonic() < end_s):
                ids = create_many(list(islice(fields, min(BATCH, request.count - done))))
                file.write("\n".join(ids) + "\n")
                done += len(ids)
                took_s = time.monotonic() + request.limit_s - end_s
                if request.is_all and took_s > 1.0 and took_s / done * request.count > request.limit_s:
                    needed_s = took_s / done * request.count
                    raise TimeoutError(
                        f"{request.count:,} would take {needed_s:.0f} s, of {request.limit_s:.0f} at most"
                    )
        return float(done)

    def _first(self, request: First) -> float:
        system = system_by(request.system)
        ids = next(iter(self._ids.values()))
        id, changes = ids[len(ids) // 2], {"page": 1}
        started = time.perf_counter()
        client = system.connect(request.address)
        try:
            if request.is_write:
                client.update(id, changes)
            elif client.get(id) is None:
                raise AssertionError("a session that was stored is not there")
            return time.perf_counter() - started
        finally:
            client.close()

    def _run(self, at_ns: int) -> Slice:
        if self._work is None:
            raise AssertionError("nothing is prepared")
        work, self._work = self._work, None
        slice = work(at_ns)
        self._rates[self._case] = slice.rate_per_s
        return slice

    def _prepared(self, case: Case, number: int, seconds: float) -> Callable[[int], Slice]:
        seed = f"{case.name}/{number}/{self._number}"
        if not {*case.mix} & {*ADDING, *ONE_CALL, "delete"}:
            self._check_found(case)
        if case.rate_per_s:
            due_ns = arrivals_ns(case.rate_per_s / case.clients, seconds, number * 100 + self._number)
            calls = self._calls(case, len(due_ns), seed)
            return lambda at_ns: run_open(calls, due_ns, MonotonicClock(), at_ns=at_ns)
        if case.operation in ONE_CALL:
            return self._pass(case, seconds)
        units = BATCH if case.operation == "create_many" else 1
        rate = self._rates.get(case.name, 0.0)
        wanted = int(rate * seconds * SPARE) + BATCH if rate else FIRST_CALLS
        most = ADDED_MAX if case.operation in (*ADDING, "delete") else CALLS_MAX
        calls = self._calls(case, max(1, min(wanted, most) // units), seed)
        return lambda at_ns: run_calls(calls, seconds, units=units, at_ns=at_ns)

    def _check_found(self, case: Case) -> None:
        """A miss is quick: whoever does not find what another client has stored is not measured."""
        ids = self._ids[case.value_bytes]
        if not self._connected.get(ids[len(ids) // 2]):
            raise AssertionError("a session that another client stored is not there")

    def _pass(self, case: Case, seconds: float) -> Callable[[int], Slice]:
        client = self._connected
        if case.operation == "ids":
            return lambda at_ns: run_passes(
                lambda: sum(1 for _ in client.ids()), seconds, before=lambda: None, at_ns=at_ns
            )
        most = max(1, len(self._ids[case.value_bytes]) // DUE_SHARE)
        return lambda at_ns: run_passes(
            client.expire_due, seconds, before=lambda: self._fall_due(case, most), at_ns=at_ns
        )

    def _fall_due(self, case: Case, most: int) -> None:
        """Store sessions that expire at once: `most`, or as many as the last time allows in DUE_S."""
        count = int(min(most, self._due_per_s * DUE_S if self._due_per_s else FIRST_DUE))
        fields = sessions_of(case.value_bytes, self._number)
        started, left = time.perf_counter(), max(1, count)
        while left > 0:
            self._connected.create_due(list(islice(fields, min(left, 1000))))
            left -= 1000
        self._due_per_s = max(1, count) / (time.perf_counter() - started)
        time.sleep(0.002)  # the lifetime of the last of them

    def _calls(self, case: Case, count: int, seed: str) -> Calls:
        choice = random.Random(seed)
        if case.operation:
            arguments = self._arguments(case.operation, case, choice.getrandbits(32))
            return Calls(self._function(case.operation), list(islice(arguments, count)))
        parts = {
            operation: (self._function(operation), self._arguments(operation, case, choice.getrandbits(32)))
            for operation in case.mix
        }
        order = choice.choices(list(case.mix), weights=list(case.mix.values()), k=count)
        return Calls(operator.call, [(parts[name][0], *next(parts[name][1])) for name in order])

    def _function(self, operation: str) -> Callable[..., object]:
        client = self._connected
        if operation == "get_update":
            get, update = client.get, client.update

            def get_update(id: str, changes: dict[str, Any]) -> None:
                get(id)
                update(id, changes)

            return get_update
        function: Callable[..., object] = getattr(client, operation)
        return function

    def _arguments(self, operation: str, case: Case, seed: int) -> Iterator[tuple[Any, ...]]:
        """The arguments of one call after the other, without end."""
        if operation == "create":
            return ((fields,) for fields in sessions_of(case.value_bytes, seed))
        if operation == "create_many":
            fields = sessions_of(case.value_bytes, seed)
            return ((many,) for many in iter(lambda: list(islice(fields, BATCH)), None))
        if operation == "delete":
            fields = sessions_of(case.value_bytes, seed)
            batches = iter(lambda: self._connected.create_many(list(islice(fields, BATCH))), None)
            return ((id,) for batch in batches for id in batch)
        ids = self._chosen(case, seed)
        if operation in ("get", "touch"):
            return ((id,) for id in ids)
        return zip(ids, changes_of(seed), strict=False)

    def _chosen(self, case: Case, seed: int) -> Iterator[str]:
        ids = self._ids[case.value_bytes]
        chooser: Even | Zipfian = Even(ids, seed)
        if case.is_zipfian:
            chooser = self._zipfians.setdefault(case.value_bytes, Zipfian(ids, 0)).seeded(seed)
        while True:
            yield from chooser.take(1000)


def main() -> None:
    """Answer requests until stdin ends. What else is printed goes to stderr; who interrupts the bench leaves
    it to the bench to end its clients."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    decode, encode = msgspec.json.Decoder(Request).decode, msgspec.json.Encoder().encode
    worker = Worker()
    for line in sys.stdin.buffer:
        reply: Reply
        try:
            reply = worker.do(decode(line))
        except Exception as error:  # noqa: BLE001  any failure of a system is told, and measured no further
            reply = Failed(f"{type(error).__name__}: {error}")
        replies.write(encode(reply) + b"\n")


if __name__ == "__main__":
    main()
