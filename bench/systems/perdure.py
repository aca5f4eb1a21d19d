"""perdure as one of the compared systems: its own store, through its public face.

Owns how each back end and durability is opened for the comparison. Settings are the defaults but one: the
store's own sweep is off, because no peer sweeps by itself; `expire_due` is the same sweep, called. A get
slides the session's expiry as it always does (a refresh is written once it moves by a minute).

| class | durability |
|---|---|
| none | `cache`: no log; it survives the death of all processes, too, which is more than the class |
| os | `os`: in the kernel before the answer, log and state |
| second | `interval`: flushed within 1,000 ms |
| disk | `disk`: fdatasync of the log before the answer |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import perdure
from perdure.store import SessionStore

from .embedded import EmbeddedRunning
from .ports import Address, Client, Durability, Fields, Running

_DURABILITIES = {
    Durability.NONE: "cache",
    Durability.OS: "os",
    Durability.SECOND: "interval",
    Durability.DISK: "disk",
}
_SETTINGS = {
    Durability.NONE: "durability cache (keeps more than the class)",
    Durability.OS: "durability os",
    Durability.SECOND: "durability interval, 1,000 ms",
    Durability.DISK: "durability disk",
}
PARTS = {"log": ("log/**/*",), "state": ("state/**/*",), "snapshots": ("snapshots/**/*",)}


class Perdure:
    """One back end. Each client is a store handle; several processes may open the same store."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self.name = f"perdure-{backend}"
        has_cache = backend != "memory"
        self.settings: Mapping[Durability, str] = {
            durability: setting
            for durability, setting in _SETTINGS.items()
            if has_cache or durability is not Durability.NONE
        }

    def why_not(self) -> str:
        return ""

    def version(self) -> str:
        return f"perdure {perdure.__version__}"

    def start(self, folder: Path, durability: Durability) -> Running:
        store = folder / "store"
        address: Address = {
            "path": str(store),
            "backend": self._backend,
            "durability": _DURABILITIES[durability],
        }
        self.connect(address).close()
        return EmbeddedRunning(store, address, PARTS)

    def connect(self, address: Address) -> Client:
        return PerdureClient(
            perdure.open(
                str(address["path"]),
                backend=str(address["backend"]),
                durability=str(address["durability"]),
                sweep_interval_ms=0,
            )
        )


class PerdureClient:
    """A store handle in the words of the comparison. `store` is for threads that share one handle."""

    def __init__(self, store: SessionStore) -> None:
        self.store = store
        self.create = store.create
        self.update = store.patch
        self.touch = store.touch
        self.delete = store.delete
        self.expire_due = store.cleanup_expired
        self._get = store.get

    def get(self, id: str) -> Fields | None:
        session = self._get(id)
        return None if session is None else session.metadata

    def create_many(self, many: list[Fields]) -> list[str]:
        with self.store.batch() as batch:
            return [batch.create(fields) for fields in many]

    def create_due(self, many: list[Fields]) -> list[str]:
        with self.store.batch() as batch:
            return [batch.create(fields, max_lifetime_ms=1) for fields in many]

    def ids(self) -> Iterator[str]:
        return self.store.ids()

    def close(self) -> None:
        self.store.close()
