"""The back ends by name: those of perdure, and those that installed packages bring.

Owns which there are. A package registers one by an entry point of the group `perdure.backends`, whose name
is the back end's and whose value is a BackendKind. The names of perdure's own cannot be taken over.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from .backend_lmdb import LmdbBackend
from .backend_memory import ENGINE as MEMORY_ENGINE
from .backend_memory import MemoryBackend
from .backend_sqlite import DATA_FILE as SQLITE_FILE
from .backend_sqlite import ENGINE as SQLITE_ENGINE
from .backend_sqlite import SqliteBackend
from .engine_lmdb import DATA_FILE as LMDB_FILE
from .engine_lmdb import ENGINE as LMDB_ENGINE
from .errors import UsageError
from .files import make_directory, translated
from .names import STATE_MARKER, is_node_name
from .ports import Backend

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS: Final = "perdure.backends"
METHODS: Final = ("refresh", "release", "get", "scan", "fold", "due", "find", "close")


class BackendKind(NamedTuple):
    """What there is to know of a back end without opening one."""

    open: Callable[[Path], Backend]
    """Opens the state in a directory, which is there, or makes an empty one in it."""
    engine: str
    """Name and version of the engine whose files these are: other versions cannot be told to read them."""
    data_file: str = ""
    """The file in its directory that holds the state; it is there from the first opening on."""
    is_shared: bool = True
    """All handles on a directory, in any process, share one state. False: each has its own, in no file."""


_KINDS: Final[dict[str, BackendKind]] = {
    "lmdb": BackendKind(LmdbBackend, LMDB_ENGINE, LMDB_FILE),
    "sqlite": BackendKind(SqliteBackend, SQLITE_ENGINE, SQLITE_FILE),
    "memory": BackendKind(MemoryBackend, MEMORY_ENGINE, is_shared=False),
}
BACKENDS: Final = tuple(_KINDS)
"""perdure's own."""
DEFAULT_BACKEND: Final = "lmdb"
_installed: Final[dict[str, BackendKind]] = {}


def backend_names() -> list[str]:
    """All that there are: perdure's own first, then what is installed, whether or not it can be loaded."""
    installed = {point.name for point in _entry_points()}
    return [*BACKENDS, *sorted(installed.difference(BACKENDS))]


def backend_kind(name: str) -> BackendKind:
    """The back end of that name.

    Raises UsageError for an unknown name, saying which there are and which is the nearest, and for an
    installed one that is not what it must be, saying whose it is.
    """
    kind = _KINDS.get(name) or _installed.get(name)
    if kind is None:
        points = [point for point in _entry_points() if point.name == name]
        if not points:
            raise _unknown(name)
        kind = _installed[name] = _load(name, points)
    return kind


def shares_state(name: str) -> bool:
    """Is the state of this back end in files that all processes share? Taken for granted of one that is
    not installed here."""
    try:
        return backend_kind(name).is_shared
    except UsageError:
        return True


def open_backend(name: str, path: Path) -> Backend:
    """Open the back end `name` in the directory `path`, which is made if its parent is there.

    Raises UsageError for an unknown or broken one, CorruptError or FormatVersionError for files that it
    cannot read, StorageError and its kinds.
    """
    kind = backend_kind(name)
    if kind.is_shared:
        with translated("cannot make the state's directory", path):
            make_directory(path)
    backend = kind.open(path)
    if name in _installed:
        missing = [method for method in METHODS if not callable(getattr(backend, method, None))]
        missing += [field for field in ("engine_errors", "has_labels") if not hasattr(backend, field)]
        if missing:
            raise UsageError(
                f"what the back end {name!r} opens is no Backend: it has no {', '.join(missing)}",
                hint="See docs/backends.md for what a back end must have.",
            )
    return backend


def _entry_points() -> list[EntryPoint]:
    """What is registered by installed packages."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - takes long to load, and is rarely asked

    return list(entry_points(group=ENTRY_POINTS))


def _unknown(name: str) -> UsageError:
    names = backend_names()
    near = get_close_matches(name.lower(), names, n=1, cutoff=0.4)
    there = f"There are: {', '.join(names)}."
    return UsageError(
        f"there is no back end {name!r}", hint=f"Did you mean {near[0]!r}? {there}" if near else there
    )


def _load(name: str, points: list[EntryPoint]) -> BackendKind:
    owners = " and ".join(sorted(_owner(point) for point in points))
    if len(points) > 1:
        raise UsageError(f"the back end {name!r} is registered by {owners}", hint="Uninstall one of them.")
    if not is_node_name(name) or name.startswith(STATE_MARKER):
        raise UsageError(
            f"{owners} registers a back end {name!r}, which is no name for one",
            hint="1 to 32 of a-z, 0-9, '.', '-', '_', and not one that begins with 'marker'.",
        )
    try:
        kind = points[0].load()
    except Exception as error:
        raise UsageError(
            f"the back end {name!r} of {owners} cannot be loaded: {type(error).__name__}: {error}",
            hint=f"It is registered as {points[0].value!r}; see whether what it needs is installed.",
        ) from error
    problem = _problem(kind)
    if problem:
        raise UsageError(
            f"the back end {name!r} of {owners} ({points[0].value}) {problem}", hint="See docs/backends.md."
        )
    return cast(BackendKind, kind)


def _problem(kind: Any) -> str:
    """What is wrong with a kind that a package registers, empty if nothing."""
    if not isinstance(kind, BackendKind):
        return f"is {type(kind).__name__}, not a perdure.store.BackendKind"
    fields: tuple[Any, ...] = kind
    opens, engine, file, _ = fields
    if not callable(opens) or not isinstance(engine, str) or not engine:
        return "has no `open` that can be called, or no `engine`"
    if kind.is_shared and (not isinstance(file, str) or not file or file != Path(file).name):
        return f"has the data_file {file!r}, which is no file name"
    return ""


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"
