"""Named stores: one process, several stores, each opened once, each with a log and limits of its own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import perdure
from perdure.store import ForkedError, SessionTooLargeError, StoreClosedError, UsageError

TEXT = """
[stores.web]
path = "web"
max_session_size_bytes = 200

[stores.jobs]
path = "jobs"
backend = "sqlite"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "perdure.toml"
    path.write_text(TEXT)
    return path


def test_each_store_has_a_log_and_limits_of_its_own(config: Path) -> None:
    with perdure.open_stores(config) as stores:
        assert list(stores) == ["web", "jobs"]
        assert "web" in stores
        assert "mail" not in stores
        stores["jobs"].put("a", {"x": "y" * 500})
        with pytest.raises(SessionTooLargeError):
            stores["web"].put("a", {"x": "y" * 500})
        assert [stores[name].count() for name in stores] == [0, 1]
        assert stores["jobs"].stats()["cluster_id"] != stores["web"].stats()["cluster_id"]


def test_a_store_is_opened_at_its_first_use_and_once_for_all_threads(config: Path, tmp_path: Path) -> None:
    with perdure.open_stores(config) as stores:
        assert not (tmp_path / "web").exists()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: stores["web"], range(32)))
        assert len({id(store) for store in found}) == 1
        assert not (tmp_path / "jobs").exists()


def test_the_status_tells_each_store_and_opens_none(config: Path, tmp_path: Path) -> None:
    with perdure.open_stores(config) as stores:
        stores["web"].create({})
        said = stores.status()
        assert (said["web"]["is_open"], said["web"]["sessions"]) == (True, 1)
        assert said["jobs"] == {"path": str(tmp_path / "jobs"), "is_open": False, "problem": ""}


def test_closing_closes_all_of_them(config: Path) -> None:
    stores = perdure.open_stores(config)
    web = stores["web"]
    stores.close()
    stores.close()
    with pytest.raises(StoreClosedError):
        stores["web"]
    with pytest.raises(StoreClosedError):
        web.create({})


def test_a_name_that_is_none_is_a_key_error(config: Path) -> None:
    with perdure.open_stores(config) as stores, pytest.raises(KeyError):
        stores["mail"]


def test_keywords_hold_for_all_of_them(config: Path) -> None:
    with perdure.open_stores(config, durability="disk") as stores:
        assert {stores[name].stats()["durability"] for name in stores} == {"disk"}


def test_without_named_stores_there_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_CONFIG", raising=False)
    with pytest.raises(UsageError, match="no configuration file"):
        perdure.open_stores()
    (tmp_path / "c.toml").write_text("[store]\n")
    with pytest.raises(UsageError, match="names no store"):
        perdure.open_stores(tmp_path / "c.toml")


def test_a_child_after_a_fork_gets_a_clear_error_and_harms_nothing(config: Path) -> None:
    with perdure.open_stores(config) as stores:
        stores["web"].create({})
        child = os.fork()
        if child == 0:
            code = 1
            try:
                try:
                    stores["web"]
                except ForkedError:
                    stores.close()
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert stores["web"].count() == 1
