"""A store that keeps no log: what it drops, what survives, and when it begins anew."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import migrate, repair
from perdure.store import SessionStore, UsageError
from perdure.store.cache import KEEP_S, drop_folded
from perdure.store.commit import Durability
from perdure.store.cursor import list_segments
from perdure.store.identity import read_identity
from perdure.store.opening import OpenOptions, open_store
from tests.support.machine import stop_background

SEGMENT_BYTES = 4096


def opened(path: Path, boot: str = "one", **more: Any) -> SessionStore:
    options = OpenOptions(
        durability=Durability.CACHE,
        segment_bytes=SEGMENT_BYTES,
        boot_id=lambda: boot,
        sweep_interval_ms=0,
        **more,
    )
    store = SessionStore(open_store(path, options), options, None)
    stop_background(store)
    return store


def segments(path: Path) -> int:
    return len(list_segments(path / "log"))


def age(path: Path) -> None:
    for file in list_segments(path / "log"):
        os.utime(file.path, (0, 0))


def write(store: SessionStore, count: int, name: str = "s") -> None:
    for number in range(count):
        store.put(f"{name}{number:03d}", {"n": number, "pad": "x" * 100}, None)


def drop(store: SessionStore) -> None:
    store._keeper._drop_log(0)


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
def test_what_is_folded_is_dropped_from_the_log_and_stays_in_the_store(tmp_path: Path, backend: str) -> None:
    with opened(tmp_path, backend=backend) as store:
        write(store, 100)
        before = segments(tmp_path)
        assert before > 4
        age(tmp_path)
        drop(store)
        assert segments(tmp_path) == before  # nothing is folded yet
        store.fold()
        drop(store)
        assert segments(tmp_path) == 1
        write(store, 20, "t")
        assert store.count() == 120
    with opened(tmp_path) as again:
        assert again.count() == 120
        assert again["s042"].metadata["n"] == 42
        again.put("more", {})


def test_what_was_just_written_stays_for_those_who_follow(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        write(store, 100)
        store.fold()
        before = segments(tmp_path)
        for file in list_segments(tmp_path / "log"):
            os.utime(file.path)
        assert drop_folded(tmp_path / "log", store._view.state.lsn) == 0
        assert segments(tmp_path) == before
        assert KEEP_S > 1


def test_a_process_that_was_stopped_for_long_goes_on_from_the_state(tmp_path: Path) -> None:
    with opened(tmp_path) as store, opened(tmp_path) as stopped:
        write(store, 5)
        assert stopped.count() == 5
        write(store, 100)
        store.fold()
        age(tmp_path)
        drop(store)
        write(store, 3, "t")
        assert segments(tmp_path) < 3
        assert stopped.get("t002") is not None
        assert stopped.count() == 103
        stopped.put("mine", {})
        assert store.get("mine") is not None
        assert stopped.position() == store.position()


def test_after_a_restart_of_the_machine_the_cache_is_empty_and_works(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        write(store, 100)
        store.fold()
        age(tmp_path)
        drop(store)
    with opened(tmp_path, "two") as store:
        assert store.count() == 0
        assert "started anew" in store._opened.rebuilt
        write(store, 10)
    with opened(tmp_path, "two") as store:
        assert store.count() == 10


def test_a_cache_whose_state_is_gone_begins_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        write(store, 10)
    shutil.rmtree(tmp_path / "state")
    with opened(tmp_path) as store:
        assert store.count() == 0
        assert store.create() in store


def test_a_store_is_what_it_was_made_as(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "kept") as store:
        assert "nothing by the death" in store.stats()["can_be_lost"]
    with pytest.raises(UsageError, match="keeps its log"):
        SessionStore.open(tmp_path / "kept", durability="cache")
    with SessionStore.open(tmp_path / "cache", durability="cache") as store:
        assert store.stats()["durability"] == "cache"
        assert "cache" in store.stats()["can_be_lost"]
        id = store.create(durability="disk")
    assert read_identity(tmp_path / "cache").is_cache
    with pytest.raises(UsageError, match="the store is a cache"):
        SessionStore.open(tmp_path / "cache", durability="disk")
    with SessionStore.open(tmp_path / "cache") as store:
        assert id in store
        assert store.stats()["durability"] == "cache"
    with pytest.raises(UsageError, match="cannot keep its state in 'memory'"):
        SessionStore.open(tmp_path / "other", durability="cache", backend="memory")


def test_no_other_state_is_made_from_a_log_that_is_not_kept(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "cache", durability="cache") as store:
        store.put("a", {}, None)
    for refused in (
        lambda: migrate(tmp_path / "cache", to_backend="memory"),
        lambda: repair(tmp_path / "cache"),
    ):
        with pytest.raises(UsageError, match="keeps no log"):
            refused()
    with SessionStore.open(tmp_path / "cache") as store:
        assert "a" in store


def test_what_can_be_lost_is_said_for_each_durability(tmp_path: Path) -> None:
    said = {"os": "kernel", "interval": "70 ms", "disk": "nothing that was acknowledged"}
    for durability, words in said.items():
        with SessionStore.open(tmp_path / durability, durability=durability, interval_ms=70) as store:
            assert words in store.stats()["can_be_lost"]
