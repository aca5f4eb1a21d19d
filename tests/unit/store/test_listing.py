"""Listing keys: state and tail together, in order, by prefix, from any key on, in chunks of any size."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from perdure.store.backends import BACKENDS
from tests.support.machine import open_quietly


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_of_any_size_are_the_keys_that_are_there_in_order(
    tmp_path: Path, seed: int, backend: str
) -> None:
    chance = random.Random(seed)
    names = ["a", "ab", "abc", "b", "ba", "c"] + [
        f"{first}{n:02}" for first in ("a", "b", "ab") for n in range(12)
    ]
    with open_quietly(tmp_path / "store", backend=backend) as store:
        there: set[str] = set()
        for _ in range(60):
            for name in chance.sample(names, 4):
                if chance.random() < 0.6:
                    store.put(name, {})
                    there.add(name)
                else:
                    store.delete(name)
                    there.discard(name)
            if chance.random() < 0.3:
                store.fold()
            prefix = chance.choice(["", "a", "ab", "b", "c", "z"])
            after = chance.choice(["", *names])
            limit = chance.choice([1, 2, 5, 100])
            wanted = sorted(name for name in there if name.startswith(prefix) and name > after)
            found = [key.decode() for key in store._view.keys(prefix.encode(), after.encode(), limit)]
            assert found == wanted[:limit]
            assert list(store.ids(prefix, after)) == wanted
