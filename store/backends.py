"""The back ends by name. The only module that knows which there are."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Final, NamedTuple

from .backend_lmdb import LmdbBackend
from .backend_sqlite import DATA_FILE as SQLITE_FILE
from .backend_sqlite import ENGINE as SQLITE_ENGINE
from .backend_sqlite import SqliteBackend
from .engine_lmdb import DATA_FILE as LMDB_FILE
from .engine_lmdb import ENGINE as LMDB_ENGINE
from .errors import UsageError
from .files import make_directory, translated
from .ports import Backend


class BackendKind(NamedTuple):
    """What there is to know of a back end without opening one."""

    open: Callable[[Path], Backend]
    engine: str
    """Name and version of the engine whose files these are: other versions cannot be told to read them."""
    data_file: str
    """The file in its directory that holds the state."""


_KINDS: Final[dict[str, BackendKind]] = {
    "lmdb": BackendKind(LmdbBackend, LMDB_ENGINE, LMDB_FILE),
    "sqlite": BackendKind(SqliteBackend, SQLITE_ENGINE, SQLITE_FILE),
}
BACKENDS: Final = tuple(_KINDS)
DEFAULT_BACKEND: Final = "lmdb"


def backend_kind(name: str) -> BackendKind:
    """The back end of that name. Raises UsageError that names the nearest right one."""
    kind = _KINDS.get(name)
    if kind is None:
        near = get_close_matches(name.lower(), BACKENDS, n=1, cutoff=0.4)
        raise UsageError(
            f"there is no back end {name!r}",
            hint=f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(BACKENDS)}.",
        )
    return kind


def open_backend(name: str, path: Path) -> Backend:
    """Open the back end `name` in the directory `path`, which is made if its parent is there.

    Raises UsageError for an unknown name, CorruptError or FormatVersionError for files that it cannot
    read, StorageError and its kinds.
    """
    kind = backend_kind(name)
    with translated("cannot make the state's directory", path):
        make_directory(path)
    return kind.open(path)
