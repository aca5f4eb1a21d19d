"""A process that writes on whichever node is primary, for as long as it is let, and notes what was done.

Run as a script: the nodes' directories, a file for its notes, and a name for its sessions. A line a write:
the id, and when it was acknowledged (ns, monotonic). It ends when its standard input does.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

import perdure
from perdure.store import Indeterminate, NotPrimaryError, PerdureError, SessionStore

RETRY_S = 0.001


def main(directories: list[str], notes: str, name: str) -> None:
    stores = [perdure.open(path, create=False, write_timeout_ms=20_000) for path in directories]
    at, number = 0, 0
    with Path(notes).open("w", buffering=1) as file:
        print("ready", flush=True)
        while not select.select([0], [], [], 0)[0]:
            id = f"{name}-{number}"
            try:
                stores[at].put(id, {"n": number})
            except NotPrimaryError:
                at = (at + 1) % len(stores)
                time.sleep(RETRY_S)
                continue
            except Indeterminate:
                file.write(f"?{id} {time.monotonic_ns()}\n")
                number += 1
                continue
            file.write(f"{id} {time.monotonic_ns()}\n")
            number += 1
    for store in stores:
        close(store)


def close(store: SessionStore) -> None:
    try:
        store.close()
    except PerdureError as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[3:], sys.argv[1], sys.argv[2])
    os._exit(0)
