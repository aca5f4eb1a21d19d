"""Listing keys: state and tail together, in order, by prefix, from any key on, in chunks of any size."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.store.backends import BACKENDS
from perdure.store.errors import CorruptError
from perdure.store.fold import record_of
from perdure.store.listing import list_keys
from perdure.store.ports import KeyScan, Scan
from perdure.store.session import encode_session
from perdure.store.view import View
from tests.support.machine import open_quietly


class PairsOnly:
    """A back end whose scans give pairs, and nothing else."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def scan(self, after: bytes = b"") -> Scan:
        return PairScan(self._backend.scan(after))


class PairScan:
    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self.position, self.close = scan.position, scan.close

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._scan)


@pytest.mark.parametrize("gives_keys", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_of_any_size_are_the_keys_that_are_there_in_order(
    tmp_path: Path, seed: int, backend: str, gives_keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.listing.LISTED_MIN", 2)
    monkeypatch.setattr("perdure.store.listing.LISTED_MAX", 20)
    chance = random.Random(seed)
    names = ["a", "ab", "abc", "b", "ba", "c"] + [
        f"{first}{n:02}" for first in ("a", "b", "ab") for n in range(12)
    ]
    names += ["a\n", "a\nb", "\n", "b\0c", "\u00e4", "a\U0010ffff", "a" * 500 + "b", "a" * 600, "a" * 1024]
    with open_quietly(tmp_path / "store", backend=backend) as store:
        if not gives_keys:
            store._view.backend = PairsOnly(store._view.backend)
        assert isinstance(store._view.scan(), KeyScan) == gives_keys
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
            prefix = chance.choice(["", "a", "ab", "b", "c", "z", "a\n", "a" * 500, "a" * 1024, "\u00e4"])
            after = chance.choice(["", *names])
            limit = chance.choice([1, 2, 5, 100])
            wanted = [name for name in there if name.startswith(prefix) and name.encode() > after.encode()]
            wanted.sort(key=str.encode)
            found = [key.decode() for key in list_keys(store._view, prefix.encode(), after.encode(), limit)]
            assert found == wanted[:limit]
            assert list(store.ids(prefix, after)) == wanted


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_of_very_many_reads_them_in_few_chunks(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def counted(view: View, prefix: bytes, after: bytes, limit: int) -> list[bytes]:
        limits.append(limit)
        return list_keys(view, prefix, after, limit)

    monkeypatch.setattr("perdure.store.listing.list_keys", counted)
    with open_quietly(tmp_path / "store", backend=backend) as store:
        with store.batch() as batch:
            ids = sorted(batch.create({}) for _ in range(12_000))
        store.fold()
        for id in ids[::7]:
            store.delete(id)
        assert list(store.ids()) == [id for n, id in enumerate(ids) if n % 7]
    assert limits == [1000, 4000, 16_000]


def test_a_key_that_is_no_text_is_an_error_behind_the_ids_before_it(tmp_path: Path) -> None:
    with open_quietly(tmp_path / "store") as store:
        for name in ("a", "b", "d"):
            store.put(name, {})
        store.fold()
        record = record_of(b"c\xff", encode_session(1, 1, 1, 0, 0, {}))
        store._opened.backend.fold([(b"c\xff", record)], [], [], store._view.state)
        ids = store.ids()
        assert [next(ids), next(ids)] == ["a", "b"]
        with pytest.raises(CorruptError, match="cannot be read"):
            next(ids)
