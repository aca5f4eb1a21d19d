"""Django's sessions as a peer: its database and its file back end, used through SessionStore as a view does.

Owns Django's set-up in a process without a project, and the calls. The database is SQLite as Django advises
for production: WAL, immediate transactions. Django encodes and signs a session itself. A get is a load; an
update or a touch is a load and a save, as in each request: the last one wins, so it is less than the atomic
step that the others take. A batch is one bulk_create; the file back end has none.

Django has one set of databases a process: all handles of one process belong to the address that was connected
to last.

| class | setting |
|---|---|
| os | db: `synchronous=NORMAL`; file: a new file and a rename, without fsync |
| disk | db: `synchronous=FULL` |
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .embedded import EmbeddedRunning
from .ports import LIFETIME_MS, Address, Client, Durability, Fields, Running

_SYNCHRONOUS = {Durability.OS: "NORMAL", Durability.DISK: "FULL"}
_BUSY_S = 30
_SECRET = "of the bench alone: all clients of one run read what the others have signed"
_PREFIX = "sessionid"
_DB_PARTS = {"state": ("django.db",), "log": ("django.db-wal", "django.db-shm")}
_FILE_PARTS = {"state": ("**/*",)}


class DjangoDb:
    """django.contrib.sessions.backends.db on SQLite."""

    name = "django-db"
    settings: Mapping[Durability, str] = {
        Durability.OS: "SQLite, WAL, synchronous=NORMAL",
        Durability.DISK: "SQLite, WAL, synchronous=FULL",
    }

    def why_not(self) -> str:
        return _why_not()

    def version(self) -> str:
        return f"Django {import_module('django').__version__}"

    def start(self, folder: Path, durability: Durability) -> Running:
        address: Address = {"path": str(folder / "django.db"), "synchronous": _SYNCHRONOUS[durability]}
        client = DjangoDbClient(address)
        client.make_table()
        client.close()
        return EmbeddedRunning(folder, address, _DB_PARTS)

    def connect(self, address: Address) -> Client:
        return DjangoDbClient(address)


class DjangoFile:
    """django.contrib.sessions.backends.file."""

    name = "django-file"
    settings: Mapping[Durability, str] = {Durability.OS: "a file a session, no fsync"}

    def why_not(self) -> str:
        return _why_not()

    def version(self) -> str:
        return f"Django {import_module('django').__version__}"

    def start(self, folder: Path, durability: Durability) -> Running:
        return EmbeddedRunning(folder, {"path": str(folder)}, _FILE_PARTS)

    def connect(self, address: Address) -> Client:
        return DjangoFileClient(address)


class _DjangoClient:
    """What both back ends do alike. `store` is the back end's SessionStore class."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def create(self, fields: Fields) -> str:
        return self._created(fields, None)

    def get(self, id: str) -> Fields | None:
        return self._store(id).load() or None

    def update(self, id: str, changes: Fields) -> None:
        session = self._store(id)
        session.update(changes)
        session.save()

    def touch(self, id: str) -> None:
        session = self._store(id)
        session.update({})
        session.save()

    def delete(self, id: str) -> None:
        self._store(id).delete()

    def _created(self, fields: Fields, lifetime_s: int | None) -> str:
        session = self._store()
        session.update(fields)
        if lifetime_s is not None:
            session.set_expiry(lifetime_s)
        session.save()
        return str(session.session_key)


class DjangoDbClient(_DjangoClient):
    def __init__(self, address: Address) -> None:
        _set_up(address)
        backend = import_module("django.contrib.sessions.backends.db")
        super().__init__(backend.SessionStore)
        self._model = import_module("django.contrib.sessions.models").Session
        self._connections = import_module("django.db").connections

    def make_table(self) -> None:
        with self._connections["default"].schema_editor() as editor:
            editor.create_model(self._model)

    def create_many(self, many: list[Fields]) -> list[str]:
        return self._inserted(many, None)

    def create_due(self, many: list[Fields]) -> list[str]:
        return self._inserted(many, -1)

    def expire_due(self) -> int:
        now = import_module("django.utils.timezone").now()
        count, _ = self._model.objects.filter(expire_date__lt=now).delete()
        return int(count)

    def ids(self) -> Iterator[str]:
        return iter(self._model.objects.values_list("session_key", flat=True).iterator())

    def close(self) -> None:
        self._connections.close_all()

    def _inserted(self, many: list[Fields], lifetime_s: int | None) -> list[str]:
        rows = []
        for fields in many:
            session = self._store()
            session.update(fields)
            if lifetime_s is not None:
                session.set_expiry(lifetime_s)
            rows.append(session.create_model_instance(session._session))
        self._model.objects.bulk_create(rows)
        return [str(row.session_key) for row in rows]


class DjangoFileClient(_DjangoClient):
    def __init__(self, address: Address) -> None:
        _set_up({"path": ":memory:", "synchronous": "NORMAL"})
        self._path = str(address["path"])
        backend = import_module("django.contrib.sessions.backends.file")
        super().__init__(type("SessionStore", (backend.SessionStore,), {"_storage_path": self._path}))

    def create_many(self, many: list[Fields]) -> list[str]:
        return [self._created(fields, None) for fields in many]

    def create_due(self, many: list[Fields]) -> list[str]:
        return [self._created(fields, -1) for fields in many]

    def expire_due(self) -> int:
        before = len(os.listdir(self._path))
        self._store.clear_expired()
        return before - len(os.listdir(self._path))

    def ids(self) -> Iterator[str]:
        return (name.removeprefix(_PREFIX) for name in os.listdir(self._path))

    def close(self) -> None:
        pass


def _why_not() -> str:
    return "" if find_spec("django") else "the Python package Django is not installed"


def _set_up(address: Address) -> None:
    """Configure Django in this process, or give it another database."""
    settings = import_module("django.conf").settings
    pragmas = ("journal_mode=WAL", f"synchronous={address['synchronous']}", "cache_size=-65536")
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": address["path"],
        "OPTIONS": {
            "timeout": _BUSY_S,
            "transaction_mode": "IMMEDIATE",
            "init_command": ";".join(f"PRAGMA {pragma}" for pragma in pragmas),
        },
    }
    if not settings.configured:
        settings.configure(
            INSTALLED_APPS=["django.contrib.sessions"],
            SECRET_KEY=_SECRET,
            SESSION_COOKIE_AGE=LIFETIME_MS // 1000,
            SESSION_COOKIE_NAME=_PREFIX,
            USE_TZ=True,
            DATABASES={"default": database},
        )
        import_module("django").setup()
        return
    connections = import_module("django.db").connections
    if connections.settings["default"]["NAME"] != address["path"]:
        connections.close_all()
        connections.settings["default"].update(database)
        if hasattr(connections._connections, "default"):
            del connections["default"]
