"""perdure: durable, replicated session storage. This module is the public face.

`perdure.open(path)` is how an application embeds a store; what it raises and returns stands in
`perdure.store`. The rooms are wired to each other here, and loaded when they are first needed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Unpack

    from .shipping import Way
    from .store import AsyncSessionStore, Configuration, SessionStore, Stores
    from .store.options import StoreOptions

__version__ = "0.1.0"

__all__ = ["__version__", "open", "open_async", "open_stores"]


def open(
    path: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | Configuration | None = None,
    forward: bool = True,
    **options: Unpack[StoreOptions],
) -> SessionStore:
    """Open the store at `path` with its way to the replicas; make a standalone one if there is none.

    `path` is a directory, or "@NAME" for a named store of the configuration. Options are those of
    `SessionStore.open`, times in ms; what is not given comes from the environment, then from the
    configuration file (`config`, else PERDURE_CONFIG, else perdure.toml in the directory), then from
    the defaults. With `create=False` only a store that is there is opened.

    Where the store's cluster has sync_replicas >= 1, each write returns once so many replicas have it on
    disk; a shipper must run then (`perdure ship` or `perdure node`), and without one a write ends as
    Indeterminate after `write_timeout_ms`.

    On a node of a cluster that is not the primary, or is not any more, writes are carried out on the primary,
    which is found by itself: the other nodes are those that the log or `peers` in [node] of the configuration
    tells, or that this node's process was told. With `forward=False` such a write raises NotPrimaryError.

    Raises StorageError, FormatError or UsageError (also for a wrong configuration); nothing is changed then.
    """
    from .store import load_config, with_keywords

    name = path[1:] if isinstance(path, str) and path.startswith("@") else None
    loaded = load_config(config, directory=None if name is not None else path)
    directory = Path(path) if name is None else loaded.path_of(name)
    given = loaded.given("store", loaded.name_of(directory) if name is None else name)
    return _open(directory, with_keywords(given, options), loaded if forward else None)


def open_stores(
    config: str | os.PathLike[str] | Configuration | None = None, **options: Unpack[StoreOptions]
) -> Stores:
    """The named stores of a configuration (`config`, else PERDURE_CONFIG), by name.

    Each is opened as `open("@NAME")` when it is first used; `options` are for all of them. Raises UsageError
    if the configuration is wrong, or names no store.
    """
    from .store import Stores, UsageError, load_config, with_keywords

    loaded = load_config(config)
    if not loaded.stores:
        raise UsageError(
            "the configuration names no store" if loaded.file else "there is no configuration file",
            path=loaded.file,
            hint="Give a file with [stores.NAME] sections, or set PERDURE_CONFIG.",
        )
    with_keywords({}, options)  # what is wrong with them is said now
    return Stores(
        loaded,
        lambda name: _open(loaded.path_of(name), with_keywords(loaded.given("store", name), options), loaded),
    )


def _open(path: Path, options: dict[str, Any], config: Configuration | None) -> SessionStore:
    from .shipping import NodeForwarder, check_not_emptied, open_gate
    from .store import SessionStore, StoreMissingError

    check_not_emptied(path)

    def opened(gate_missing: bool = False) -> SessionStore:
        gate = None if gate_missing else open_gate(path)
        try:
            forwarder = None if config is None else NodeForwarder(path, lambda: _way(path, config))
            return SessionStore.open(path, gate=gate, forwarder=forwarder, **options)
        except BaseException:
            if gate is not None:
                gate.close()
            raise

    try:
        return opened()
    except StoreMissingError:
        if not options.get("create", True):
            raise
    opened(gate_missing=True).close()  # the gate needs a store that is there
    return opened()


def _way(path: Path, config: Configuration) -> Way:
    """Where the other nodes are, as a node in `path` would find them."""
    from .cli.settings import Settings

    return Settings(path, config).way()


async def open_async(
    path: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | Configuration | None = None,
    forward: bool = True,
    **options: Unpack[StoreOptions],
) -> AsyncSessionStore:
    """As `open`, for asyncio: `async with await perdure.open_async(path) as store: ...`."""
    from functools import partial

    from .store import AsyncSessionStore

    opener = partial(open, path, config=config, forward=forward, **options)
    return await AsyncSessionStore.opened_by(opener)
