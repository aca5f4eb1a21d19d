"""`perdure stores`: the named stores of the configuration, each with its status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..store import PerdureError, load_config
from . import render
from .exits import Exit, leave, reporting
from .options import AsJson
from .settings import open_store

OPEN_TIMEOUT_MS = 1000
COLUMNS = ("store", "path", "node", "backend", "is_primary", "epoch", "sessions", "problem")
SAID = ("node", "backend", "is_primary", "epoch", "appended_lsn", "folded_lsn", "sessions", "digest")


@reporting
def stores(as_json: AsJson = False) -> None:
    """Show every named store of the configuration: where it is, and how.

    Exit code 1 says that one of them cannot be opened. A store that was never made is none to be opened.

    \b
    Example:
      perdure stores --json
    """
    found = load_config()
    rows = [{"store": name, "path": str(path), **_status(path)} for name, path in found.stores.items()]
    render.rows(rows, as_json=as_json, columns=COLUMNS, key="stores", empty="no named stores")
    leave(Exit.FINDINGS if any(row["problem"] for row in rows) else Exit.FINE)


def _status(path: Path) -> dict[str, Any]:
    try:
        with open_store(path, reads=True, timeout_ms=OPEN_TIMEOUT_MS) as store:
            stats = store.stats()
    except PerdureError as error:
        return dict.fromkeys(SAID) | {"problem": str(error)}
    return {name: stats[name] for name in SAID} | {"problem": ""}
