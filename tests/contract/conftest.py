"""The back ends that the contract is held against, each opened by the same word.

Owns the fixtures only. `mapped` and `written` are the two ways in which LMDB's file is written; which of
them a store uses depends on its file system, so both keep the contract. PERDURE_CONTRACT=name,... holds it
against these back ends instead, for who writes one.

What a test asks for beyond one handle is said by its mark: `shared_state` runs with back ends whose handles
share one state (BackendKind.is_shared), `own_state` with those where each has its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from perdure.store.backends import BACKENDS, backend_kind
from perdure.store.ports import Backend
from tests.contract.children import open_way

Opener: TypeAlias = Callable[[], Backend]
LMDB_WAYS = ("lmdb-written", "lmdb-mapped")
CHOSEN = os.environ.get("PERDURE_CONTRACT", "")
WAYS = tuple(CHOSEN.split(",")) if CHOSEN else (*LMDB_WAYS, *(name for name in BACKENDS if name != "lmdb"))


def is_shared(way: str) -> bool:
    return backend_kind("lmdb" if way in LMDB_WAYS else way).is_shared


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`way`: which back end, and how."""
    if "way" in metafunc.fixturenames:
        ways = list(WAYS)
        if metafunc.definition.get_closest_marker("shared_state"):
            ways = [way for way in ways if is_shared(way)]
        elif metafunc.definition.get_closest_marker("own_state"):
            ways = [way for way in ways if not is_shared(way)]
        metafunc.parametrize("way", ways)


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
