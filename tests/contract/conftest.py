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

NAMES = tuple(CHOSEN.split(",")) if CHOSEN else BACKENDS


def is_shared(way: str) -> bool:
    return backend_kind("lmdb" if way in LMDB_WAYS else way).is_shared


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`way`: which back end, and how; `backend_name`: the one of a store."""
    if "way" in metafunc.fixturenames:
        metafunc.parametrize("way", WAYS)
    if "backend_name" in metafunc.fixturenames:
        metafunc.parametrize("backend_name", NAMES)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a mark says is not for the back end of an item."""
    left_out = [item for item in items if not _is_for(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _is_for(item)]


def _is_for(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    way = callspec.params.get("way") if callspec is not None else None
    if way is None:
        return True
    if item.get_closest_marker("shared_state"):
        return is_shared(way)
    return not is_shared(way) if item.get_closest_marker("own_state") else True


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
