"""A few records of a store, picked at random and compared between nodes by their hashes.

Owns the picking, which costs the same however large the store is, and is random only as far as keys are.
Records are compared as they are stored: no key for sealed sessions is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice

from .fold import HASH_BYTES
from .sessions import SessionStore

_START_BYTES = 2


def random_keys(store: SessionStore, count: int) -> list[bytes]:
    """Up to `count` keys of sessions in the state, each the next one behind a random place."""
    view = store._view
    with view.mutex:
        view.catch_up()
        scan = view.scan()
    try:
        keys = [key for key, _ in islice(scan, count)]
    finally:
        scan.close()
    for _ in range(count):
        with view.mutex:
            scan = view.scan(os.urandom(_START_BYTES).hex().encode())
        try:
            keys += [key for key, _ in islice(scan, 1)]
        finally:
            scan.close()
    return sorted(set(keys), key=lambda _: os.urandom(8))[:count]


def hashes_of(store: SessionStore, keys: Sequence[bytes]) -> list[int]:
    """The hash of each key's record at the log's end, 0 where there is none.

    What the state holds counts, and not what this handle still remembers of the log.
    """
    view = store._view
    with view.mutex:
        view.catch_up()
        view.refresh()
    found = [view.newest(key) for key in keys]
    return [0 if record is None else int.from_bytes(record[:HASH_BYTES], "little") for record in found]
