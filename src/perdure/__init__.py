"""perdure: durable, replicated session storage. This module is the public face.

`perdure.open(path)` is how an application embeds a store; what it raises and returns stands in
`perdure.store`. The rooms are wired to each other here, and loaded when they are first needed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .store import SessionStore

__version__ = "0.1.0"

__all__ = ["__version__", "open"]


def open(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    durability: str = "os",
    interval_ms: int = 1000,
    max_session_size_bytes: int = 65_536,
    write_timeout_ms: int = 5000,
    refresh_window_ms: int | None = None,
    sweep_interval_ms: int = 60_000,
    create: bool = True,
    home_node: str = "",
    max_sessions: int | None = None,
) -> SessionStore:
    """Open the store at `path` with its way to the replicas; make a standalone one if there is none.

    Options as `SessionStore.open`, times in ms. Where the store's cluster has sync_replicas >= 1, each
    write returns once so many replicas have it on disk; a shipper must run then (`perdure ship` or
    `perdure node`), and without one a write ends as Indeterminate after `write_timeout_ms`.

    Raises StorageError, FormatError or UsageError; nothing is changed then.
    """
    from .shipping import open_gate
    from .store import SessionStore, StoreMissingError

    def opened(gate_missing: bool = False) -> SessionStore:
        gate = None if gate_missing else open_gate(path)
        try:
            return SessionStore.open(
                path,
                backend=backend,
                durability=durability,
                interval_ms=interval_ms,
                max_session_size_bytes=max_session_size_bytes,
                write_timeout_ms=write_timeout_ms,
                refresh_window_ms=refresh_window_ms,
                sweep_interval_ms=sweep_interval_ms,
                create=create,
                home_node=home_node,
                max_sessions=max_sessions,
                gate=gate,
            )
        except BaseException:
            if gate is not None:
                gate.close()
            raise

    try:
        return opened()
    except StoreMissingError:
        if not create:
            raise
    opened(gate_missing=True).close()  # the gate needs a store that is there
    return opened()
