"""perdure.open: a store with its way to the replicas, made if there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import perdure
from perdure.cli.init import make_node
from perdure.store import Config, ForeignError, NoQuorumError, StorageError, StoreMissingError


def test_a_store_is_made_where_there_is_none(tmp_path: Path) -> None:
    with perdure.open(tmp_path / "store", backend="sqlite") as store:
        id = store.create({"a": 1})
    with perdure.open(tmp_path / "store", create=False) as store:
        session = store.get(id)
        assert session is not None
        assert session.metadata == {"a": 1}
        assert store.stats()["backend"] == "sqlite"


def test_nothing_is_made_when_that_was_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError):
        perdure.open(tmp_path / "store", create=False)
    assert not (tmp_path / "store").exists()


def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    with pytest.raises(ForeignError):
        perdure.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]


def test_another_back_end_than_the_stores_is_refused(tmp_path: Path) -> None:
    perdure.open(tmp_path / "store", backend="lmdb").close()
    with pytest.raises(StorageError, match="lmdb"):
        perdure.open(tmp_path / "store", backend="sqlite")
    perdure.open(tmp_path / "store").close()  # the attempt left nothing behind that is in the way


def test_a_write_that_replicas_must_confirm_is_refused_while_there_are_none(tmp_path: Path) -> None:
    make_node(tmp_path / "n1", "n1", None, "lmdb", Config(voters=("n1", "n2"), sync_replicas=1))
    with perdure.open(tmp_path / "n1", write_timeout_ms=100) as store:
        with pytest.raises(NoQuorumError):
            store.create({"a": 1})
        assert store.count() == 0


def test_importing_the_face_loads_no_room() -> None:
    code = "import sys, perdure; print([name for name in sys.modules if name.startswith('perdure.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_few_need_is_loaded_when_it_is_needed() -> None:
    code = "import sys, perdure.store; print({'asyncio', 'importlib.metadata'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
