"""The probe: records that are compared between nodes are those of the state."""

from __future__ import annotations

from pathlib import Path

from perdure.store import SessionStore
from perdure.store.probe import hashes_of, random_keys
from tests.cluster.ops import damage


def test_the_hash_of_a_record_that_the_state_lost_is_that_of_no_record(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s") as store, SessionStore.open(tmp_path / "s") as folding:
        keys = [store.create({"n": number}).encode() for number in range(5)]
        assert [store.peek(key.decode()) for key in keys]
        folding.fold()
        assert sorted(random_keys(store, 10)) == sorted(keys)
        before = hashes_of(store, keys)
        assert 0 not in before
        later = store.create({"n": 5}).encode()
        damage(tmp_path / "s", {keys[1]: None})
        assert hashes_of(store, keys) == [before[0], 0, *before[2:]]
        assert hashes_of(store, [later]) != [0]
