"""One process of a store's application, run by the crash tests: `python -m` it with a directory.

Arguments: store directory, ledger file, seed, seconds, durability. It creates, updates, deletes and
reads sessions until it is killed or the time is up; every acknowledged change goes into the ledger
after its call returned, every attempt before. At the end it writes a line `done` with its slowest call.
"""

from __future__ import annotations

import os
import random
import sys
import time

from perdure.store import SessionStore


def main() -> int:
    path, ledger, seed, seconds, durability = sys.argv[1:6]
    rng = random.Random(int(seed))
    out = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    deadline = time.monotonic() + float(seconds)
    slowest = calls = 0.0
    mine: list[str] = []
    with SessionStore.open(path, durability=durability) as store:
        number = 0
        while time.monotonic() < deadline:
            number += 1
            kind = rng.random()
            started = time.perf_counter()
            if kind < 0.5 or not mine:
                id = f"{seed}-{number}"
                os.write(out, f"attempt {id} {number}\n".encode())
                store.put(id, {"n": number, "pad": "x" * rng.randrange(200)}, None)
                os.write(out, f"ack {id} {number}\n".encode())
                mine.append(id)
            elif kind < 0.8:
                id = rng.choice(mine)
                os.write(out, f"attempt {id} {number}\n".encode())
                store.update(id, lambda session, n=number: session.merge({"n": n}))  # type: ignore[misc]
                os.write(out, f"ack {id} {number}\n".encode())
            elif kind < 0.9:
                id = mine.pop(rng.randrange(len(mine)))
                os.write(out, f"attempt {id} 0\n".encode())
                store.delete(id)
                os.write(out, f"ack {id} 0\n".encode())
            elif store.get(rng.choice(mine)) is None:
                raise SystemExit("a session of this process alone is gone")
            slowest = max(slowest, time.perf_counter() - started)
            calls += 1
    os.write(out, f"done {int(calls)} {slowest * 1000:.1f}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
