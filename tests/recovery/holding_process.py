"""A process that reads a whole store when asked: `python -m tests.recovery.holding_process DIR`.

It has the store open all the time. For each line on standard input it answers one line of JSON: every
session's number by id, and the back end; or the error that it met. It ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from perdure.store import PerdureError, SessionStore


def answer(store: SessionStore) -> dict[str, Any]:
    try:
        found = {session.id: session.metadata["n"] for session in store.sessions()}
        return {"found": found, "count": store.count(), "backend": store.stats()["backend"]}
    except PerdureError as error:
        return {"error": str(error)}


def main() -> None:
    with SessionStore.open(sys.argv[1], create=False) as store:
        print(json.dumps(answer(store)), flush=True)
        for _ in sys.stdin:
            print(json.dumps(answer(store)), flush=True)


if __name__ == "__main__":
    main()
