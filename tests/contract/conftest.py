"""The back ends that the contract is held against, each opened by the same word.

Owns the fixtures only. `mapped` and `written` are the two ways in which LMDB's file is written; which of
them a store uses depends on its file system, so both keep the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from perdure.store.ports import Backend
from tests.contract.children import open_way

Opener: TypeAlias = Callable[[], Backend]
WAYS = ("lmdb-written", "lmdb-mapped", "sqlite")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Which back end, and how."""
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The back end's directory."""
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


@pytest.fixture
def opener(way: str, place: Path) -> Iterator[Opener]:
    """Opens one more handle on the same directory; all are closed at the end."""
    handles: list[Backend] = []

    def open_one() -> Backend:
        handles.append(open_way(way, place))
        return handles[-1]

    yield open_one
    for handle in handles:
        handle.close()


@pytest.fixture
def backend(opener: Opener) -> Backend:
    """One open, empty back end."""
    return opener()
