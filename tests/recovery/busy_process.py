"""A process that reads and writes without pause: `python -m tests.recovery.busy_process DIR NAME SEED`.

It ends when its standard input does, and then says as one line of JSON what it did: what every session of
its own must be, how often it incremented the common counter, what failed, and the longest that a call took.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from perdure.store import SessionStore
from perdure.store.listing import list_members

COUNTER = "counter"
CHECK_EVERY = 50
GROUP_MAX = 1_000_000
T = TypeVar("T")


class Busy:
    """The work of one process, and its ledger."""

    def __init__(self, directory: str, name: str, seed: int) -> None:
        self.store = SessionStore.open(directory, create=False, write_timeout_ms=60_000)
        self.name = name
        self.random = random.Random(seed)
        self.ledger: dict[str, int] = {}
        self.gone: list[str] = []
        self.increments = 0
        self.calls = 0
        self.failures: list[str] = []
        self.longest_ms = 0.0
        self.longest = ""

    def timed(self, what: str, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        answer = call()
        took_ms = (time.perf_counter() - began) * 1000
        self.calls += 1
        if took_ms > self.longest_ms:
            self.longest_ms, self.longest = took_ms, what
        return answer

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            self.failures.append(what)

    def step(self, number: int) -> None:
        store, dice = self.store, self.random.random()
        mine = list(self.ledger)
        if dice < 0.3 or len(mine) < 20:
            id = self.timed("create", lambda: store.create({"n": 0, "by": self.name}, group=self.name))
            self.ledger[id] = 0
        elif dice < 0.55:
            id = self.random.choice(mine)
            value = self.ledger[id] + 1
            self.timed("update", lambda: store.patch(id, {"n": value}))
            self.ledger[id] = value
        elif dice < 0.62:
            id = self.random.choice(mine)
            self.expect(self.timed("delete", lambda: store.delete(id)), f"{id} was gone")
            del self.ledger[id]
            self.gone.append(id)
        elif dice < 0.7:
            self.timed(
                "count up", lambda: store.update(COUNTER, lambda s: s.merge({"n": s.metadata["n"] + 1}))
            )
            self.increments += 1
        else:
            self.read(self.random.choice(mine))
        if number % CHECK_EVERY == 0:
            self.scan()

    def read(self, id: str) -> None:
        session = self.timed("peek", lambda: self.store.peek(id))
        found = None if session is None else session.metadata["n"]
        self.expect(found == self.ledger[id], f"{id} is {found}, not {self.ledger[id]}")
        if self.gone:
            lost = self.random.choice(self.gone)
            self.expect(self.timed("peek", lambda: self.store.peek(lost)) is None, f"{lost} is back")

    def scan(self) -> None:
        found = self.timed("ids", lambda: set(self.store.ids()))
        missing = self.ledger.keys() - found
        self.expect(not missing, f"a scan misses {sorted(missing)[:3]} of {len(missing)}")
        term = b"g" + self.name.encode()
        keys = self.timed("group", lambda: list_members(self.store._view, term, b"", b"", GROUP_MAX))
        members = {key.decode() for key in keys}
        missing = self.ledger.keys() - members
        self.expect(not missing, f"the group misses {sorted(missing)[:3]} of {len(missing)}")

    def run(self) -> dict[str, Any]:
        poller = select.poll()
        poller.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
        number = 0
        print("ready", flush=True)
        while len(self.failures) < 10 and not poller.poll(0):
            number += 1
            try:
                self.step(number)
            except Exception:  # noqa: BLE001 - whatever fails is what the test wants to know
                self.failures.append(traceback.format_exc()[-1500:])
        error = self.store.stats()["background_error"]
        backend = self.store.stats()["backend"]
        self.store.close()
        return {
            "ledger": self.ledger,
            "increments": self.increments,
            "failures": self.failures,
            "calls": self.calls,
            "longest_ms": self.longest_ms,
            "longest": self.longest,
            "background_error": error,
            "backend": backend,
        }


if __name__ == "__main__":
    print(json.dumps(Busy(sys.argv[1], sys.argv[2], int(sys.argv[3])).run()))
